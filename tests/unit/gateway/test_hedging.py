"""When a call leaves a second time, and when it never does; on servers that answer when a test says so."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.contracts import parse_request
from gateway.server.admission import Admission, Ticket
from gateway.server.failover import RETRIES_AT_FIRST, FailoverTerms, Fleet
from gateway.server.hedging import MIN_DELAY_S, MIN_OBSERVED, OBSERVED, Hedge, Hedging, Paces
from gateway.server.providers.base import (
    Deployment,
    Operation,
    Provider,
    UpstreamProblem,
    UpstreamRequest,
    UpstreamUnavailable,
    Whole,
)
from gateway.server.queueing import Capacity, FairQueue
from gateway.server.record import CallRecord
from observability import metrics
from tenants.context import DataClass, TenantId, Zone, new_id
from tenants.policy import Policy
from tenants.quota.terms import CopiedReservation, FrozenPrice, LedgerUnavailable, Reservation, UnknownPrice

FREE = FrozenPrice("p0", "", 1_000_000, 0, 0)
DEAR = FrozenPrice("p1", "", 1_000_000, 1, 0)
DOWN = UpstreamUnavailable(dispatched=True, upstream_status=500)
EMBEDDING = parse_request("embeddings", b'{"model":"embedding","input":"\xe8\xa6\x8b\xe6\x9c\xac"}')
RANKING = parse_request("rerank", b'{"model":"embedding","query":"a","documents":["b"]}')


def server(name: str, **changes: Any) -> Deployment:
    made = Deployment(
        id=name, alias="embedding", provider="openai_wire", vendor="", upstream_model="m", base_url="", api_key=None,
        zone=Zone.ONPREM, isolated=False, owner="shared", country="JP", operations=frozenset(Operation),
        capabilities=frozenset(), price=None, max_input_tokens=1, max_output_tokens=1, hedge=True,
    )  # fmt: skip
    return replace(made, **changes)


@dataclass
class House:
    """Two servers, the ledger that writes copies down, and what is known of everybody's pace."""

    first: Deployment = field(default_factory=lambda: server("first"))
    second: Deployment = field(default_factory=lambda: server("second"))
    fleet: Fleet = field(default_factory=lambda: Fleet(FailoverTerms(breaker_failures=1)))
    queue: FairQueue = field(default_factory=lambda: FairQueue(Capacity(calls=2)))
    price: FrozenPrice | None = FREE
    # The ledger's word on a copy; None: it says nothing.
    written: Exception | str | None = "written"
    asked: list[UpstreamRequest] = field(default_factory=list)
    answers: dict[str, "asyncio.Future[Whole]"] = field(default_factory=dict)
    hung_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hedging = Hedging(
            self.fleet,
            self.queue,
            cast("Admission", SimpleNamespace(price=self._price, ledger=SimpleNamespace(beside=self._beside))),
            {"openai_wire": cast("Provider", self)},
        )

    def _price(self, _deployment: Deployment, _record: CallRecord) -> FrozenPrice:
        if self.price is None:
            raise UnknownPrice
        return self.price

    def _beside(self, _first: CopiedReservation, *, zone: str, price: FrozenPrice) -> "asyncio.Future[None]":
        assert (zone, price) == ("onprem", FREE)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if isinstance(self.written, Exception):
            answer.set_exception(self.written)
        elif self.written is not None:
            answer.set_result(None)
        return answer

    async def send(self, request: UpstreamRequest) -> Whole:
        self.asked.append(request)
        try:
            return await self._answer(request.deployment.id)
        except asyncio.CancelledError:
            self.hung_up.append(request.deployment.id)
            raise

    def _answer(self, name: str) -> "asyncio.Future[Whole]":
        return self.answers.setdefault(name, asyncio.get_running_loop().create_future())

    def say(self, name: str, said: str | UpstreamProblem) -> None:
        if isinstance(said, UpstreamProblem):
            self._answer(name).set_exception(said)
        else:
            self._answer(name).set_result(Whole(said.encode(), None, None, 0))

    def hedge(self, *, request: Any = EMBEDDING, policy: Policy | None = None, hold_uyen: int = 0) -> Hedge | None:
        reservation = Reservation(
            new_id(), new_id(), TenantId(new_id()), cast("Any", None), hold_uyen, self.price or FREE, ()
        )
        operation = Operation(request.operation)
        record = CallRecord.begin(operation, call_id=reservation.call_id, started=0.0)
        ticket = Ticket(self.first, request, reservation, request.body, None)
        return self.hedging.of(ticket, (self.first, self.second), policy or Policy(), DataClass.C2, record)

    def is_known_to_be_quick(self, request: Any = EMBEDDING) -> None:
        for _ in range(MIN_OBSERVED):
            self.hedging.paces.took(self.first, request, 0.001)

    def begin(self, hedge: Hedge | None) -> "asyncio.Task[Any]":
        assert hedge is not None
        request = UpstreamRequest(self.first, Operation.EMBEDDINGS, {}, stream=False, call_id="c", attempt_id="a")
        return asyncio.create_task(hedge.send(request))

    async def until_asked(self, *names: str) -> None:
        await until(lambda: [r.deployment.id for r in self.asked] == [*names])

    def has_room(self) -> bool:
        """Whether every place has been given back."""
        turns = [self.queue.enter_at_once(TenantId(new_id()), self.second, weight=1, cost=1) for _ in range(2)]
        for turn in turns:
            if turn is not None:
                self.queue.leave(turn, 0)
        return None not in turns


@pytest.fixture
def house() -> House:
    return House()


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not fact():
            await asyncio.sleep(0.005)


def count(outcome: str) -> float:
    return float(metrics.HEDGES.labels(outcome)._value.get())


# ── What is usual ────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_knows_what_is_usual_from_a_few_answers() -> None:
    paces, one = Paces(), server("one")
    for _ in range(MIN_OBSERVED - 1):
        paces.took(one, EMBEDDING, 1.0)
    assert paces.delay_s(one, EMBEDDING) is None
    paces.took(one, EMBEDDING, 1.0)
    assert paces.delay_s(one, EMBEDDING) == 1.0
    # Neither another server nor another kind of question has been heard of by that.
    assert paces.delay_s(server("two"), EMBEDDING) is None
    assert paces.delay_s(one, RANKING) is None


def test_one_in_twenty_is_late() -> None:
    paces, one = Paces(), server("one")
    for seconds in range(100):
        paces.took(one, EMBEDDING, float(seconds))
    # Of the last 64, which took 36 to 99 seconds.
    assert OBSERVED == 64
    assert paces.delay_s(one, EMBEDDING) == 36 + 60
    for _ in range(OBSERVED):
        paces.took(one, EMBEDDING, 0.001)
    assert paces.delay_s(one, EMBEDDING) == MIN_DELAY_S


def test_a_large_request_is_measured_against_large_ones() -> None:
    paces, one = Paces(), server("one")
    small, large = (replace(EMBEDDING, input_bytes=size) for size in (600, 60_000))
    for _ in range(MIN_OBSERVED):
        paces.took(one, small, 0.1)
    assert paces.delay_s(one, large) is None
    for _ in range(MIN_OBSERVED):
        paces.took(one, large, 10.0)
    assert (paces.delay_s(one, small), paces.delay_s(one, large)) == (0.1, 10.0)
    assert paces.delay_s(one, replace(small, input_bytes=1023)) == 0.1
    assert paces.delay_s(one, replace(small, input_bytes=1024)) is None


async def test_an_answer_that_was_not_waited_for_counts_as_slow(house: House) -> None:
    house.is_known_to_be_quick()
    for _ in range(4):
        calling = house.begin(house.hedge())
        house.asked.clear()
        await house.until_asked("first", "second")
        house.say("second", "b")
        await calling
        house.answers.clear()
    # Or a server that has become slow for good would be asked twice for ever.
    delay_s = house.hedging.paces.delay_s(house.first, EMBEDDING)
    assert delay_s is not None and delay_s > MIN_DELAY_S


# ── Who never leaves a second time ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("request_", [EMBEDDING, RANKING], ids=lambda r: r.operation)
def test_vectors_and_rankings_between_twins_may(house: House, request_: Any) -> None:
    assert house.hedge(request=request_) is not None


@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize(
    "change",
    [
        {"hedge": False},
        {"upstream_model": "another"},
        {"zone": Zone.DOMESTIC},
        {"isolated": True},
        {"owner": "town"},
        {"country": "US"},
        {"is_own_key": True},
    ],
    ids=str,
)
def test_what_differs_in_anything_is_no_twin(house: House, which: str, change: dict[str, Any]) -> None:
    setattr(house, which, replace(getattr(house, which), **change))
    assert house.hedge() is None


def test_two_servers_abroad_are_no_twins(house: House) -> None:
    house.first, house.second = (replace(d, zone=Zone.DOMESTIC) for d in (house.first, house.second))
    assert house.hedge() is None


def test_words_are_never_asked_for_twice(house: House) -> None:
    body = b'{"model":"embedding","messages":[{"role":"user","content":"a"}]}'
    assert house.hedge(request=parse_request("chat/completions", body)) is None


def test_what_costs_anything_is_never_asked_for_twice(house: House) -> None:
    assert house.hedge(hold_uyen=1) is None
    house.price = DEAR
    assert house.hedge() is None


def test_a_server_that_is_being_tried_is_left_to_that_call(house: House) -> None:
    house.fleet.standing("first").failed(DOWN)
    assert house.hedge() is None


# ── When the second server is left alone ─────────────────────────────────────────────────────────────────────────


async def is_held_back(house: House, policy: Policy | None = None) -> None:
    house.is_known_to_be_quick()
    before = count("held_back")
    calling = house.begin(house.hedge(policy=policy))
    await until(lambda: count("held_back") == before + 1)
    assert [r.deployment.id for r in house.asked] == ["first"]
    house.say("first", "a")
    assert (await calling).body == b"a"
    assert [r.deployment.id for r in house.asked] == ["first"]
    assert count("held_back") == before + 1


async def test_it_is_not_asked_while_its_breaker_is_open(house: House) -> None:
    house.fleet.standing("second").failed(DOWN)
    await is_held_back(house)


async def test_it_is_not_asked_while_it_is_full(house: House) -> None:
    house.second = replace(house.second, concurrency=1)
    turn = house.queue.enter_at_once(TenantId(new_id()), house.second, weight=1, cost=1)
    assert turn is not None
    await is_held_back(house)
    house.queue.leave(turn, 0)
    assert house.queue.enter_at_once(TenantId(new_id()), house.second, weight=1, cost=1) is not None


async def test_it_is_not_asked_while_this_gateway_is_full(house: House) -> None:
    for name in ("first", "another"):
        house.queue.enter_at_once(TenantId(new_id()), server(name), weight=1, cost=1)
    await is_held_back(house)


async def test_it_is_not_asked_while_anybody_waits(house: House) -> None:
    town, narrow = TenantId(new_id()), server("narrow", concurrency=1)
    turn = house.queue.enter_at_once(town, narrow, weight=1, cost=1)
    assert turn is not None
    waiting = asyncio.create_task(house.queue.wait(town, narrow, weight=1, cost=1, tell=None))
    await asyncio.sleep(0)
    await is_held_back(house)
    house.queue.leave(turn, 0)
    house.queue.leave(await waiting, 0)


async def test_it_is_not_asked_when_the_share_of_retries_is_used_up(house: House) -> None:
    for _ in range(int(RETRIES_AT_FIRST)):
        assert house.fleet.may_retry()
    await is_held_back(house)
    assert house.has_room()


@pytest.mark.parametrize("price", [DEAR, None], ids=["dear", "unknown"])
async def test_it_is_not_asked_once_it_costs_something(house: House, price: FrozenPrice | None) -> None:
    hedge = house.hedge()
    house.price = price
    house.hedge = lambda **_: hedge  # type: ignore[method-assign]  # was decided before the price changed
    await is_held_back(house)


async def test_the_guard_of_zones_stands_before_the_second_server_too(house: House) -> None:
    nowhere = Policy(zones={})
    await is_held_back(house, nowhere)


async def test_it_is_not_asked_when_the_ledger_refuses(house: House) -> None:
    house.written = LedgerUnavailable()
    await is_held_back(house)
    assert house.has_room()


async def test_it_is_not_asked_before_the_ledger_knows(house: House) -> None:
    house.written = None
    house.is_known_to_be_quick()
    hedge = house.hedge()
    calling = house.begin(hedge)
    assert hedge is not None
    await until(lambda: hedge._first.copy.deployment == "second")
    house.say("first", "a")
    assert (await calling).body == b"a"
    assert [r.deployment.id for r in house.asked] == ["first"]
    assert (hedge.asked_also, hedge._first.copy.has_left) == ("", False)
    assert house.has_room()


# ── Who answers ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_usual_answer_leaves_once(house: House) -> None:
    house.is_known_to_be_quick()
    house.say("first", "a")
    assert (await house.begin(house.hedge())).body == b"a"
    assert [r.deployment.id for r in house.asked] == ["first"]


async def test_the_second_copy_has_its_own_number_and_what_is_left_of_the_deadline(house: House) -> None:
    house.is_known_to_be_quick()
    hedge = house.hedge()
    calling = house.begin(hedge)
    await house.until_asked("first", "second")
    first, second = house.asked
    assert second.attempt_id not in ("", first.attempt_id)
    assert (second.call_id, second.body) == (first.call_id, first.body)
    assert second.total_timeout_s < first.total_timeout_s - MIN_DELAY_S / 2
    assert second.first_byte_timeout_s == second.total_timeout_s
    house.say("second", "b")
    assert (await calling).body == b"b"
    assert house.hung_up == ["first"]
    assert hedge is not None and hedge.ticket.deployment.id == "second"
    assert hedge.standing is house.fleet.standing("second")
    assert house.has_room()


async def test_it_leaves_no_more_than_once(house: House) -> None:
    house.is_known_to_be_quick()
    calling = house.begin(house.hedge())
    await house.until_asked("first", "second")
    await asyncio.wait([calling], timeout=5 * MIN_DELAY_S)
    assert len(house.asked) == 2
    house.say("first", "a")
    assert (await calling).body == b"a"
    assert house.hung_up == ["second"]


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")], ids=str)
async def test_when_both_fail_it_is_the_first_that_is_told(house: House, order: tuple[str, str]) -> None:
    house.is_known_to_be_quick()
    hedge = house.hedge()
    calling = house.begin(hedge)
    await house.until_asked("first", "second")
    problems = {"first": DOWN, "second": UpstreamUnavailable(dispatched=False)}
    for name in order:
        assert not calling.done()
        house.say(name, problems[name])
        await asyncio.sleep(0.01)
    with pytest.raises(UpstreamUnavailable) as failed:
        await calling
    assert failed.value is DOWN
    assert hedge is not None and hedge.asked_also == "second"
    # The pipeline counts the first one's; this one is counted here.
    assert house.fleet.standing("second").is_open
    assert house.has_room()


async def test_an_error_of_ours_ends_both(house: House) -> None:
    house.is_known_to_be_quick()
    calling = house.begin(house.hedge())
    await house.until_asked("first", "second")
    house._answer("second").set_exception(ZeroDivisionError())
    with pytest.raises(ExceptionGroup):
        await calling
    assert house.hung_up == ["first"]
    assert house.has_room()


async def test_who_is_cancelled_leaves_nothing_behind(house: House) -> None:
    house.is_known_to_be_quick()
    before = count("left")
    calling = house.begin(house.hedge())
    await house.until_asked("first", "second")
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert sorted(house.hung_up) == ["first", "second"]
    assert house.has_room()
    assert count("left") == before + 1
