"""町の管理: today's work and how the sections use it; people, settings and keys are beside this file.

Content is read in the desk, not here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Final

from fastapi import APIRouter
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.responses import Response

from apps.console import town_invoice, town_keys, town_people, town_second_factor, town_settings
from apps.console.figures import day_chart, months_until, sections_used
from apps.sdk.dates import local
from apps.sdk.office import Office, OfficeContext, csv_file, place
from tenants.breakglass import glasses_of, is_open
from tenants.context import Role, TenantId
from tenants.identity.api_keys import list_keys
from tenants.models import ApiKey, Section
from tenants.people import Listed, list_people, list_sections
from tenants.policy import load_policy, preset_of
from tenants.quota.grants import POOL_WINDOWS, read_share
from tenants.quota.pace import dry_day, month_end
from tenants.quota.tree import BudgetRow, budget_rows
from tenants.quota.window_moves import moves_of
from tenants.quota.windows import BACK_WORDS, WINDOW_WORDS, Window, parse_month, window_bounds, window_start
from tenants.reports import KINDS, list_reports
from tenants.usage import SectionUsage, UsageRow, people_who_asked, usage_by_day, usage_rows

routes = APIRouter()

HERE = "/console/town"
# What ends within this many days is told.
ENDS_DAYS: Final = 60
REPORTS_SHOWN: Final = 5


@routes.get("")
async def overview(office: OfficeContext) -> Response:
    """What is still to be set up, who waits for an answer, what ends soon, how this month is used."""
    month = window_start("month", office.now)
    today = local(office.now).date()
    tenant = office.actor.tenant_id
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        people = await list_people(session, tenant)
        sections = await list_sections(session, tenant)
        reports = await list_reports(session, tenant)
        nodes = await budget_rows(session, tenant_id=tenant, now=office.now)
        rows = await usage_rows(session, month, tenant_id=tenant)
        asked = await people_who_asked(session, month, tenant_id=tenant)
        keys = await list_keys(session, tenant)
        policy, version = await load_policy(session, tenant)
        share = await read_share(session, tenant, "month", office.now)
        glasses = [g for g in await glasses_of(session, tenant) if is_open(g, office.now)]
        once = [moved for w in POOL_WINDOWS if (moved := await _moved(session, tenant, w, office.now)) is not None]
    titles: Mapping[str, str] = {a.id: a.title for a in office.apps}
    town = next((n for n in nodes if n.node == "town"), None)
    used = town.posted_uyen + town.held_uyen if town else 0
    limit = (town.limit_uyen or 0) if town else 0
    return await office.page(
        "console/town.html",
        steps=_steps(people, sections, nodes, preset_of(policy), version),
        reports=sorted(reports, key=lambda r: r.created_at)[:REPORTS_SHOWN],
        report_count=len(reports),
        places={r.id: place(r.page, titles) for r in reports},
        glasses=glasses,
        kinds=KINDS,
        reporters={p.id: p for p in people},
        ends=_ends(keys, office.now),
        limit_uyen=limit,
        used_uyen=used,
        share=share,
        once=once,
        left=town.left if town and town.left is not None else Fraction(0),
        dry_on=dry_day(used, limit, today) if limit else None,
        rest_uyen=limit - month_end(used, today),
        people=len(people),
        asked=asked,
        usage=sections_used(rows, people, sections),
        calls=sum(r.calls for r in rows),
        month=today.month,
    )


@dataclass(frozen=True, slots=True)
class Moved:
    """What the operator moved to this town (negative: from it) for a window alone, and why."""

    words: str
    next_words: str
    uyen: int
    reasons: Sequence[str]


async def _moved(session: AsyncSession, tenant: TenantId, window: Window, now: datetime) -> Moved | None:
    """None: nothing, on balance."""
    share = await read_share(session, tenant, window, now)
    if share is None or not share.moved_uyen:
        return None
    moves = await moves_of(session, tenant, window, window_start(window, now))
    reasons = list(dict.fromkeys(m.reason for m in moves if (m.amount_uyen > 0) == (share.moved_uyen > 0)))
    return Moved(WINDOW_WORDS[window], BACK_WORDS[window], share.moved_uyen, reasons)


@dataclass(frozen=True, slots=True)
class Step:
    """One of the things a town does before it starts: what stands, or what is missing, and where to do it."""

    title: str
    text: str
    missing: str
    act: str
    href: str

    @property
    def done(self) -> bool:
        return not self.missing


def _steps(
    people: Sequence[Listed], sections: Sequence[Section], nodes: Sequence[BudgetRow], preset: str, version: int
) -> list[Step]:
    active = [p for p in people if p.status == "active"]
    admins = sum(Role.TOWN_ADMIN in p.roles for p in active)
    homeless = sum(p.section_id is None for p in active)
    limit = next((n.limit_uyen or 0 for n in nodes if n.node == "town"), 0)
    limited = {n.node_id for n in nodes if n.node == "section" and n.limit_uyen is not None}
    bounded = sum(str(s.id) in limited for s in sections)
    words = {"strict": "「厳しい」", "standard": "「標準」", "open": "「海外も可」"}.get(preset, "町で決めた組合せ")
    return [
        Step(
            "職員と課",
            f"{len(active):,}人、{len(sections)}課。",
            "職員がまだ登録されていません。" if len(active) < 2 else f"{homeless}人の課が決まっていません。" if homeless else "",
            "職員を登録する" if len(active) < 2 else "職員を見る",
            f"{HERE}/people/import" if len(active) < 2 else f"{HERE}/people",
        ),
        Step(
            "代わりの管理者",
            f"管理者は{admins}人です。",
            "" if admins >= 2 else "管理者が1人です。休みや異動のときに困ります。",
            "もう1人決める",
            f"{HERE}/people",
        ),
        Step(
            "入れてよい情報",
            f"{words}にしています。",
            "" if version > 1 else "まだ確かめていません。町の決まりに合わせてください。",
            "組合せを確かめる",
            f"{HERE}/policy",
        ),
        Step(
            "予算と枠",
            f"町の予算は月{limit // 1_000_000:,}円。枠のある課は{len(sections)}のうち{bounded}。",
            "" if limit else "町の予算がありません。事務局に連絡してください。",
            "課の枠を見る",
            f"{HERE}/sections",
        ),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ending:
    """Something that stops by itself."""

    days: int
    on: date
    title: str
    text: str
    act: str
    href: str


def _ends(keys: Sequence[ApiKey], now: datetime) -> list[tuple[str, str, list[Ending]]]:
    """(words, mark, what ends) for 7, 30 and 60 days; keys that have a successor are meant to end."""
    found = [
        Ending(
            (local(k.expires_at).date() - local(now).date()).days,
            local(k.expires_at).date(),
            f"APIキー「{k.label}」",
            "この日から、この鍵を使う業務システムが呼び出せなくなります。",
            "鍵を取り替える",
            f"{HERE}/keys#k-{k.key_id}",
        )
        for k in keys
        if k.revoked_at is None
        and k.replaced_by is None
        and k.expires_at is not None
        and now < k.expires_at <= now + timedelta(days=ENDS_DAYS)
    ]
    found.sort(key=lambda e: e.days)
    groups = [("7日以内", "is-7", 0, 7), ("30日以内", "", 7, 30), ("60日以内", "", 30, ENDS_DAYS)]
    told = [
        (words, mark, [e for e in found if low < e.days <= high or (low == 0 and e.days == 0)])
        for words, mark, low, high in groups
    ]
    return [(words, mark, group) for words, mark, group in told if group]


# ── usage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Month:
    start: date
    sections: list[SectionUsage]
    models: list[tuple[str, str, int, int, int, int]]
    rows: list[UsageRow]


async def _load(office: Office, start: date) -> _Month:
    tenant = office.actor.tenant_id
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        rows = await usage_rows(session, start, tenant_id=tenant)
        people = await list_people(session, tenant)
        sections = await list_sections(session, tenant)
    titles: Mapping[str, str] = {a.id: a.title for a in office.apps}
    models: dict[tuple[str, str], list[int]] = {}
    for r in rows:
        total = models.setdefault((titles.get(r.app, r.app) or "API", r.alias), [0, 0, 0, 0])
        for i, value in enumerate((r.calls, r.failed, r.prompt_tokens + r.completion_tokens, r.cost_uyen)):
            total[i] += value
    told = [(app, alias, n, f, t, u) for (app, alias), (n, f, t, u) in models.items()]
    told.sort(key=lambda m: -m[2])
    return _Month(start, sections_used(rows, people, sections), told, rows)


@routes.get("/usage")
async def usage_page(office: OfficeContext, month: str = "") -> Response:
    """A month by day, by section (small ones together) and by app and model."""
    start = parse_month(month) if month else window_start("month", office.now)
    found = await _load(office, start)
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        days = await usage_by_day(session, start, tenant_id=office.actor.tenant_id)
    # A past month is told to its last day.
    until = min(office.now, window_bounds("month", start)[1] - timedelta(seconds=1))
    return await office.page(
        "console/usage.html",
        found=found,
        days=day_chart(days, until, money=False),
        months=months_until(office.now),
        month=f"{start:%Y-%m}",
        start=start,
        calls=sum(s.calls for s in found.sections),
        uyen=sum(s.cost_uyen for s in found.sections),
    )


@routes.get("/usage.csv")
async def usage_csv(office: OfficeContext, month: str = "", by: str = "section") -> Response:
    """By section (small ones together, as on the page) or by app and model, for a spreadsheet."""
    start = parse_month(month) if month else window_start("month", office.now)
    found = await _load(office, start)
    await office.tell_download("usage", month=f"{start:%Y-%m}", split="model" if by == "model" else "section")
    numbers = ("件数", "うち失敗", "トークン", "使った額（円）")
    if by == "model":
        rows: list[tuple[object, ...]] = [(a, m, n, f, t, -(-u // 1_000_000)) for a, m, n, f, t, u in found.models]
        return csv_file(f"利用-アプリとモデル-{start:%Y-%m}.csv", ("アプリ", "モデル", *numbers), rows)
    rows = [(s.name, s.people, s.calls, s.failed, s.tokens, -(-s.cost_uyen // 1_000_000)) for s in found.sections]
    return csv_file(f"利用-課-{start:%Y-%m}.csv", ("課", "人数", *numbers), rows)


routes.include_router(town_people.routes)
routes.include_router(town_second_factor.routes)
routes.include_router(town_settings.routes)
routes.include_router(town_keys.routes)
routes.include_router(town_invoice.routes)
