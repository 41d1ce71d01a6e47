#!/usr/bin/env bash
# Puts the peers of the bench into a cache folder outside the project: LiteLLM's proxy in an environment of its own
# (its extra brings a proprietary package, so it never enters ours), TensorZero's gateway, Portkey's gateway.
set -euo pipefail
cache=${KUMIAI_BENCH_CACHE:-$HOME/.cache/kumiai/bench}
uv=$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin/uv
mkdir -p "$cache"
if [ ! -x "$cache/litellm/bin/litellm" ]; then
  "$uv" venv -q --python python3 "$cache/litellm"
  "$uv" pip install -q --python "$cache/litellm/bin/python" 'litellm[proxy]==1.106.2'
fi
if [ ! -x "$cache/tensorzero/bin/gateway" ] && [ ! -f "$cache/tensorzero/missing" ]; then
  "$uv" venv -q --python python3 "$cache/tensorzero"
  "$uv" pip install -q --python "$cache/tensorzero/bin/python" tensorzero-gateway || touch "$cache/tensorzero/missing"
fi
if [ ! -d "$cache/portkey/node_modules/@portkey-ai/gateway" ]; then
  mkdir -p "$cache/portkey"
  npm install --silent --no-audit --no-fund --prefix "$cache/portkey" \
    @portkey-ai/gateway hono@4.9.7 @hono/node-server@1.3.3
fi
