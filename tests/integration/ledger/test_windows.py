"""Limits of a day, a month and a fiscal year, on one call at once; a new window is a new account."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import col, select

from tenants.context import new_id
from tenants.db import DatabaseUrls
from tenants.models import Account
from tenants.quota.book import LedgerBook, open_book
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import QuotaExceeded, Settlement
from tenants.quota.tree import BudgetRow, BudgetTooSmall, Node, budget_rows, remaining_share, set_budget
from tenants.quota.windows import WINDOWS, Window, window_bounds, window_start
from tests.integration.ledger.conftest import Town

YEN = 1_000_000


class Clock:
    """The database's clock, moved on."""

    ahead = timedelta(0)

    def __call__(self, urls: DatabaseUrls) -> LedgerBook:
        book = open_book(urls)
        begin = book.begin
        book.begin = lambda: begin() + self.ahead  # type: ignore[method-assign]  # this one connection only
        # It reads the clock inside the database, or takes the writer's own.
        book.hold_at_once = lambda *_, **__: None  # type: ignore[method-assign]
        return book


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def writer(urls: DatabaseUrls, tmp_path: Path, clock: Clock) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(
        urls, owner_epoch="test", spool_dir=tmp_path / "spool", max_queue_wait_s=10, open_connection=clock
    )
    writer.start()
    yield writer
    await writer.close()


async def limit(town: Town, window: Window, yen: int | None, node: Node = "town", node_id: str = "") -> None:
    async with town.db.platform_session("test") as session:
        await set_budget(session, town.id, yen=yen, window=window, node=node, node_id=node_id)


async def rows(town: Town) -> dict[tuple[str, str], BudgetRow]:
    async with town.db.platform_session("test", read_only=True) as session:
        return {(r.node, r.window): r for r in await budget_rows(session, tenant_id=town.id, windows=WINDOWS)}


async def test_the_day_s_limit_holds_until_the_next_day(town: Town, writer: LedgerWriter, clock: Clock) -> None:
    await limit(town, "month", 100)
    await limit(town, "day", 30)
    await writer.reserve(town.hold(30 * YEN))
    with pytest.raises(QuotaExceeded) as refused:
        await writer.reserve(town.hold(YEN))
    assert (refused.value.extensions["node"], refused.value.extensions["window"]) == ("town", "day")
    assert "今日の利用枠" in str(refused.value.detail)
    assert "あす午前0時" in str(refused.value.detail)
    _, midnight = window_bounds("day", window_start("day", datetime.now(UTC)))
    assert refused.value.retry_after_s is not None
    assert abs(refused.value.retry_after_s - (midnight - datetime.now(UTC)).total_seconds()) < 60
    clock.ahead = midnight - datetime.now(UTC) + timedelta(seconds=1)
    await writer.reserve(town.hold(30 * YEN))
    with pytest.raises(QuotaExceeded):
        await writer.reserve(town.hold(YEN))


async def test_the_year_s_limit_outlives_the_month(town: Town, writer: LedgerWriter, clock: Clock) -> None:
    await limit(town, "month", 100)
    await limit(town, "fiscal_year", 150)
    await writer.reserve(town.hold(100 * YEN))
    start = window_start("month", datetime.now(UTC))
    next_month = window_bounds("month", start)[1]
    _, new_year = window_bounds("fiscal_year", window_start("fiscal_year", datetime.now(UTC)))
    if next_month < new_year:
        clock.ahead = next_month - datetime.now(UTC) + timedelta(seconds=1)
        with pytest.raises(QuotaExceeded) as refused:
            await writer.reserve(town.hold(51 * YEN))
        assert refused.value.extensions["window"] == "fiscal_year"
        await writer.reserve(town.hold(50 * YEN))
    clock.ahead = new_year - datetime.now(UTC) + timedelta(seconds=1)
    await writer.reserve(town.hold(100 * YEN))


async def test_a_call_over_the_edge_of_the_month_is_the_old_month_s(
    town: Town, writer: LedgerWriter, clock: Clock
) -> None:
    await limit(town, "month", 100)
    begun = await writer.reserve(town.hold(80 * YEN))
    first_day = window_start("month", datetime.now(UTC))
    clock.ahead = window_bounds("month", first_day)[1] - datetime.now(UTC) + timedelta(seconds=1)
    # The new month is whole while the old one's call is still under way, and after it has ended.
    other = await writer.reserve(town.hold(100 * YEN))
    await asyncio.wrap_future(writer.settle(begun, Settlement(30 * YEN)))
    with pytest.raises(QuotaExceeded):
        await writer.reserve(town.hold(YEN))
    await asyncio.wrap_future(writer.settle(other, Settlement(0)))
    async with town.db.platform_session("test", read_only=True) as session:
        found = select(Account).where(col(Account.tenant_id) == town.id, col(Account.window) == "month")
        months = sorted(await session.exec(found), key=lambda a: a.window_start)
    assert [(a.held_uyen, a.posted_uyen) for a in months if a.node == "town"] == [(0, 30 * YEN), (0, 0)]


async def test_a_settle_reaches_every_window(town: Town, ledger: LedgerWriter) -> None:
    for window, yen in (("month", 100), ("day", 90), ("fiscal_year", 1000)):
        await limit(town, window, yen)  # type: ignore[arg-type]  # the three windows
    reservation = await ledger.reserve(town.hold(80 * YEN))
    assert {w: r.held_uyen for (_, w), r in (await rows(town)).items()} == dict.fromkeys(WINDOWS, 80 * YEN)
    await asyncio.wrap_future(ledger.settle(reservation, Settlement(30 * YEN)))
    found = await rows(town)
    assert {w: (r.held_uyen, r.posted_uyen) for (_, w), r in found.items()} == dict.fromkeys(WINDOWS, (0, 30 * YEN))
    async with town.db.platform_session("test", read_only=True) as session:
        left = await remaining_share(session, town.id, section_id=None, person_id=None)
    assert left == found[("town", "day")].left


@pytest.mark.parametrize("window", ["day", "fiscal_year"])
@pytest.mark.parametrize("node", ["town", "section", "app", "model"])
async def test_a_limit_set_in_the_middle_counts_what_was_used(
    town: Town, ledger: LedgerWriter, window: Window, node: Node
) -> None:
    await limit(town, "month", 100)
    section = new_id()
    node_id = {"town": "", "section": str(section), "app": "chat", "model": "standard"}[node]
    done = await ledger.reserve(town.hold(20 * YEN, section_id=section))
    await asyncio.wrap_future(ledger.settle(done, Settlement(5 * YEN)))
    await ledger.reserve(town.hold(10 * YEN, section_id=section))
    # Of another section, app and model.
    await ledger.reserve(town.hold(7 * YEN, section_id=new_id(), app="other", alias="fast"))
    used = 22 if node == "town" else 15
    with pytest.raises(BudgetTooSmall):
        await limit(town, window, used - 1, node, node_id)
    await limit(town, window, used + 20, node, node_id)
    assert (await rows(town))[(node, window)].posted_uyen == used * YEN
    # A writer looks for limits that were not there twice a second.
    await asyncio.sleep(0.6)
    with pytest.raises(QuotaExceeded) as refused:
        await ledger.reserve(town.hold(21 * YEN, section_id=section))
    assert (refused.value.extensions["node"], refused.value.extensions["window"]) == (node, window)
    await ledger.reserve(town.hold(20 * YEN, section_id=section))


async def test_a_lifted_limit_is_none(town: Town, ledger: LedgerWriter) -> None:
    await limit(town, "month", 100)
    await limit(town, "day", 10)
    await limit(town, "day", None)
    await ledger.reserve(town.hold(50 * YEN))
    assert ("town", "day") not in await rows(town)
