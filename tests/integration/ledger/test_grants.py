"""Grants while money is held beside them, at the turn of a month, and against a writer that is wrong."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable, Coroutine
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, func, select, text, update
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants.audit import By
from tenants.audit.verification import verify_chain
from tenants.context import Actor, PersonId, Role, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Account, Audit, Budget, Call, Grant, GrantWanted, Pool, PoolMove, PoolShare, Tenant
from tenants.quota.book import AccountKey, open_book
from tenants.quota.grant_notices import grant_notices_of, mark_grant_seen
from tenants.quota.grants import (
    PoolTooSmall,
    end_pool,
    leave_pools,
    lock_region,
    move_slices,
    move_wanted,
    read_region,
    read_share,
    set_lending,
    set_pool,
)
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import LedgerUnavailable, QuotaExceeded, Settlement
from tenants.quota.tree import BudgetTooSmall, move_budget, set_budget
from tenants.quota.window_moves import NotMovable, list_moves, move_for_window, moves_of, undo_move
from tenants.quota.windows import Window, window_start
from tests.integration.ledger.conftest import Town

YEN = 1_000_000
BY = By("command", "test")


class Region:
    """Towns of a pool, in yen."""

    def __init__(self, urls: DatabaseUrls) -> None:
        self.urls, self.db = urls, Database(urls)

    async def do(self, work: Callable[[AsyncSession], Coroutine[Any, Any, Any]]) -> Any:
        async with self.db.platform_session("test") as session:
            return await work(session)

    async def town(self, yen: int) -> Town:
        id = TenantId(new_id())
        async with self.db.platform_session("test") as session:
            session.add(Tenant(id=id, name="見本町", alias=f"t{id.hex}"))
            await session.flush()
            await set_budget(session, id, yen=yen)
        return Town(self.db, self.urls, id)

    async def pool(self, yen: int, window: Window = "month") -> None:
        await self.do(lambda s: set_pool(s, window, yen, by=BY, now=datetime.now(UTC)))

    async def lending(self, town: Town, *, borrow: int = 0, lend: int = 0) -> None:
        async def work(session: AsyncSession) -> None:
            found = await lock_region(session, "month", {town.id}, datetime.now(UTC))
            assert found is not None
            await set_lending(session, found, town.id, borrow_yen=borrow, lend_yen=lend, by=BY)

        await self.do(work)

    async def move(self, now: datetime | None = None) -> int:
        return await move_slices(self.db, now or datetime.now(UTC))

    async def account(self, town: Town, window: Window = "month") -> Account:
        start = window_start(window, datetime.now(UTC))
        async with self.db.platform_session("test", read_only=True) as session:
            where = (col(Account.tenant_id) == town.id, col(Account.node) == "town", col(Account.window) == window)
            return (await session.exec(select(Account).where(*where, col(Account.window_start) == start))).one()

    async def loans(self, town: Town) -> tuple[int, int]:
        """(borrowed, lent) in yen."""
        async with self.db.platform_session("test", read_only=True) as session:
            share = await read_share(session, town.id, "month", datetime.now(UTC))
        assert share is not None
        return share.borrowed_uyen // YEN, share.lent_uyen // YEN


@pytest.fixture
async def region(urls: DatabaseUrls) -> Any:
    region = Region(urls)
    yield region
    await region.db.close()


async def spend(ledger: LedgerWriter, town: Town, yen: int) -> None:
    reservation = await ledger.reserve(town.hold(yen * YEN))
    await asyncio.wrap_future(ledger.settle(reservation, Settlement(yen * YEN, 1, 1, "provider", "stop")))


# ── slices ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_town_that_runs_low_spends_what_another_lends(region: Region, ledger: LedgerWriter) -> None:
    poor, rich = await region.town(100), await region.town(100)
    await region.pool(200)
    await region.lending(poor, borrow=30)
    await region.lending(rich, lend=30)
    await spend(ledger, poor, 95)
    with pytest.raises(QuotaExceeded):
        await ledger.reserve(poor.hold(10 * YEN))
    assert await region.move() == 2
    assert (await region.loans(poor), await region.loans(rich)) == ((10, 0), (0, 10))
    for _ in range(2):
        await spend(ledger, poor, 10)
        assert await region.move() == 2
    # Up to its limit and no further; what the other has left of its share is still its own.
    assert (await region.loans(poor), await region.loans(rich)) == ((30, 0), (0, 30))
    assert await region.move() == 0
    with pytest.raises(QuotaExceeded):
        await ledger.reserve(poor.hold(16 * YEN))
    await spend(ledger, rich, 68)
    # The lender is low: what is not spent comes back, what is spent does not.
    assert await region.move() == 2
    assert (await region.loans(poor), await region.loans(rich)) == ((20, 0), (0, 20))
    assert [a.limit_uyen // YEN for a in (await region.account(poor), await region.account(rich))] == [120, 80]


async def test_a_town_that_runs_low_is_told_to_the_worker_once(region: Region, ledger: LedgerWriter) -> None:
    poor, rich, alone = await region.town(100), await region.town(100), await region.town(100)
    await region.pool(300)
    await region.lending(poor, borrow=30)
    await region.lending(rich, lend=30)

    async def wanted() -> list[TenantId]:
        async with region.db.platform_session("test", read_only=True) as session:
            return list((await session.exec(select(GrantWanted.tenant_id))).all())

    for town in (poor, alone):
        await spend(ledger, town, 90)
    assert await wanted() == []
    # The hold takes it across, before anything is settled; who may borrow nothing asks for nothing.
    for town in (poor, alone):
        await ledger.reserve(town.hold(YEN))
        await ledger.reserve(town.hold(YEN))
    assert await wanted() == [poor.id]
    assert await move_wanted(region.db, datetime.now(UTC)) == 2
    assert (await wanted(), await region.loans(poor)) == ([], (10, 0))
    assert await move_wanted(region.db, datetime.now(UTC)) == 0
    await spend(ledger, poor, 9)
    assert await wanted() == [poor.id]


async def test_every_move_is_in_both_towns_chains_and_told_once_to_their_administrators(
    region: Region, ledger: LedgerWriter
) -> None:
    poor, rich = await region.town(100), await region.town(100)
    await region.pool(200)
    await region.lending(poor, borrow=30)
    await region.lending(rich, lend=30)
    await spend(ledger, poor, 95)
    await region.move()
    await spend(ledger, poor, 10)
    await region.move()
    for town, action in ((poor, "grant.borrow"), (rich, "grant.lend")):
        await verify_chain(region.db, town.id)
        async with region.db.platform_session("test", read_only=True) as session:
            entries = (await session.exec(select(Audit).where(col(Audit.tenant_id) == town.id))).all()
            journal = await session.exec(
                select(func.sum(col(Grant.amount_uyen))).where(
                    col(Grant.tenant_id) == town.id, col(Grant.kind).in_(("share", "borrow", "lend", "move"))
                )
            )
            assert journal.one() == (await region.account(town)).limit_uyen
        assert [e.facts["uyen"] for e in entries if e.action == action] == [10 * YEN, 10 * YEN]
        admin = Actor(town.id, PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN}))
        clerk = Actor(town.id, PersonId(new_id()), None, frozenset({Role.STAFF}))
        async with region.db.tenant_session(admin.context) as session:
            [notice] = await grant_notices_of(session, admin, datetime.now(UTC))
            assert notice.what == action
            assert await grant_notices_of(session, clerk, datetime.now(UTC)) == []
            assert await mark_grant_seen(session, admin, notice.id)
            assert await grant_notices_of(session, admin, datetime.now(UTC)) == []
    stranger = Actor(rich.id, PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN}))
    async with region.db.tenant_session(stranger.context) as session:
        assert not await mark_grant_seen(session, stranger, new_id())


async def test_a_new_month_begins_with_the_whole_share(region: Region, ledger: LedgerWriter) -> None:
    poor, rich = await region.town(100), await region.town(100)
    await region.pool(200)
    await _as_if_last_month(region, poor, rich)
    # Opened by the first request of the month, before anybody moved anything.
    await spend(ledger, rich, 90)
    assert await region.move() == 0
    assert [(await region.account(t)).limit_uyen // YEN for t in (poor, rich)] == [100, 100]
    async with region.db.platform_session("test", read_only=True) as session:
        [pool] = (await session.exec(select(Pool))).all()
        rows = (await session.exec(select(PoolShare))).all()
    assert pool.window_start == window_start("month", datetime.now(UTC))
    assert {(r.borrowed_uyen, r.lent_uyen, r.window_start) for r in rows} == {(0, 0, pool.window_start)}
    assert pool.granted_uyen == 200 * YEN


async def _as_if_last_month(region: Region, borrower: Town, lender: Town) -> None:
    """The pool stands as it did at the end of an earlier month: everything granted, a loan of 30."""

    async def work(session: AsyncSession) -> None:
        await _go_back(session)
        await session.exec(update(Budget).values(valid_from=date(2020, 4, 1)))
        for town, limit, loan in ((lender, 70, {"lent_uyen": 30 * YEN}), (borrower, 130, {"borrowed_uyen": 30 * YEN})):
            account = update(Account).where(col(Account.tenant_id) == town.id).values(limit_uyen=limit * YEN)
            share = update(PoolShare).where(col(PoolShare.tenant_id) == town.id).values(**loan)
            for statement in (account, share) if town is lender else (share, account):
                await session.exec(statement)

    await region.do(work)


# ── what the operator sets ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_share_beyond_the_pool_is_refused_and_says_what_is_free(region: Region) -> None:
    town, _ = await region.town(100), await region.town(100)
    with pytest.raises(PoolTooSmall, match="200円"):
        await region.pool(199)
    await region.pool(250)
    with pytest.raises(PoolTooSmall, match="未割当は50円") as refused:
        await region.do(lambda s: set_budget(s, town.id, yen=151))
    assert refused.value.extensions["field"] == "month_yen"
    await region.do(lambda s: set_budget(s, town.id, yen=150))
    assert (await region.account(town)).limit_uyen == 150 * YEN
    with pytest.raises(PoolTooSmall):
        await region.town(1)
    with pytest.raises(PoolTooSmall):
        await region.pool(249)


async def test_money_that_no_share_claims_is_lent_and_comes_back_when_it_is_shared_out(
    region: Region, ledger: LedgerWriter
) -> None:
    poor, other = await region.town(100), await region.town(100)
    await region.pool(220)
    await region.lending(poor, borrow=50)
    await spend(ledger, poor, 99)
    await region.move()
    assert await region.loans(poor) == (10, 0)
    await spend(ledger, poor, 6)
    # 20 are free of shares; 5 of them are spent by the borrower, 5 are lent and not spent.
    with pytest.raises(PoolTooSmall, match="すでに使っています"):
        await region.do(lambda s: set_budget(s, other.id, yen=116))
    await region.do(lambda s: set_budget(s, other.id, yen=115))
    assert await region.loans(poor) == (5, 0)
    # A larger share of its own pays back the loan.
    await region.do(lambda s: set_budget(s, poor.id, yen=105))
    assert await region.loans(poor) == (0, 0)


async def test_a_lender_s_smaller_share_takes_back_what_it_lends(region: Region, ledger: LedgerWriter) -> None:
    poor, rich = await region.town(100), await region.town(100)
    await region.pool(200)
    await region.lending(poor, borrow=20)
    await region.lending(rich, lend=20)
    await spend(ledger, poor, 95)
    await region.move()
    await spend(ledger, rich, 50)
    with pytest.raises(BudgetTooSmall):
        await region.do(lambda s: set_budget(s, rich.id, yen=49))
    assert await region.loans(rich) == (0, 10)
    await region.do(lambda s: set_budget(s, rich.id, yen=55))
    assert (await region.account(rich)).limit_uyen >= 50 * YEN
    async with region.db.platform_session("test", read_only=True) as session:
        found = await read_region(session, "month", datetime.now(UTC))
    assert found is not None
    assert found.granted_uyen <= found.limit_uyen


async def test_a_year_s_pool_needs_a_limit_of_every_town_and_keeps_it(region: Region, ledger: LedgerWriter) -> None:
    town, other = await region.town(100), await region.town(100)
    await spend(ledger, town, 30)
    await region.do(lambda s: set_budget(s, town.id, yen=500, window="fiscal_year"))
    with pytest.raises(InvalidInput, match="今年度の上限がありません"):
        await region.pool(1000, "fiscal_year")
    await region.do(lambda s: set_budget(s, other.id, yen=500, window="fiscal_year"))
    await region.pool(1000, "fiscal_year")
    account = await region.account(town, "fiscal_year")
    assert (account.limit_uyen, account.posted_uyen) == (500 * YEN, 30 * YEN)
    with pytest.raises(InvalidInput, match="なくせません"):
        await region.do(lambda s: set_budget(s, town.id, yen=None, window="fiscal_year"))
    # The month is not of this pool.
    await region.do(lambda s: set_budget(s, town.id, yen=5000))
    with pytest.raises(PoolTooSmall):
        await region.do(lambda s: set_budget(s, town.id, yen=501, window="fiscal_year"))


async def test_a_move_changes_both_towns_or_none(region: Region, ledger: LedgerWriter) -> None:
    giver, taker = await region.town(100), await region.town(50)

    async def move(yen: int) -> Any:
        return await region.do(lambda s: move_budget(s, giver.id, taker.id, yen=yen, reason="議会の準備", by=BY))

    # Without a pool, too.
    assert (await move(10)).giver_after == 90
    await region.pool(150)
    await spend(ledger, giver, 60)
    with pytest.raises(Conflict, match="移す元の町"):
        await move(31)
    with pytest.raises(InvalidInput):
        await move(91)
    done = await move(30)
    assert (done.giver_before, done.giver_after, done.taker_before, done.taker_after) == (90, 60, 60, 90)
    assert [(await region.account(t)).limit_uyen // YEN for t in (giver, taker)] == [60, 90]
    for town, delta, after in ((giver, -30, 60), (taker, 30, 90)):
        async with region.db.platform_session("test", read_only=True) as session:
            query = select(Audit).where(col(Audit.tenant_id) == town.id, col(Audit.action) == "budget.move")
            last = (await session.exec(query.order_by(col(Audit.seq).desc()))).first()
        assert last is not None
        assert (last.facts["yen"], last.facts["after_yen"], last.facts["reason"]) == (delta, after, "議会の準備")
        admin = Actor(town.id, PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN}))
        async with region.db.tenant_session(admin.context, read_only=True) as session:
            assert delta in [n.yen for n in await grant_notices_of(session, admin, datetime.now(UTC))]


async def test_a_town_that_leaves_frees_what_it_has_not_used(region: Region, ledger: LedgerWriter) -> None:
    gone, other = await region.town(100), await region.town(100)
    await region.pool(200)
    await spend(ledger, gone, 20)
    await region.do(lambda s: leave_pools(s, gone.id, datetime.now(UTC)))
    await region.do(lambda s: set_budget(s, other.id, yen=180))
    with pytest.raises(PoolTooSmall):
        await region.do(lambda s: set_budget(s, other.id, yen=181))
    with pytest.raises(QuotaExceeded):
        await ledger.reserve(gone.hold(YEN))


async def test_without_its_pool_a_region_is_as_before(region: Region) -> None:
    town = await region.town(100)
    await region.pool(100)
    await region.do(lambda s: end_pool(s, "month", by=BY))
    await region.do(lambda s: set_budget(s, town.id, yen=1000))
    assert (await region.account(town)).limit_uyen == 1000 * YEN
    assert await region.move() == 0


# ── for this window alone ────────────────────────────────────────────────────────────────────────────────────────


class Mover:
    """Moves for this month between towns of a region, in yen."""

    def __init__(self, region: Region) -> None:
        self.region = region

    async def move(self, giver: Town, taker: Town, yen: int, id: UUID | None = None, **more: Any) -> UUID:
        id = id or new_id()
        about = {
            "id": id,
            "yen": yen,
            "window": "month",
            "reason": "補正予算のため",
            "by": BY,
            "now": datetime.now(UTC),
        }
        await self.region.do(lambda s: move_for_window(s, giver.id, taker.id, **(about | more)))
        return id

    async def undo(self, id: UUID) -> int:
        """How much went back, in yen."""
        _, plan = await self.region.do(lambda s: undo_move(s, id, by=BY, now=datetime.now(UTC)))
        return int(plan.uyen // YEN)

    async def limits(self, *towns: Town) -> list[int]:
        return [(await self.region.account(t)).limit_uyen // YEN for t in towns]


async def test_a_move_for_the_month_changes_what_can_be_spent_and_no_share(
    region: Region, ledger: LedgerWriter
) -> None:
    giver, taker = await region.town(100), await region.town(50)
    await region.pool(150)
    mover = Mover(region)
    await spend(ledger, giver, 40)
    await ledger.reserve(giver.hold(20 * YEN))
    with pytest.raises(NotMovable, match=r"1円から40円まで.*使った額と処理中の額60円"):
        await mover.move(giver, taker, 41)
    id = await mover.move(giver, taker, 40)
    assert await mover.limits(giver, taker) == [60, 90]
    with pytest.raises(QuotaExceeded):
        await ledger.reserve(giver.hold(YEN))
    await spend(ledger, taker, 90)
    with pytest.raises(NotMovable, match="動かせる額がありません"):
        await mover.move(giver, taker, 1)
    async with region.db.platform_session("test", read_only=True) as session:
        shares = (await session.exec(select(PoolShare))).all()
        assert {s.tenant_id: (s.share_uyen // YEN, s.moved_uyen // YEN) for s in shares} == {
            giver.id: (100, -40), taker.id: (50, 40),
        }  # fmt: skip
        [made] = await list_moves(session, "month", window_start("month", datetime.now(UTC)))
        assert (made.id, made.giver, made.taker, made.uyen) == (id, giver.id, taker.id, 40 * YEN)
    for town, delta, after in ((giver, -40, 60), (taker, 40, 90)):
        assert (await verify_chain(region.db, town.id)).links > 0
        admin = Actor(town.id, PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN}))
        async with region.db.tenant_session(admin.context, read_only=True) as session:
            query = select(Audit).where(col(Audit.tenant_id) == town.id, col(Audit.action) == "budget.move_once")
            [told] = (await session.exec(query)).all()
            assert (told.facts["yen"], told.facts["after_yen"], told.facts["reason"]) == (
                delta,
                after,
                "補正予算のため",
            )
            assert (delta, "budget.move_once") in [
                (n.yen, n.what) for n in await grant_notices_of(session, admin, datetime.now(UTC))
            ]
            # A town sees its own side of it.
            [side] = await moves_of(session, town.id, "month", window_start("month", datetime.now(UTC)))
            assert side.amount_uyen == delta * YEN


async def test_the_next_month_begins_with_the_shares_whatever_was_moved(region: Region, ledger: LedgerWriter) -> None:
    giver, taker, third = await region.town(100), await region.town(50), await region.town(30)
    await region.pool(180)
    mover = Mover(region)
    await mover.move(giver, taker, 40)
    await mover.move(taker, third, 70)
    assert await mover.limits(giver, taker, third) == [60, 20, 100]
    await region.do(_go_back)
    await region.do(lambda s: s.exec(update(PoolMove).values(window_start=date(2020, 4, 1))))
    await region.do(lambda s: s.exec(update(Budget).values(valid_from=date(2020, 4, 1))))
    # One town's first request opens its month; the worker the others'.
    await spend(ledger, taker, 50)
    await region.move()
    assert await mover.limits(giver, taker, third) == [100, 50, 30]
    async with region.db.platform_session("test", read_only=True) as session:
        assert {s.moved_uyen for s in (await session.exec(select(PoolShare))).all()} == {0}
        old = (await list_moves(session, "month", date(2020, 4, 1)))[0]
    with pytest.raises(Conflict, match="もう終わりました"):
        await mover.undo(old.id)


async def test_a_second_click_moves_nothing_and_another_wish_is_refused(region: Region) -> None:
    giver, taker = await region.town(100), await region.town(50)
    await region.pool(150)
    mover = Mover(region)
    id = new_id()
    await asyncio.gather(*(mover.move(giver, taker, 100, id) for _ in range(4)))
    assert await mover.limits(giver, taker) == [0, 150]
    with pytest.raises(Conflict, match="別の額"):
        await mover.move(giver, taker, 10, id)
    with pytest.raises(Conflict, match="期間が変わりました"):
        await mover.move(taker, giver, 10, start=date(2020, 4, 1))
    assert await mover.undo(id) == 100
    assert await mover.undo(id) == 0
    assert await mover.limits(giver, taker) == [100, 50]


async def test_what_is_spent_or_held_does_not_go_back_until_it_is_free(region: Region, ledger: LedgerWriter) -> None:
    giver, taker = await region.town(100), await region.town(50)
    await region.pool(150)
    mover = Mover(region)
    id = await mover.move(giver, taker, 40)
    await spend(ledger, taker, 60)
    held = await ledger.reserve(taker.hold(20 * YEN))
    assert await mover.undo(id) == 10
    with pytest.raises(NotMovable, match="戻せる額がありません"):
        await mover.undo(id)
    await asyncio.wrap_future(ledger.settle(held, Settlement(5 * YEN, 1, 1, "provider", "stop")))
    assert await mover.undo(id) == 15
    assert await mover.limits(giver, taker) == [85, 65]


async def test_borrowed_and_lent_money_is_not_given_away(region: Region, ledger: LedgerWriter) -> None:
    poor, rich, third = await region.town(100), await region.town(100), await region.town(0)
    await region.pool(200)
    mover = Mover(region)
    await region.lending(poor, borrow=30)
    await region.lending(rich, lend=30)
    await spend(ledger, poor, 95)
    await region.move()
    assert (await region.loans(poor), await region.loans(rich)) == ((10, 0), (0, 10))
    # 15 are left to it, 10 of them are borrowed.
    with pytest.raises(NotMovable, match=r"5円まで.*借りた分は動かせません"):
        await mover.move(poor, third, 6)
    with pytest.raises(NotMovable, match=r"90円まで.*貸している額10円"):
        await mover.move(rich, third, 91)
    await mover.move(rich, third, 90)
    await mover.move(poor, third, 5)
    assert await mover.limits(poor, rich, third) == [105, 0, 95]


async def test_a_share_is_never_smaller_than_what_was_given_for_the_month(region: Region) -> None:
    giver, taker = await region.town(100), await region.town(50)
    await region.pool(150)
    mover = Mover(region)
    await mover.move(giver, taker, 40)
    with pytest.raises(BudgetTooSmall, match="40円をほかの町に渡している"):
        await region.do(lambda s: set_budget(s, giver.id, yen=39))
    await region.do(lambda s: set_budget(s, giver.id, yen=40))
    await region.do(lambda s: set_budget(s, taker.id, yen=60))
    assert await mover.limits(giver, taker) == [0, 100]
    # Who leaves leaves what it gave where it is.
    await region.do(lambda s: leave_pools(s, giver.id, datetime.now(UTC)))
    await region.do(lambda s: set_budget(s, taker.id, yen=110))
    assert await mover.limits(giver, taker) == [0, 150]


async def test_money_comes_back_from_a_town_that_left_and_none_goes_there(region: Region, ledger: LedgerWriter) -> None:
    stays, gone = await region.town(100), await region.town(50)
    await region.pool(150)
    mover = Mover(region)
    there, back = await mover.move(stays, gone, 40), await mover.move(gone, stays, 10)
    await spend(ledger, gone, 20)
    await region.do(lambda s: leave_pools(s, gone.id, datetime.now(UTC)))
    await region.do(lambda s: s.exec(update(Tenant).where(col(Tenant.id) == gone.id).values(status="erased")))
    with pytest.raises(Conflict, match="消去された"):
        await mover.undo(back)
    with pytest.raises(InvalidInput, match="入っていません"):
        await mover.move(stays, gone, 1)
    assert await mover.undo(there) == 10
    assert await mover.limits(stays, gone) == [80, 20]


async def test_a_year_s_budget_moves_for_the_year_and_needs_a_pool(region: Region) -> None:
    giver, taker = await region.town(100), await region.town(50)
    mover = Mover(region)
    with pytest.raises(InvalidInput, match="先に共同の予算を決めてください"):
        await mover.move(giver, taker, 1)
    for town in (giver, taker):
        await region.do(lambda s, id=town.id: set_budget(s, id, yen=500, window="fiscal_year"))
    await region.pool(1000, "fiscal_year")
    await mover.move(giver, taker, 200, window="fiscal_year")
    assert [(await region.account(t, "fiscal_year")).limit_uyen // YEN for t in (giver, taker)] == [300, 700]
    # The month is not of this pool.
    with pytest.raises(InvalidInput, match="今月の共同の予算"):
        await mover.move(giver, taker, 1)


async def test_a_pool_that_is_made_again_in_the_same_month_begins_with_the_shares(
    region: Region, ledger: LedgerWriter
) -> None:
    giver, taker = await region.town(100), await region.town(50)
    await region.pool(150)
    mover = Mover(region)
    id = await mover.move(giver, taker, 40)
    await region.do(lambda s: end_pool(s, "month", by=BY))
    assert await mover.limits(giver, taker) == [60, 90]
    with pytest.raises(NotFound):
        await mover.undo(id)
    await region.pool(150)
    assert await mover.limits(giver, taker) == [100, 50]
    await mover.move(giver, taker, 40)
    await spend(ledger, taker, 51)
    await region.do(lambda s: end_pool(s, "month", by=BY))
    with pytest.raises(PoolTooSmall, match="割当より多く使った町"):
        await region.pool(150)


# ── a wrong writer ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "statement",
    [
        "update account set limit_uyen = limit_uyen + 1 where \"window\" = 'month'",
        "update pool_share set share_uyen = share_uyen + 1",
        "update pool_share set borrowed_uyen = borrowed_uyen + 1",
        "update pool_share set share_uyen = share_uyen - 1",
        "update pool_share set lent_uyen = lent_uyen + 1",
        "update pool_share set moved_uyen = moved_uyen + 1",
        "update pool_share set moved_uyen = moved_uyen - 1",
        "update pool_share set moved_uyen = -101000000",
        "update pool set limit_uyen = limit_uyen - 1",
        "update pool set granted_uyen = granted_uyen + 1",
        'insert into pool ("window", window_start, limit_uyen, shares_uyen, granted_uyen, set_at)'
        " values ('day', '2026-01-01', 1, 0, 0, '2026-01-01')",
    ],
)
async def test_the_database_refuses_a_writer_that_forgets_the_pool(region: Region, statement: str) -> None:
    await region.town(100)
    await region.pool(100)
    await region.move()
    with pytest.raises(IntegrityError):
        await region.do(lambda s: s.exec(text(statement)))  # type: ignore[call-overload]  # SQLModel types exec() for select() only


async def test_a_request_opens_no_account_above_the_grant(region: Region) -> None:
    town = await region.town(100)
    # A budget that was raised past the pool, as no way through the product does it.
    await region.do(lambda s: set_pool(s, "month", 100, by=BY, now=datetime.now(UTC)))
    await region.do(_go_back)
    await region.do(lambda s: s.exec(update(Budget).values(limit_uyen=101 * YEN)))
    book = open_book(region.urls)
    start = window_start("month", book.begin())
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.CheckViolation)):
        book.open_account(AccountKey(town.id, "town", "", "month", start))
    book.close()
    # The worker opens it with what it may have.
    await region.move()
    assert (await region.account(town)).limit_uyen == 100 * YEN


async def _go_back(session: AsyncSession) -> None:
    """What stands now is of an earlier month."""
    for table in (Account, Pool, PoolShare):
        await session.exec(update(table).values(window_start=date(2020, 4, 1)))


@pytest.mark.parametrize("urls", ["postgresql", "pgbouncer"], indirect=True)
async def test_a_request_does_not_wait_for_the_pool(region: Region, ledger: LedgerWriter) -> None:
    """Not even the first of a month, which opens the account."""
    town, other = await region.town(100), await region.town(100)
    await region.pool(200)
    await region.do(_go_back)
    async with region.db.platform_session("test") as session:
        await session.exec(select(Pool).with_for_update())
        await session.exec(select(PoolShare).with_for_update())
        await asyncio.gather(*(spend(ledger, t, 100) for t in (town, other)))
    assert await region.move() == 0
    assert (await region.account(town)).posted_uyen == 100 * YEN


# ── all at once ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(300)
async def test_nothing_is_overspent_or_lost_while_grants_move(
    region: Region, start: Callable[[str], LedgerWriter]
) -> None:
    """Two gateways hold and settle, two workers and an operator move grants, and somebody looks all the time."""
    rng = random.Random(20261128)
    shares = [60, 60, 200, 200]
    towns = [await region.town(yen) for yen in shares]
    await region.pool(sum(shares) + 20)
    for town in towns:
        await region.lending(town, borrow=80, lend=80)
    writers = [start("one"), start("two")]
    spent = dict.fromkeys((t.id for t in towns), 0)
    refused = moved = looked = 0
    stop = asyncio.Event()

    async def use(writer: LedgerWriter, seed: int) -> None:
        nonlocal refused
        mine = random.Random(seed)
        for _ in range(60):
            # Some towns are asked much more than others.
            town = mine.choices(towns, (5, 3, 1, 1))[0]
            yen = mine.randrange(1, 8)
            try:
                reservation = await writer.reserve(town.hold(yen * YEN))
            except (QuotaExceeded, LedgerUnavailable) as problem:
                # Grants move here all the time, so on a busy machine a writer may have to wait for too long.
                refused += isinstance(problem, QuotaExceeded)
                await asyncio.sleep(0)
                continue
            cost = mine.randrange(0, yen + 1)
            await asyncio.wrap_future(writer.settle(reservation, Settlement(cost * YEN, 1, 1, "provider", "stop")))
            spent[town.id] += cost

    async def work() -> None:
        nonlocal moved
        while not stop.is_set():
            moved += await region.move()
            await asyncio.sleep(0.01)

    async def operate() -> None:
        while not stop.is_set():
            one, other = rng.sample(range(len(towns)), 2)
            with contextlib.suppress(Conflict, InvalidInput):
                giver, taker = towns[one].id, towns[other].id
                async with region.db.platform_session("test") as session:
                    await move_budget(session, giver, taker, yen=3, reason="試験", by=BY)
            await asyncio.sleep(0.02)

    async def operate_for_the_month() -> None:
        mover, made = Mover(region), list[UUID]()
        while not stop.is_set():
            one, other = rng.sample(range(len(towns)), 2)
            with contextlib.suppress(Conflict, InvalidInput):
                if len(made) < 3 or rng.random() < 0.6:
                    made.append(await mover.move(towns[one], towns[other], rng.randrange(1, 20)))
                else:
                    await mover.undo(rng.choice(made))
            await asyncio.sleep(0.02)
        assert made

    async def look() -> None:
        nonlocal looked
        while not stop.is_set():
            async with region.db.platform_session("test", read_only=True) as session:
                # One statement sees one moment.
                query = select(
                    select(func.sum(col(Account.limit_uyen))).where(col(Account.node) == "town").scalar_subquery(),
                    select(func.max(col(Pool.limit_uyen))).scalar_subquery(),
                    select(func.max(col(Pool.granted_uyen))).scalar_subquery(),
                )
                limits, limit, granted = (await session.exec(query)).one()
            assert limits == granted <= limit
            looked += 1
            await asyncio.sleep(0.01)

    others = [asyncio.create_task(job()) for job in (work, work, operate, operate_for_the_month, look)]
    try:
        await asyncio.gather(*(use(writers[n % 2], n) for n in range(8)))
    finally:
        stop.set()
        await asyncio.gather(*others)
    assert min(refused, moved, looked) > 0
    for writer in writers:
        await writer.close()
    async with region.db.platform_session("test", read_only=True) as session:
        for town in towns:
            account = await region.account(town)
            assert (account.held_uyen, account.posted_uyen) == (0, spent[town.id] * YEN)
            assert account.posted_uyen <= account.limit_uyen
            calls = select(func.sum(col(Call.cost_uyen))).where(col(Call.tenant_id) == town.id)
            assert ((await session.exec(calls)).one() or 0) == spent[town.id] * YEN
            assert (await verify_chain(region.db, town.id)).links > 0
