#!/usr/bin/env bash
# Sixty towns, one to four gateway processes; writes docs/evidence/region.md. Needs a clean work tree, or the commit would not be what ran.
set -euo pipefail
cd "$(dirname "$0")/../.."
covers=(gateway tenants/quota loadtests/region)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
output=$(mktemp)
trap 'rm -f "$output"' EXIT
.venv/bin/python -m loadtests.region --seconds "${SECONDS_EACH:-8}" | tee "$output"
{
  printf '# A region of many towns\n\nWritten by `make evidence-region`: calls/s over gateway processes on one PostgreSQL (fsync on), load and model server on the same cores.\n'
  printf 'Where commits wait (`commit_delay`), a process idles between them, so that rows which\nseveral processes lock show as less growth: those of towns where all serve all, only those of the whole region where each has towns of its own.\n\n'
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores\n' "$(git rev-parse HEAD)" "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)"
  printf -- '- covers: %s\n- state of these paths: %s\n- ' "${covers[*]}" "$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)"
  cat "$output"
} > docs/evidence/region.md
