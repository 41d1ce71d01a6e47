"""A call that is on two servers at once, for nothing: a row of each, one open attempt, and a name for who answered."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import col, select

from tenants.context import new_id
from tenants.models import Attempt, Call
from tenants.quota.book import LedgerBook, open_book
from tenants.quota.ledger import LEASE, LedgerWriter, sweep
from tenants.quota.terms import CopiedReservation, Ending, FrozenPrice, LedgerUnavailable, Reservation, Settlement
from tests.integration.ledger.conftest import Line, Town, around
from tests.integration.ledger.test_slots import allow, slots

FREE = FrozenPrice("p0", "", 1_000_000, 0, 0)
COUNTED = Settlement(0, 7, 0, "provider")


@dataclass(frozen=True)
class Written:
    state: str
    deployment: str
    problem: str
    tokens: int
    attempts: list[tuple[int, str, str, str]]
    is_ended: list[bool] = field(compare=False)


async def written(town: Town) -> Written:
    async with town.db.platform_session("test", read_only=True) as session:
        [call] = (await session.exec(select(Call).where(col(Call.tenant_id) == town.id))).all()
        query = select(Attempt).where(col(Attempt.tenant_id) == town.id).order_by(col(Attempt.number))
        attempts = (await session.exec(query)).all()
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 0)
    assert all((a.hold_uyen, a.cost_uyen) == (0, 0) for a in attempts)
    return Written(
        call.state, call.deployment, call.problem, call.prompt_tokens,
        [(a.number, a.deployment, a.state, a.problem) for a in attempts],
        [a.ended_at is not None for a in attempts],
    )  # fmt: skip


def copied(first: Reservation) -> CopiedReservation:
    """With a copy that is about to leave."""
    made = CopiedReservation(
        first.call_id, first.attempt_id, first.tenant_id, first.created_at, first.hold_uyen, first.price,
        first.account_ids, first.number,
    )  # fmt: skip
    made.copy.attempt_id, made.copy.deployment = new_id(), "second"
    return made


async def sent_twice(town: Town, ledger: LedgerWriter) -> CopiedReservation:
    first = copied(await ledger.reserve(town.hold(0, deployment="first", price=FREE)))
    await ledger.beside(first, zone="onprem", price=FREE)
    first.copy.has_left = True
    return first


async def end(ledger: LedgerWriter, reservation: Reservation, settlement: Settlement) -> None:
    await asyncio.wrap_future(ledger.settle(reservation, settlement))


async def test_the_copy_has_a_row_before_it_leaves_and_opens_nothing(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    first = await sent_twice(town, ledger)
    now = await written(town)
    assert (now.state, now.deployment) == ("held", "first")
    assert now.attempts == [(1, "first", "held", ""), (2, "second", "settled", "hedged")]
    await end(ledger, first, COUNTED)
    now = await written(town)
    assert now == Written(
        "settled", "first", "", 7, [(1, "first", "settled", ""), (2, "second", "settled", "hedged")], []
    )
    assert now.is_ended == [True, True]


async def test_the_call_is_named_after_the_copy_that_answered(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    first = await sent_twice(town, ledger)
    first.copy.has_answered = True
    await end(ledger, first, COUNTED)
    assert await written(town) == Written(
        "settled", "second", "", 7, [(1, "first", "settled", "hedged"), (2, "second", "settled", "")], []
    )


async def test_what_came_of_the_copy_later_is_not_written_into_an_end_before(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    first = await sent_twice(town, ledger)
    ended = asyncio.wrap_future(ledger.settle(first, COUNTED))
    first.copy.has_answered = True
    await ended
    assert (await written(town)).deployment == "first"


async def test_a_call_whose_copies_both_failed_goes_on_with_a_third(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    first = await sent_twice(town, ledger)
    first.copy.problem = "upstream_timeout"
    hold = town.hold(0, call_id=first.call_id, deployment="third", price=FREE)
    third = await ledger.reserve(hold, Ending(first, Settlement(0, problem="upstream_unavailable")))
    await end(ledger, third, COUNTED)
    assert (await written(town)).attempts == [
        (1, "first", "settled", "upstream_unavailable"),
        (2, "second", "settled", "upstream_timeout"),
        (3, "third", "settled", ""),
    ]


async def test_a_copy_that_never_left_is_void(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    first = await sent_twice(town, ledger)
    first.copy.has_left = False
    await end(ledger, first, COUNTED)
    assert (await written(town)).attempts == [(1, "first", "settled", ""), (2, "second", "void", "hedged")]


async def test_nobody_who_stopped_waiting_finds_a_row(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    first = copied(await ledger.reserve(town.hold(0, deployment="first", price=FREE)))
    ledger.beside(first, zone="onprem", price=FREE).cancel()
    await end(ledger, first, COUNTED)
    attempts = (await written(town)).attempts
    # It may have been written in the moment in which it was not wanted any more.
    assert attempts in ([(1, "first", "settled", "")], [(1, "first", "settled", ""), (2, "second", "void", "hedged")])


async def test_a_copy_takes_no_slot(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    await allow(town, 1)
    first = await sent_twice(town, ledger)
    [full] = await slots(town)
    assert (full.limit, full.taken) == (1, 1)
    await end(ledger, first, COUNTED)
    assert [s.taken for s in await slots(town)] == [0]


async def test_a_gateway_that_died_with_both_leaves_nothing_open(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(0)
    first = await sent_twice(town, ledger)
    later = datetime.now(UTC) + LEASE + timedelta(seconds=1)
    assert await asyncio.to_thread(lambda: sweep(town.urls, now=later)) == 1
    now = await written(town)
    assert now.state == "suspense"
    assert now.attempts == [(1, "first", "suspense", "owner_gone"), (2, "second", "settled", "hedged")]
    # It was alive after all.
    first.copy.has_answered = True
    await end(ledger, first, COUNTED)
    assert await written(town) == Written(
        "settled", "second", "", 7, [(1, "first", "settled", "hedged"), (2, "second", "settled", "")], []
    )


async def test_while_the_database_is_away_no_copy_leaves_and_its_end_is_kept_on_disk(
    town: Town, line: Line, start: Callable[[str], LedgerWriter], tmp_path: Path
) -> None:
    await town.set_budget(0)
    writer = start("a")
    first = await sent_twice(town, writer)
    line.cut = True
    with pytest.raises(LedgerUnavailable):
        await writer.beside(copied(first), zone="onprem", price=FREE)
    first.copy.has_answered = True
    writer.settle(first, COUNTED)
    await writer.close()
    [spool] = (tmp_path / "spool").iterdir()
    # The next process takes over what a dead one has left.
    os.rename(spool, spool.with_name("settles-gone.jsonl"))
    line.cut = False
    heir = start("b")
    for _ in range(200):
        if (now := await written(town)).state == "settled":
            break
        await asyncio.sleep(0.05)
    assert (now.deployment, now.attempts) == (
        "second", [(1, "first", "settled", "hedged"), (2, "second", "settled", "")]
    )  # fmt: skip
    await heir.close()


@pytest.fixture
async def breaking(town: Town, tmp_path: Path) -> AsyncIterator[tuple[LedgerWriter, list[str]]]:
    """A writer whose connection breaks once after a commit, when something stands in the list."""
    moments: list[str] = []

    def break_off(book: LedgerBook) -> None:
        if moments:
            moments.clear()
            raise book.connection_errors[0]("broken")

    writer = LedgerWriter(
        town.urls, owner_epoch="test", spool_dir=tmp_path / "spool",
        open_connection=lambda urls: around(open_book(urls), after=break_off),
    )  # fmt: skip
    writer.start()
    yield writer, moments
    await writer.close()


async def test_a_row_of_unknown_fate_means_that_nothing_was_sent(
    town: Town, breaking: tuple[LedgerWriter, list[str]]
) -> None:
    await town.set_budget(0)
    writer, moments = breaking
    first = copied(await writer.reserve(town.hold(0, deployment="first", price=FREE)))
    moments.append("after")
    with pytest.raises(LedgerUnavailable):
        await writer.beside(first, zone="onprem", price=FREE)
    await end(writer, first, COUNTED)
    assert (await written(town)).attempts == [(1, "first", "settled", ""), (2, "second", "void", "hedged")]
