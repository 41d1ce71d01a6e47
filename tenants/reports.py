"""こまったとき: the queue of the town's administrator. What was ticked lies in `content`, the rest beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import urlsplit
from uuid import UUID

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import Actor, PersonId, TenantId, new_id
from tenants.db import Database
from tenants.documents import AppDocuments, Documents, Viewer
from tenants.models import Report

KINDS: Final[Mapping[str, str]] = {
    "wrong_answer": "答えがまちがっている",
    "not_working": "動かない・使い方が分からない",
    "quota": "枠を増やしてほしい",
    "other": "その他",
}
MAX_CONTENT: Final = 60_000
MAX_ANSWER: Final = 4_000
State = Literal["open", "answered", "closed"]
# The desk's documents: what was ticked, and what the administrator answered.
DESK: Final = "desk"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the administrator wrote back."""

    text: str = field(repr=False)
    at: datetime


async def file_report(
    db: Database,
    documents: Documents,
    actor: Actor,
    *,
    app: str,
    page: str,
    kind: str,
    problem_number: str,
    content: str | None,
) -> UUID:
    """Adds a report. The row first, the content second: an orphan is swept, a report without content is still one."""
    if kind not in KINDS:
        raise InvalidInput("どれに当たるかを選んでください。", field="kind")
    if content is not None and len(content) > MAX_CONTENT:
        raise InvalidInput(f"内容は{MAX_CONTENT:,}字までにしてください。", field="content")
    report_id, document_id = new_id(), new_id() if content else None
    async with db.tenant_session(actor.context) as session:
        session.add(
            Report(
                id=report_id,
                tenant_id=actor.tenant_id,
                person_id=actor.person_id,
                section_id=actor.section_id,
                app=app,
                # Where, and never what was looked for there.
                page=urlsplit(page).path[:200],
                kind=kind,
                problem_number=problem_number[:40],
                document_id=document_id,
            )
        )
        await audit.record(
            session,
            actor.tenant_id,
            By("person", str(actor.person_id)),
            "report.file",
            about=("report", report_id),
            with_content=content is not None,
        )
    if content and actor.person_id is not None:
        own = documents.of(actor.context, app=DESK, viewer=Viewer(actor.person_id, actor.section_id))
        await own.create("report", {"text": content}, of_town=True, id=document_id)
    return report_id


async def list_reports(
    session: AsyncSession,
    tenant_id: TenantId,
    *,
    states: Sequence[State] = ("open",),
    person_id: PersonId | None = None,
) -> list[Report]:
    """Newest first, at most 500; no content is in these rows. person_id: only what this person sent."""
    query = select(Report).where(col(Report.tenant_id) == tenant_id, col(Report.state).in_(states))
    if person_id is not None:
        query = query.where(col(Report.person_id) == person_id)
    return list((await session.exec(query.order_by(col(Report.created_at).desc()).limit(500))).all())


async def count_reports(session: AsyncSession, tenant_id: TenantId) -> dict[State, int]:
    """How many are in each state."""
    found = await session.exec(
        select(Report.state, func.count()).where(col(Report.tenant_id) == tenant_id).group_by(col(Report.state))
    )
    counts = dict(found.all())
    return {"open": counts.get("open", 0), "answered": counts.get("answered", 0), "closed": counts.get("closed", 0)}


async def get_report(session: AsyncSession, tenant_id: TenantId, report_id: UUID) -> Report:
    """Raises `NotFound`, also for another town's."""
    report = await session.get(Report, report_id)
    if report is None or report.tenant_id != tenant_id:
        raise NotFound
    return report


async def answer_report(db: Database, desk: AppDocuments, actor: Actor, report_id: UUID, text: str) -> None:
    """Writes back to who sent it; the words are content, kept in the desk. Raises `InvalidInput`, `NotFound`."""
    text = text.strip()
    if not 1 <= len(text) <= MAX_ANSWER:
        raise InvalidInput(f"返事を{MAX_ANSWER:,}字までで書いてください。", field="answer")
    async with db.tenant_session(actor.context) as session:
        report = await get_report(session, actor.tenant_id, report_id)
        report.state = "answered"
        session.add(report)
        await audit.record(
            session, actor.tenant_id, By("person", str(actor.person_id)), "report.answer", about=("report", report_id)
        )
    await desk.create("answer", {"text": text}, of_town=True, index={"report": str(report_id)})


async def list_answers(desk: AppDocuments, report_id: UUID) -> list[Answer]:
    """Oldest first. Who may see the report has been decided before."""
    page = await desk.list("answer", index={"report": str(report_id)}, order="oldest", limit=50)
    return [Answer(str(d.body["text"]), d.created_at) for d in page.items]


async def set_report_state(session: AsyncSession, actor: Actor, report_id: UUID, state: State) -> None:
    """Closes, or opens again; without an answer it goes on waiting. Raises `NotFound`."""
    report = await get_report(session, actor.tenant_id, report_id)
    report.state = state
    report.closed_at, report.closed_by = (datetime.now(UTC), actor.person_id) if state == "closed" else (None, None)
    session.add(report)
    await audit.record(
        session, actor.tenant_id, By("person", str(actor.person_id)), f"report.{state}", about=("report", report_id)
    )
