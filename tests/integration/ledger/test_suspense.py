"""How what waits for its true cost ends: settled by a provider's figure, or final after 35 days."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlmodel import col, select

from tenants.models import Attempt, Call, Correction, SealQueue
from tenants.quota.book import AccountState, Closing, PostgresBook
from tenants.quota.ledger import LEASE, LedgerWriter, sweep
from tenants.quota.suspense import FINAL_AFTER, FROM_FILE_AT_HOLD, finalise, settle_suspense
from tenants.quota.terms import Reservation, Settlement
from tests.integration.ledger.conftest import Town

YEN = 1_000_000


async def suspend(town: Town, ledger: LedgerWriter, yen: int) -> Reservation:
    """A call whose gateway is gone."""
    reservation = await ledger.reserve(town.hold(yen * YEN))
    later = datetime.now(UTC) + LEASE + timedelta(seconds=1)
    assert await asyncio.to_thread(lambda: sweep(town.urls, now=later)) == 1
    return reservation


def said(reservation: Reservation, yen: int) -> Closing:
    return Closing(
        reservation.tenant_id, reservation.created_at, reservation.call_id, reservation.attempt_id, "settled",
        yen * YEN, 7, 9, "provider", "", "owner_gone", None, None,
    )  # fmt: skip


async def books(town: Town) -> tuple[list[Call], list[Attempt], list[Correction], int]:
    """Calls, attempts, corrections, and how many rows wait to be sealed."""
    async with town.db.platform_session("test", read_only=True) as session:
        calls = (await session.exec(select(Call).where(col(Call.tenant_id) == town.id).order_by(col(Call.id)))).all()
        attempts = (
            await session.exec(select(Attempt).where(col(Attempt.tenant_id) == town.id).order_by(col(Attempt.id)))
        ).all()
        corrections = (await session.exec(select(Correction).where(col(Correction.tenant_id) == town.id))).all()
        queued = (await session.exec(select(SealQueue).where(col(SealQueue.tenant_id) == town.id))).all()
    return list(calls), list(attempts), list(corrections), len(queued)


async def test_a_providers_figure_settles_once_and_frees_the_rest(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(200 * YEN)
    one, other = await suspend(town, ledger, 80), await suspend(town, ledger, 40)
    for settled in (1, 0):
        assert await asyncio.to_thread(lambda: settle_suspense(town.urls, [said(one, 30)])) == settled
        account = await town.town_account()
        assert (account.held_uyen, account.posted_uyen) == (0, 70 * YEN)
    calls, attempts, [correction], queued = await books(town)
    assert [(c.state, c.cost_uyen, c.usage_source) for c in calls] == [
        ("settled", 30 * YEN, "provider"), ("suspense", 40 * YEN, "hold"),
    ]  # fmt: skip
    assert [(a.id, a.state, a.cost_uyen) for a in attempts] == [
        (one.attempt_id, "settled", 30 * YEN), (other.attempt_id, "suspense", 40 * YEN),
    ]  # fmt: skip
    assert (correction.call_id, correction.delta_uyen, correction.reason) == (one.call_id, -50 * YEN, "provider file")
    # Both when they were swept, and again what was learnt.
    assert queued == 3


async def test_a_figure_above_the_hold_costs_the_hold(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(80 * YEN)
    waiting = await suspend(town, ledger, 80)
    assert await asyncio.to_thread(lambda: settle_suspense(town.urls, [said(waiting, 95)])) == 1
    assert (await town.town_account()).posted_uyen == 80 * YEN
    [call], [attempt], [correction], _ = await books(town)
    assert (call.cost_uyen, attempt.cost_uyen, correction.delta_uyen) == (80 * YEN, 80 * YEN, 0)


async def test_what_was_charged_by_its_hold_is_corrected_once(town: Town, ledger: LedgerWriter) -> None:
    """Nobody counted a call that was stopped; it was no 確認待ち, and a provider's figure corrects it all the same."""
    await town.set_budget(200 * YEN)
    stopped = await ledger.reserve(town.hold(80 * YEN))
    await asyncio.wrap_future(ledger.settle(stopped, Settlement(None, problem="client_disconnected")))
    assert (await town.town_account()).posted_uyen == 80 * YEN
    for settled in (1, 0):
        assert await asyncio.to_thread(lambda: settle_suspense(town.urls, [said(stopped, 30)])) == settled
        account = await town.town_account()
        assert (account.held_uyen, account.posted_uyen) == (0, 30 * YEN)
    [call], [attempt], [correction], _ = await books(town)
    assert (call.state, call.cost_uyen, call.usage_source) == ("settled", 30 * YEN, "provider")
    assert (attempt.state, attempt.cost_uyen) == ("settled", 30 * YEN)
    assert (correction.delta_uyen, correction.reason) == (-50 * YEN, FROM_FILE_AT_HOLD)


async def test_who_reads_a_hold_before_another_corrects_it_changes_nothing(
    town: Town, ledger: LedgerWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite lets nobody read for writing beside another; there the second simply comes later."""
    await town.set_budget(200 * YEN)
    stopped = await ledger.reserve(town.hold(80 * YEN))
    await asyncio.wrap_future(ledger.settle(stopped, Settlement(None, problem="client_disconnected")))
    lock, between = PostgresBook.lock_accounts, [said(stopped, 30)]

    def after_the_other(book: PostgresBook, ids: Iterable[UUID]) -> dict[UUID, AccountState]:
        if between:
            assert settle_suspense(town.urls, [between.pop()]) == 1
        return lock(book, ids)

    monkeypatch.setattr(PostgresBook, "lock_accounts", after_the_other)
    settled = [await asyncio.to_thread(lambda: settle_suspense(town.urls, [said(stopped, 30)])) for _ in range(2)]
    assert settled == ([1, 0] if between else [0, 0])
    assert (await town.town_account()).posted_uyen == 30 * YEN


async def test_only_what_is_in_suspense_is_settled(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(200 * YEN)
    waiting, running = await suspend(town, ledger, 80), await ledger.reserve(town.hold(40 * YEN))
    ended = await ledger.reserve(town.hold(20 * YEN))
    await asyncio.wrap_future(ledger.settle(ended, Settlement(20 * YEN, usage_source="provider")))
    told = [said(r, 1) for r in (waiting, running, ended)]
    assert await asyncio.to_thread(lambda: settle_suspense(town.urls, told)) == 1
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (40 * YEN, 21 * YEN)


async def test_after_35_days_it_is_final_and_nothing_moves_it_any_more(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    waiting = await suspend(town, ledger, 80)
    last = waiting.created_at + FINAL_AFTER
    assert timedelta(days=35) == FINAL_AFTER
    assert await asyncio.to_thread(lambda: finalise(town.urls, now=last)) == 0
    due = last + timedelta(seconds=1)
    assert await asyncio.to_thread(lambda: finalise(town.urls, now=due)) == 1
    assert await asyncio.to_thread(lambda: finalise(town.urls, now=due)) == 0
    assert await asyncio.to_thread(lambda: settle_suspense(town.urls, [said(waiting, 30)])) == 0
    # A gateway that comes back with its spool is too late as well.
    await asyncio.wrap_future(ledger.settle(waiting, Settlement(10 * YEN)))
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 80 * YEN)
    [call], [attempt], [correction], queued = await books(town)
    assert (call.state, call.cost_uyen, attempt.state, attempt.cost_uyen) == ("settled", 80 * YEN, "final", 80 * YEN)
    assert (correction.delta_uyen, correction.reason, correction.created_at) == (0, "final", due)
    assert queued == 2
