"""A short run of `loadtests.ledger`: writers, and PostgreSQL itself, killed at random points, and the books checked.

The full size is `make evidence-ledger`.
"""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("database", "kills", "server_kills"), [("sqlite", 12, 0), ("postgresql", 12, 2)], ids=["sqlite", "postgresql"]
)
def test_nothing_is_overspent_lost_doubled_or_stuck(database: str, kills: int, server_kills: int) -> None:
    words = ["--database", database, "--operations", "5000", "--kills", str(kills), "--server-kills", str(server_kills)]
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.ledger", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert found["kills"] >= kills
    assert found["server_kills"] == server_kills
    assert found["operations"] >= 5000
    # Kills left holds to the sweeper, and some people ran out of money: both were there to go wrong.
    assert found["states"]["suspense"] > 0
    assert found["refused"] > 0
    # Slots were taken, calls were on two servers, and slices moved between towns, likewise.
    assert min(found["crowded"], found["copies"], found["slices"]) > 0
