"""What was used, from the call rows: numbers by month, day, town, section, app and model. No content exists here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Executable, String, case
from sqlalchemy import select as select_columns
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import TenantId
from tenants.models import Call, Section
from tenants.quota.windows import window_bounds

# A section of fewer people is not told by itself: its numbers could be one person's.
MIN_SECTION_PEOPLE: Final = 10
# What a clerk takes for a stall; the target is that 95 of 100 first words come before it.
SLOW_MS: Final = 2_500
# Upper edges of the histogram from which percentiles of first words are read, in ms.
_EDGES_MS: Final = (
    100, 200, 300, 400, 500, 600, 700, 800, 900, 1_000, 1_200, 1_400, 1_600, 1_800, 2_000, 2_500, 3_000, 3_500, 4_000,
    5_000, 6_000, 8_000, 10_000, 15_000, 20_000, 30_000, 60_000,
)  # fmt: skip


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
        .where(*_of_month(month, tenant_id))
        .group_by(col(Call.tenant_id), col(Call.section_id), col(Call.app), col(Call.alias))
    )
    found = await _rows(session, query)
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
        for t, s, app, alias, n, f, p, c, u in found
    ]
    return sorted(rows, key=lambda r: (str(r.tenant_id), -r.cost_uyen, r.section_name, r.app))


# What a call came to: as much as was counted, all that was held because nobody counted, or nothing.
Charge = Literal["counted", "held", "nothing"]
# An id holds the time it was made at; the call is entered within this time.
_AROUND: Final = timedelta(days=1)


async def charges_of(session: AsyncSession, person_id: UUID, call_ids: Sequence[UUID]) -> dict[UUID, Charge]:
    """How a person's calls were charged, in a tenant session; those that have not ended are left out."""
    ours = sorted(i for i in call_ids if i.version == 7)
    if not ours:
        return {}
    first, last = (datetime.fromtimestamp((i.int >> 80) / 1000, UTC) for i in (ours[0], ours[-1]))
    query = select(Call).where(
        col(Call.id).in_(ours),
        col(Call.person_id) == person_id,
        col(Call.created_at).between(first - _AROUND, last + _AROUND),
        col(Call.state) != "held",
    )
    return {c.id: _charge(c) for c in (await session.exec(query)).all()}


def _charge(call: Call) -> Charge:
    if call.cost_uyen == 0:
        return "nothing"
    return "held" if call.usage_source == "hold" else "counted"


@dataclass(frozen=True, slots=True)
class TownUsage:
    """One town's month."""

    calls: int
    failed: int
    tokens: int
    cost_uyen: int


async def usage_by_town(
    session: AsyncSession, month: date, *, tenant_id: TenantId | None = None
) -> dict[TenantId, TownUsage]:
    """One row per town, in a platform session; towns without calls are left out."""
    found = await _rows(
        session,
        select_columns(
            col(Call.tenant_id),
            func.count(),
            func.sum(case((col(Call.problem) != "", 1), else_=0)),
            func.sum(col(Call.prompt_tokens) + col(Call.completion_tokens)),
            func.sum(col(Call.cost_uyen)),
        )
        .where(*_of_month(month, tenant_id))
        .group_by(col(Call.tenant_id)),
    )
    return {TenantId(t): TownUsage(int(n), int(f or 0), int(k or 0), int(u or 0)) for t, n, f, k, u in found}


@dataclass(frozen=True, slots=True)
class Day:
    """A day in JST. `zones`: zone → (calls, micro-yen); a call that never reached a deployment has the zone ""."""

    day: date
    zones: Mapping[str, tuple[int, int]]

    @property
    def calls(self) -> int:
        return sum(n for n, _ in self.zones.values())

    @property
    def cost_uyen(self) -> int:
        return sum(u for _, u in self.zones.values())


async def usage_by_day(session: AsyncSession, month: date, *, tenant_id: TenantId | None = None) -> list[Day]:
    """Calls and cost per day and zone of a month, days without calls left out."""
    day = _day(session)
    found = await _rows(
        session,
        select_columns(day, col(Call.zone), func.count(), func.sum(col(Call.cost_uyen)))
        .where(*_of_month(month, tenant_id))
        .group_by(day, col(Call.zone)),
    )
    days: dict[date, dict[str, tuple[int, int]]] = {}
    for told, zone, calls, cost in found:
        days.setdefault(_as_date(told), {})[zone] = (int(calls), int(cost or 0))
    return [Day(d, zones) for d, zones in sorted(days.items())]


@dataclass(frozen=True, slots=True)
class FirstWords:
    """How long the first words took on a day, in ms: half of the calls were faster than `half`, 95 of 100 than `slow`."""

    day: date
    calls: int
    half_ms: int
    slow_ms: int


async def first_words_by_day(
    session: AsyncSession, month: date, *, tenant_id: TenantId | None = None
) -> list[FirstWords]:
    """From a histogram, so that no database has to sort a month of calls; within a bucket it is interpolated."""
    day = _day(session)
    bucket = case(
        *((col(Call.first_byte_ms) <= edge, number) for number, edge in enumerate(_EDGES_MS)), else_=len(_EDGES_MS)
    )
    found = await _rows(
        session,
        select_columns(day, bucket, func.count())
        .where(*_of_month(month, tenant_id), col(Call.first_byte_ms).is_not(None))
        .group_by(day, bucket),
    )
    days: dict[date, dict[int, int]] = {}
    for told, number, calls in found:
        days.setdefault(_as_date(told), {})[int(number)] = int(calls)
    return [
        FirstWords(d, sum(counts.values()), percentile_ms(counts, 50), percentile_ms(counts, 95))
        for d, counts in sorted(days.items())
    ]


def percentile_ms(counts: Mapping[int, int], percent: int) -> int:
    """counts: bucket number → calls. Beyond the last edge it is the last edge."""
    wanted = sum(counts.values()) * percent / 100
    seen = 0
    for number in sorted(counts):
        if seen + counts[number] >= wanted:
            if number >= len(_EDGES_MS):
                break
            low = _EDGES_MS[number - 1] if number else 0
            return round(low + (_EDGES_MS[number] - low) * (wanted - seen) / counts[number])
        seen += counts[number]
    return _EDGES_MS[-1]


@dataclass(frozen=True, slots=True)
class Health:
    """A town's recent calls: how many, how many ended with a problem, how many started slower than `SLOW_MS`."""

    calls: int
    failed: int
    slow: int


async def health_since(
    session: AsyncSession, since: datetime, *, tenant_id: TenantId | None = None
) -> dict[TenantId, Health]:
    """Per town, in a platform session; towns without calls are left out."""
    where = [col(Call.created_at) >= since, col(Call.state) != "void"]
    if tenant_id is not None:
        where.append(col(Call.tenant_id) == tenant_id)
    found = await _rows(
        session,
        select_columns(
            col(Call.tenant_id),
            func.count(),
            func.sum(case((col(Call.problem) != "", 1), else_=0)),
            func.sum(case((col(Call.first_byte_ms) > SLOW_MS, 1), else_=0)),
        )
        .where(*where)
        .group_by(col(Call.tenant_id)),
    )
    return {TenantId(t): Health(int(n), int(f or 0), int(s or 0)) for t, n, f, s in found}


async def people_who_asked(session: AsyncSession, month: date, *, tenant_id: TenantId) -> int:
    """How many persons of a town made a call in a month."""
    found = await _rows(
        session, select_columns(func.count(func.distinct(col(Call.person_id)))).where(*_of_month(month, tenant_id))
    )
    return int(found[0][0])


@dataclass(frozen=True, slots=True)
class SectionUsage:
    """A section's month, or that of several small ones together (`sections` > 1 or `is_group`)."""

    name: str
    people: int
    calls: int = 0
    failed: int = 0
    tokens: int = 0
    cost_uyen: int = 0
    sections: int = 1
    is_group: bool = False


def by_section(
    rows: Sequence[UsageRow], people: Mapping[UUID, int], names: Mapping[UUID, str], *, systems: str
) -> list[SectionUsage]:
    """Rows of one town by section, most calls first; sections below `MIN_SECTION_PEOPLE` as one row at the end.

    people, names: of all open sections, those without calls too. Calls by systems belong to nobody and are a row of
    their own under the name `systems`. A single small section would be readable from the sum, so the smallest of the
    others joins it.
    """
    # A section that has been closed since is told with the small ones: nobody is in it now.
    told = {section: SectionUsage(names.get(section, ""), people.get(section, 0)) for section in names}
    by_systems: SectionUsage | None = None
    for row in rows:
        if row.section_id is None:
            by_systems = _plus(by_systems or SectionUsage(systems, 0, sections=0), row)
        else:
            told[row.section_id] = _plus(told.get(row.section_id, SectionUsage(row.section_name, 0)), row)
    ordered = sorted(told.values(), key=lambda s: (-s.calls, s.name))
    large = [s for s in ordered if s.people >= MIN_SECTION_PEOPLE]
    small = [s for s in ordered if s.people < MIN_SECTION_PEOPLE]
    if large and small and (len(small) == 1 or sum(s.people for s in small) < MIN_SECTION_PEOPLE):
        smallest = min(large, key=lambda s: (s.people, s.calls))
        large.remove(smallest)
        small.append(smallest)
    group = SectionUsage(
        f"ほかの{len(small)}課" if large else f"{len(small)}課あわせて",
        sum(s.people for s in small),
        sum(s.calls for s in small),
        sum(s.failed for s in small),
        sum(s.tokens for s in small),
        sum(s.cost_uyen for s in small),
        sections=len(small),
        is_group=True,
    )
    return [*large, *([group] if small else []), *([by_systems] if by_systems else [])]


def _plus(section: SectionUsage, row: UsageRow) -> SectionUsage:
    return replace(
        section,
        calls=section.calls + row.calls,
        failed=section.failed + row.failed,
        tokens=section.tokens + row.prompt_tokens + row.completion_tokens,
        cost_uyen=section.cost_uyen + row.cost_uyen,
    )


def _of_month(month: date, tenant_id: TenantId | None) -> list[ColumnElement[bool]]:
    """The month's calls by the instant of their hold, which is what decided their month and what the key is by."""
    start, end = window_bounds("month", month)
    where = [col(Call.created_at) >= start, col(Call.created_at) < end, col(Call.state) != "void"]
    return where if tenant_id is None else [*where, col(Call.tenant_id) == tenant_id]


async def _rows(session: AsyncSession, query: Executable) -> Sequence[Any]:
    found = await session.exec(query)  # type: ignore[call-overload]  # SQLModel types select() of four columns at most
    rows: Sequence[Any] = found.all()
    return rows


def _day(session: AsyncSession) -> ColumnElement[Any]:
    """The day in JST as the database can group by it."""
    if session.sync_session.get_bind().dialect.name == "sqlite":
        return func.date(col(Call.created_at), "+9 hours", type_=String)
    return func.date(func.timezone("Asia/Tokyo", col(Call.created_at)))


def _as_date(told: date | str) -> date:
    return date.fromisoformat(told) if isinstance(told, str) else told
