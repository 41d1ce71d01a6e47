"""The region's pool: what each town may spend of it, and how slices move between towns.

The rules are in `lending`; this is how they reach the database. Whoever changes a grant holds the pool's row, so one
at a time; then the accounts of the towns concerned, in (level, id) order as the ledger does. A request never comes
near the pool: it is held on its own town's account, whose limit is the grant. See docs/adr/0013-grants.md.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Final
from uuid import UUID

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import and_, col, delete, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId, new_id
from tenants.db import Database
from tenants.models import (
    UNLIMITED_UYEN,
    Account,
    Budget,
    Grant,
    GrantWanted,
    Pool,
    PoolMove,
    PoolShare,
    Tenant,
    utcnow,
)
from tenants.quota.book import LEVELS
from tenants.quota.grant_notices import tell_once
from tenants.quota.lending import Share, hand_over, level, reshare, shrink
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.windows import WINDOW_WORDS, Window, window_start

POOL_WINDOWS: Final[tuple[Window, ...]] = ("month", "fiscal_year")
MAX_POOL_YEN: Final = 1_000_000_000_000
MOVER: Final = By("system", "pool")
FIELDS: Final = {"month": "month_yen", "fiscal_year": "fiscal_year_yen", "day": "day_yen"}


class PoolTooSmall(Conflict):
    type = "urn:problem:quota:pool-too-small"
    title = "共同の予算が足りません"


@dataclass(slots=True)
class Region:
    """A pool and its towns in the window that begins on `start`, in micro-yen."""

    window: Window
    start: date
    limit_uyen: int
    shares: dict[TenantId, Share]

    @property
    def shares_uyen(self) -> int:
        return sum(s.share_uyen for s in self.shares.values())

    @property
    def granted_uyen(self) -> int:
        return sum(s.grant_uyen for s in self.shares.values())

    @property
    def used_uyen(self) -> int:
        return sum(s.used_uyen for s in self.shares.values())

    @property
    def free_uyen(self) -> int:
        """What no share claims, whether it is lent at the moment or not."""
        return self.limit_uyen - self.shares_uyen

    def check_room(self, yen: int, instead_of: int = 0, *, field: str = "") -> None:
        """Raises `PoolTooSmall` when a share of so many yen, in the place of one in micro-yen, does not fit."""
        if self.shares_uyen - instead_of + yen * UYEN_PER_YEN > self.limit_uyen:
            most = (self.free_uyen + instead_of) // UYEN_PER_YEN
            raise PoolTooSmall(
                f"共同の予算の未割当は{self.free_uyen // UYEN_PER_YEN:,}円です。{most:,}円までにするか、"
                "ほかの町の割当を減らすか、共同の予算を増やしてください。",
                field=field or FIELDS[self.window],
                free_yen=self.free_uyen // UYEN_PER_YEN,
            )


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_region(session: AsyncSession, window: Window, now: datetime) -> Region | None:
    """As it stands, nothing locked; in a platform session. None in a region without such a pool."""
    pool = (await session.exec(select(Pool).where(col(Pool.window) == window))).first()
    if pool is None:
        return None
    start = max(pool.window_start, window_start(window, now))
    return Region(window, start, pool.limit_uyen, await _shares(session, window, start))


async def read_share(session: AsyncSession, tenant_id: TenantId, window: Window, now: datetime) -> Share | None:
    """One town's part, also in its own session. None in a region without such a pool."""
    start = window_start(window, now)
    return (await _shares(session, window, start, only=[tenant_id])).get(tenant_id)


async def _shares(
    session: AsyncSession, window: Window, start: date, *, only: Collection[TenantId] | None = None
) -> dict[TenantId, Share]:
    query = (
        select(PoolShare, func.coalesce(col(Account.held_uyen) + col(Account.posted_uyen), 0))
        .outerjoin(
            Account,
            and_(
                col(Account.tenant_id) == col(PoolShare.tenant_id),
                col(Account.node) == "town",
                col(Account.node_id) == "",
                col(Account.window) == window,
                col(Account.window_start) == start,
            ),
        )
        .where(col(PoolShare.window) == window)
        .order_by(col(PoolShare.tenant_id))
        .execution_options(populate_existing=True)
    )
    if only is not None:
        query = query.where(col(PoolShare.tenant_id).in_(list(only)))
    found: dict[TenantId, Share] = {}
    for row, used in (await session.exec(query)).all():
        is_running = row.window_start == start
        found[TenantId(row.tenant_id)] = Share(
            TenantId(row.tenant_id), row.share_uyen, row.borrow_limit_uyen, row.lend_limit_uyen,
            row.borrowed_uyen if is_running else 0, row.lent_uyen if is_running else 0,
            used, row.moved_uyen if is_running else 0,
        )  # fmt: skip
    return found


# ── under the pool's lock ────────────────────────────────────────────────────────────────────────────────────────


async def lock_region(
    session: AsyncSession, window: Window, tenants: Collection[TenantId], now: datetime
) -> Region | None:
    """Locks the pool, then the accounts of these towns and of all that have borrowed; in a platform session.

    The towns' use does not change until the transaction ends. A new window begins here: its loans are none, and each
    town's account is opened. None in a region without such a pool; the towns' accounts are locked then, too.
    """
    region = await _lock_pool(session, window, now)
    start = region.start if region else window_start(window, now)
    borrowers = [s.tenant_id for s in region.shares.values() if s.borrowed_uyen] if region else []
    await _lock_accounts(session, window, start, {*tenants, *borrowers})
    if region is not None:
        region.shares = await _shares(session, window, start)
    return region


async def _lock_pool(session: AsyncSession, window: Window, now: datetime) -> Region | None:
    query = select(Pool).where(col(Pool.window) == window).with_for_update()
    pool = (await session.exec(query.execution_options(populate_existing=True))).first()
    if pool is None:
        return None
    start = window_start(window, now)
    if pool.window_start < start:
        await _begin_window(session, pool, start)
    shares = await _shares(session, window, pool.window_start)
    await _open_accounts(session, window, pool.window_start, shares.values())
    return Region(window, pool.window_start, pool.limit_uyen, shares)


async def _begin_window(session: AsyncSession, pool: Pool, start: date) -> None:
    """Everybody has the share again. Who had more than it comes first, or the pool would not suffice."""
    gone = select(Tenant.id).where(col(Tenant.status) == "erased")
    mine = col(PoolShare.window) == pool.window
    await session.exec(delete(PoolShare).where(mine, col(PoolShare.tenant_id).in_(gone)))
    ended = update(PoolShare).where(mine).values(window_start=start, borrowed_uyen=0, lent_uyen=0, moved_uyen=0)
    more = col(PoolShare.borrowed_uyen) - col(PoolShare.lent_uyen) + col(PoolShare.moved_uyen)
    await session.exec(ended.where(more > 0))
    await session.exec(ended)
    await session.exec(update(Pool).where(col(Pool.window) == pool.window).values(window_start=start))
    await session.refresh(pool)


async def _open_accounts(session: AsyncSession, window: Window, start: date, shares: Iterable[Share]) -> None:
    """Before the ledger does, which reads what a new window begins with and would not see a change made meanwhile.

    In the order in which the ledger opens them, and before any account is locked: neither waits for the other.
    """
    there = select(Account.tenant_id).where(
        col(Account.node) == "town", col(Account.node_id) == "",
        col(Account.window) == window, col(Account.window_start) == start,
    )  # fmt: skip
    known = set((await session.exec(there)).all())
    missing = sorted((s for s in shares if s.tenant_id not in known), key=lambda s: str(s.tenant_id))
    rows = [
        {
            "id": new_id(), "tenant_id": s.tenant_id, "level": LEVELS["town"], "node": "town", "node_id": "",
            "window": window, "window_start": start, "limit_uyen": s.share_uyen, "held_uyen": 0, "posted_uyen": 0,
        }
        for s in missing
    ]  # fmt: skip
    if rows:
        is_sqlite = session.get_bind().dialect.name == "sqlite"
        insert = sqlite.insert(Account) if is_sqlite else postgresql.insert(Account)
        await session.exec(insert.values(rows).on_conflict_do_nothing())


async def _lock_accounts(session: AsyncSession, window: Window, start: date, tenants: Collection[TenantId]) -> None:
    await session.exec(
        select(Account.id)
        .where(
            col(Account.tenant_id).in_(list(tenants)),
            col(Account.node) == "town",
            col(Account.window) == window,
            col(Account.window_start) == start,
        )
        .order_by(col(Account.level), col(Account.id))
        .with_for_update()
    )


async def _write(session: AsyncSession, region: Region, changed: Sequence[Share]) -> None:
    """Who gets less comes first: the pool suffices at every step. A limit is never above the grant, not for a moment."""

    def more(share: Share) -> int:
        return share.grant_uyen - region.shares[share.tenant_id].grant_uyen

    for share in sorted(changed, key=more):
        before = region.shares[share.tenant_id]
        account = (
            update(Account)
            .where(
                col(Account.tenant_id) == share.tenant_id,
                col(Account.node) == "town",
                col(Account.node_id) == "",
                col(Account.window) == region.window,
                col(Account.window_start) == region.start,
            )
            .values(limit_uyen=share.grant_uyen)
        )
        row = (
            update(PoolShare)
            .where(col(PoolShare.tenant_id) == share.tenant_id, col(PoolShare.window) == region.window)
            .values(
                share_uyen=share.share_uyen, borrowed_uyen=share.borrowed_uyen, lent_uyen=share.lent_uyen,
                moved_uyen=share.moved_uyen,
            )
        )  # fmt: skip
        if more(share) < 0:
            await session.exec(account)
            await session.exec(row)
        else:
            await session.exec(row)
            await session.exec(account)
        for kind, delta in (
            ("borrow", share.borrowed_uyen - before.borrowed_uyen),
            ("lend", before.lent_uyen - share.lent_uyen),
            ("move", share.moved_uyen - before.moved_uyen),
        ):
            if delta:
                session.add(
                    Grant(
                        tenant_id=share.tenant_id, kind=kind, window=region.window, window_start=region.start,
                        amount_uyen=delta, reason="pool",
                    )
                )  # fmt: skip
    for share in changed:
        region.shares[share.tenant_id] = share


async def _tell(session: AsyncSession, region: Region, before: dict[TenantId, Share], changed: Sequence[Share]) -> None:
    """In the audit chain of each town, in one order, and once a window to its administrator."""
    for share in sorted(changed, key=lambda s: str(s.tenant_id)):
        was = before[share.tenant_id]
        for more, less, delta in (
            ("grant.borrow", "grant.give_back", share.borrowed_uyen - was.borrowed_uyen),
            ("grant.lend", "grant.take_back", share.lent_uyen - was.lent_uyen),
        ):
            if not delta:
                continue
            await audit.record(
                session, share.tenant_id, MOVER, more if delta > 0 else less, about=("tenant", share.tenant_id),
                window=region.window, window_start=region.start.isoformat(), uyen=abs(delta),
                grant_uyen=share.grant_uyen,
            )  # fmt: skip
            if delta > 0:
                await tell_once(session, share.tenant_id, more, window=region.window, start=region.start)


# ── moving ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def move_slices(db: Database, now: datetime) -> int:
    """Lends and gives back what is due, in every pool; run again and again. Returns how many grants changed.

    Nothing is locked, and on SQLite nobody has to wait, unless something is to be moved.
    """
    moved = 0
    async with db.platform_session("grants", read_only=True) as session:
        due = [window for window in POOL_WINDOWS if await _is_due(session, window, now)]
    for window in due:
        async with db.platform_session("grants") as session:
            moved += await _move(session, window, now)
    return moved


async def move_wanted(db: Database, now: datetime) -> int:
    """The same for towns that ran low since it was last asked, so that a burst need not wait for the next round.

    Returns how many grants changed. What says so is taken away first: a town that runs low meanwhile says it again.
    """
    async with db.platform_session("grants", read_only=True) as session:
        if (await session.exec(select(GrantWanted.id).limit(1))).first() is None:
            return 0
    async with db.platform_session("grants") as session:
        await session.exec(delete(GrantWanted))
    return await move_slices(db, now)


async def _is_due(session: AsyncSession, window: Window, now: datetime) -> bool:
    """Also when a window has begun: the accounts are there then, before anybody is in need."""
    pool = (await session.exec(select(Pool).where(col(Pool.window) == window))).first()
    if pool is None or pool.window_start < window_start(window, now):
        return pool is not None
    region = await read_region(session, window, now)
    return region is not None and bool(level(region.limit_uyen, list(region.shares.values())))


async def _move(session: AsyncSession, window: Window, now: datetime) -> int:
    region = await _lock_pool(session, window, now)
    if region is None:
        return 0
    wanted = {s.tenant_id for s in level(region.limit_uyen, list(region.shares.values()))}
    if not wanted:
        return 0
    await _lock_accounts(session, window, region.start, wanted)
    # Decided anew among these towns, whose use stands still now; the others keep what they have.
    region.shares = await _shares(session, window, region.start)
    others = sum(s.grant_uyen for s in region.shares.values() if s.tenant_id not in wanted)
    before = dict(region.shares)
    changed = level(region.limit_uyen - others, [s for s in region.shares.values() if s.tenant_id in wanted])
    await _write(session, region, changed)
    await _tell(session, region, before, changed)
    return len(changed)


# ── setting ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def set_share(session: AsyncSession, region: Region, tenant_id: TenantId, yen: int, *, used_uyen: int) -> int:
    """A town's guaranteed share from the running window on; of a region that `lock_region` gave for it.

    used_uyen: of the town in this window. Returns the grant, which is the limit of its account.
    Raises `PoolTooSmall`. The caller compares the grant with what is used.
    """
    before = region.shares.get(tenant_id)
    town = replace(before, used_uyen=used_uyen) if before else Share(tenant_id, 0, used_uyen=used_uyen)
    region.check_room(yen, town.share_uyen)
    all_before = dict(region.shares)
    changed = reshare(region.limit_uyen, list(region.shares.values()), town, yen * UYEN_PER_YEN)
    if changed is None:
        raise PoolTooSmall(
            "未割当の分は、ほかの町が今月借りてすでに使っています。共同の予算を増やすか、次の月から変えてください。"
            if region.window == "month"
            else "未割当の分は、ほかの町が今年度借りてすでに使っています。共同の予算を増やしてください。",
            field=FIELDS[region.window],
        )
    grant = changed[-1].grant_uyen
    if grant < used_uyen:
        return grant
    if before is None:
        session.add(PoolShare(tenant_id=tenant_id, window=region.window, window_start=region.start))
        await session.flush()
        region.shares[tenant_id] = all_before[tenant_id] = town
    await _write(session, region, changed)
    await _tell(session, region, all_before, changed)
    return grant


async def move_between(session: AsyncSession, region: Region, giver: TenantId, taker: TenantId, uyen: int) -> None:
    """For this window alone; of a region that `lock_region` gave for both. The giver has so much that is movable."""
    await _write(session, region, hand_over(region.shares[giver], region.shares[taker], uyen))


async def set_pool(session: AsyncSession, window: Window, yen: int, *, by: By, now: datetime) -> Region:
    """Makes the pool of a kind of window, or changes how much is in it; in a platform session.

    Every town with a budget in that window becomes part of it with that budget as its share, and neither borrows nor
    lends until `set_lending` says so. Raises `InvalidInput`, and `PoolTooSmall` when the shares or what is spent of
    borrowed money does not fit.
    """
    if not 0 <= yen <= MAX_POOL_YEN:
        raise InvalidInput(f"共同の予算は0円から{MAX_POOL_YEN:,}円までの整数で入れてください。", field="pool_yen")
    limit = yen * UYEN_PER_YEN
    region = await lock_region(session, window, (), now)
    if region is None:
        region = await _make_pool(session, window, limit, by, now)
    else:
        if region.shares_uyen > limit:
            raise PoolTooSmall(
                f"各町の割当の合計が{region.shares_uyen // UYEN_PER_YEN:,}円あります。先に町の割当を減らしてください。",
                field="pool_yen",
            )
        before = dict(region.shares)
        changed = shrink(limit, list(region.shares.values()))
        if changed is None:
            raise PoolTooSmall(
                "未割当の分を町が借りて、すでに使っています。その分より小さくはできません。", field="pool_yen"
            )
        await _write(session, region, changed)
        await _tell(session, region, before, changed)
        await session.exec(
            update(Pool).where(col(Pool.window) == window).values(limit_uyen=limit, set_by=_person(by), set_at=utcnow())
        )
        region.limit_uyen = limit
    await audit.record_in_every_town(session, by, "pool.set", about=("pool", window), window=window, yen=yen)
    return region


async def _make_pool(session: AsyncSession, window: Window, limit: int, by: By, now: datetime) -> Region:
    start = window_start(window, now)
    towns = (await session.exec(select(Tenant).where(col(Tenant.status) != "erased").order_by(col(Tenant.id)))).all()
    await _lock_accounts(session, window, start, [TenantId(t.id) for t in towns])
    budgets = select(Budget).where(
        col(Budget.node) == "town", col(Budget.window) == window, col(Budget.valid_from) <= start
    )
    limits: dict[UUID, int] = {}
    for budget in (await session.exec(budgets.order_by(col(Budget.valid_from)))).all():
        limits[budget.tenant_id] = budget.limit_uyen
    without = [t.name for t in towns if limits.get(t.id, UNLIMITED_UYEN) >= UNLIMITED_UYEN]
    if without:
        more = f"など{len(without)}団体" if len(without) > 3 else ""
        raise InvalidInput(
            f"{'、'.join(without[:3])}{more}に{WINDOW_WORDS[window]}の上限がありません。先に決めてください。",
            field="pool_yen",
        )
    total = sum(limits[t.id] for t in towns)
    if total > limit:
        raise PoolTooSmall(
            f"各町の{WINDOW_WORDS[window]}の予算の合計が{-(-total // UYEN_PER_YEN):,}円あります。それより小さくはできません。",
            field="pool_yen",
        )
    await _forget_earlier_pool(session, window, start, {t.id: limits[t.id] for t in towns})
    session.add(Pool(window=window, window_start=start, limit_uyen=limit, set_by=_person(by)))
    await session.flush()
    session.add_all(
        PoolShare(tenant_id=t.id, window=window, window_start=start, share_uyen=limits[t.id]) for t in towns
    )
    await session.flush()
    region = await lock_region(session, window, (), now)
    assert region is not None
    return region


async def _forget_earlier_pool(session: AsyncSession, window: Window, start: date, shares: dict[UUID, int]) -> None:
    """Where a pool ended in this very window, accounts still have what was lent and moved in it: to their shares again.

    Raises `PoolTooSmall` when a town has spent more than its share.
    """
    running = (
        col(Account.node) == "town", col(Account.node_id) == "", col(Account.window) == window,
        col(Account.window_start) == start, col(Account.tenant_id).in_(shares),
    )  # fmt: skip
    for account in (await session.exec(select(Account).where(*running).order_by(col(Account.id)))).all():
        share = shares[account.tenant_id]
        if account.held_uyen + account.posted_uyen > share:
            raise PoolTooSmall(
                f"{WINDOW_WORDS[window]}、割当より多く使った町があります。その町の予算を増やしてから決めてください。",
                field="pool_yen",
            )
        account.limit_uyen = share
        session.add(account)
    await session.flush()


async def end_pool(session: AsyncSession, window: Window, *, by: By) -> None:
    """The towns keep what they have until the window ends, and their shares as budgets. Raises `NotFound`."""
    query = select(Pool).where(col(Pool.window) == window).with_for_update()
    pool = (await session.exec(query)).first()
    if pool is None:
        raise NotFound(f"{WINDOW_WORDS[window]}の共同の予算は決めてありません。")
    # What was moved in it stays where it is, and nobody takes it back any more.
    running = (col(PoolMove.window) == window, col(PoolMove.window_start) == pool.window_start)
    await session.exec(delete(PoolMove).where(*running))
    await session.exec(delete(PoolShare).where(col(PoolShare.window) == window))
    await session.exec(delete(Pool).where(col(Pool.window) == window))
    await audit.record_in_every_town(session, by, "pool.end", about=("pool", window), window=window)


async def set_lending(
    session: AsyncSession,
    region: Region,
    tenant_id: TenantId,
    *,
    borrow_yen: int | None = None,
    lend_yen: int | None = None,
    by: By,
) -> None:
    """How far a town may borrow and lend in a window, from now on; of a region from `lock_region`. None: as it is.

    What it has borrowed or lent beyond comes back as far as it is not spent. Raises `InvalidInput`, and `NotFound`
    for a town that is not in the pool.
    """
    share = region.shares.get(tenant_id)
    if share is None:
        raise NotFound("この町は、共同の予算に入っていません。先に割当を決めてください。")
    for yen, field in ((borrow_yen, "borrow_yen"), (lend_yen, "lend_yen")):
        if yen is not None and not 0 <= yen * UYEN_PER_YEN <= region.limit_uyen:
            most = region.limit_uyen // UYEN_PER_YEN
            raise InvalidInput(f"上限は0円から{most:,}円（共同の予算）までの整数で入れてください。", field=field)
    changed = replace(
        share,
        borrow_limit_uyen=share.borrow_limit_uyen if borrow_yen is None else borrow_yen * UYEN_PER_YEN,
        lend_limit_uyen=share.lend_limit_uyen if lend_yen is None else lend_yen * UYEN_PER_YEN,
    )
    if changed == share:
        return
    limits = {"borrow_limit_uyen": changed.borrow_limit_uyen, "lend_limit_uyen": changed.lend_limit_uyen}
    await session.exec(
        update(PoolShare)
        .where(col(PoolShare.tenant_id) == tenant_id, col(PoolShare.window) == region.window)
        .values(**limits)
    )
    region.shares[tenant_id] = changed
    about = ("tenant", tenant_id)
    await audit.record(session, tenant_id, by, "pool.lending", about=about, window=region.window, **limits)


async def leave_pools(session: AsyncSession, tenant_id: TenantId, now: datetime) -> None:
    """A town that is erased keeps what it has used until the window ends; the rest is free at once."""
    for window in POOL_WINDOWS:
        region = await lock_region(session, window, {tenant_id}, now)
        town = region.shares.get(tenant_id) if region else None
        if region is None or town is None:
            continue
        # What it gave for this window stays with the other town: its share covers that, too.
        needed = max(-(-(town.used_uyen - town.moved_uyen) // UYEN_PER_YEN), 0)
        await set_share(
            session, region, tenant_id, min(needed, town.share_uyen // UYEN_PER_YEN), used_uyen=town.used_uyen
        )
        await session.exec(
            update(PoolShare)
            .where(col(PoolShare.tenant_id) == tenant_id, col(PoolShare.window) == window)
            .values(borrow_limit_uyen=0, lend_limit_uyen=0)
        )


def _person(by: By) -> UUID | None:
    return UUID(by.id) if by.kind == "person" else None
