"""What was used, from the call rows: numbers by month, town, section, app and model. No content exists here."""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import ColumnElement, case
from sqlalchemy import select as select_columns
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import TenantId
from tenants.models import Call, Section
from tenants.quota.windows import window_bounds


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
        .where(*_posted_in(month))
        .group_by(col(Call.tenant_id), col(Call.section_id), col(Call.app), col(Call.alias))
    )
    if tenant_id is not None:
        query = query.where(col(Call.tenant_id) == tenant_id)
    found = await session.exec(query)  # type: ignore[call-overload]  # SQLModel types select() of four columns at most
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
    dialect = session.sync_session.get_bind().dialect.name
    at = col(Call.created_at)
    day = func.date(at, "+9 hours") if dialect == "sqlite" else func.date(func.timezone("Asia/Tokyo", at))
    query = (
        select(day, func.count(), func.sum(col(Call.cost_uyen))).where(*_posted_in(month)).group_by(day).order_by(day)
    )
    if tenant_id is not None:
        query = query.where(col(Call.tenant_id) == tenant_id)
    found = (await session.exec(query)).all()
    return [Day(date.fromisoformat(str(d)), int(n), int(u or 0)) for d, n, u in found]


def _posted_in(month: date) -> tuple[ColumnElement[bool], ...]:
    """The month's calls by the instant of their hold, which is what decided their month and what the key is by."""
    start, end = window_bounds("month", month)
    return col(Call.created_at) >= start, col(Call.created_at) < end, col(Call.state) != "void"
