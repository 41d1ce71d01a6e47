"""運用: towns, state, requests, yen, what is left, health. There is no content here and no way to it."""

import asyncio
import csv
import io
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form
from starlette.responses import Response

from apps.console.figures import daily_chart, towns_of_month
from apps.sdk.dates import local, wareki
from apps.sdk.office import Office, OfficeContext, back
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.context import TenantId
from tenants.models import Tenant
from tenants.people import code_of
from tenants.printing import Handover, handover_sheet
from tenants.quota.tree import budget_rows, set_budget
from tenants.quota.windows import window_start
from tenants.registry import NewTenant, create_tenant, resume_tenant, suspend_tenant
from tenants.usage import usage_by_day, usage_rows

routes = APIRouter()


@routes.get("")
async def overview(office: OfficeContext) -> Response:
    """First what needs a hand, then the sum, then towns by the day they run dry."""
    towns, days = await towns_of_month(office.db, office.now)
    active = [t for t in towns if t.town.status == "active"]
    return await office.page(
        "console/operator.html",
        is_operator_page=True,
        towns=towns,
        dry=[t for t in active if t.dry_on is not None],
        failing=[t for t in active if t.failing],
        stopped=[t for t in towns if t.town.status == "suspended"],
        used=sum(t.used_uyen for t in towns),
        limit=sum(t.limit_uyen for t in towns),
        calls=sum(t.calls for t in towns),
        chart=daily_chart(days, office.now, money=True),
        days=days,
    )


@routes.get("/towns.csv")
async def towns_csv(office: OfficeContext) -> Response:
    """The table, for a spreadsheet: UTF-8 with BOM."""
    towns, _ = await towns_of_month(office.db, office.now)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(
        ["団体コード", "団体", "状態", "職員数", "件数", "うち失敗", "トークン", "使った額（円）", "予算（円）"]
    )
    for t in towns:
        used, limit = -(-t.used_uyen // 1_000_000), t.limit_uyen // 1_000_000
        writer.writerow(
            [t.town.code, t.town.name, t.town.status, t.town.people, t.calls, t.failed, t.tokens, used, limit]
        )
    name = f"towns-{window_start('month', office.now):%Y-%m}.csv"
    return Response(
        out.getvalue().encode("utf-8-sig"),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f"attachment; filename={name}"},
    )


@routes.get("/towns/new")
async def new_town(office: OfficeContext) -> Response:
    return await office.page("console/town_new.html", is_operator_page=True, typed={}, problem=None)


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
        yen = month_yen.replace(",", "").strip()
        if not (yen.isascii() and yen.isdigit()):
            raise InvalidInput("予算は円の整数で入れてください。", field="month_yen")
        wanted = NewTenant(
            name, code, admin_login, admin_name, tuple(s.strip() for s in sections.splitlines() if s.strip()), int(yen)
        )
        created = await create_tenant(office.db, await office.directory(), wanted, by=office.by)
    except (InvalidInput, Conflict) as problem:
        return await office.page(
            "console/town_new.html", status=int(problem.status), is_operator_page=True, typed=typed, problem=problem
        )
    return await office.page("console/town_created.html", is_operator_page=True, created=created, new=wanted)


@routes.post("/handover.pdf")
async def handover(
    office: OfficeContext,
    town: Annotated[UUID, Form()],
    login: Annotated[str, Form()],
    password: Annotated[str, Form()],
) -> Response:
    """The hand-over sheet. The password is not kept anywhere: it comes from the page that showed it."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await _town(session, town)
        code = await code_of(session, TenantId(tenant.id))
        budget = [r for r in await budget_rows(session, tenant_id=TenantId(tenant.id)) if r.node == "town"]
    # Typesetting takes a tenth of a second and more; other people's pages go on meanwhile.
    sheet = await asyncio.to_thread(
        handover_sheet,
        Handover(
            product_name=office.settings.product_name,
            town=tenant.name,
            code=code,
            admin_login=login,
            full_login=f"{tenant.alias}.{login}",
            password=password,
            entry_url=f"{office.settings.public_url}/t/{code}",
            sections=(),
            month_yen=(budget[0].limit_uyen or 0) // 1_000_000 if budget else 0,
            made_on=local(office.now).date(),
        ),
    )
    return Response(
        sheet,
        media_type="application/pdf",
        headers={"content-disposition": f"attachment; filename=handover-{code}.pdf"},
    )


@routes.get("/towns/{town_id}")
async def town(office: OfficeContext, town_id: UUID, problem: str = "") -> Response:
    return await _town_page(office, town_id)


@routes.post("/towns/{town_id}/budget")
async def budget(office: OfficeContext, town_id: UUID, month_yen: Annotated[str, Form()] = "") -> Response:
    text = month_yen.replace(",", "").strip()
    try:
        if not (text.isascii() and text.isdigit()):
            raise InvalidInput("予算は円の整数で入れてください。", field="month_yen")
        async with office.db.platform_session("operator console") as session:
            tenant = await _town(session, town_id)
            await set_budget(session, TenantId(tenant.id), yen=int(text), by=office.actor.person_id)
            await audit.record(
                session, TenantId(tenant.id), office.by, "budget.set", about=("tenant", town_id), yen=int(text)
            )
    except (InvalidInput, Conflict) as error:
        return await _town_page(office, town_id, error)
    return back(f"/console/operator/towns/{town_id}", f"今月の予算を{int(text):,}円にしました")


@routes.post("/towns/{town_id}/suspend")
async def suspend(office: OfficeContext, town_id: UUID, typed_name: Annotated[str, Form()] = "") -> Response:
    """Needs the town's name typed: a whole town hall stops working."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await _town(session, town_id)
    if typed_name.strip() != tenant.name:
        return await _town_page(office, town_id, InvalidInput("団体の名前が一致しません。", field="typed_name"))
    await suspend_tenant(office.db, await office.directory(), TenantId(tenant.id), by=office.by)
    return back(f"/console/operator/towns/{town_id}", f"{tenant.name}の利用を止めました")


@routes.post("/towns/{town_id}/resume")
async def resume(office: OfficeContext, town_id: UUID) -> Response:
    await resume_tenant(office.db, await office.directory(), TenantId(town_id), by=office.by)
    return back(f"/console/operator/towns/{town_id}", "利用を再開しました")


async def _town(session, town_id: UUID) -> Tenant:  # type: ignore[no-untyped-def]  # a platform session
    tenant: Tenant | None = await session.get(Tenant, town_id)
    if tenant is None or tenant.status == "erased":
        raise NotFound
    return tenant


async def _town_page(office: Office, town_id: UUID, problem: Problem | None = None) -> Response:
    month = window_start("month", office.now)
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await _town(session, town_id)
        tenant_id = TenantId(tenant.id)
        code = await code_of(session, tenant_id)
        rows = await usage_rows(session, month, tenant_id=tenant_id)
        days = await usage_by_day(session, month, tenant_id=tenant_id)
        nodes = await budget_rows(session, tenant_id=tenant_id, now=office.now)
    by_app: dict[tuple[str, str], list[int]] = {}
    for r in rows:
        total = by_app.setdefault((r.app or "API", r.alias), [0, 0, 0, 0])
        for i, value in enumerate((r.calls, r.failed, r.prompt_tokens + r.completion_tokens, r.cost_uyen)):
            total[i] += value
    return await office.page(
        "console/town_detail.html",
        status=200 if problem is None else int(problem.status),
        is_operator_page=True,
        tenant=tenant,
        code=code,
        by_app=sorted(by_app.items(), key=lambda i: -i[1][3]),
        node=next((n for n in nodes if n.node == "town"), None),
        chart=daily_chart(days, office.now, money=True),
        month_words=wareki(month)[:-2],
        problem=problem,
    )
