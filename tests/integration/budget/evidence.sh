#!/usr/bin/env bash
# A budget for fifty calls under a thousand at once; writes docs/evidence/budget.md. Needs a clean work tree, or the commit would not be what
# ran. CALLS makes it shorter.
set -euo pipefail
cd "$(dirname "$0")/../../.."
covers=(gateway/server tenants/quota tests/integration/budget)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
results=$(mktemp --suffix .xml)
trap 'rm -f "$results"' EXIT
calls=${CALLS:-1000}
KUMIAI_PARALLEL_CALLS=$calls .venv/bin/pytest tests/integration/budget/test_exactly_fifty.py -n 0 --junit-xml "$results" -o junit_family=xunit1
{
  printf '# A budget for fifty calls, and many more at once\n\nWritten by `make evidence-budget`. Gateways that have just started (one on SQLite, three on PostgreSQL, directly and\n'
  printf 'through PgBouncer) get all calls at once, each at the shortest answer there is; the model server answers only when all are decided.\n\n'
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores\n' "$(git rev-parse HEAD)" "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)"
  printf -- '- covers: %s\n- state of these paths: %s\n- calls at once: %s\n\n' \
    "${covers[*]}" "$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)" "$calls"
  .venv/bin/python -m tests.faults.report "$results"
} > docs/evidence/budget.md
