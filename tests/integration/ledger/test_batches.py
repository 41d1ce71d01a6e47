"""Which items share a commit, and how long what was not there is remembered as absent."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from kumiai.local.postgres import Postgres
from tenants.context import new_id
from tenants.db import DatabaseUrls
from tenants.models import Budget
from tenants.quota.accounts import ABSENT_S
from tenants.quota.book import LedgerBook, open_book
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import QuotaExceeded, Settlement
from tenants.quota.windows import window_start
from tests.integration.ledger.conftest import around

YEN = 1_000_000


class Counted:
    """Opens the real book and counts its commits."""

    commits = 0

    def __call__(self, urls: DatabaseUrls) -> LedgerBook:
        return around(open_book(urls), after=self._count)

    def _count(self, _book: LedgerBook) -> None:
        self.commits += 1


@pytest.fixture
async def counted(urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[tuple[LedgerWriter, Counted]]:
    opened = Counted()
    writer = LedgerWriter(
        urls, owner_epoch="test", spool_dir=tmp_path / "spool", max_queue_wait_s=10, open_connection=opened
    )
    writer.start()
    yield writer, opened
    await writer.close()


async def test_settles_share_a_commit(town, counted: tuple[LedgerWriter, Counted]) -> None:
    writer, opened = counted
    await town.set_budget(100 * YEN)
    reservations = await asyncio.gather(*(writer.reserve(town.hold(10 * YEN)) for _ in range(10)))
    before = opened.commits
    settles = [asyncio.wrap_future(writer.settle(r, Settlement(3 * YEN))) for r in reservations]
    await asyncio.gather(*settles)
    assert opened.commits - before < len(settles)
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 30 * YEN)


async def test_a_hold_gets_the_money_of_a_settle_that_still_waits(town, ledger: LedgerWriter) -> None:
    await town.set_budget(15 * YEN)
    first = await ledger.reserve(town.hold(10 * YEN))
    settled = asyncio.wrap_future(ledger.settle(first, Settlement(3 * YEN)))
    section = new_id()
    second = await ledger.reserve(town.hold(12 * YEN, section_id=section))
    await settled
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (12 * YEN, 3 * YEN)
    await asyncio.wrap_future(ledger.settle(second, Settlement(1 * YEN)))
    # The section's account was opened in the transaction that was given up, and again in the one that counts.
    assert (await ledger.reserve(town.hold(5 * YEN, section_id=section))).hold_uyen == 5 * YEN


async def test_a_hold_is_not_shrunk_for_a_settle_that_still_waits(town, ledger: LedgerWriter) -> None:
    await town.set_budget(30 * YEN)
    first = await ledger.reserve(town.hold(20 * YEN))
    ledger.settle(first, Settlement(2 * YEN))
    assert (await ledger.reserve(town.hold(20 * YEN, floor=1 * YEN))).hold_uyen == 20 * YEN


async def test_a_settle_commits_without_another_call(town, counted: tuple[LedgerWriter, Counted]) -> None:
    writer, _ = counted
    await town.set_budget(100 * YEN)
    first = await writer.reserve(town.hold(10 * YEN))
    await asyncio.wrap_future(writer.settle(first, Settlement(3 * YEN)))
    assert (await town.town_account()).posted_uyen == 3 * YEN


async def test_an_app_that_gets_its_own_budget_is_held_to_it_soon(town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    reservation = await ledger.reserve(town.hold(10 * YEN))
    async with town.db.platform_session("test") as session:
        month = window_start("month", reservation.created_at)
        session.add(Budget(tenant_id=town.id, node="app", node_id="chat", limit_uyen=5 * YEN, valid_from=month))
    await asyncio.sleep(ABSENT_S)
    with pytest.raises(QuotaExceeded) as refusal:
        await ledger.reserve(town.hold(10 * YEN))
    assert refusal.value.extensions["node"] == "app"


@pytest.mark.parametrize("urls", ["postgresql", "pgbouncer"], indirect=True)
async def test_a_cut_connection_loses_no_settle_and_is_opened_again(
    postgres_server: Postgres, town, ledger: LedgerWriter
) -> None:
    await town.set_budget(100 * YEN)
    first = await ledger.reserve(town.hold(10 * YEN))
    with psycopg.connect(postgres_server.superuser_url, autocommit=True) as connection:
        cut = connection.execute(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'kumiai_ledger'"
        ).fetchone()
    assert cut is not None
    assert cut[0] >= 1
    await asyncio.wrap_future(ledger.settle(first, Settlement(3 * YEN)))
    await ledger.reserve(town.hold(10 * YEN))
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (10 * YEN, 3 * YEN)
