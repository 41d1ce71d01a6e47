#!/usr/bin/env bash
# A million random quota operations and a thousand kills on each database; writes docs/evidence/ledger.md.
# Needs a clean work tree, or the commit would not be what ran. OPERATIONS, KILLS and SERVER_KILLS make it shorter.
set -euo pipefail
cd "$(dirname "$0")/../.."
covers=(tenants/quota loadtests/ledger)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
output=$(mktemp)
trap 'rm -f "$output"' EXIT
operations=${OPERATIONS:-1000000} kills=${KILLS:-1000} server_kills=${SERVER_KILLS:-50}
run() {
  printf '`python -m loadtests.ledger %s`\n\n```\n' "$*"
  # Warnings of writers whose server has just been killed say nothing here.
  .venv/bin/python -m loadtests.ledger "$@" 2>/dev/null | sed -n '/^{$/,/^}$/p'
  printf '```\n\n'
}
{
  run --database sqlite --operations "$operations" --kills "$kills" --seed 20261128
  run --database postgresql --operations "$operations" --kills "$kills" --server-kills "$server_kills" --seed 20261129
} | tee "$output"
mkdir -p docs/evidence
{
  printf '# The ledger under kills\n\nWritten by `make evidence-ledger`. Several processes reserve, settle, void and try again at random and are\n'
  printf 'killed (SIGKILL) at random points; on PostgreSQL the server is killed, too. `overspent`, `lost`, `doubled` and `stuck` must be 0:\n'
  printf 'what a process was told must stand in the books, every account has posted what its calls cost, and nothing is held.\nSome towns have too few slots, some calls are sent twice, and a process that is killed likewise moves slices of the pool between towns:\nwhat towns may spend must be what the journal of their grants says, and never more than the pool.\n\n'
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores\n' "$(git rev-parse HEAD)" "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)"
  printf -- '- covers: %s\n- state of these paths: %s\n\n' "${covers[*]}" "$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)"
  cat "$output"
} > docs/evidence/ledger.md
