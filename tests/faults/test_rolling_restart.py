"""The gateways of a region, replaced one after the other under live streams, with the client that the apps use."""

import asyncio
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tenants.db import DatabaseUrls
from tests.faults.balancer import Balancer, balancer
from tests.faults.conftest import prepared
from tests.faults.resuming import apps_client, text_of
from tests.faults.test_resuming import PATIENT
from tests.faults.upstream import Answer
from tests.gateways import Region, RunningGateway, eventually

LIVE: Final = int(os.environ.get("KUMIAI_LIVE_STREAMS", "30"))  # noqa: TID251 - a switch of the test run itself
GATEWAYS: Final = 3 if LIVE >= 200 else 2
# Callers are sent away long before their answers end; those are finished all the same.
STOPPING: Final = {
    "KUMIAI_GATEWAY_UNREADY_S": "3",
    "KUMIAI_GATEWAY_DRAIN_S": "0.3",
    "KUMIAI_GATEWAY_LINGER_S": "60",
}


async def replace(region: Region, before: Balancer, old: RunningGateway, stack: ExitStack) -> None:
    """One step: a new gateway is let in, the old one is told to stop and gets nothing new when it says not ready."""
    before.ins.append((await asyncio.to_thread(stack.enter_context, region.gateway())).url)
    old.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(eventually, lambda: old.health() != 200, within_s=60)
    before.ins.remove(old.url)
    assert await asyncio.to_thread(old.process.wait, 120) == 0


async def test_a_rolling_restart_breaks_no_stream(
    migrated_postgres: DatabaseUrls, tmp_path: Path, record_property: Any
) -> None:
    with (
        prepared(tmp_path, migrated_postgres, **PATIENT | STOPPING) as (region, town, upstream, _),
        ExitStack() as stack,
        region.gateways(GATEWAYS) as gateways,
        balancer([g.url for g in gateways]) as before,
    ):
        told: dict[int, str] = {}
        is_over = asyncio.Event()
        async with apps_client(before.url) as (client, connections):

            async def ask_and_ask_again(seed: int) -> None:
                while not is_over.is_set():
                    told[seed], _ = await text_of(client, town, "slow", seed)
                    seed += LIVE

            callers = [asyncio.ensure_future(ask_and_ask_again(seed)) for seed in range(LIVE)]
            await asyncio.to_thread(eventually, lambda: upstream.busy >= LIVE * 3 // 4, within_s=120)
            for old in gateways:
                await replace(region, before, old, stack)
                # None has ended; if one has, this tells how.
                assert [one.result() for one in callers if one.done()] == []
            is_over.set()
            await asyncio.gather(*callers)
        assert connections.resumed >= GATEWAYS
        assert told == {seed: Answer.of(seed).text for seed in told}
        # Each was made once, to its end, and paid for as it is.
        calls = eventually(lambda: region.settled(town, len(told)), within_s=60)
        assert len(calls) == len(told)
        assert {(call.state, call.problem, call.usage_source) for call in calls} == {("settled", "", "provider")}
        assert region.budget(town).held_uyen == 0
        record_property(
            "end",
            f"{LIVE} live streams, {GATEWAYS} gateways replaced: {len(told)} answers, {connections.resumed} times taken "
            "up at another gateway, 0 broken",
        )
