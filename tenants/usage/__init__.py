"""What was used, from the call rows: numbers by month, town, section, app and model. No content exists here."""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import case
from sqlalchemy import select as select_columns
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import TenantId
from tenants.models import Call, Section
from tenants.quota.windows import JST


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Calls of one month and one group; money in micro-yen as posted (settled and suspense)."""

    tenant_id: TenantId
    section_id: UUID | None
    section_name: str
    app: str
    alias: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_uyen: int


async def usage_rows(session: AsyncSession, month: date, *, tenant_id: TenantId | None = None) -> list[UsageRow]:
    """One row per town × section × app × model, dearest first. Void calls were never sent and do not count."""
    sections = {s.id: s.name for s in (await session.exec(select(Section))).all()}
    query = (
        select_columns(
            col(Call.tenant_id),
            col(Call.section_id),
            col(Call.app),
            col(Call.alias),
            func.count(),
            func.sum(case((col(Call.problem) != "", 1), else_=0)),
            func.sum(col(Call.prompt_tokens)),
            func.sum(col(Call.completion_tokens)),
            func.sum(col(Call.cost_uyen)),
        )
        .where(col(Call.month) == month, col(Call.state) != "void")
        .group_by(col(Call.tenant_id), col(Call.section_id), col(Call.app), col(Call.alias))
    )
    if tenant_id is not None:
        query = query.where(col(Call.tenant_id) == tenant_id)
    # SQLModel types select() of at most four columns, so this one is SQLAlchemy's own.
    found = await session.execute(query)
    rows = [
        UsageRow(
            TenantId(t),
            s,
            sections.get(s, "") if s else "",
            app,
            alias,
            int(n),
            int(f or 0),
            int(p or 0),
            int(c or 0),
            int(u or 0),
        )
        for t, s, app, alias, n, f, p, c, u in found.all()
    ]
    return sorted(rows, key=lambda r: (str(r.tenant_id), -r.cost_uyen, r.section_name, r.app))


@dataclass(frozen=True, slots=True)
class Day:
    day: date
    calls: int
    cost_uyen: int


async def usage_by_day(session: AsyncSession, month: date, *, tenant_id: TenantId | None = None) -> list[Day]:
    """Calls and cost per day (JST) of a month, days without calls left out."""
    query = select(Call.created_at, Call.cost_uyen).where(col(Call.month) == month, col(Call.state) != "void")
    if tenant_id is not None:
        query = query.where(col(Call.tenant_id) == tenant_id)
    days: dict[date, tuple[int, int]] = {}
    for at, cost in (await session.exec(query)).all():
        day = _day(at)
        calls, total = days.get(day, (0, 0))
        days[day] = (calls + 1, total + cost)
    return [Day(d, n, c) for d, (n, c) in sorted(days.items())]


def _day(at: datetime) -> date:
    return at.astimezone(JST).date()
