"""Budgets as people set and read them: standing limits per node and window, what is used of them, what is left."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import Final, Literal, cast
from uuid import UUID

from sqlmodel import and_, case, col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.models import UNLIMITED_UYEN, Account, Budget, Call, Grant
from tenants.quota.book import LEVELS
from tenants.quota.grant_notices import tell_moved
from tenants.quota.grants import Region, lock_region, set_share
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.windows import WINDOW_WORDS, WINDOWS, Window, window_bounds, window_start

Node = Literal["town", "section", "person", "app", "model"]
MAX_YEN = 10_000_000_000


class BudgetTooSmall(Conflict):
    type = "urn:problem:quota:budget-below-used"
    title = "すでに使った分より小さくはできません"


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One node in one window, in micro-yen; `limit_uyen` None: no limit of its own."""

    tenant_id: TenantId
    node: str
    node_id: str
    window: Window
    window_start: date
    limit_uyen: int | None
    held_uyen: int
    posted_uyen: int

    @property
    def left(self) -> Fraction | None:
        """What is left as a share of the limit, 0 to 1."""
        if self.limit_uyen is None:
            return None
        if self.limit_uyen == 0:
            return Fraction(0)
        return max(Fraction(0), Fraction(self.limit_uyen - self.held_uyen - self.posted_uyen, self.limit_uyen))


async def set_budget(
    session: AsyncSession,
    tenant_id: TenantId,
    *,
    yen: int | None,
    node: Node = "town",
    node_id: str = "",
    window: Window = "month",
    by: UUID | None = None,
    now: datetime | None = None,
) -> None:
    """Sets a limit from the running window on; in a platform session. The window's open account follows at once.

    yen None: no limit; only the town's month must have one. What the window has used already counts from the start.
    In a region with a pool a town's limit is its guaranteed share, and the account's limit is its grant.
    Raises `InvalidInput`, `BudgetTooSmall` when more than the limit is used, `PoolTooSmall` when the pool lacks it.
    """
    must_be = node == "town" and window == "month"
    if (must_be and yen is None) or (yen is not None and not 0 <= yen <= MAX_YEN):
        raise InvalidInput(f"予算は0円から{MAX_YEN:,}円までの整数で入れてください。", field=f"{window}_yen")
    limit = UNLIMITED_UYEN if yen is None else yen * UYEN_PER_YEN
    now = now or datetime.now(UTC)
    region = await lock_region(session, window, {tenant_id}, now) if node == "town" else None
    start = region.start if region else window_start(window, now)
    account = (
        await session.exec(
            select(Account)
            .where(
                col(Account.tenant_id) == tenant_id,
                col(Account.node) == node,
                col(Account.node_id) == node_id,
                col(Account.window) == window,
                col(Account.window_start) == start,
            )
            .with_for_update()
            .execution_options(populate_existing=True)
        )
    ).first()
    if account is None and yen is not None and not must_be:
        # From here on calls are held on it; those before it are counted once, open ones in full.
        account = Account(
            tenant_id=tenant_id, level=LEVELS[node], node=node, node_id=node_id, window=window, window_start=start,
            posted_uyen=await _used_before(session, tenant_id, node, node_id, window, start),
        )  # fmt: skip
    used = account.held_uyen + account.posted_uyen if account else 0
    before = await _limit(session, tenant_id, node, node_id, window)
    grant = limit
    if region is not None:
        if yen is None:
            raise InvalidInput(
                f"共同の予算から配っている間は、{WINDOW_WORDS[window]}の上限をなくせません。", field=f"{window}_yen"
            )
        share = region.shares.get(tenant_id)
        if share is not None and limit + share.moved_uyen < 0:
            raise BudgetTooSmall(_too_small(window, used, region, tenant_id), field=f"{window}_yen")
        grant = await set_share(session, region, tenant_id, yen, used_uyen=used)
    if grant < used:
        raise BudgetTooSmall(_too_small(window, used, region, tenant_id), field=f"{window}_yen")
    if account is not None:
        account.limit_uyen = grant
        session.add(account)
    budget = (
        await session.exec(
            select(Budget).where(
                col(Budget.tenant_id) == tenant_id,
                col(Budget.node) == node,
                col(Budget.node_id) == node_id,
                col(Budget.window) == window,
                col(Budget.valid_from) == start,
            )
        )
    ).first()
    if budget is None:
        budget = Budget(tenant_id=tenant_id, node=node, node_id=node_id, window=window, valid_from=start)
    budget.limit_uyen, budget.set_by, budget.set_at = limit, by, datetime.now(UTC)
    session.add(budget)
    if must_be:
        change = limit - (before or 0)
        if change:
            reason = "budget set"
            session.add(
                Grant(tenant_id=tenant_id, window_start=start, amount_uyen=change, created_by=by, reason=reason)
            )
    await session.flush()


def _too_small(window: Window, used_uyen: int, region: Region | None, tenant_id: TenantId) -> str:
    told = f"{WINDOW_WORDS[window]}はすでに{-(-used_uyen // UYEN_PER_YEN):,}円を使っています（処理中の分を含みます）。"
    share = region.shares.get(tenant_id) if region else None
    if share is not None and share.moved_uyen < 0:
        least = -(-(used_uyen - share.moved_uyen) // UYEN_PER_YEN)
        told += (
            f"ほかに{WINDOW_WORDS[window]}だけ{-share.moved_uyen // UYEN_PER_YEN:,}円をほかの町に渡しているので、"
            f"{least:,}円より小さくはできません。"
        )
    return told


@dataclass(frozen=True, slots=True)
class Move:
    """Budget that goes from one town to another, in yen: what each has as its limit before and after."""

    window: Window
    yen: int
    giver_before: int
    taker_before: int

    @property
    def giver_after(self) -> int:
        return self.giver_before - self.yen

    @property
    def taker_after(self) -> int:
        return self.taker_before + self.yen


async def plan_move(
    session: AsyncSession, giver: TenantId, taker: TenantId, *, yen: int, window: Window = "month"
) -> Move:
    """What a move would do to both towns' limits; nothing is changed. Raises `InvalidInput`."""
    if giver == taker:
        raise InvalidInput("別の町を選んでください。", field="to")
    limits = []
    for tenant_id, field in ((giver, "from"), (taker, "to")):
        limit = await _limit(session, tenant_id, "town", "", window)
        if limit is None or limit >= UNLIMITED_UYEN:
            raise InvalidInput(f"この町には{WINDOW_WORDS[window]}の上限がありません。先に決めてください。", field=field)
        limits.append(limit // UYEN_PER_YEN)
    move = Move(window, yen, *limits)
    if yen < 1 or move.giver_after < 0:
        raise InvalidInput(f"動かす額は1円から{move.giver_before:,}円までの整数で入れてください。", field="yen")
    if move.taker_after > MAX_YEN:
        raise InvalidInput(f"移した先の予算が{MAX_YEN:,}円を超えます。", field="yen")
    return move


async def move_budget(
    session: AsyncSession,
    giver: TenantId,
    taker: TenantId,
    *,
    yen: int,
    window: Window = "month",
    reason: str,
    by: By,
    now: datetime | None = None,
) -> Move:
    """From the running window on, in a platform session: audited in both towns, and their administrators are told.

    Raises `InvalidInput`, and `BudgetTooSmall` when the giver has used too much of it already.
    """
    now = now or datetime.now(UTC)
    region = await lock_region(session, window, {giver, taker}, now)
    start = region.start if region else window_start(window, now)
    move = await plan_move(session, giver, taker, yen=yen, window=window)
    person = UUID(by.id) if by.kind == "person" else None
    try:
        await set_budget(session, giver, yen=move.giver_after, window=window, by=person, now=now)
    except BudgetTooSmall as too_small:
        raise BudgetTooSmall(f"移す元の町は、{too_small.detail}", field="yen") from too_small
    await set_budget(session, taker, yen=move.taker_after, window=window, by=person, now=now)
    for tenant_id, delta, after in sorted(
        [(giver, -yen, move.giver_after), (taker, yen, move.taker_after)], key=lambda each: str(each[0])
    ):
        await audit.record(
            session, tenant_id, by, "budget.move", about=("tenant", tenant_id),
            window=window, yen=delta, after_yen=after, reason=reason,
        )  # fmt: skip
        tell_moved(session, tenant_id, delta, window=window, start=start)
    return move


_COLUMN_OF: Final = {
    "section": Call.section_id, "person": Call.person_id, "app": Call.app, "model": Call.alias,
}  # fmt: skip


async def _used_before(
    session: AsyncSession, tenant_id: TenantId, node: Node, node_id: str, window: Window, start: date
) -> int:
    """What a node used in a window so far, calls under way at their full hold.

    A year is read off the months' accounts where every month has one: it may have millions of calls.
    """
    if window == "fiscal_year" and node in ("town", "section", "person"):
        months = select(func.sum(col(Account.posted_uyen) + col(Account.held_uyen))).where(
            col(Account.tenant_id) == tenant_id,
            col(Account.node) == node,
            col(Account.node_id) == node_id,
            col(Account.window) == "month",
            col(Account.window_start) >= start,
        )
        return int((await session.exec(months)).one() or 0)
    is_open = col(Call.state) == "held"
    since, _ = window_bounds(window, start)
    calls = select(func.sum(col(Call.cost_uyen) + case((is_open, col(Call.hold_uyen)), else_=0))).where(
        col(Call.tenant_id) == tenant_id, col(Call.created_at) >= since
    )
    if node != "town":
        calls = calls.where(col(_COLUMN_OF[node]) == (UUID(node_id) if node in ("section", "person") else node_id))
    return int((await session.exec(calls)).one() or 0)


async def _limit(session: AsyncSession, tenant_id: TenantId, node: str, node_id: str, window: Window) -> int | None:
    return (
        await session.exec(
            select(Budget.limit_uyen)
            .where(
                col(Budget.tenant_id) == tenant_id,
                col(Budget.node) == node,
                col(Budget.node_id) == node_id,
                col(Budget.window) == window,
            )
            .order_by(col(Budget.valid_from).desc())
        )
    ).first()


async def budget_rows(
    session: AsyncSession,
    *,
    tenant_id: TenantId | None = None,
    node: Node | None = None,
    windows: Sequence[Window] = ("month",),
    now: datetime | None = None,
) -> list[BudgetRow]:
    """The nodes in the running windows: those with an account, and those whose budget has not been touched yet.

    node: only of this kind; a whole region has a node for every person.
    """
    now = now or datetime.now(UTC)
    starts = {window: window_start(window, now) for window in windows}
    running = or_(*(and_(col(Account.window) == w, col(Account.window_start) == start) for w, start in starts.items()))
    in_force = or_(*(and_(col(Budget.window) == w, col(Budget.valid_from) <= start) for w, start in starts.items()))
    accounts = select(Account).where(running)
    budgets = select(Budget).where(in_force)
    if tenant_id is not None:
        accounts = accounts.where(col(Account.tenant_id) == tenant_id)
        budgets = budgets.where(col(Budget.tenant_id) == tenant_id)
    if node is not None:
        accounts = accounts.where(col(Account.node) == node)
        budgets = budgets.where(col(Budget.node) == node)
    rows: dict[tuple[UUID, str, str, str], BudgetRow] = {}
    for found in [*(await session.exec(budgets.order_by(col(Budget.valid_from)))), *(await session.exec(accounts))]:
        window = cast("Window", found.window)
        held, posted = (found.held_uyen, found.posted_uyen) if isinstance(found, Account) else (0, 0)
        rows[(found.tenant_id, found.node, found.node_id, window)] = BudgetRow(
            TenantId(found.tenant_id), found.node, found.node_id, window, starts[window], _or_none(found.limit_uyen),
            held, posted,
        )  # fmt: skip
    order = {node: level for level, node in enumerate(LEVELS)}
    # A lifted limit of another window than the month says nothing any more.
    told = [r for r in rows.values() if r.window == "month" or r.limit_uyen is not None]
    return sorted(told, key=lambda r: (str(r.tenant_id), order[r.node], r.node_id, WINDOWS.index(r.window)))


def _or_none(limit_uyen: int) -> int | None:
    return None if limit_uyen >= UNLIMITED_UYEN else limit_uyen


async def remaining_share(
    session: AsyncSession, tenant_id: TenantId, *, section_id: UUID | None, person_id: UUID | None
) -> Fraction:
    """The smallest share that is left of the limits above a person, in any window; 0 when the town has no budget."""
    rows = await budget_rows(session, tenant_id=tenant_id, windows=WINDOWS)
    if not any(r.node == "town" and r.window == "month" for r in rows):
        return Fraction(0)
    above = {("town", ""), ("section", str(section_id)), ("person", str(person_id))}
    shares = [r.left for r in rows if (r.node, r.node_id) in above]
    return min((s for s in shares if s is not None), default=Fraction(1))
