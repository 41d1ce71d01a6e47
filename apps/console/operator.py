"""運用: towns, state, requests, yen, what is left, health. There is no content here and no way to it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Form
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.responses import Response

from apps.console import operator_budgets, operator_glass, operator_invoices
from apps.console.figures import (
    SORTS,
    STATES,
    TownFigures,
    alert,
    choose,
    day_chart,
    load_towns,
    paged,
    parse_yen,
    region_charts,
)
from apps.sdk.dates import local, wareki
from apps.sdk.office import Office, OfficeContext, Progress, back, csv_file
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.context import Role, TenantId
from tenants.lgcode import parse_code
from tenants.models import Person, RoleGrant, Tenant
from tenants.people import NewPerson, add_people, code_of, has_one_factor, list_people, list_sections
from tenants.policy import load_policy
from tenants.printing import Handover, handover_sheet
from tenants.quota.tree import budget_rows, set_budget
from tenants.quota.windows import window_start
from tenants.registry import NewTenant, create_tenant, new_password, resume_tenant, suspend_tenant
from tenants.usage import usage_by_day, usage_rows

routes = APIRouter()

HERE = "/console/operator"
ALERTS_SHOWN = 8
TOWNS_SHOWN = 10


@routes.get("")
async def overview(office: OfficeContext) -> Response:
    """First what needs a hand, then the sum, then the towns that run dry first."""
    towns = choose(await load_towns(office.db, office.now))
    costs, waits = await region_charts(office.db, office.now)
    alerts = [a for a in map(alert, towns) if a is not None]
    return await office.page(
        "console/operator.html",
        alerts=alerts[:ALERTS_SHOWN],
        alert_count=len(alerts),
        towns=towns[:TOWNS_SHOWN],
        total=_total(towns),
        costs=costs,
        waits=waits,
        month=local(office.now).month,
    )


@dataclass(frozen=True, slots=True)
class _Total:
    towns: int
    calls: int
    tokens: int
    used_uyen: int
    limit_uyen: int


def _total(towns: list[TownFigures]) -> _Total:
    return _Total(
        len(towns),
        sum(t.usage.calls for t in towns),
        sum(t.usage.tokens for t in towns),
        sum(t.used_uyen for t in towns),
        sum(t.limit_uyen for t in towns),
    )


# ── towns ────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/towns")
async def towns_page(
    office: OfficeContext, q: str = "", state: str = "all", sort: str = "need", page: int = 1
) -> Response:
    """All towns: searched, filtered, sorted, fifty on a page."""
    towns = await load_towns(office.db, office.now)
    found = choose(towns, q=q, state=state, sort=sort)
    asked = {"q": q, "state": state, "sort": sort}
    return await office.page(
        "console/towns.html",
        shown=paged(found, page),
        total=_total(found),
        q=q,
        state=state,
        sort=sort,
        counts={name: sum(map(wanted, towns)) for name, (_, wanted) in STATES.items()},
        states={name: words for name, (words, _) in STATES.items()},
        sorts=[(name, words) for name, (words, _) in SORTS.items()],
        query=urlencode(asked),
    )


@routes.get("/towns.csv")
async def towns_csv(office: OfficeContext, q: str = "", state: str = "all", sort: str = "need") -> Response:
    """The table as it is filtered, for a spreadsheet: UTF-8 with BOM."""
    words = {"active": "利用中", "suspended": "停止中"}
    rows = [
        (
            t.town.code,
            t.town.name,
            words.get(t.town.status, t.town.status),
            t.town.people,
            t.usage.calls,
            t.usage.failed,
            t.usage.tokens,
            -(-t.used_uyen // 1_000_000),
            t.limit_uyen // 1_000_000,
            -(-t.forecast_uyen // 1_000_000),
            t.dry_on.isoformat() if t.dry_on else "",
        )
        for t in choose(await load_towns(office.db, office.now), q=q, state=state, sort=sort)
    ]
    headings = (
        "団体コード", "団体", "状態", "職員数", "件数", "うち失敗", "トークン", "使った額（円）", "予算（円）",
        "月末の見込み（円）", "なくなる見込みの日",
    )  # fmt: skip
    return csv_file(f"towns-{window_start('month', office.now):%Y-%m}.csv", headings, rows)


@routes.get("/towns/new")
async def new_town(office: OfficeContext) -> Response:
    return await office.page("console/town_new.html", typed={}, problem=None)


@routes.post("/towns/new")
async def create(
    office: OfficeContext,
    name: Annotated[str, Form()] = "",
    code: Annotated[str, Form()] = "",
    admin_login: Annotated[str, Form()] = "",
    admin_name: Annotated[str, Form()] = "",
    sections: Annotated[str, Form()] = "",
    month_yen: Annotated[str, Form()] = "",
) -> Response:
    """A town in one step; the administrator's initial password is shown once."""
    typed = {
        "name": name, "code": code, "admin_login": admin_login, "admin_name": admin_name, "sections": sections,
        "month_yen": month_yen,
    }  # fmt: skip
    try:
        listed = tuple(dict.fromkeys(" ".join(s.split()) for s in sections.splitlines() if s.strip()))
        wanted = NewTenant(name, code, admin_login, admin_name, listed, parse_yen(month_yen))
        created = await create_tenant(office.db, await office.directory(), wanted, by=office.by)
    except (InvalidInput, Conflict) as problem:
        return await office.page("console/town_new.html", status=int(problem.status), typed=typed, problem=problem)
    return await office.page(
        "console/town_created.html",
        town_id=created.tenant_id,
        name=wanted.name,
        code=parse_code(code),
        login=created.admin_login,
        admin_name=wanted.admin_name,
        password=created.admin_password,
        entry=f"{office.settings.public_url}/t/{parse_code(code)}",
    )


@routes.post("/towns/{town_id}/administrator")
async def first_administrator(
    office: OfficeContext,
    town_id: UUID,
    admin_login: Annotated[str, Form()] = "",
    admin_name: Annotated[str, Form()] = "",
) -> Response:
    """Completes a town whose creation was cut off before its first administrator; refused when it has one."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await find_town(session, town_id)
        code = await code_of(session, TenantId(tenant.id))
        names = [s.name for s in await list_sections(session, TenantId(tenant.id))]
        if await _administrators(session, TenantId(tenant.id)):
            raise NotFound
    person = NewPerson(admin_login, admin_name, names[0] if names else "", frozenset({Role.TOWN_ADMIN, Role.STAFF}))
    password = new_password()
    try:
        await add_people(
            office.db, await office.directory(), TenantId(tenant.id), tenant.alias, [(person, password)], by=office.by
        )
    except (InvalidInput, Conflict) as problem:
        return await _town_page(office, town_id, problem)
    return await office.page(
        "console/town_created.html",
        town_id=tenant.id,
        name=tenant.name,
        code=code,
        login=admin_login,
        admin_name=admin_name,
        password=password,
        entry=f"{office.settings.public_url}/t/{code}",
    )


async def _administrators(session: AsyncSession, tenant_id: TenantId) -> int:
    found = await session.exec(
        select(Person.id)
        .join(RoleGrant, col(RoleGrant.person_id) == col(Person.id))
        .where(
            col(Person.tenant_id) == tenant_id,
            col(Person.status) == "active",
            col(RoleGrant.role).in_((Role.TOWN_ADMIN.value, Role.OPERATOR.value)),
            col(RoleGrant.revoked_at).is_(None),
        )
        .distinct()
    )
    return len(found.all())


@routes.post("/handover.pdf")
async def handover(
    office: OfficeContext,
    town: Annotated[UUID, Form()],
    login: Annotated[str, Form()],
    password: Annotated[str, Form()],
    admin_name: Annotated[str, Form()] = "",
) -> Response:
    """The hand-over sheet. The password is not kept anywhere: it comes from the page that showed it."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await find_town(session, town)
        tenant_id = TenantId(tenant.id)
        code = await code_of(session, tenant_id)
        budget = await budget_rows(session, tenant_id=tenant_id, node="town")
        sections = tuple(s.name for s in await list_sections(session, tenant_id))
    # Typesetting takes a tenth of a second and more; other people's pages go on meanwhile.
    sheet = await asyncio.to_thread(
        handover_sheet,
        Handover(
            product_name=office.settings.product_name,
            town=tenant.name,
            code=code,
            admin_login=login,
            admin_name=admin_name,
            full_login=f"{tenant.alias}.{login}",
            password=password,
            entry_url=f"{office.settings.public_url}/t/{code}",
            sections=sections,
            month_yen=(budget[0].limit_uyen or 0) // 1_000_000 if budget else 0,
            made_on=local(office.now).date(),
        ),
    )
    return Response(
        sheet,
        media_type="application/pdf",
        headers={"content-disposition": f"attachment; filename=handover-{code}.pdf"},
    )


# ── one town ─────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/towns/{town_id}")
async def town(office: OfficeContext, town_id: UUID) -> Response:
    return await _town_page(office, town_id)


@routes.post("/towns/{town_id}/budget")
async def budget(office: OfficeContext, town_id: UUID, month_yen: Annotated[str, Form()] = "") -> Response:
    try:
        yen = parse_yen(month_yen)
        async with office.db.platform_session("operator console") as session:
            tenant = await find_town(session, town_id)
            await set_budget(session, TenantId(tenant.id), yen=yen, by=office.actor.person_id)
            await audit.record(
                session, TenantId(tenant.id), office.by, "budget.set", about=("tenant", town_id), yen=yen
            )
    except (InvalidInput, Conflict) as error:
        return await _town_page(office, town_id, error)
    return back(f"{HERE}/towns/{town_id}", f"今月の予算を{yen:,}円にしました")


@routes.get("/towns/{town_id}/suspend")
async def ask_suspend(office: OfficeContext, town_id: UUID) -> Response:
    return await _ask(office, town_id, "suspend")


@routes.post("/towns/{town_id}/suspend")
async def suspend(office: OfficeContext, town_id: UUID, typed_name: Annotated[str, Form()] = "") -> Response:
    """Needs the town's name typed: a whole town hall stops working."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await find_town(session, town_id)
    if tenant.id == office.actor.tenant_id:
        problem = Conflict("事務局自身の利用は止められません。この画面も使えなくなるためです。")
        return await _ask(office, town_id, "suspend", problem)
    if typed_name.strip() != tenant.name:
        wrong = InvalidInput("団体の名前が一致しません。何も変えていません。", field="typed_name")
        return await _ask(office, town_id, "suspend", wrong, typed_name)
    await suspend_tenant(office.db, await office.directory(), TenantId(tenant.id), by=office.by)
    return back(f"{HERE}/towns/{town_id}", f"{tenant.name}の利用を止めました")


@routes.get("/towns/{town_id}/resume")
async def ask_resume(office: OfficeContext, town_id: UUID) -> Response:
    return await _ask(office, town_id, "resume")


@routes.post("/towns/{town_id}/resume")
async def resume(office: OfficeContext, town_id: UUID) -> Response:
    await resume_tenant(office.db, await office.directory(), TenantId(town_id), by=office.by)
    return back(f"{HERE}/towns/{town_id}", "利用を再開しました")


# ── the way out ──────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/towns/{town_id}/exit")
async def exit_page(office: OfficeContext, town_id: UUID) -> Response:
    """Export and erasure: two steps, the second only after the first."""
    return await _exit_page(office, town_id)


async def _exit_page(
    office: Office, town_id: UUID, problem: Problem | None = None, typed: Mapping[str, str] | None = None
) -> Response:
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await find_town(session, town_id)
        people = await session.exec(
            select(Person.id).where(col(Person.tenant_id) == tenant.id, col(Person.status) == "active")
        )
    return await office.page(
        "console/town_exit.html",
        status=200 if problem is None else int(problem.status),
        tenant=tenant,
        people=len(people.all()),
        exported=await office.exits.latest(TenantId(tenant.id)),
        is_own=tenant.id == office.actor.tenant_id,
        typed=typed or {},
        problem=problem,
    )


@routes.post("/towns/{town_id}/export")
async def export(office: OfficeContext, town_id: UUID) -> Response:
    """Into a file on the server, which only the town's own administrator can open."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await find_town(session, town_id)

    async def work(_progress: Progress) -> Mapping[str, object]:
        done = await office.exits.export(TenantId(tenant.id), by=office.by)
        return {"tenant": tenant, "exported": done}

    try:
        return await office.work(f"{tenant.name}を書き出しています", work, then="console/_exported.html")
    except (Conflict, NotFound) as problem:
        return await _exit_page(office, town_id, problem)


@routes.post("/towns/{town_id}/erase")
async def erase(
    office: OfficeContext,
    town_id: UUID,
    typed_name: Annotated[str, Form()] = "",
    handed_over: Annotated[str, Form()] = "",
) -> Response:
    """For good, against the export; what went and what stays is told."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await find_town(session, town_id)
    typed = {"typed_name": typed_name, "handed_over": handed_over}
    if tenant.id == office.actor.tenant_id:
        problem = Conflict("事務局自身は消去できません。")
        return await _exit_page(office, town_id, problem, typed)

    async def work(_progress: Progress) -> Mapping[str, object]:
        done = await office.exits.erase(
            TenantId(tenant.id),
            await office.directory(),
            typed_name=typed_name,
            handed_over=bool(handed_over),
            by=office.by,
        )
        return {"tenant": tenant, "erased": done}

    try:
        return await office.work(f"{tenant.name}を消去しています", work, then="console/_erased.html")
    except Problem as problem:
        return await _exit_page(office, town_id, problem, typed)


async def _ask(
    office: Office, town_id: UUID, act: str, problem: Problem | None = None, typed_name: str = ""
) -> Response:
    """What will happen, in full, before a whole town stops or goes on."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await find_town(session, town_id)
        active = await session.exec(
            select(Person.id).where(col(Person.tenant_id) == tenant.id, col(Person.status) == "active")
        )
        people = len(active.all())
    return await office.page(
        "console/town_state.html",
        status=200 if problem is None else int(problem.status),
        tenant=tenant,
        act=act,
        people=people,
        problem=problem,
        typed_name=typed_name,
    )


async def find_town(session: AsyncSession, town_id: UUID) -> Tenant:
    """In a platform session. Raises `NotFound`, also for a town that was erased."""
    tenant = await session.get(Tenant, town_id)
    if tenant is None or tenant.status == "erased":
        raise NotFound
    return tenant


async def _town_page(office: Office, town_id: UUID, problem: Problem | None = None) -> Response:
    month = window_start("month", office.now)
    tenant_id = TenantId(town_id)
    figures = next(iter(await load_towns(office.db, office.now, only=tenant_id)), None)
    if figures is None:
        raise NotFound
    async with office.db.platform_session("operator console", read_only=True) as session:
        rows = await usage_rows(session, month, tenant_id=tenant_id)
        days = await usage_by_day(session, month, tenant_id=tenant_id)
        nodes = await budget_rows(session, tenant_id=tenant_id, node="town", now=office.now)
        administrators = await _administrators(session, tenant_id)
        rule = (await load_policy(session, tenant_id))[0].second_factor
        people = await list_people(session, tenant_id) if rule else []
    by_app: dict[tuple[str, str], list[int]] = {}
    for r in rows:
        total = by_app.setdefault((r.app or "API", r.alias), [0, 0, 0, 0])
        for i, value in enumerate((r.calls, r.failed, r.prompt_tokens + r.completion_tokens, r.cost_uyen)):
            total[i] += value
    titles = {a.id: a.title for a in office.apps}
    return await office.page(
        "console/town_detail.html",
        status=200 if problem is None else int(problem.status),
        t=figures,
        alert=alert(figures),
        by_app=[
            (titles.get(app, app), alias, *total)
            for (app, alias), total in sorted(by_app.items(), key=lambda i: -i[1][3])
        ],
        node=nodes[0] if nodes else None,
        costs=day_chart(days, office.now, money=True),
        since=wareki(local(figures.town.created_at).date()),
        administrators=administrators,
        is_own=tenant_id == office.actor.tenant_id,
        second_factor_since=wareki(rule.since) if rule else "",
        without_second_factor=sum(has_one_factor(p, rule) for p in people) if rule else 0,
        month=local(office.now).month,
        problem=problem,
    )


routes.include_router(operator_budgets.routes)
routes.include_router(operator_invoices.routes)
routes.include_router(operator_glass.routes)
