"""報告の確認: what clerks reported, with the text they ticked, for the town's own administrator only."""

from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from apps.sdk.office import OfficeContext, back
from observability.problems import NotFound
from tenants import audit
from tenants.models import Report
from tenants.people import list_people
from tenants.reports import KINDS, close_report, list_reports

routes = APIRouter()


@routes.get("/reports")
async def reports(office: OfficeContext, state: str = "open") -> Response:
    """The queue: who waits longest is last in the list of the newest first."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        found = await list_reports(session, office.actor.tenant_id, state="closed" if state == "closed" else "open")
        names = {p.id: p for p in await list_people(session, office.actor.tenant_id)}
    return await office.page("desk/reports.html", reports=found, names=names, kinds=KINDS, state=state)


@routes.get("/reports/{report_id}")
async def report(office: OfficeContext, report_id: UUID) -> Response:
    """One report; that its content was opened goes into the audit chain."""
    async with office.db.tenant_session(office.actor.context) as session:
        found = await session.get(Report, report_id)
        if found is None:
            raise NotFound
        person = next((p for p in await list_people(session, office.actor.tenant_id) if p.id == found.person_id), None)
        if found.document_id is not None:
            await audit.record(session, office.actor.tenant_id, office.by, "report.read", about=("report", report_id))
    text = ""
    if found.document_id is not None and office.documents is not None:
        text = str((await office.documents.get(found.document_id, kind="report")).body["text"])
    return await office.page("desk/report.html", report=found, person=person, kinds=KINDS, text=text)


@routes.post("/reports/{report_id}/close")
async def close(office: OfficeContext, report_id: UUID) -> Response:
    async with office.db.tenant_session(office.actor.context) as session:
        await close_report(session, office.actor, report_id)
    return back("/desk/reports", "対応済みにしました")
