"""Budgets as people set and read them: standing limits per node, the accounts of a month, what is left as a share."""

from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Literal
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput
from tenants.context import TenantId
from tenants.models import UNLIMITED_UYEN, Account, Budget, Grant
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.windows import window_start

Node = Literal["town", "section", "person"]
MAX_YEN = 10_000_000_000


class BudgetTooSmall(Conflict):
    type = "urn:problem:quota:budget-below-used"
    title = "すでに使った分より小さくはできません"


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One node's month in micro-yen; `limit_uyen` None: no limit of its own."""

    tenant_id: TenantId
    node: str
    node_id: str
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
    by: UUID | None = None,
    now: datetime | None = None,
) -> None:
    """Sets the monthly limit from this month on; in a platform session. The month's open account follows at once.

    yen None: no limit of its own, which only a node below the town may have. Raises `InvalidInput`, and `BudgetTooSmall` when this month's use is already above it.
    """
    if (node == "town" and yen is None) or (yen is not None and not 0 <= yen <= MAX_YEN):
        raise InvalidInput(f"予算は0円から{MAX_YEN:,}円までの整数で入れてください。", field="month_yen")
    limit = UNLIMITED_UYEN if yen is None else yen * UYEN_PER_YEN
    start = window_start("month", now or datetime.now(UTC))
    account = (
        await session.exec(
            select(Account)
            .where(
                col(Account.tenant_id) == tenant_id,
                col(Account.node) == node,
                col(Account.node_id) == node_id,
                col(Account.window) == "month",
                col(Account.window_start) == start,
            )
            .with_for_update()
        )
    ).first()
    if account is not None:
        used = account.held_uyen + account.posted_uyen
        if limit < used:
            raise BudgetTooSmall(
                f"今月はすでに{-(-used // UYEN_PER_YEN):,}円を使っています（処理中の分を含みます）。", field="month_yen"
            )
        account.limit_uyen = limit
        session.add(account)
    budget = (
        await session.exec(
            select(Budget).where(
                col(Budget.tenant_id) == tenant_id,
                col(Budget.node) == node,
                col(Budget.node_id) == node_id,
                col(Budget.window) == "month",
                col(Budget.valid_from) == start,
            )
        )
    ).first()
    before = await _limit(session, tenant_id, node, node_id)
    if budget is None:
        budget = Budget(tenant_id=tenant_id, node=node, node_id=node_id, valid_from=start)
    budget.limit_uyen, budget.set_by, budget.set_at = limit, by, datetime.now(UTC)
    session.add(budget)
    if node == "town":
        change = limit - (before or 0)
        if change:
            reason = "budget set"
            session.add(
                Grant(tenant_id=tenant_id, window_start=start, amount_uyen=change, created_by=by, reason=reason)
            )
    await session.flush()


async def _limit(session: AsyncSession, tenant_id: TenantId, node: str, node_id: str) -> int | None:
    return (
        await session.exec(
            select(Budget.limit_uyen)
            .where(col(Budget.tenant_id) == tenant_id, col(Budget.node) == node, col(Budget.node_id) == node_id)
            .order_by(col(Budget.valid_from).desc())
        )
    ).first()


async def budget_rows(
    session: AsyncSession,
    *,
    tenant_id: TenantId | None = None,
    node: Node | None = None,
    now: datetime | None = None,
) -> list[BudgetRow]:
    """This month's nodes: those with an account, and those whose budget has not been touched yet.

    node: only of this kind; a whole region has a node for every person.
    """
    start = window_start("month", now or datetime.now(UTC))
    accounts = select(Account).where(col(Account.window) == "month", col(Account.window_start) == start)
    budgets = select(Budget).where(col(Budget.window) == "month", col(Budget.valid_from) <= start)
    if tenant_id is not None:
        accounts = accounts.where(col(Account.tenant_id) == tenant_id)
        budgets = budgets.where(col(Budget.tenant_id) == tenant_id)
    if node is not None:
        accounts = accounts.where(col(Account.node) == node)
        budgets = budgets.where(col(Budget.node) == node)
    rows: dict[tuple[UUID, str, str], BudgetRow] = {}
    for budget in (await session.exec(budgets.order_by(col(Budget.valid_from)))).all():
        key = (budget.tenant_id, budget.node, budget.node_id)
        limit = _or_none(budget.limit_uyen)
        rows[key] = BudgetRow(TenantId(budget.tenant_id), budget.node, budget.node_id, limit, 0, 0)
    for account in (await session.exec(accounts)).all():
        limit = _or_none(account.limit_uyen)
        rows[(account.tenant_id, account.node, account.node_id)] = BudgetRow(
            TenantId(account.tenant_id), account.node, account.node_id, limit, account.held_uyen, account.posted_uyen
        )
    order = {"town": 0, "section": 1, "person": 2}
    return sorted(rows.values(), key=lambda r: (str(r.tenant_id), order.get(r.node, 9), r.node_id))


def _or_none(limit_uyen: int) -> int | None:
    return None if limit_uyen >= UNLIMITED_UYEN else limit_uyen


async def remaining_share(
    session: AsyncSession, tenant_id: TenantId, *, section_id: UUID | None, person_id: UUID | None
) -> Fraction:
    """The smallest share that is left of the limits above a person; 0 when the town has no budget."""
    rows = {(r.node, r.node_id): r for r in await budget_rows(session, tenant_id=tenant_id)}
    town = rows.get(("town", ""))
    shares = [town.left if town is not None else Fraction(0)]
    shares += [r.left for r in (rows.get(("section", str(section_id))), rows.get(("person", str(person_id)))) if r]
    return min((s for s in shares if s is not None), default=Fraction(1))
