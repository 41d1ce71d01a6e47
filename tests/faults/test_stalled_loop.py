"""The gateway's event loop stands still for a while: calls end as promised, and it is told how long it stood."""

import asyncio
import time

import pytest

from observability import metrics
from tests.faults.asking import ask
from tests.faults.conftest import DEADLINES, Installation
from tests.faults.rounds import SEEDS
from tests.faults.test_upstream_faults import check_bill, settled
from tests.faults.upstream import Answer
from tests.gateways import eventually

# Longer than the deadlines of these tests.
STALL_S = float(DEADLINES["KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S"]) + 1.0


@pytest.mark.parametrize("fault", ["tenfold_latency", "slow"])
async def test_calls_end_although_the_loop_stood_still(installation: Installation, fault: str) -> None:
    before = metrics.EVENT_LOOP_LAG_SECONDS._sum.get()
    reached = installation.upstream.seen["first"]
    asking = [asyncio.ensure_future(ask(installation, "faulty", fault, seed, stream=True)) for seed in SEEDS]
    await asyncio.to_thread(eventually, lambda: installation.upstream.seen["first"] >= reached + len(SEEDS))
    installation.gateway.loop.call_soon_threadsafe(time.sleep, STALL_S)  # type: ignore[union-attr]  # one in a thread
    outcomes = [await one for one in asking]
    for outcome, call, attempts in settled(installation, outcomes):
        assert len(attempts) == 1
        if outcome.code:
            # What came while nobody looked may be found too late; what was heard of it is what is paid for.
            assert (outcome.code, call.problem) == ("upstream_timeout", "upstream_timeout")
            assert Answer.of(outcome.seed).text.startswith(outcome.text)
            check_bill(outcome, call, attempts, "bytes" if outcome.status == 200 else "hold")
        else:
            assert outcome.text == Answer.of(outcome.seed).text
            check_bill(outcome, call, attempts, "usage")
    # The loop is asked twice a second, and sees at least what was left of the stall when it was asked.
    await asyncio.to_thread(eventually, lambda: metrics.EVENT_LOOP_LAG_SECONDS._sum.get() - before >= STALL_S - 0.6)
    # Whoever comes afterwards meets nothing of it.
    after = await ask(installation, "faulty", "nothing", 0, stream=True)
    [(outcome, call, attempts)] = settled(installation, [after])
    check_bill(outcome, call, attempts, "usage")
