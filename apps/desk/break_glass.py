"""事務局の閲覧: the town answers a request and ends it; and what an operator then sees, which is read and nothing else."""

from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from apps.sdk.office import GlassContext, OfficeContext, back
from tenants import breakglass
from tenants.reports import KINDS

routes = APIRouter()
# Below another address and dependency: an operator comes here, and nobody else.
reading = APIRouter()
HERE = "/desk/break-glass"


@routes.get("/break-glass")
async def glasses(office: OfficeContext) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        found = await breakglass.glasses_of(session, office.actor.tenant_id)
    open_now = [g for g in found if breakglass.is_open(g, office.now)]
    return await office.page(
        "desk/break_glass.html", glasses=[g for g in found if g not in open_now], open_now=open_now
    )


@routes.post("/break-glass/{glass_id}/approve")
async def approve(office: OfficeContext, glass_id: UUID) -> Response:
    async with office.db.tenant_session(office.actor.context) as session:
        row = await breakglass.decide(session, office.actor, glass_id, approve=True, now=office.now)
    return back(HERE, f"{row.minutes}分間の閲覧を承認しました")


@routes.post("/break-glass/{glass_id}/refuse")
async def refuse(office: OfficeContext, glass_id: UUID) -> Response:
    async with office.db.tenant_session(office.actor.context) as session:
        await breakglass.decide(session, office.actor, glass_id, approve=False, now=office.now)
    return back(HERE, "閲覧を断りました")


@routes.post("/break-glass/{glass_id}/end")
async def end(office: OfficeContext, glass_id: UUID) -> Response:
    async with office.db.tenant_session(office.actor.context) as session:
        await breakglass.end_by_town(session, office.actor, glass_id, office.now)
    return back(HERE, "閲覧を終わらせました")


@reading.get("/{glass_id}")
async def readable(glass: GlassContext) -> Response:
    row, reports = await glass.reports()
    return await glass.page("desk/glass.html", town=glass.town, glass=row, reports=reports, kinds=KINDS)


@reading.get("/{glass_id}/reports/{report_id}")
async def read(glass: GlassContext, report_id: UUID) -> Response:
    """The text of one report; that it is read stands in the town's chain before."""
    report, text = await glass.read(report_id)
    return await glass.page(
        "desk/glass_report.html", town=glass.town, glass_id=glass.id, report=report, text=text, kinds=KINDS
    )
