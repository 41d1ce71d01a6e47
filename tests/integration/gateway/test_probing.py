"""Who probes for all gateways, on a clock of the test's own and on both databases."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.server.failover import UNPROBED_S, FailoverTerms, Fleet, Standing
from gateway.server.probing import GONE_AFTER_S, Prober
from gateway.server.providers.base import (
    Deployment,
    Provider,
    UpstreamRefused,
    UpstreamUnavailable,
)
from tenants.db import Database, DatabaseUrls
from tenants.quota.terms import FrozenPrice, UnknownPrice
from tests.deployments import a_deployment

DOWN = UpstreamUnavailable(dispatched=False)
TERMS = FailoverTerms(breaker_failures=1, breaker_open_s=5.0)


@dataclass
class Server:
    """A model server that is asked for nothing but probes."""

    down: Exception | None = DOWN
    asked: list[str] = field(default_factory=list)

    async def list_models(self, deployment: Deployment) -> list[str]:
        self.asked.append("models")
        if self.down is not None:
            raise self.down
        return ["m"]

    async def send(self, request: Any) -> Any:
        self.asked.append(str(request.body))
        if self.down is not None:
            raise self.down

        async def aclose() -> None:
            return

        return SimpleNamespace(aclose=aclose)


@dataclass
class One:
    """One gateway's part of it."""

    prober: Prober
    standing: Standing
    deployment: Deployment

    async def look(self) -> None:
        await self.prober.look(self.deployment, self.standing)


@dataclass
class Region:
    db: Database
    now: float = 1000.0
    server: Server = field(default_factory=Server)
    price_u: int | None = 0

    def gateway(self, name: str, probe: str = "models") -> One:
        """With an open breaker."""
        made = cast("Any", SimpleNamespace)
        deployment = a_deployment(probe=probe)
        fleet = Fleet(TERMS, lambda: self.now, probed={deployment.id})

        def freeze(_id: str, _at: object) -> FrozenPrice:
            if self.price_u is None:
                raise UnknownPrice
            return FrozenPrice("p", "", 1_000_000, self.price_u, self.price_u)

        prober = Prober(
            self.db, fleet, {"openai_wire": cast("Provider", self.server)},
            made(current=made(prices=made(freeze=freeze))), [deployment], owner=name,
            clock=lambda: self.now, rng=Random(1),
        )  # fmt: skip
        standing = fleet.standing(deployment.id)
        standing.failed(DOWN)
        assert not standing.may_be_asked()
        return One(prober, standing, deployment)


@pytest.fixture(params=["sqlite", "postgresql"])
async def region(request: pytest.FixtureRequest) -> AsyncIterator[Region]:
    urls: DatabaseUrls = request.getfixturevalue(
        f"migrated_{'postgres' if request.param == 'postgresql' else 'sqlite'}"
    )
    db = Database(urls)
    yield Region(db)
    await db.close()


async def test_one_asks_and_all_hear_the_answer(region: Region) -> None:
    first, second = region.gateway("first"), region.gateway("second")
    for one in (first, second):
        await one.look()
    assert region.server.asked == []
    region.now += TERMS.breaker_open_s
    for one in (first, second):
        await one.look()
    assert region.server.asked == ["models"]
    # It failed: nobody asks before twice the time is over.
    region.now += TERMS.breaker_open_s
    for one in (first, second):
        await one.look()
        assert not one.standing.may_be_asked()
    assert region.server.asked == ["models"]
    region.server.down = None
    region.now += TERMS.breaker_open_s
    await first.look()
    assert first.standing.may_be_asked()
    assert not second.standing.may_be_asked()
    await second.look()
    assert second.standing.may_be_asked()
    assert region.server.asked == ["models"] * 2


async def test_an_answer_of_before_closes_nothing_now(region: Region) -> None:
    first = region.gateway("first")
    region.server.down = None
    region.now += TERMS.breaker_open_s
    await first.look()
    assert first.standing.may_be_asked()
    second = region.gateway("second")
    await second.look()
    assert second.standing.is_open


async def test_an_answer_closes_nothing_that_opened_after_it(region: Region) -> None:
    first, second = region.gateway("first"), region.gateway("second")
    for one in (first, second):
        await one.look()
    region.server.down = None
    region.now += TERMS.breaker_open_s
    await first.look()
    await second.look()
    for one in (first, second):
        assert one.standing.may_be_asked()
        one.standing.failed(DOWN)
        await one.look()
        assert one.standing.is_open


async def test_another_takes_over_from_one_that_has_gone(region: Region) -> None:
    first, second = region.gateway("first"), region.gateway("second")
    region.now += TERMS.breaker_open_s
    for one in (first, second):
        await one.look()
    region.server.asked.clear()
    region.now += GONE_AFTER_S - 1
    await second.look()
    assert region.server.asked == []
    region.now += 1
    await second.look()
    assert region.server.asked == ["models"]
    # The one that was slow, and not gone, finds that it is not its turn any more.
    region.now += 60
    await first.look()
    assert region.server.asked == ["models"]


async def test_one_whose_breaker_is_closed_lets_another_probe(region: Region) -> None:
    first, second = region.gateway("first"), region.gateway("second")
    await first.look()
    first.standing.is_well()
    await first.look()
    region.now += TERMS.breaker_open_s
    await second.look()
    assert region.server.asked == ["models"]


async def test_who_says_no_is_there(region: Region) -> None:
    one = region.gateway("one")
    region.server.down = UpstreamRefused(dispatched=True, upstream_status=404)
    region.now += TERMS.breaker_open_s
    await one.look()
    assert one.standing.may_be_asked()


@pytest.mark.parametrize("price_u", [1, None])
async def test_an_answer_that_would_cost_is_not_asked_for(region: Region, price_u: int | None) -> None:
    one = region.gateway("one", probe="answer")
    region.price_u = price_u
    region.now += TERMS.breaker_open_s
    await one.look()
    assert region.server.asked == []
    # As without a probe, a call finds out.
    assert one.standing.may_be_asked()


async def test_an_answer_that_costs_nothing_holds_one_token_and_no_words(region: Region) -> None:
    one = region.gateway("one", probe="answer")
    region.server.down = None
    region.now += TERMS.breaker_open_s
    await one.look()
    assert region.server.asked == [str({"messages": [{"role": "user", "content": "1"}], "max_tokens": 1})]
    assert one.standing.may_be_asked()


async def test_where_nobody_probes_a_call_finds_out_at_last(region: Region) -> None:
    one = region.gateway("one")
    region.now += TERMS.breaker_open_s + UNPROBED_S - 1
    assert not one.standing.may_be_asked()
    region.now += 1
    assert one.standing.may_be_asked()
