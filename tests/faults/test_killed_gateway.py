"""SIGKILL at every phase of a call: what may have been billed is held until its cost is known, and never lost."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from tenants.db import DatabaseUrls
from tests.faults.conftest import Installation, prepared, slots_taken
from tests.faults.resuming import asking
from tests.faults.rounds import ROUNDS
from tests.faults.test_resuming import PATIENT
from tests.faults.test_upstream_faults import request_bytes
from tests.faults.upstream import Answer
from tests.gateways import eventually

LEASE_S = 1
# What the model does when the gateway is killed.
WAITING = ("stall_before_headers", "stall_before_first_chunk", "stall_mid_stream")


@pytest.fixture(scope="module")
def before_any(modules_postgres: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Without a gateway yet."""
    home = tmp_path_factory.mktemp("killed")
    lease = {"KUMIAI_GATEWAY_HOLD_LEASE_S": str(LEASE_S)}
    with prepared(home, modules_postgres, **PATIENT | lease) as (region, town, upstream, secure):
        yield Installation(region, None, town, upstream, secure)  # type: ignore[arg-type]  # each round has its own


@pytest.mark.parametrize("round_", ROUNDS, ids="round{}".format)
async def test_a_kill_at_any_phase_loses_no_money(before_any: Installation, round_: int) -> None:
    region, town, upstream = before_any.region, before_any.town, before_any.upstream
    known = {c.id for c in region.calls(town)}
    with region.gateway() as gateway:
        address = httpx.URL(gateway.url)
        # Half a request: nothing of it may leave a trace.
        reader, half = await asyncio.open_connection(address.host, address.port)
        made = Installation(region, gateway, town, upstream, before_any.secure)
        half.write(request_bytes(made, "nothing", round_)[:-20])
        await half.drain()
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            begun = upstream.busy

            async def call(fault: str) -> None:
                with contextlib.suppress(httpx.HTTPError):
                    await client.post(
                        f"{gateway.url}/v1/chat/completions",
                        json=asking(fault, round_),
                        headers={"authorization": f"Bearer {town.key}", "kumiai-data-class": "2"},
                    )

            under_way = [asyncio.ensure_future(call(fault)) for fault in WAITING]
            await asyncio.to_thread(eventually, lambda: upstream.busy == begun + len(WAITING), within_s=30)
            # One whose last word has come, so that its settlement may be on its way or not.
            done = await client.post(
                f"{gateway.url}/v1/chat/completions",
                json=asking("nothing", round_),
                headers={"authorization": f"Bearer {town.key}", "kumiai-data-class": "2"},
            )
            gateway.kill()
            await asyncio.wait(under_way)
        half.close()
        assert await reader.read() == b""
    assert done.text.endswith("data: [DONE]\n\n")
    await asyncio.to_thread(eventually, lambda: upstream.busy == begun, within_s=30)
    # The lease of the dead runs out before anybody looks.
    time.sleep(2 * LEASE_S)

    def closed() -> bool:
        return all(c.state != "held" for c in region.calls(town))

    with region.worker():
        await asyncio.to_thread(eventually, closed, within_s=60)
    calls = {c.id: c for c in region.calls(town) if c.id not in known}
    assert len(calls) == len(WAITING) + 1
    last = calls.pop(UUID(done.headers["kumiai-call-id"]))
    answer = Answer.of(round_)
    paid = (answer.prompt_tokens + answer.completion_tokens) * 1_000_000
    assert (last.state, last.cost_uyen) in (("settled", paid), ("suspense", last.hold_uyen))
    for one in calls.values():
        assert (one.state, one.problem, one.cost_uyen) == ("suspense", "owner_gone", one.hold_uyen)
    budget = region.budget(town)
    assert budget.held_uyen == 0
    assert slots_taken(region, town) == 0
    assert budget.posted_uyen == sum(a.cost_uyen for a in region.attempts(town))
    assert upstream.seen["abroad"] == 0
