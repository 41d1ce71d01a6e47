"""こまったとき, as the town's administrator reads it: what clerks sent, the text they ticked, and the answer to it."""

from collections.abc import Mapping
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Form
from starlette.responses import Response

from apps.sdk.office import Office, OfficeContext, back, place
from observability.problems import InvalidInput, Problem
from tenants import audit
from tenants.people import list_people
from tenants.reports import (
    KINDS,
    State,
    answer_report,
    count_reports,
    get_report,
    list_answers,
    list_reports,
    set_report_state,
)

routes = APIRouter()

HERE: Final = "/desk/reports"
STATES: Final[Mapping[str, tuple[str, State]]] = {
    "open": ("返事を待っている", "open"),
    "answered": ("返事をした", "answered"),
    "closed": ("済んだ", "closed"),
}


@routes.get("/reports")
async def reports(office: OfficeContext, state: str = "open") -> Response:
    """The queue: who waits longest comes first; what is done, newest first."""
    words, wanted = STATES.get(state, STATES["open"])
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        found = await list_reports(session, office.actor.tenant_id, states=(wanted,))
        counts = await count_reports(session, office.actor.tenant_id)
        people = {p.id: p for p in await list_people(session, office.actor.tenant_id)}
    return await office.page(
        "desk/reports.html",
        reports=found[::-1] if wanted == "open" else found,
        people=people,
        kinds=KINDS,
        state=wanted,
        state_words=words,
        tabs=[(name, words, counts[stored]) for name, (words, stored) in STATES.items()],
        places={r.id: place(r.page, _titles(office)) for r in found},
    )


def _titles(office: Office) -> dict[str, str]:
    return {a.id: a.title for a in office.apps}


@routes.get("/reports/{report_id}")
async def report(office: OfficeContext, report_id: UUID) -> Response:
    return await _report_page(office, report_id)


async def _report_page(office: Office, report_id: UUID, problem: Problem | None = None, typed: str = "") -> Response:
    """One report; that its content was opened goes into the audit chain."""
    assert office.documents is not None
    async with office.db.tenant_session(office.actor.context) as session:
        found = await get_report(session, office.actor.tenant_id, report_id)
        person = next((p for p in await list_people(session, office.actor.tenant_id) if p.id == found.person_id), None)
        if found.document_id is not None:
            await audit.record(session, office.actor.tenant_id, office.by, "report.read", about=("report", report_id))
    text = ""
    if found.document_id is not None:
        text = str((await office.documents.get(found.document_id, kind="report")).body["text"])
    return await office.page(
        "desk/report.html",
        status=200 if problem is None else int(problem.status),
        report=found,
        person=person,
        kinds=KINDS,
        text=text,
        answers=await list_answers(office.documents, report_id),
        where=place(found.page, _titles(office)),
        problem=problem,
        typed=typed,
    )


@routes.post("/reports/{report_id}/answer")
async def answer(
    office: OfficeContext,
    report_id: UUID,
    answer: Annotated[str, Form()] = "",
    then: Annotated[str, Form()] = "",
) -> Response:
    """Writes back; with `then` closed, it is done with that."""
    assert office.documents is not None
    try:
        await answer_report(office.db, office.documents, office.actor, report_id, answer)
    except InvalidInput as problem:
        return await _report_page(office, report_id, problem, answer)
    if then == "closed":
        async with office.db.tenant_session(office.actor.context) as session:
            await set_report_state(session, office.actor, report_id, "closed")
        return back(HERE, "返事を送り、済みにしました")
    return back(f"{HERE}/{report_id}", "返事を送りました")


@routes.post("/reports/{report_id}/close")
async def close(office: OfficeContext, report_id: UUID) -> Response:
    async with office.db.tenant_session(office.actor.context) as session:
        await set_report_state(session, office.actor, report_id, "closed")
    return back(HERE, "済みにしました")


@routes.post("/reports/{report_id}/reopen")
async def reopen(office: OfficeContext, report_id: UUID) -> Response:
    async with office.db.tenant_session(office.actor.context) as session:
        await set_report_state(session, office.actor, report_id, "open")
    return back(f"{HERE}/{report_id}", "返事を待っている一覧に戻しました")
