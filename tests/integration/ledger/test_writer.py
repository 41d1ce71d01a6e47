"""The ledger on both databases: never over the limit, never lost, never twice."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tenants.db import DatabaseUrls
from tenants.quota.book import LedgerBook, open_book
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import LedgerUnavailable, NoBudget, QuotaExceeded, Reservation, Settlement
from tests.integration.ledger.conftest import around

YEN = 1_000_000


async def test_of_200_parallel_calls_exactly_50_are_admitted(town, ledger: LedgerWriter) -> None:
    await town.set_budget(50 * 41 * YEN)
    outcomes = await asyncio.gather(*(ledger.reserve(town.hold(41 * YEN)) for _ in range(200)), return_exceptions=True)
    assert sum(isinstance(o, Reservation) for o in outcomes) == 50
    assert sum(isinstance(o, QuotaExceeded) for o in outcomes) == 150
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (50 * 41 * YEN, 0)


async def test_a_town_without_a_budget_is_refused(town, ledger: LedgerWriter) -> None:
    with pytest.raises(NoBudget):
        await ledger.reserve(town.hold(1))
    await town.set_budget(1)
    assert (await ledger.reserve(town.hold(1))).hold_uyen == 1


async def test_settling_posts_the_cost_and_frees_the_rest(town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    reservation = await ledger.reserve(town.hold(80 * YEN))
    await asyncio.wrap_future(ledger.settle(reservation, Settlement(30 * YEN, 10, 30, "provider")))
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 30 * YEN)


async def test_settling_twice_changes_nothing(town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    reservation = await ledger.reserve(town.hold(80 * YEN))
    for _ in range(2):
        await asyncio.wrap_future(ledger.settle(reservation, Settlement(30 * YEN)))
    assert (await town.town_account()).posted_uyen == 30 * YEN


async def test_a_hold_that_does_not_fit_is_shrunk_to_what_is_left(town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    await ledger.reserve(town.hold(70 * YEN))
    assert (await ledger.reserve(town.hold(70 * YEN, floor=10 * YEN))).hold_uyen == 30 * YEN


async def test_voiding_gives_the_hold_back(town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    reservation = await ledger.reserve(town.hold(80 * YEN))
    await asyncio.wrap_future(ledger.void(reservation, "not_dispatched"))
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 0)


@pytest.fixture
async def slow_ledger(urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[LedgerWriter]:
    """On a disk whose every commit takes longer than the queue may last."""

    def open_slowly(urls: DatabaseUrls) -> LedgerBook:
        return around(open_book(urls), after=lambda _: time.sleep(0.15))

    writer = LedgerWriter(
        urls, owner_epoch="slow", spool_dir=tmp_path / "spool", max_queue_wait_s=0.05, open_connection=open_slowly
    )
    writer.start()
    yield writer
    await writer.close()


async def test_who_waits_for_one_slow_commit_is_not_turned_away(town, slow_ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    first = asyncio.ensure_future(slow_ledger.reserve(town.hold(YEN)))
    await asyncio.sleep(0.05)
    await slow_ledger.reserve(town.hold(YEN))
    await first
    assert (await town.town_account()).held_uyen == 2 * YEN


async def test_a_queue_that_grows_turns_callers_away(town, slow_ledger: LedgerWriter) -> None:
    await town.set_budget(10_000 * YEN)
    wanted = 1_000
    outcomes = await asyncio.gather(
        *(slow_ledger.reserve(town.hold(YEN)) for _ in range(wanted)), return_exceptions=True
    )
    granted = sum(isinstance(o, Reservation) for o in outcomes)
    turned_away = [o for o in outcomes if isinstance(o, LedgerUnavailable)]
    assert granted >= 256
    assert granted + len(turned_away) == wanted
    assert turned_away
    assert turned_away[0].retry_after_s == 1
    assert (await town.town_account()).held_uyen == granted * YEN
