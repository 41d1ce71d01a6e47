#!/usr/bin/env bash
# The whole isolation trial; writes docs/evidence/isolation.md. Needs a clean work tree, or the commit would not be what ran.
# MUTATIONS makes it shorter.
set -euo pipefail
cd "$(dirname "$0")/../.."
covers=(apps gateway kumiai/isolation tenants)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
.venv/bin/kumiai isolation-report --to "$results" --mutations "${MUTATIONS:-100000}"
{
  printf '# Isolation between towns\n\nWritten by `make evidence-isolation`, which runs `kumiai isolation-report` on an installation of its own. Everybody who should not get there\n'
  cat <<'WORDS'
asks every address for another town's things. Every answer is searched for every word the town wrote. The status must be the one that refuses where an
id stands in the path, where the address belongs to an office of another role, and for who is not known; with another town's id in a field or a header
the answer may be about one's own things. The town's rows in all tables are compared after each address that changes something, and at each person's end.

WORDS
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores\n' "$(git rev-parse HEAD)" "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)"
  printf -- '- covers: %s\n- state of these paths: %s\n' "${covers[*]}" "$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)"
  .venv/bin/python -m tests.security.report "$results/isolation-report.json"
} > docs/evidence/isolation.md
