"""閲覧の依頼: the operator asks a town to let it read what staff attached to their reports. No content here."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form
from starlette.responses import Response

from apps.sdk.office import Office, OfficeContext, back
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import breakglass
from tenants.context import TenantId
from tenants.models import Tenant

routes = APIRouter()


@routes.get("/towns/{town_id}/break-glass")
async def glass_page(office: OfficeContext, town_id: UUID) -> Response:
    return await _page(office, town_id)


async def _page(office: Office, town_id: UUID, problem: Problem | None = None, reason: str = "") -> Response:
    async with office.db.platform_session("operator console", read_only=True) as session:
        tenant = await session.get(Tenant, town_id)
        if tenant is None or tenant.status == "erased" or tenant.id == office.actor.tenant_id:
            raise NotFound
        glasses = await breakglass.glasses_of(session, TenantId(tenant.id))
    return await office.page(
        "console/break_glass.html",
        status=200 if problem is None else int(problem.status),
        tenant=tenant,
        glasses=glasses,
        opened=next((g for g in glasses if breakglass.is_open(g, office.now)), None),
        person_id=office.actor.person_id,
        minutes=breakglass.MINUTES,
        problem=problem,
        reason=reason,
    )


@routes.post("/towns/{town_id}/break-glass")
async def ask(
    office: OfficeContext, town_id: UUID, reason: Annotated[str, Form()] = "", minutes: Annotated[str, Form()] = ""
) -> Response:
    await _page(office, town_id)
    assert office.actor.person_id is not None
    try:
        await breakglass.ask(
            office.db,
            TenantId(town_id),
            office.actor.person_id,
            reason=reason,
            minutes=int(minutes) if minutes.isascii() and minutes.isdigit() else 0,
            now=office.now,
        )
    except (InvalidInput, Conflict) as problem:
        return await _page(office, town_id, problem, reason)
    return back(f"/console/operator/towns/{town_id}/break-glass", "町に依頼しました")


@routes.post("/towns/{town_id}/break-glass/{glass_id}/end")
async def end(office: OfficeContext, town_id: UUID, glass_id: UUID) -> Response:
    assert office.actor.person_id is not None
    await breakglass.end_by_operator(office.db, office.actor.person_id, glass_id, office.now)
    return back(f"/console/operator/towns/{town_id}/break-glass", "閲覧を終えました")
