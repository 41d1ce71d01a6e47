"""A commit whose answer never came is looked up: the money is held once or not at all, and the caller hears which."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tenants.db import DatabaseUrls
from tenants.quota.book import LedgerBook, open_book
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import Ending, LedgerUnavailable, QuotaExceeded, Settlement
from tests.integration.ledger.conftest import Town, around

YEN = 1_000_000


class Wire:
    """Breaks once, either before the database hears of a transaction or after it has committed it."""

    breaks = ""

    def __call__(self, urls: DatabaseUrls) -> LedgerBook:
        return around(open_book(urls), before=self._at("before"), after=self._at("after"))

    def _at(self, moment: str) -> Callable[[LedgerBook], None]:
        def break_off(book: LedgerBook) -> None:
            if self.breaks == moment:
                self.breaks = ""
                raise book.connection_errors[0]("broken")

        return break_off


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def writer(urls: DatabaseUrls, tmp_path: Path, wire: Wire) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(
        urls, owner_epoch="test", spool_dir=tmp_path / "spool", max_queue_wait_s=10, open_connection=wire
    )
    writer.start()
    yield writer
    await writer.close()


async def test_what_was_committed_is_held_once(town: Town, writer: LedgerWriter, wire: Wire) -> None:
    await town.set_budget(100 * YEN)
    # The first hold finds the account; later ones may go in one trip.
    for breaks, expected in (("after", 10), ("", 20), ("after", 30)):
        wire.breaks = breaks
        reservation = await writer.reserve(town.hold(10 * YEN))
        assert (await town.town_account()).held_uyen == expected * YEN
    await asyncio.wrap_future(writer.settle(reservation, Settlement(3 * YEN)))
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (20 * YEN, 3 * YEN)


async def test_what_never_arrived_is_refused_and_holds_nothing(town: Town, writer: LedgerWriter, wire: Wire) -> None:
    await town.set_budget(100 * YEN)
    await writer.reserve(town.hold(10 * YEN))
    wire.breaks = "before"
    with pytest.raises(LedgerUnavailable):
        await writer.reserve(town.hold(10 * YEN))
    assert (await town.town_account()).held_uyen == 10 * YEN
    await writer.reserve(town.hold(10 * YEN))


async def test_a_settle_of_unknown_fate_counts_once(town: Town, writer: LedgerWriter, wire: Wire) -> None:
    await town.set_budget(100 * YEN)
    reservation = await writer.reserve(town.hold(80 * YEN))
    wire.breaks = "after"
    await asyncio.wrap_future(writer.settle(reservation, Settlement(30 * YEN)))
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 30 * YEN)


@pytest.mark.parametrize("breaks", ["before", "after"])
async def test_a_second_attempt_of_unknown_fate_leaves_nothing_held(
    town: Town, writer: LedgerWriter, wire: Wire, breaks: str
) -> None:
    await town.set_budget(100 * YEN)
    first = await writer.reserve(town.hold(60 * YEN))
    wire.breaks = breaks
    hold = town.hold(80 * YEN, call_id=first.call_id)
    try:
        second = await writer.reserve(hold, Ending(first, Settlement(20 * YEN)))
    except LedgerUnavailable:
        assert breaks == "before"
        posted = 20
    else:
        assert breaks == "after"
        await asyncio.wrap_future(writer.settle(second, Settlement(5 * YEN)))
        posted = 25
    for _ in range(200):
        account = await town.town_account()
        if account.held_uyen == 0:
            break
        await asyncio.sleep(0.02)
    assert (account.held_uyen, account.posted_uyen) == (0, posted * YEN)


async def test_a_refusal_of_unknown_fate_stays_one(town: Town, writer: LedgerWriter, wire: Wire) -> None:
    await town.set_budget(10 * YEN)
    await writer.reserve(town.hold(10 * YEN))
    wire.breaks = "after"
    with pytest.raises(QuotaExceeded):
        await writer.reserve(town.hold(10 * YEN))
    assert (await town.town_account()).held_uyen == 10 * YEN
