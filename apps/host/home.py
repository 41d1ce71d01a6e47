"""The home page, what is left of the month, a person's own settings, こまったとき, and the pages everybody may read."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Form, Request
from starlette.responses import JSONResponse, Response

from apps.host import requests
from apps.host.app_context import create_context
from apps.host.requests import OwnServices, Signed, SignedRequest, page
from apps.host.services import Services
from apps.host.sessions import SessionEnded
from apps.host.signin import entry_page, safe_next, towns_of
from apps.host.tips import tip_of
from apps.sdk.app import HomeItem, HomeParts
from apps.sdk.dates import local
from apps.sdk.office import back, place
from observability.problems import InvalidInput, NotFound
from tenants import breakglass
from tenants.context import Role
from tenants.models import Person, Report
from tenants.people import Listed, list_people, list_sections
from tenants.policy import Policy
from tenants.quota.grant_notices import GrantNotice, grant_notices_of, mark_grant_seen
from tenants.quota.pace import dry_day
from tenants.quota.soft_limits import SoftLimit, mark_seen, notices_of
from tenants.quota.tree import BudgetRow, budget_rows
from tenants.quota.windows import WINDOW_WORDS, WINDOWS, Window, window_bounds, window_start
from tenants.reports import DESK, KINDS, count_reports, file_report, list_answers, list_reports

routes = APIRouter()

SEASON_SHOWN: Final = 3
SEARCHED_SHOWN: Final = 30


@routes.get("/portal/ready")
async def ready(own: OwnServices) -> JSONResponse:
    """Whether the portal may get traffic."""
    await own.db.ping()
    return JSONResponse({"status": "ok"})


@routes.get("/")
async def home(request: Request, own: OwnServices, q: str = "", why: str = "") -> Response:
    """Due work first; for who is not signed in, the choice of the town."""
    try:
        who = await requests.signed(request)
    except SessionEnded as ended:
        return await entry_page(request, own, query=q, why=why or ("" if ended.why == "none" else ended.why))
    query = " ".join(q.split())[:80]
    apps = [a for a in own.apps.values() if who.may_use(a)]
    parts, found = HomeParts(), list[HomeItem]()
    for app in apps:
        context = create_context(request, own, who, app)
        if app.home is not None and not query:
            more = await app.home(context)
            parts = HomeParts(parts.due + more.due, parts.often + more.often, parts.resume + more.resume)
        if app.search is not None and query:
            found += await app.search(context, query)
    now = datetime.now(UTC)
    return await page(
        request,
        "host/home.html",
        parts=parts,
        season_shown=SEASON_SHOWN,
        apps=apps,
        left=await _left(own, who, now),
        greeting=greeting(local(now).hour),
        query=query,
        found=found[:SEARCHED_SHOWN],
        notices=await _notices(own, who, now),
        policy=who.policy,
        tip=tip_of(local(now).date()),
    )


def greeting(hour: int) -> str:
    return "おはようございます" if 4 <= hour < 11 else "こんにちは" if 11 <= hour < 18 else "おつかれさまです"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know today: `tone` of the mark, its words, where it leads, how it is put away."""

    mark: str
    tone: str
    icon: str
    words: str
    href: str
    seen_at: str = ""


_GLASS_WORDS: Final[Mapping[breakglass.What, tuple[str, str]]] = {
    "request": ("事務局が、職員の付けた文を読みたいと依頼しています", "warn"),
    "approve": ("事務局の閲覧を承認しました", "info"),
    "refuse": ("事務局の閲覧を断りました", "info"),
    "use": ("事務局が、職員の付けた文を読んでいます", "warn"),
    "end": ("事務局の閲覧が終わりました", "info"),
}


async def _notices(own: Services, who: Signed, now: datetime) -> list[Notice]:
    """Answers that have come; for administrators, who waits for one."""
    found: list[Notice] = []
    async with own.db.tenant_session(who.actor.context, read_only=True) as session:
        answered = await list_reports(session, who.actor.tenant_id, states=("answered",), person_id=who.actor.person_id)
        waiting = (await count_reports(session, who.actor.tenant_id))["open"] if who.actor.has(Role.TOWN_ADMIN) else 0
        limits = await notices_of(session, who.actor, now)
        grants = await grant_notices_of(session, who.actor, now)
        sections = await list_sections(session, who.actor.tenant_id) if limits else []
        glasses = await breakglass.notices_of(session, who.actor)
    rule = who.policy.second_factor
    if rule is not None and not rule.accepts(who.session.signed_in_by):
        words = f"{rule.since.month}月{rule.since.day}日から、サインインに2つ目の確認が要ります。登録してください"
        found.append(Notice("サインイン", "warn", "lock", words, "/settings#second-factor"))
    if answered:
        words = f"「{KINDS[answered[0].kind]}」に返事があります"
        found.append(Notice("町の管理者から", "info", "mail", words, "/report/mine"))
    if waiting:
        words = f"職員{waiting}人の「こまったとき」が返事を待っています"
        found.append(Notice("町の管理者の仕事", "warn", "flag", words, "/desk/reports"))
    for glass in glasses:
        words, tone = _GLASS_WORDS[glass.what]
        if glass.what == "end":
            words += "（文が読まれました）" if glass.was_used else "（何も読まれていません）"
        found.append(Notice("事務局の閲覧", tone, "eyeoff", words, "/desk/break-glass", f"/notices/{glass.id}/seen"))
    names = {str(s.id): s.name for s in sections}
    return found + [_told_of(limit, names) for limit in limits] + [_grant_told(notice) for notice in grants]


def _grant_told(notice: GrantNotice) -> Notice:
    now = WINDOW_WORDS[notice.window]
    changed = f"{abs(notice.yen):,}円{'増やしました' if notice.yen > 0 else '減らしました'}"
    words = {
        "grant.borrow": f"町の予算が残り少なくなり、{now}は共同の予算から借りています",
        "grant.lend": f"{now}の町の予算のうち、使っていない分をほかの町に貸しています",
        "budget.move": f"事務局が、{now}の町の予算を{changed}",
        "budget.move_once": f"事務局が、{now}だけ、町の予算を{changed}",
        "budget.move_back": f"事務局が、{now}だけ動かした分を元に戻し、町の予算を{changed}",
    }[notice.what]
    return Notice("町の予算", "info", "coins", words, "/console/town", f"/notices/{notice.id}/seen")


def _told_of(limit: SoftLimit, sections: Mapping[str, str]) -> Notice:
    whose = {
        "town": "町の予算",
        "section": f"{sections.get(limit.node_id, '課')}の枠",
        "person": "あなたの枠",
        "app": f"アプリ「{limit.node_id}」の枠",
        "model": f"モデル「{limit.node_id}」の枠",
        "pool": "共同の予算",
    }[limit.node]
    now = WINDOW_WORDS[limit.window]
    used = {70: "7割まで使いました", 90: "9割まで使いました", 100: "ほとんど使い切りました"}[limit.percent]
    mark, tone = ("枠がなくなりました", "error") if limit.percent == 100 else ("枠が減っています", "warn")
    where = f"/console/operator/budgets/pool?window={limit.window}" if limit.node == "pool" else "/quota"
    return Notice(mark, tone, "coins", f"{now}の{whose}を{used}", where, f"/notices/{limit.id}/seen")


@routes.post("/notices/{notice_id}/seen")
async def notice_seen(own: OwnServices, who: SignedRequest, notice_id: UUID) -> Response:
    """確認した: this step is not shown to this person again. Raises `NotFound` for another town's."""
    async with own.db.tenant_session(who.actor.context) as session:
        for seen in (mark_seen, mark_grant_seen, breakglass.mark_seen):
            if await seen(session, who.actor, notice_id):
                break
        else:
            raise NotFound
    return back("/", "お知らせを片付けました")


# ── what is left of the month ────────────────────────────────────────────────────────────────────────────────────


OWN: Final = "あなたの枠"


@dataclass(frozen=True, slots=True)
class Left:
    """A limit above a person. `whose` says which one; `dry_on` when its pace ends it before the month.

    `is_set`: the town has a budget of the month at all; without one nothing comes back by itself.
    """

    share: Fraction
    whose: str
    window: Window
    dry_on: date | None
    back_on: date
    is_set: bool = True

    @property
    def now(self) -> str:
        """Of which time it is the limit, in words."""
        return WINDOW_WORDS[self.window]


async def _limits(own: Services, who: Signed, now: datetime) -> list[Left]:
    """The town's month first, then every other limit there is: the section's, the person's, a day's, a year's."""
    actor = who.actor
    async with own.db.tenant_session(actor.context, read_only=True) as session:
        rows = {
            (r.node, r.node_id, r.window): r
            for r in await budget_rows(session, tenant_id=actor.tenant_id, windows=WINDOWS, now=now)
        }
    month: Window = "month"
    found = [_as_left(f"{actor.tenant_name}の予算", month, rows.pop(("town", "", month), None), now)]
    for whose, node, node_id in (
        (f"{actor.tenant_name}の予算", "town", ""),
        (f"{actor.section_name}の枠", "section", str(actor.section_id)),
        (OWN, "person", str(actor.person_id)),
    ):
        for window in WINDOWS:
            row = rows.get((node, node_id, window))
            if row is not None and row.limit_uyen is not None:
                found.append(_as_left(whose, window, row, now))
    return found


def _as_left(whose: str, window: Window, row: BudgetRow | None, now: datetime) -> Left:
    today = local(now).date()
    back_on = local(window_bounds(window, window_start(window, now))[1]).date()
    if row is None or row.left is None or row.limit_uyen is None:
        return Left(Fraction(0), whose, window, today, back_on, is_set=False)
    dry_on = dry_day(row.posted_uyen + row.held_uyen, row.limit_uyen, today) if window == "month" else None
    return Left(row.left, whose, window, dry_on, back_on)


async def _left(own: Services, who: Signed, now: datetime) -> Left:
    """The tightest."""
    return min(await _limits(own, who, now), key=lambda left: left.share)


@routes.get("/quota")
async def quota(request: Request, own: OwnServices, who: SignedRequest) -> Response:
    """Which limit is how far used, when it comes back, what works meanwhile, whom to ask."""
    async with own.db.tenant_session(who.actor.context, read_only=True) as session:
        people = [p for p in await list_people(session, who.actor.tenant_id) if p.status == "active"]
    limits = await _limits(own, who, datetime.now(UTC))
    return await page(
        request,
        "host/quota.html",
        limits=limits,
        empty=[left for left in limits if left.share <= 0],
        has_own=any(left.whose == OWN for left in limits),
        heads=[p for p in people if Role.SECTION_ADMIN in p.roles and p.section_id == who.actor.section_id],
        admins=[p for p in people if Role.TOWN_ADMIN in p.roles],
        told=told,
    )


def told(person: Listed) -> str:
    return f"{person.section_name} {person.display_name or person.login}".strip()


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/settings")
async def settings_page(request: Request, own: OwnServices, who: SignedRequest) -> Response:
    return await page(
        request,
        "host/settings.html",
        has_other_towns=len(await towns_of(own, who)) > 1,
        has_second_factors=own.settings.issuer_kind == "keycloak",
    )


@routes.post("/settings")
async def save_settings(
    request: Request, own: OwnServices, who: SignedRequest, send_key: str = Form("enter"), next: str = Form("/settings")
) -> Response:
    """How a question is sent: Enter or Ctrl+Enter."""
    async with own.db.tenant_session(who.actor.context) as session:
        person = await session.get(Person, who.actor.person_id)
        assert person is not None
        person.preferences = {**person.preferences, "send_key": "ctrl" if send_key == "ctrl" else "enter"}
        session.add(person)
    if request.headers.get("kumiai-request") == "fetch":
        return Response(status_code=204)
    return back(safe_next(next), "設定を保存しました")


# ── こまったとき ─────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/report")
async def report_page(
    request: Request, own: OwnServices, who: SignedRequest, page: str = "", number: str = "", kind: str = ""
) -> Response:
    return await _report_page(request, own, typed={"page": page[:200], "number": number[:40], "kind": kind})


async def _report_page(
    request: Request, own: Services, *, typed: dict[str, str], problem: InvalidInput | None = None
) -> Response:
    typed = {"page": "", "number": "", "kind": "", "content": "", "with_content": ""} | typed
    return await page(
        request,
        "host/report.html",
        status=200 if problem is None else int(problem.status),
        kinds=KINDS,
        typed=typed,
        where=place(typed["page"], _titles(own)),
        problem=problem,
    )


def _titles(own: Services) -> dict[str, str]:
    return {a.manifest.id: a.manifest.title for a in own.apps.values()}


@routes.post("/report")
async def send_report(
    request: Request,
    own: OwnServices,
    who: SignedRequest,
    page_path: Annotated[str, Form()] = "",
    number: Annotated[str, Form()] = "",
    kind: Annotated[str, Form()] = "other",
    with_content: Annotated[str, Form()] = "",
    content: Annotated[str, Form()] = "",
) -> Response:
    """Page, time and number always go; the text only when its box is ticked."""
    typed = {"page": page_path, "number": number, "kind": kind, "content": content, "with_content": with_content}
    if content.strip() and not with_content:
        # What was written is neither sent unasked nor dropped unsaid.
        problem = InvalidInput(
            "文を送るときは印を付けてください。送らないときは、文を消してください。", field="content"
        )
        return await _report_page(request, own, typed=typed, problem=problem)
    try:
        await file_report(
            own.db,
            own.documents,
            who.actor,
            app="",
            page=page_path,
            kind=kind,
            problem_number=number,
            content=content if content.strip() else None,
        )
    except InvalidInput as problem:
        return await _report_page(request, own, typed=typed, problem=problem)
    return back("/report/mine", "町の管理者に知らせました")


@routes.get("/report/mine")
async def my_reports(request: Request, own: OwnServices, who: SignedRequest) -> Response:
    """What this person has sent, and what was answered."""
    async with own.db.tenant_session(who.actor.context, read_only=True) as session:
        found = await list_reports(
            session, who.actor.tenant_id, states=("open", "answered", "closed"), person_id=who.actor.person_id
        )
    desk = own.documents.of(who.actor.context, app=DESK, viewer=None)
    answers = {r.id: await list_answers(desk, r.id) for r in found[:50] if r.state != "open"}
    return await page(
        request,
        "host/reports.html",
        reports=found[:50],
        answers=answers,
        kinds=KINDS,
        places={r.id: place(r.page, _titles(own)) for r in found},
    )


@routes.post("/report/{report_id}/done")
async def report_done(request: Request, own: OwnServices, who: SignedRequest, report_id: UUID) -> Response:
    """解決した: the person's own report is done with. Raises `NotFound` for anybody else's."""
    async with own.db.tenant_session(who.actor.context) as session:
        report = await session.get(Report, report_id)
        if report is None or report.person_id != who.actor.person_id:
            raise NotFound
        report.state, report.closed_at, report.closed_by = "closed", datetime.now(UTC), who.actor.person_id
        session.add(report)
    return back("/report/mine", "済みにしました")


# ── what everybody may read ──────────────────────────────────────────────────────────────────────────────────────


@routes.get("/about/{name}")
async def about(request: Request, own: OwnServices, name: str) -> Response:
    """使い方, 入れないとき, 取り扱ってよい情報, 内容が見えないしくみ, アクセシビリティ方針: without signing in."""
    if name not in ("use", "signin", "rules", "blindness", "accessibility"):
        raise NotFound
    policy = Policy()
    with contextlib.suppress(SessionEnded):
        policy = (await requests.signed(request)).policy
    return await page(request, f"host/about_{name}.html", policy=policy)
