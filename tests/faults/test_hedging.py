"""A call for vectors or a ranking that takes longer than usual is on two servers: each way in which that can end."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
import pytest
import yaml

from gateway.server.hedging import MIN_OBSERVED, OBSERVED
from observability import metrics
from tenants.db import DatabaseUrls
from tenants.models import Attempt, Call
from tests.faults.conftest import GatewayInThread, deployment, gateway_in_thread
from tests.faults.rounds import SEEDS
from tests.faults.test_upstream_faults import leave
from tests.faults.vectors import ANSWERS, TOKENS, Mood, Vectors, vector_servers
from tests.gateways import Region, RunningGateway, Town, eventually

# Longer than any deadline of the gateway.
PATIENCE_S: Final = 60
# The share of retries allows ten at first.
AT_ONCE: Final = 5


@dataclass(frozen=True, slots=True)
class House:
    """A gateway before two servers of the same model, its town, and what stands in its ledger."""

    region: Region
    gateway: GatewayInThread | RunningGateway
    town: Town
    servers: Vectors
    tasks_at_rest: int = 0

    async def asked(self, mood: dict[str, Mood], number: int = AT_ONCE, **how: Any) -> "list[asyncio.Task[Told]]":
        """That many calls under way, when each has reached the first server."""
        self.servers.moods.update(mood)
        before = self.servers.seen["first"]
        calls = [asyncio.create_task(self.ask(seed, **how)) for seed in range(number)]
        await self.until(lambda: self.servers.seen["first"] == before + number)
        return calls

    async def asked_twice(self, number: int = AT_ONCE, **how: Any) -> "list[asyncio.Task[Told]]":
        """The same, when each is on both servers."""
        calls = await self.asked({"first": "hold", "second": "hold"}, number, **how)
        await self.until(lambda: self.servers.busy["second"] == number)
        assert self.servers.busy["first"] == number
        return calls

    async def ask(self, seed: int, *, alias: str = "pair", operation: str = "embeddings") -> "Told":
        body: dict[str, Any] = {"model": alias}
        if operation == "rerank":
            body |= {"query": "保育", "documents": [f"見本{seed:02d}", "答え"]}
        else:
            body |= {"input": f"見本{seed:02d}"}
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
            answer = await client.post(
                f"{self.gateway.url}/v1/{operation}", json=body, headers={"authorization": f"Bearer {self.town.key}"}
            )
        told = answer.json()
        if answer.status_code != 200:
            return Told(UUID(answer.headers["kumiai-call-id"]), answer.status_code, told["error"]["code"])
        assert (answer.headers["kumiai-zone"], answer.headers["kumiai-zone-owner"]) == ("onprem", "shared")
        said = told["results"][0]["relevance_score"] if operation == "rerank" else told["data"][0]["embedding"][0]
        return Told(UUID(answer.headers["kumiai-call-id"]), 200, "", said)

    async def warm_up(self) -> None:
        """What is usual, after a process's first calls, which are slow, have been forgotten."""
        await self.learn()
        for _ in range(OBSERVED // AT_ONCE + 1):
            await asyncio.gather(*(self.ask(seed) for seed in range(AT_ONCE)))
        self.servers.hung_up.clear()

    async def learn(self, operation: str = "embeddings") -> None:
        """What is usual: as many quick answers as are needed, none of which leaves twice."""
        self.servers.moods.clear()
        before = self.servers.seen["second"]
        quick = await asyncio.gather(*(self.ask(seed, operation=operation) for seed in range(MIN_OBSERVED)))
        assert {t.said for t in quick} == {ANSWERS["first"]}
        assert self.servers.seen["second"] == before

    def rows(self, calls: Sequence["Told"]) -> list[tuple[Call, list[tuple[int, str, str, str]]]]:
        """Each call with its attempts, once none of them is held any more."""
        return self.rows_of({c.call_id for c in calls})

    def rows_of(self, ids: set[UUID]) -> list[tuple[Call, list[tuple[int, str, str, str]]]]:
        def closed() -> list[Call]:
            found = [c for c in self.region.calls(self.town) if c.id in ids and c.state != "held"]
            return found if len(found) == len(ids) else []

        calls = eventually(closed)
        attempts = self.region.attempts(self.town)
        assert all((a.hold_uyen, a.cost_uyen) == (0, 0) and a.ended_at for a in attempts if a.call_id in ids)
        return [(call, [_shown(a) for a in attempts if a.call_id == call.id]) for call in calls]

    async def until(self, fact: Any) -> None:
        await asyncio.to_thread(eventually, fact, within_s=PATIENCE_S / 2)


@dataclass(frozen=True, slots=True)
class Told:
    """What its caller heard of a call; said: the number by which it is known who answered."""

    call_id: UUID
    status: int
    code: str = ""
    said: float = 0.0


def _shown(attempt: Attempt) -> tuple[int, str, str, str]:
    return attempt.number, attempt.deployment.removeprefix("trial/"), attempt.state, attempt.problem


@contextlib.contextmanager
def prepared(home: Path, urls: DatabaseUrls, **environment: str) -> Iterator[tuple[Region, Town, Vectors]]:
    """Everything but a gateway."""
    with vector_servers() as servers:
        both = {"price_u": 0, "hedge": True, "operations": ["embeddings", "rerank"]}
        entries = [
            deployment("first", f"{servers.url}/first/v1", ["pair", "tight", "unequal"], **both),
            deployment("second", f"{servers.url}/second/v1", ["pair"], **both),
            deployment("dear", f"{servers.url}/dear/v1", ["unequal"], **both),
            deployment("narrow", f"{servers.url}/narrow/v1", ["tight", "alone"], concurrency=1, **both),
        ]
        catalogue = home / "catalogue.yaml"
        catalogue.write_text(yaml.safe_dump({"deployments": entries}, allow_unicode=True))
        region = Region(home, urls, KUMIAI_CATALOGUE_FILE=str(catalogue), **environment)
        yield region, region.make_town(month_yen=1), servers


@contextlib.contextmanager
def housed(home: Path, urls: DatabaseUrls) -> Iterator[House]:
    with prepared(home, urls) as (region, town, servers), gateway_in_thread(region) as gateway:
        yield House(region, gateway, town, servers, len(gateway.tasks()))


@pytest.fixture(scope="module")
def house_on_sqlite(sqlite_template: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("hedging")
    with housed(home, Region.on_sqlite(home, sqlite_template).urls) as made:
        yield made


@pytest.fixture(scope="module")
def house_on_postgresql(modules_postgres: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with housed(tmp_path_factory.mktemp("hedging"), modules_postgres) as made:
        yield made


@pytest.fixture(params=["sqlite"])
async def house(request: pytest.FixtureRequest) -> Any:
    """Which has just learnt what is usual; afterwards nothing may be left of the calls."""
    made: House = request.getfixturevalue(f"house_on_{request.param}")
    assert isinstance(made.gateway, GatewayInThread)
    gateway = made.gateway.app.gateway
    gateway.pipeline.hedging.paces._took_s.clear()
    for counted in (made.servers.seen, made.servers.hung_up):
        counted.clear()
    await made.learn()
    for _ in range(10):
        # Each call earns its share of a retry; another test may have used them up.
        gateway.pipeline.fleet.called()
    yield made
    made.servers.moods.clear()
    await made.until(lambda: gateway.calls_in_flight == 0)
    await made.until(lambda: not any(made.servers.busy.values()))
    await made.until(lambda: len(made.gateway.tasks()) <= made.tasks_at_rest)
    queue = gateway.pipeline.queue
    assert (queue._running, sum(queue._running_on.values()), len(queue._towns)) == (0, 0, 0)
    await made.until(lambda: made.region.budget(made.town).held_uyen == 0)


def outcomes(outcome: str) -> float:
    return float(metrics.HEDGES.labels(outcome)._value.get())


ON_BOTH = pytest.mark.parametrize("house", ["sqlite", "postgresql"], indirect=True)
IN_FIVES = [SEEDS[at : at + AT_ONCE] for at in range(0, len(SEEDS), AT_ONCE)]


@ON_BOTH
async def test_the_second_answers_first(house: House, record_property: Any) -> None:
    before = outcomes("second")
    told = []
    for seeds in IN_FIVES:
        told += await asyncio.gather(*await house.asked({"first": "hold"}, len(seeds)))
    assert {(t.status, t.said) for t in told} == {(200, ANSWERS["second"])}
    for call, attempts in house.rows(told):
        assert (call.state, call.deployment, call.zone, call.problem) == ("settled", "trial/second", "onprem", "")
        assert (call.prompt_tokens, call.usage_source) == (TOKENS, "provider")
        assert attempts == [(1, "first", "settled", "hedged"), (2, "second", "settled", "")]
    # Nobody makes what nobody waits for.
    await house.until(lambda: house.servers.hung_up["first"] == len(told))
    assert outcomes("second") == before + len(told)
    record_property("end", f"200 answer of the second server, nothing, {len(told)} seeds")


@ON_BOTH
async def test_the_first_answers_after_all(house: House, record_property: Any) -> None:
    before = outcomes("first")
    told = []
    for seeds in IN_FIVES:
        calls = await house.asked_twice(len(seeds))
        house.servers.moods["first"] = "answer"
        told += await asyncio.gather(*calls)
    assert {(t.status, t.said) for t in told} == {(200, ANSWERS["first"])}
    for call, attempts in house.rows(told):
        assert (call.state, call.deployment, call.prompt_tokens) == ("settled", "trial/first", TOKENS)
        assert attempts == [(1, "first", "settled", ""), (2, "second", "settled", "hedged")]
    await house.until(lambda: house.servers.hung_up["second"] == len(told))
    assert outcomes("first") == before + len(told)
    record_property("end", f"200 answer of the first server, nothing, {len(told)} seeds")


async def test_a_ranking_is_hedged_too(house: House) -> None:
    await house.learn("rerank")
    told = await asyncio.gather(*await house.asked({"first": "hold"}, operation="rerank"))
    assert {(t.status, t.said) for t in told} == {(200, ANSWERS["second"])}


@pytest.mark.parametrize(
    ("fails", "answers", "problem"),
    [("first", "second", "upstream_unavailable"), ("second", "first", "upstream_unavailable")],
)
@pytest.mark.parametrize("mood", ["fail", "cut"])
async def test_one_fails_and_the_other_answers(
    house: House, mood: Mood, fails: str, answers: str, problem: str, record_property: Any
) -> None:
    calls = await house.asked_twice()
    house.servers.moods[fails] = mood
    await house.until(lambda: house.servers.busy[fails] == 0)
    assert not any(c.done() for c in calls)
    house.servers.moods[answers] = "answer"
    told = await asyncio.gather(*calls)
    assert {(t.status, t.said) for t in told} == {(200, ANSWERS[answers])}
    ends = {fails: problem, answers: ""}
    for call, attempts in house.rows(told):
        assert (call.state, call.deployment, call.problem) == ("settled", f"trial/{answers}", "")
        assert attempts == [(1, "first", "settled", ends["first"]), (2, "second", "settled", ends["second"])]
    record_property("end", f"200 answer of the {answers} server, nothing, {len(told)} seeds")


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")], ids="-".join)
async def test_both_fail(house: House, order: tuple[str, str], record_property: Any) -> None:
    calls = await house.asked_twice()
    for name, mood in zip(order, ("fail", "busy"), strict=True):
        house.servers.moods[name] = mood
        await house.until(lambda name=name: house.servers.busy[name] == 0)
    told = await asyncio.gather(*calls)
    ends = dict(zip(order, ("upstream_unavailable", "upstream_rate_limited"), strict=True))
    # It is the first copy's failure that is told.
    assert {t.code for t in told} == {ends["first"]}
    for call, attempts in house.rows(told):
        assert (call.state, call.cost_uyen, call.problem) == ("settled", 0, ends["first"])
        assert attempts == [(1, "first", "settled", ends["first"]), (2, "second", "settled", ends["second"])]
    # And neither of them is asked a second time.
    assert house.servers.seen["first"] == MIN_OBSERVED + AT_ONCE
    assert house.servers.seen["second"] == AT_ONCE
    record_property("end", f"{told[0].status} {told[0].code}, nothing, {len(told)} seeds")


async def test_the_caller_leaves(house: House, record_property: Any) -> None:
    known = {c.id for c in house.region.calls(house.town)}
    house.servers.moods.update({"first": "hold", "second": "hold"})
    leaving = [asyncio.create_task(leave_unanswered(house, seed)) for seed in range(AT_ONCE)]
    await house.until(lambda: house.servers.busy["second"] == AT_ONCE)
    for one in leaving:
        one.cancel()
    await asyncio.wait(leaving)
    await house.until(lambda: house.servers.hung_up == {"first": AT_ONCE, "second": AT_ONCE})
    left = {c.id for c in house.region.calls(house.town)} - known
    assert len(left) == AT_ONCE
    for call, attempts in house.rows_of(left):
        assert (call.state, call.problem) == ("settled", "client_disconnected")
        assert attempts == [(1, "first", "settled", "client_disconnected"), (2, "second", "settled", "hedged")]
    record_property("end", f"client_disconnected, nothing, {AT_ONCE} seeds")


async def leave_unanswered(house: House, seed: int) -> None:
    body = json.dumps({"model": "pair", "input": f"見本{seed:02d}"}, ensure_ascii=False).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {house.town.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    await leave(house, head.encode() + body, after=b"never comes")  # type: ignore[arg-type]  # has the gateway's address


async def test_a_full_server_gets_no_second_copy(house: House) -> None:
    house.servers.moods["narrow"] = "hold"
    [only] = [asyncio.create_task(house.ask(0, alias="alone"))]
    await house.until(lambda: house.servers.busy["narrow"] == 1)
    before = outcomes("held_back")
    calls = await house.asked({"first": "hold"}, alias="tight")
    await house.until(lambda: outcomes("held_back") == before + AT_ONCE)
    house.servers.moods["first"] = "answer"
    told = await asyncio.gather(*calls)
    assert {(t.status, t.said) for t in told} == {(200, ANSWERS["first"])}
    assert house.servers.seen["narrow"] == 1
    assert all(attempts == [(1, "first", "settled", "")] for _, attempts in house.rows(told))
    house.servers.moods["narrow"] = "answer"
    assert (await only).said == ANSWERS["narrow"]


async def test_a_server_with_a_price_is_never_asked_twice(house: House) -> None:
    """The operator's price, from now on; the catalogue still says 0."""
    house.region.set_price("trial/dear", input_u=1, output_u=0)
    assert isinstance(house.gateway, GatewayInThread)
    configuration = house.gateway.app.gateway.configuration
    await house.until(
        lambda: configuration.current.prices.freeze("trial/dear", datetime.now(UTC)).input_u_per_mtok == 1
    )
    before = outcomes("held_back")
    calls = await house.asked({"first": "hold"}, alias="unequal")
    await house.until(lambda: outcomes("held_back") == before + AT_ONCE)
    house.servers.moods["first"] = "answer"
    assert {t.said for t in await asyncio.gather(*calls)} == {ANSWERS["first"]}
    assert house.servers.seen["dear"] == 0


# ── With a gateway of its own ────────────────────────────────────────────────────────────────────────────────────


async def test_the_deadline_is_of_both(sqlite_template: DatabaseUrls, tmp_path: Path, record_property: Any) -> None:
    urls = Region.on_sqlite(tmp_path, sqlite_template).urls
    with (
        prepared(tmp_path, urls, KUMIAI_GATEWAY_TOTAL_TIMEOUT_S="8") as (region, town, servers),
        region.gateway() as gateway,
    ):
        house = House(region, gateway, town, servers)
        await house.warm_up()
        told = await asyncio.gather(*await house.asked_twice())
        assert {(t.status, t.code) for t in told} == {(504, "upstream_timeout")}
        for call, attempts in house.rows(told):
            assert (call.state, call.cost_uyen, call.problem) == ("settled", 0, "upstream_timeout")
            assert attempts == [
                (1, "first", "settled", "upstream_timeout"),
                (2, "second", "settled", "upstream_timeout"),
            ]
        await house.until(lambda: servers.hung_up == {"first": AT_ONCE, "second": AT_ONCE})
        assert region.budget(town).held_uyen == 0
    record_property("end", f"504 upstream_timeout, nothing, {AT_ONCE} seeds")


async def test_a_gateway_that_stops_ends_both(
    sqlite_template: DatabaseUrls, tmp_path: Path, record_property: Any
) -> None:
    urls = Region.on_sqlite(tmp_path, sqlite_template).urls
    with (
        prepared(tmp_path, urls, KUMIAI_GATEWAY_DRAIN_S="0.5", KUMIAI_GATEWAY_TOTAL_TIMEOUT_S="60") as made,
        made[0].gateway() as gateway,
    ):
        region, town, servers = made
        house = House(region, gateway, town, servers)
        await house.warm_up()
        calls = await house.asked_twice()
        gateway.process.send_signal(signal.SIGTERM)
        told = await asyncio.gather(*calls)
        assert {(t.status, t.code) for t in told} == {(503, "restarting")}
        assert await asyncio.to_thread(gateway.process.wait, 60) == 0
        for call, attempts in house.rows(told):
            assert (call.state, call.problem) == ("settled", "restarting")
            assert attempts == [(1, "first", "settled", "restarting"), (2, "second", "settled", "hedged")]
        await house.until(lambda: servers.hung_up == {"first": AT_ONCE, "second": AT_ONCE})
        assert region.budget(town).held_uyen == 0
    record_property("end", f"503 restarting, nothing, {AT_ONCE} seeds")
