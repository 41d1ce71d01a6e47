#!/usr/bin/env bash
# Every fault with twenty seeds; writes docs/evidence/faults.md. Needs a clean work tree, or the commit would not be what ran.
# SEEDS and LIVE (streams under a rolling restart) make it shorter.
set -euo pipefail
cd "$(dirname "$0")/../.."
covers=(gateway/server tenants/quota tests/faults)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
results=$(mktemp --suffix .xml)
trap 'rm -f "$results"' EXIT
seeds=${SEEDS:-20}
KUMIAI_FAULT_SEEDS=$seeds KUMIAI_LIVE_STREAMS=${LIVE:-200} .venv/bin/pytest tests/faults -n "${WORKERS:-2}" --junit-xml "$results" -o junit_family=xunit1
{
  printf '# Streams under faults\n\nWritten by `make evidence-faults`. A whole gateway on real sockets and a real ledger, before model servers that misbehave on demand\n'
  printf '(`tests/faults/upstream.py`), with deadlines of seconds. Each line passed: every call ended in an answer or in a typed error, its row and its\n'
  printf "attempts cost what is right (usage: the server's own figures; bytes: at most a token a byte of what was read; hold: nobody can know; nothing and\n"
  printf 'void: nothing), nothing left the zones allowed, and no hold, call, task or connection stayed behind.\n\n'
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores\n' "$(git rev-parse HEAD)" "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)"
  printf -- '- covers: %s\n- state of these paths: %s\n- seeds of each fault: %s\n\n' \
    "${covers[*]}" "$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)" "$seeds"
  .venv/bin/python -m tests.faults.report "$results"
} > docs/evidence/faults.md
