"""What the console shows, computed from ledger rows: numbers only."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Final, Generic, TypeVar
from uuid import UUID

from apps.sdk.dates import local, wareki_month
from apps.sdk.ui.charts import ZONE_FILLS, Columns, Lines, columns, lines
from apps.sdk.ui.render import ZONE_WORDS
from observability.problems import InvalidInput
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import Section
from tenants.people import Listed
from tenants.quota.grants import read_region
from tenants.quota.pace import dry_day, month_end
from tenants.quota.tree import MAX_YEN, BudgetRow, budget_rows
from tenants.quota.windows import window_start
from tenants.registry import ListedTenant, list_tenants
from tenants.usage import (
    SLOW_MS,
    Day,
    FirstWords,
    Health,
    SectionUsage,
    TownUsage,
    UsageRow,
    by_section,
    first_words_by_day,
    health_since,
    usage_by_day,
    usage_by_town,
)

UYEN: Final = 1_000_000
# Health is told of the last day; below this many calls nothing is said.
HEALTH_HOURS: Final = 24
MIN_CALLS: Final = 10
SOON_DAYS: Final = 3
SYSTEMS: Final = "業務システム（APIキー）"
ZONES: Final = ("onprem", "domestic", "overseas", "")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TownFigures:
    """A town's month. `dry_on`: the day its budget ends at this month's pace, if it does before the month.

    `limit_uyen`: what it may spend; `loan_uyen` of it is borrowed from the region's pool, or negative: lent, and
    `moved_uyen` was moved to it for this month alone, or negative: from it.
    """

    town: ListedTenant
    usage: TownUsage
    health: Health
    used_uyen: int
    limit_uyen: int
    left: Fraction
    dry_on: date | None
    days_left: int | None
    forecast_uyen: int
    loan_uyen: int
    moved_uyen: int

    @property
    def share_uyen(self) -> int:
        """Its own standing budget, without what it borrows or lends and what was moved for this month alone."""
        return self.limit_uyen - self.loan_uyen - self.moved_uyen

    @property
    def has_budget(self) -> bool:
        return self.limit_uyen > 0

    @property
    def failing(self) -> bool:
        """More than one in ten of the recent calls ended with a problem."""
        return self.health.calls >= MIN_CALLS and self.health.failed * 10 > self.health.calls

    @property
    def slow(self) -> bool:
        """More than five of a hundred recent calls began later than the target."""
        return self.health.calls >= MIN_CALLS and self.health.slow * 20 > self.health.calls

    @property
    def needs_a_hand(self) -> bool:
        return self.urgency < 6

    @property
    def urgency(self) -> int:
        """The order of the list: who stands still first, then who soon will, then who struggles."""
        if self.town.status == "suspended":
            return 5
        if not self.has_budget:
            return 0
        if self.days_left is not None:
            return 1 if self.days_left <= SOON_DAYS else 2
        if self.failing:
            return 3
        return 4 if self.slow else 6


@dataclass(frozen=True, slots=True)
class Alert:
    """A line under 対応が要るもの: `tone` error or warn, what it is about, what is the matter, where to go."""

    tone: str
    about: str
    title: str
    text: str
    act: str
    href: str
    town: str


def alert(t: TownFigures) -> Alert | None:
    """What the operator has to know of a town, if anything."""
    here = f"/console/operator/towns/{t.town.id}"
    if t.town.status == "suspended":
        return Alert("info", "停止", f"{t.town.name}の利用を止めています。", "", "確かめる", here, t.town.name)
    if not t.has_budget:
        text = "設定するまで、だれも使えません。"
        return Alert(
            "error", "予算", f"{t.town.name}に今月の予算がありません。", text, "予算を決める", here, t.town.name
        )
    if t.dry_on is not None and t.days_left is not None:
        rest = max(0, t.limit_uyen - t.used_uyen) // UYEN
        if rest == 0:
            title, text = f"{t.town.name}は今月の予算を使い切りました。", "新しい質問は送れません。"
        else:
            title = f"{t.town.name}は{t.dry_on.month}月{t.dry_on.day}日に予算がなくなる見込みです。"
            text = f"残り{rest:,}円"
        tone = "error" if t.days_left <= SOON_DAYS else "warn"
        return Alert(tone, "予算", title, text, "予算を変える", here, t.town.name)
    if t.failing:
        text = f"この24時間の{t.health.calls:,}件のうち{t.health.failed:,}件"
        return Alert("warn", "失敗", f"{t.town.name}で失敗が増えています。", text, "内訳を見る", here, t.town.name)
    if t.slow:
        text = f"この24時間の{t.health.calls:,}件のうち{t.health.slow:,}件が{SLOW_MS / 1000:.1f}秒より遅い"
        title = f"{t.town.name}で最初の文字が遅くなっています。"
        return Alert("warn", "速さ", title, text, "経過を見る", here, t.town.name)
    return None


def parse_yen(text: str, *, field: str = "month_yen", most: int = MAX_YEN) -> int:
    """Whole yen as people type them: commas, full width, 円. Raises `InvalidInput`."""
    folded = unicodedata.normalize("NFKC", text).replace(",", "").replace("円", "").strip()
    if not (folded.isascii() and folded.isdigit()) or len(folded) > len(str(most)):
        raise InvalidInput(f"金額は0円から{most:,}円までの整数で入れてください。", field=field)
    return int(folded)


async def load_towns(db: Database, now: datetime, *, only: TenantId | None = None) -> list[TownFigures]:
    """All towns that are not erased (or one), with their month."""
    month = window_start("month", now)
    async with db.platform_session("operator console", read_only=True) as session:
        tenants = [t for t in await list_tenants(session) if t.status != "erased" and only in (None, t.id)]
        usage = await usage_by_town(session, month, tenant_id=only)
        budgets = {r.tenant_id: r for r in await budget_rows(session, tenant_id=only, node="town", now=now)}
        health = await health_since(session, now - timedelta(hours=HEALTH_HOURS), tenant_id=only)
        region = await read_region(session, "month", now)
    today = local(now).date()
    loans = (
        {s.tenant_id: (s.borrowed_uyen - s.lent_uyen, s.moved_uyen) for s in region.shares.values()} if region else {}
    )
    return [
        town_figures(
            t, usage.get(t.id, TownUsage(0, 0, 0, 0)), health.get(t.id, Health(0, 0, 0)), budgets.get(t.id),
            *loans.get(t.id, (0, 0)), today,
        )
        for t in tenants
    ]  # fmt: skip


def town_figures(
    town: ListedTenant,
    usage: TownUsage,
    health: Health,
    budget: BudgetRow | None,
    loan_uyen: int,
    moved_uyen: int,
    today: date,
) -> TownFigures:
    """Of a town's month until `today`; budget None: it has none."""
    used = (budget.posted_uyen + budget.held_uyen) if budget else 0
    limit = (budget.limit_uyen or 0) if budget else 0
    dry_on = dry_day(used, limit, today) if town.status == "active" and limit > 0 else None
    return TownFigures(
        town=town,
        usage=usage,
        health=health,
        used_uyen=used,
        limit_uyen=limit,
        left=(budget.left or Fraction(0)) if budget else Fraction(0),
        dry_on=dry_on,
        days_left=None if dry_on is None else (dry_on - today).days,
        forecast_uyen=month_end(used, today),
        loan_uyen=loan_uyen,
        moved_uyen=moved_uyen,
    )


# ── finding one's way among many towns ───────────────────────────────────────────────────────────────────────────

STATES: Final[Mapping[str, tuple[str, Callable[[TownFigures], bool]]]] = {
    "all": ("すべて", lambda t: True),
    "need": ("対応が要る", lambda t: t.needs_a_hand),
    "active": ("利用中", lambda t: t.town.status == "active"),
    "suspended": ("停止中", lambda t: t.town.status == "suspended"),
    "unused": ("今月は未使用", lambda t: t.usage.calls == 0),
}
# Each with a tie broken by code, so that a page shows the same towns again.
SORTS: Final[Mapping[str, tuple[str, Callable[[TownFigures], tuple[object, ...]]]]] = {
    "need": ("急ぐ順", lambda t: (t.urgency, t.dry_on or date.max, t.left, t.town.code)),
    "name": ("団体コード順", lambda t: (t.town.code,)),
    "calls": ("件数の多い順", lambda t: (-t.usage.calls, t.town.code)),
    "used": ("使った額の多い順", lambda t: (-t.used_uyen, t.town.code)),
    "left": ("残りの少ない順", lambda t: (t.left, t.town.code)),
}


def choose(towns: Sequence[TownFigures], *, q: str = "", state: str = "all", sort: str = "need") -> list[TownFigures]:
    """The towns asked for, in order. An unknown state or sort is the first one. Widths and case do not matter in `q`."""
    wanted = STATES.get(state, STATES["all"])[1]
    found = [t for t in towns if wanted(t) and matches(q, t.town)]
    return sorted(found, key=SORTS.get(sort, SORTS["need"])[1])


def matches(q: str, town: ListedTenant) -> bool:
    """Whether every word stands in the town's name or code."""
    return all(word in _folded(f"{town.name} {town.code}") for word in _folded(q).split())


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@dataclass(frozen=True, slots=True)
class Paged(Generic[T]):
    """One page of a list."""

    items: tuple[T, ...]
    page: int
    pages: int
    total: int
    first: int
    last: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """The pages to link: first, last and those around this one; 0 stands for a gap."""
        near = {1, self.pages, *range(self.page - 1, self.page + 2)}
        told = [n for n in sorted(near) if 1 <= n <= self.pages]
        out: list[int] = []
        for number in told:
            if out and number - out[-1] > 1:
                out.append(0)
            out.append(number)
        return tuple(out)


def paged(items: Sequence[T], page: int, *, size: int = 50) -> Paged[T]:
    """The page asked for, or the nearest there is."""
    pages = max(1, -(-len(items) // size))
    page = min(max(1, page), pages)
    shown = tuple(items[(page - 1) * size : page * size])
    first = (page - 1) * size + 1 if shown else 0
    return Paged(shown, page, pages, len(items), first, first + len(shown) - 1 if shown else 0)


# ── charts ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class DayChart:
    """The month's days until today, by zone, in yen or in calls: the drawing, its words and its table.

    key: (look, words) per part, in the order of the numbers in `rows`.
    """

    chart: Columns
    title: str
    description: str
    unit: str
    key: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[int, ...], int], ...]
    total: int


def day_chart(days: Sequence[Day], now: datetime, *, money: bool) -> DayChart:
    today = local(now).date()
    known = {d.day: d for d in days}
    unit, title = ("円", "1日の費用と処理した場所") if money else ("件", "1日の件数と処理した場所")
    values: list[tuple[str, dict[str, int]]] = []
    for number in range(1, today.day + 1):
        day = known.get(today.replace(day=number))
        parts = {} if day is None else {z: (-(-u // UYEN) if money else n) for z, (n, u) in day.zones.items()}
        values.append((f"{today.month}/{number}", parts))
    sums = [(label, sum(parts.values())) for label, parts in values]
    total = sum(n for _, n in sums)
    told = f"{today.month}月1日から{today.day}日。"
    if total:
        label, most = max(sums, key=lambda s: s[1])
        by_zone = [(z, sum(parts.get(z, 0) for _, parts in values)) for z in ZONES]
        share = "、".join(f"{words(z)}{n:,}{unit}" for z, n in by_zone if n)
        told += f"合計{total:,}{unit}。いちばん多い日は{label}の{most:,}{unit}。内訳は{share}。"
    else:
        told += "まだ使われていません。"
    used = tuple(z for z in ZONES if z or any(parts.get(z) for _, parts in values))
    rows = tuple((label, tuple(parts.get(z, 0) for z in used), sum(parts.values())) for label, parts in values if parts)
    key = tuple((ZONE_FILLS[z], words(z)) for z in used)
    return DayChart(columns(values, unit=unit, order=ZONES), title, told, unit, key, rows, total)


def words(zone: str) -> str:
    """A call that ended before a model was chosen has no zone."""
    return ZONE_WORDS.get(zone, "送る前に終わった分")


@dataclass(frozen=True, slots=True)
class WaitChart:
    """Seconds until the first words, day by day."""

    chart: Lines
    title: str
    description: str
    rows: tuple[tuple[str, int, str, str], ...]


def wait_chart(days: Sequence[FirstWords], now: datetime) -> WaitChart:
    today = local(now).date()
    known = {d.day: d for d in days}
    values: list[tuple[str, dict[str, float]]] = []
    for number in range(1, today.day + 1):
        day = known.get(today.replace(day=number))
        parts = {} if day is None else {"slow": day.slow_ms / 1000, "half": day.half_ms / 1000}
        values.append((f"{today.month}/{number}", parts))
    chart = lines(values, unit="秒", names={"slow": ("遅い5%", "a"), "half": ("真ん中", "b")})
    told = f"{today.month}月1日から{today.day}日。"
    if days:
        worst = max(days, key=lambda d: d.slow_ms)
        told += (
            f"半分は{min(d.half_ms for d in days) / 1000:.1f}秒から{max(d.half_ms for d in days) / 1000:.1f}秒より早く、"
            f"遅いほうの5パーセントがいちばん遅かったのは{worst.day.month}/{worst.day.day}の{worst.slow_ms / 1000:.1f}秒。"
        )
    else:
        told += "まだ使われていません。"
    rows = tuple(
        (f"{d.day.month}/{d.day.day}", d.calls, f"{d.half_ms / 1000:.1f}", f"{d.slow_ms / 1000:.1f}") for d in days
    )
    return WaitChart(chart, "最初の文字が出るまで", told, rows)


async def region_charts(db: Database, now: datetime) -> tuple[DayChart, WaitChart]:
    month = window_start("month", now)
    async with db.platform_session("operator console", read_only=True) as session:
        days = await usage_by_day(session, month)
        waits = await first_words_by_day(session, month)
    return day_chart(days, now, money=True), wait_chart(waits, now)


# ── months and sections ──────────────────────────────────────────────────────────────────────────────────────────


def months_until(now: datetime) -> list[tuple[str, str]]:
    """This month and the twelve before it."""
    day = local(now).date().replace(day=1)
    found: list[tuple[str, str]] = []
    for _ in range(13):
        found.append((f"{day:%Y-%m}", wareki_month(day)))
        day = (day - timedelta(days=1)).replace(day=1)
    return found


def sections_used(
    rows: Sequence[UsageRow], people: Sequence[Listed], sections: Sequence[Section]
) -> list[SectionUsage]:
    """A town's month by section, small ones together."""
    counts: dict[UUID, int] = {}
    for person in people:
        if person.section_id is not None:
            counts[person.section_id] = counts.get(person.section_id, 0) + 1
    return by_section(rows, counts, {s.id: s.name for s in sections}, systems=SYSTEMS)
