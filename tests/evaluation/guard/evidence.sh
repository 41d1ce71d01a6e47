#!/usr/bin/env bash
# What the guard finds, misses and takes; writes docs/evidence/guard.md. Needs a clean work tree, or the commit would not be what ran.
set -euo pipefail
cd "$(dirname "$0")/../../.."
covers=(gateway/guard gateway/reading/pictures.py gateway/reading/speech.py tests/evaluation)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
commit=$(git rev-parse HEAD)
state=$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)
results=$(mktemp)
trap 'rm -f "$results"' EXIT
.venv/bin/python -m tests.evaluation.guard.evidence > "$results" 2> /dev/null
{
  printf '# What the guard finds\n\nWritten by `make evidence-guard` (`python -m tests.evaluation.guard.evidence`); cards on photographs need `make install-pictures`.\n\n'
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores, load %.0f at the end\n' "$commit" "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)" "$(cut -d' ' -f1 /proc/loadavg)"
  printf -- '- covers: %s\n- state of these paths: %s\n\n' "${covers[*]}" "$state"
  cat "$results"
} > docs/evidence/guard.md
