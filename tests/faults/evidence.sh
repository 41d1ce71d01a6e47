#!/usr/bin/env bash
# Every fault, wherever its test is, with twenty seeds or twenty times; writes docs/evidence/faults.md. Needs a clean work tree, or the
# commit would not be what ran. SEEDS and LIVE (streams under a rolling restart) make it shorter; OUT=file writes elsewhere.
set -euo pipefail
cd "$(dirname "$0")/../.."
covers=(gateway/server tenants/quota tests/faults tests/integration/budget tests/integration/ledger)
tests=(
  tests/faults
  tests/integration/budget/test_crashes.py
  tests/integration/gateway/test_probing.py
  tests/integration/gateway/test_rates.py
  tests/integration/ledger/test_copies.py
  tests/integration/ledger/test_killed_writers.py
  tests/integration/ledger/test_late_truth.py
  tests/integration/ledger/test_unknown_commits.py
  tests/integration/ledger/test_windows.py
  tests/integration/push/test_push.py
  tests/security/test_sessions.py::test_an_issuer_that_goes_away_ends_no_session_for_a_quarter_of_an_hour
  tests/security/test_suspended_everywhere.py
  tests/security/test_verifier.py::test_while_the_issuer_is_away_known_keys_go_on_and_nothing_else
  tests/unit/gateway/test_hedging.py
  tests/unit/tenants/test_spool.py
)
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean" >&2; exit 1; }
results=$(mktemp --suffix .xml)
trap 'rm -f "$results"' EXIT
seeds=${SEEDS:-20}
KUMIAI_REQUIRE_REAL=1 KUMIAI_FAULT_SEEDS=$seeds KUMIAI_FAULT_ROUNDS=$seeds KUMIAI_LIVE_STREAMS=${LIVE:-200} \
  .venv/bin/pytest -p tests.faults.again "${tests[@]}" -n "${WORKERS:-2}" --junit-xml "$results" -o junit_family=xunit1
{
  printf '# Calls under faults\n\nWritten by `make evidence-faults`. A whole gateway on real sockets and a real ledger, before model servers that misbehave on demand\n'
  printf '(`tests/faults/upstream.py`), with deadlines of seconds; databases, gateways, portals, Valkey and identity providers that are killed, frozen,\n'
  printf 'full or away. Each line passed every time: every call ended in an answer or in a typed error, its row and its attempts cost what is right\n'
  printf "(usage: the server's own figures; bytes: at most a token a byte of what was read; hold: nobody can know; nothing and void: nothing), nothing\n"
  printf 'left the zones allowed, and no hold, slot, place, call, task or connection stayed behind.\n\n'
  printf -- '- commit: %s\n- day: %s\n- machine: %s, %s cores\n' "$(git rev-parse HEAD)" "$(date -u +%Y-%m-%d)" "$(uname -sm)" "$(nproc)"
  printf -- '- covers: %s\n- state of these paths: %s\n- seeds of each fault of a model server, and rounds of every other: %s\n\n' \
    "${covers[*]}" "$(git ls-files -s "${covers[@]}" | sha256sum | cut -c1-16)" "$seeds"
  .venv/bin/python -m tests.faults.report "$results"
} > "${OUT:-docs/evidence/faults.md}"
