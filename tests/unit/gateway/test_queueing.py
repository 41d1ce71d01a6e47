"""The queue between towns: nobody is starved, nobody saves up turns, nothing is left behind."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.server.providers.base import Deployment
from gateway.server.queueing import Capacity, FairQueue, Overloaded, Turn
from tenants.context import TenantId, new_id
from tests.deployments import a_deployment

TOWNS = [TenantId(new_id()) for _ in range(3)]


def model(name: str = "a", concurrency: int | None = None) -> Deployment:
    return a_deployment(id=name, concurrency=concurrency)


async def enter(queue: FairQueue, town: TenantId, deployment: Deployment, *, weight: int = 1, cost: int = 100) -> Turn:
    turn = queue.enter_at_once(town, deployment, weight=weight, cost=cost)
    return turn or await queue.wait(town, deployment, weight=weight, cost=cost, tell=None)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def served(queue: FairQueue, arrivals: list[tuple[TenantId, int]], first: Turn) -> list[TenantId]:
    """In which order towns are served, one call at a time, when these wait behind `first`."""
    order: list[TenantId] = []
    waiting = [asyncio.ensure_future(enter(queue, t, first.deployment, weight=w)) for t, w in arrivals]
    await settle()
    running = first
    for _ in arrivals:
        queue.leave(running, 100)
        await settle()
        [running] = [task.result() for task in waiting if task.done()]
        waiting = [task for task in waiting if not task.done()]
        order.append(running.tenant_id)
    queue.leave(running, 100)
    return order


async def test_a_town_that_floods_does_not_shut_out_another() -> None:
    queue, one = FairQueue(Capacity()), model(concurrency=1)
    first = await enter(queue, TOWNS[0], one)
    order = await served(queue, [(TOWNS[0], 1)] * 20 + [(TOWNS[1], 1)] * 5, first)
    # One behind the other from the moment it came, although twenty stood before it.
    assert order[:10].count(TOWNS[1]) == 5
    assert order[10:] == [TOWNS[0]] * 15


async def test_a_town_of_weight_three_gets_three_times_as_much() -> None:
    queue, one = FairQueue(Capacity()), model(concurrency=1)
    first = await enter(queue, TOWNS[2], one)
    order = await served(queue, [(TOWNS[0], 1)] * 30 + [(TOWNS[1], 3)] * 30, first)
    assert Counter(order[:24])[TOWNS[1]] in (17, 18, 19)


async def test_a_long_answer_counts_more_than_a_short_one() -> None:
    queue, one = FairQueue(Capacity()), model(concurrency=1)
    long = await enter(queue, TOWNS[0], one, cost=100)
    others = [asyncio.ensure_future(enter(queue, town, one)) for town in (TOWNS[0], TOWNS[1], TOWNS[1], TOWNS[1])]
    await settle()
    queue.leave(long, 350)
    order = []
    for _ in others:
        await settle()
        [running] = [t for t in others if t.done() and t not in order]
        order.append(running)
        queue.leave(running.result(), 100)
    assert [t.result().tenant_id for t in order] == [TOWNS[1]] * 3 + [TOWNS[0]]


async def test_a_town_that_was_idle_has_saved_up_nothing() -> None:
    queue, one = FairQueue(Capacity()), model(concurrency=1)
    for _ in range(50):
        queue.leave(await enter(queue, TOWNS[0], one), 100)
    first = await enter(queue, TOWNS[0], one)
    order = await served(queue, [(TOWNS[0], 1)] * 6 + [(TOWNS[1], 1)] * 6, first)
    assert 2 <= order[:6].count(TOWNS[1]) <= 4


async def test_a_full_model_does_not_hold_up_another() -> None:
    queue, full = FairQueue(Capacity()), model(concurrency=1)
    first = await enter(queue, TOWNS[0], full)
    waiting = asyncio.ensure_future(enter(queue, TOWNS[0], full))
    await settle()
    other = model("b", 1)
    assert queue.roomiest_first((full, other)) == (other, full)
    second = queue.enter_at_once(TOWNS[0], other, weight=1, cost=1)
    assert second is not None
    # The next attempt takes its place along, and leaves the old one to who waits for it.
    assert not queue.move(second, full)
    third = model("c")
    assert queue.move(first, third)
    await settle()
    assert waiting.done()
    for turn in (first, second, waiting.result()):
        queue.leave(turn, 1)


async def test_a_town_s_own_cap_leaves_room_for_the_others() -> None:
    queue, free = FairQueue(Capacity(calls=4, calls_per_town=2)), model()
    mine = [queue.enter_at_once(TOWNS[0], free, weight=1, cost=1) for _ in range(3)]
    assert [turn is not None for turn in mine] == [True, True, False]
    others = [queue.enter_at_once(TOWNS[1], free, weight=1, cost=1) for _ in range(2)]
    assert None not in others
    assert queue.enter_at_once(TOWNS[2], free, weight=1, cost=1) is None


async def test_the_queue_is_bounded_in_length_and_time() -> None:
    queue, one = FairQueue(Capacity(waiting=2, wait_s=0.05)), model(concurrency=1)
    first = await enter(queue, TOWNS[0], one)
    late = [asyncio.ensure_future(enter(queue, TOWNS[1], one)) for _ in range(2)]
    await settle()
    with pytest.raises(Overloaded):
        await enter(queue, TOWNS[2], one)
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert {type(o) for o in outcomes} == {Overloaded}
    queue.leave(first, 1)
    assert await enter(queue, TOWNS[2], one)


async def test_how_many_are_ahead_is_told_and_falls() -> None:
    queue, one = FairQueue(Capacity()), model(concurrency=1)
    running = await enter(queue, TOWNS[0], one)
    told: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def teller(number: int) -> Callable[[int], Awaitable[None]]:
        async def tell(ahead: int) -> None:
            told[number].append(ahead)

        return tell

    waiting = []
    for number in told:
        waiting.append(asyncio.ensure_future(queue.wait(TOWNS[0], one, weight=1, cost=100, tell=teller(number))))
        await settle()
    assert told == {0: [0], 1: [1], 2: [2]}
    queue.leave(running, 100)
    async with asyncio.timeout(10):
        while told[2][-1] != 1:
            await asyncio.sleep(0.05)
    for task in waiting:
        queue.leave(await task, 100)


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "cancel", "move"]), st.integers(0, 2), st.integers(0, 2)),
        max_size=80,
    )
)
def test_no_place_is_lost_and_none_is_given_twice(steps: list[tuple[str, int, int]]) -> None:
    """Random comings and goings: never above a cap, nobody waits before a free place, and it ends empty."""

    async def run() -> None:
        queue = FairQueue(Capacity(calls=5, calls_per_town=3, waiting=50, wait_s=60))
        models = [model("a", 2), model("b", 3), model("c")]
        tasks: list[tuple[int, int, asyncio.Task[Turn]]] = []
        for what, town, number in steps:
            running = [t for t in tasks if t[2].done()]
            waiting = [t for t in tasks if not t[2].done()]
            if what == "enter":
                entering = asyncio.ensure_future(enter(queue, TOWNS[town], models[number]))
                tasks.append((town, number, entering))
            elif what == "leave" and running:
                one = running[number % len(running)]
                tasks.remove(one)
                queue.leave(one[2].result(), 50)
            elif what == "move" and running:
                queue.move(running[town % len(running)][2].result(), models[number])
            elif what == "cancel" and waiting:
                one = waiting[number % len(waiting)]
                tasks.remove(one)
                one[2].cancel()
                if town == 0 and running:
                    # It leaves in the very moment in which a place comes free.
                    tasks.remove(running[0])
                    queue.leave(running[0][2].result(), 50)
            await settle()
            turns = [t[2].result() for t in tasks if t[2].done()]
            on = Counter(t.deployment.id for t in turns)
            of = Counter(t.tenant_id for t in turns)
            assert len(turns) <= 5
            assert all(n <= 3 for n in of.values())
            assert on["a"] <= 2
            assert on["b"] <= 3
            for town_, number_, task in tasks:
                if not task.done():
                    places = models[number_].concurrency
                    is_full = places is not None and on[models[number_].id] >= places
                    assert is_full or len(turns) == 5 or of[TOWNS[town_]] == 3
        while tasks:
            for one in [t for t in tasks if t[2].done()]:
                tasks.remove(one)
                queue.leave(one[2].result(), 50)
            await settle()
        assert all(queue.enter_at_once(t, models[2], weight=1, cost=1) for t in (*TOWNS, TOWNS[0], TOWNS[1]))

    asyncio.run(run())
