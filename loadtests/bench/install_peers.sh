#!/usr/bin/env bash
# Puts the peers of the bench into a cache folder outside the project: LiteLLM's proxy in an environment of its own
# (its extra brings a proprietary package, so it never enters ours), TensorZero's gateway, Portkey's gateway.
set -euo pipefail
cache=${KUMIAI_BENCH_CACHE:-$HOME/.cache/kumiai/bench}
bin=$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin
uv=$bin/uv
# By the interpreter that runs us: one built with optimisations is a third faster than one that was not.
python=$("$bin/python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
mkdir -p "$cache"
if [ ! -x "$cache/litellm/bin/litellm" ] || [ "$(realpath "$cache/litellm/bin/python")" != "$python" ]; then
  "$uv" venv -q --clear --python "$python" "$cache/litellm"
  "$uv" pip install -q --python "$cache/litellm/bin/python" 'litellm[proxy]==1.106.2'
fi
if [ ! -x "$cache/tensorzero/bin/python" ]; then
  "$uv" venv -q --python "$python" "$cache/tensorzero"
  "$uv" pip install -q --python "$cache/tensorzero/bin/python" 'tensorzero==2026.6.0'
fi
if [ ! -d "$cache/portkey/node_modules/@portkey-ai/gateway" ]; then
  mkdir -p "$cache/portkey"
  # With a newer adapter Portkey cannot stream: it appends to the headers of the upstream's own answer.
  cat > "$cache/portkey/package.json" <<'JSON'
{"private": true, "dependencies": {"@portkey-ai/gateway": "1.15.2", "hono": "4.9.7", "@hono/node-server": "1.3.3"},
 "overrides": {"hono": "4.9.7", "@hono/node-server": "1.3.3"}}
JSON
  npm install --silent --no-audit --no-fund --legacy-peer-deps --prefix "$cache/portkey"
fi
