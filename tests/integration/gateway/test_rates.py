"""Rates counted in one process, and by several through a real Valkey; and when that is away."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.server.authentication import Caller
from gateway.server.rates import NOTHING, RateExceeded, Rates, Taken
from kumiai.local.valkey import Valkey
from tenants.context import new_id
from tenants.policy import Policy, Rate

POLICY = Policy(rates={"town": Rate(requests=60), "person": Rate(tokens=6_000), "model:large": Rate(requests=1)})


def caller() -> Caller:
    return cast(
        "Caller", SimpleNamespace(tenant_id=new_id(), person_id=new_id(), api_key_id=None, app="chat", section_id=None)
    )


@pytest.fixture(params=["alone", "valkey"])
async def two(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Rates, Rates]]:
    """Two gateways' rates; alone, a process is both."""
    if request.param == "alone":
        rates = Rates()
        yield rates, rates
        await rates.aclose()
        return
    server: Valkey = request.getfixturevalue("valkey_server")
    both = Rates(server.url), Rates(server.url)
    yield both
    for rates in both:
        await rates.aclose()


async def outcomes(*calls: Any) -> tuple[list[Taken], list[RateExceeded]]:
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        assert isinstance(answer, (Taken, RateExceeded)), answer
    return [a for a in answers if isinstance(a, Taken)], [a for a in answers if isinstance(a, RateExceeded)]


async def test_two_processes_count_together(two: tuple[Rates, Rates]) -> None:
    asking = caller()
    taken, refused = await outcomes(*(two[i % 2].take(POLICY, asking, "standard", 10) for i in range(100)))
    # A minute's worth at once, and what came back while it lasted.
    assert 60 <= len(taken) <= 65
    assert {(r.extensions["node"], r.extensions["unit"]) for r in refused} == {("town", "requests")}
    assert {r.retry_after_s for r in refused} <= {1, 2}
    # Another town is counted by itself.
    assert (await two[0].take(POLICY, caller(), "standard", 10)).buckets


async def test_what_one_limit_refuses_is_taken_from_none(two: tuple[Rates, Rates]) -> None:
    asking = caller()
    await two[0].take(POLICY, asking, "standard", 6_000)
    for _ in range(200):
        with pytest.raises(RateExceeded) as refused:
            await two[1].take(POLICY, asking, "standard", 3_000)
        assert refused.value.extensions["node"] == "person"
    # The town's requests were not used up by them.
    someone_else = cast("Caller", SimpleNamespace(**{**vars(asking), "person_id": new_id()}))
    taken = await two[0].take(POLICY, someone_else, "standard", 10)
    assert b'"town-requests";r=5' in dict(taken.headers)[b"ratelimit"]


async def test_unused_tokens_are_another_process_s_to_take(two: tuple[Rates, Rates]) -> None:
    asking = caller()
    taken = await two[0].take(POLICY, asking, "standard", 6_000)
    with pytest.raises(RateExceeded):
        await two[1].take(POLICY, asking, "standard", 5_000)
    two[0].give_back(taken, 500)

    async def is_there() -> bool:
        try:
            await two[1].take(POLICY, asking, "standard", 5_000)
        except RateExceeded:
            return False
        return True

    async with asyncio.timeout(10):
        while not await is_there():
            await asyncio.sleep(0.02)


async def test_a_model_has_its_own_and_no_rate_is_no_limit(two: tuple[Rates, Rates]) -> None:
    asking = caller()
    taken, refused = await outcomes(*(two[0].take(POLICY, asking, "large", 1) for _ in range(3)))
    assert (len(taken), len(refused)) == (1, 2)
    assert refused[0].extensions["node"] == "model"
    assert 55 <= (refused[0].retry_after_s or 0) <= 60
    assert await two[0].take(Policy(), asking, "large", 1) is NOTHING


async def test_what_was_taken_comes_back_evenly() -> None:
    now = 1_000_000.0
    rates = Rates(clock=lambda: now)
    asking = caller()
    for _ in range(60):
        await rates.take(POLICY, asking, "standard", 1)
    for _ in range(3):
        with pytest.raises(RateExceeded):
            await rates.take(POLICY, asking, "standard", 1)
        now += 1
        await rates.take(POLICY, asking, "standard", 1)
    now += 3600
    taken, refused = await outcomes(*(rates.take(POLICY, asking, "standard", 1) for _ in range(70)))
    assert (len(taken), len(refused)) == (60, 10)


async def test_without_its_valkey_a_process_counts_alone() -> None:
    rates = Rates("valkey://127.0.0.1:9/0")
    asking = caller()
    taken, refused = await outcomes(*(rates.take(POLICY, asking, "large", 1) for _ in range(3)))
    assert (len(taken), len(refused)) == (1, 2)
    rates.give_back(taken[0], 0)
    await rates.aclose()
