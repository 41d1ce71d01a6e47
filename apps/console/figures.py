"""What the console shows, computed from ledger rows: numbers only."""

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction

from apps.sdk.dates import local
from apps.sdk.ui.charts import BarChart, bar_chart
from tenants.context import TenantId
from tenants.db import Database
from tenants.quota.tree import BudgetRow, budget_rows
from tenants.quota.windows import window_start
from tenants.registry import ListedTenant, list_tenants
from tenants.usage import Day, UsageRow, usage_by_day, usage_rows

UYEN = 1_000_000


@dataclass(frozen=True, slots=True)
class TownFigures:
    """A town's month. `dry_on`: the day its budget ends at this month's pace, if it does before the month."""

    town: ListedTenant
    calls: int
    failed: int
    tokens: int
    used_uyen: int
    limit_uyen: int
    left: Fraction
    dry_on: date | None

    @property
    def days_left(self) -> int | None:
        return None if self.dry_on is None else (self.dry_on - local(datetime.now(UTC)).date()).days

    @property
    def failing(self) -> bool:
        """More than one in ten calls of the month ended with a problem."""
        return self.calls >= 10 and self.failed * 10 > self.calls


def dry_day(used_uyen: int, limit_uyen: int, today: date) -> date | None:
    """At the month's average pace until today. None: it lasts until the month ends, or nothing was used."""
    if limit_uyen <= used_uyen:
        return today
    if used_uyen <= 0:
        return None
    days = (limit_uyen - used_uyen) * today.day // used_uyen
    # Compared as a number first: a slow pace reaches beyond what a date can hold.
    days_left = monthrange(today.year, today.month)[1] - today.day
    return today + timedelta(days=days) if days <= days_left else None


async def towns_of_month(db: Database, now: datetime) -> tuple[list[TownFigures], list[Day]]:
    """All towns with their month, those that run dry first, and the region's days."""
    month = window_start("month", now)
    async with db.platform_session("operator console", read_only=True) as session:
        tenants = [t for t in await list_tenants(session) if t.status != "erased"]
        usage = await usage_rows(session, month)
        budgets = {r.tenant_id: r for r in await budget_rows(session, now=now) if r.node == "town"}
        days = await usage_by_day(session, month)
    by_town: dict[TenantId, list[UsageRow]] = {}
    for row in usage:
        by_town.setdefault(row.tenant_id, []).append(row)
    today = local(now).date()
    found = [_figures(t, by_town.get(t.id, []), budgets.get(t.id), today) for t in tenants]
    return sorted(found, key=lambda f: (f.dry_on or date.max, f.town.code)), days


def _figures(town: ListedTenant, rows: list[UsageRow], budget: BudgetRow | None, today: date) -> TownFigures:
    used = (budget.posted_uyen + budget.held_uyen) if budget else 0
    limit = (budget.limit_uyen or 0) if budget else 0
    return TownFigures(
        town=town,
        calls=sum(r.calls for r in rows),
        failed=sum(r.failed for r in rows),
        tokens=sum(r.prompt_tokens + r.completion_tokens for r in rows),
        used_uyen=used,
        limit_uyen=limit,
        left=(budget.left or Fraction(0)) if budget else Fraction(0),
        dry_on=dry_day(used, limit, today) if town.status == "active" else None,
    )


def daily_chart(days: list[Day], now: datetime, *, money: bool) -> BarChart:
    """The month's days until today, in yen or in calls."""
    today = local(now).date()
    known = {d.day: d for d in days}
    values: list[tuple[str, int]] = []
    for number in range(1, today.day + 1):
        day = known.get(today.replace(day=number))
        value = 0 if day is None else (-(-day.cost_uyen // UYEN) if money else day.calls)
        values.append((f"{number}日", value))
    return bar_chart(values, unit="円" if money else "件")
