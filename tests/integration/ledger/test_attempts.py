"""A call that is tried more than once: one row, an attempt and a hold each time, and never two holds at once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import col, select

from tenants.models import Attempt, Call, Correction
from tenants.quota.ledger import LEASE, LedgerWriter, sweep
from tenants.quota.terms import Ending, Hold, LedgerUnavailable, QuotaExceeded, Reservation, Settlement
from tests.integration.ledger.conftest import Line, Town

YEN = 1_000_000


@dataclass(frozen=True)
class Written:
    """What the ledger says of a town with one call."""

    call: Call
    attempts: list[tuple[int, str, str, int, int]]
    held: int
    posted: int


async def written(town: Town) -> Written:
    async with town.db.platform_session("test", read_only=True) as session:
        [call] = (await session.exec(select(Call).where(col(Call.tenant_id) == town.id))).all()
        query = select(Attempt).where(col(Attempt.tenant_id) == town.id).order_by(col(Attempt.number))
        attempts = (await session.exec(query)).all()
    account = await town.town_account()
    return Written(
        call,
        [(a.number, a.deployment, a.state, a.hold_uyen, a.cost_uyen) for a in attempts],
        account.held_uyen,
        account.posted_uyen,
    )


def next_hold(town: Town, first: Reservation, uyen: int, *, floor: int | None = None) -> Hold:
    return town.hold(uyen, floor=floor, call_id=first.call_id, deployment="second", zone="domestic")


async def settle(ledger: LedgerWriter, reservation: Reservation, uyen: int) -> None:
    await asyncio.wrap_future(ledger.settle(reservation, Settlement(uyen, 10, 20, "provider", "stop")))


async def test_a_second_attempt_is_held_as_the_first_ends(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(60 * YEN))
    # Beside the first hold it would not fit.
    second = await ledger.reserve(next_hold(town, first, 80 * YEN), Ending(first, Settlement(20 * YEN, problem="p")))
    assert (second.number, second.created_at, second.hold_uyen) == (2, first.created_at, 80 * YEN)
    now = await written(town)
    assert (now.held, now.posted) == (80 * YEN, 20 * YEN)
    assert (now.call.state, now.call.hold_uyen, now.call.deployment) == ("held", 80 * YEN, "second")
    await settle(ledger, second, 30 * YEN)
    now = await written(town)
    assert now.attempts == [
        (1, "demo", "settled", 60 * YEN, 20 * YEN),
        (2, "second", "settled", 80 * YEN, 30 * YEN),
    ]
    assert (now.held, now.posted) == (0, 50 * YEN)
    assert (now.call.state, now.call.cost_uyen, now.call.zone) == ("settled", 50 * YEN, "domestic")
    assert (now.call.problem, now.call.finish_reason, now.call.lease_until) == ("", "stop", None)


async def test_a_second_hold_that_does_not_fit_ends_the_call_with_the_first(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(60 * YEN))
    with pytest.raises(QuotaExceeded):
        await ledger.reserve(next_hold(town, first, 81 * YEN), Ending(first, Settlement(20 * YEN, problem="silent")))
    now = await written(town)
    assert now.attempts == [(1, "demo", "settled", 60 * YEN, 20 * YEN)]
    assert (now.held, now.posted) == (0, 20 * YEN)
    assert (now.call.state, now.call.cost_uyen, now.call.problem) == ("settled", 20 * YEN, "silent")
    assert now.call.lease_until is None


async def test_a_second_hold_is_shrunk_to_what_is_left(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(60 * YEN))
    hold = next_hold(town, first, 200 * YEN, floor=10 * YEN)
    assert (await ledger.reserve(hold, Ending(first, Settlement(20 * YEN)))).hold_uyen == 80 * YEN


@pytest.mark.parametrize(("first_cost", "state"), [(0, "void"), (20 * YEN, "settled")])
async def test_a_call_is_void_only_if_nothing_was_paid(
    town: Town, ledger: LedgerWriter, first_cost: int, state: str
) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(60 * YEN))
    ending = Ending(first, Settlement(first_cost), is_void=first_cost == 0)
    second = await ledger.reserve(next_hold(town, first, 60 * YEN), ending)
    await asyncio.wrap_future(ledger.void(second, "not_dispatched"))
    now = await written(town)
    assert (now.call.state, now.call.cost_uyen, now.held, now.posted) == (state, first_cost, 0, first_cost)


async def test_who_leaves_between_attempts_pays_the_first_only(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(60 * YEN))
    waiting = asyncio.create_task(ledger.reserve(next_hold(town, first, 60 * YEN), Ending(first, Settlement(20 * YEN))))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for _ in range(200):
        now = await written(town)
        if now.call.state != "held":
            break
        await asyncio.sleep(0.02)
    assert (now.call.state, now.call.cost_uyen, now.held, now.posted) == ("settled", 20 * YEN, 0, 20 * YEN)


async def test_only_the_open_attempt_goes_to_suspense(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(60 * YEN))
    second = await ledger.reserve(next_hold(town, first, 50 * YEN), Ending(first, Settlement(20 * YEN)))
    assert await swept(town) == 1
    now = await written(town)
    assert (now.call.state, now.call.cost_uyen, now.held, now.posted) == ("suspense", 70 * YEN, 0, 70 * YEN)
    await settle(ledger, second, 5 * YEN)
    now = await written(town)
    assert (now.call.state, now.call.cost_uyen, now.held, now.posted) == ("settled", 25 * YEN, 0, 25 * YEN)
    assert [state for _, _, state, _, _ in now.attempts] == ["settled", "settled"]


async def test_a_call_that_was_given_up_does_not_go_on(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(60 * YEN))
    assert await swept(town) == 1
    with pytest.raises(LedgerUnavailable):
        await ledger.reserve(next_hold(town, first, 60 * YEN), Ending(first, Settlement(20 * YEN)))
    now = await written(town)
    assert (now.call.state, now.call.cost_uyen, now.held, now.posted) == ("settled", 20 * YEN, 0, 20 * YEN)
    assert len(now.attempts) == 1
    async with town.db.platform_session("test", read_only=True) as session:
        [correction] = (await session.exec(select(Correction).where(col(Correction.tenant_id) == town.id))).all()
    assert correction.delta_uyen == -40 * YEN


async def test_a_refusal_while_the_line_is_cut_still_ends_the_first(
    town: Town, line: Line, start: Callable[[str], LedgerWriter]
) -> None:
    await town.set_budget(100 * YEN)
    writer = start("a")
    first = await writer.reserve(town.hold(60 * YEN))
    line.cut = True
    with pytest.raises(LedgerUnavailable):
        await writer.reserve(next_hold(town, first, 60 * YEN), Ending(first, Settlement(20 * YEN)))
    line.cut = False
    for _ in range(200):
        now = await written(town)
        if now.call.state != "held":
            break
        await asyncio.sleep(0.05)
    assert (now.call.state, now.call.cost_uyen, now.held, now.posted) == ("settled", 20 * YEN, 0, 20 * YEN)


async def swept(town: Town) -> int:
    later = datetime.now(UTC) + LEASE + timedelta(seconds=1)
    return await asyncio.to_thread(lambda: sweep(town.urls, now=later))
