"""こまったとき: the queue of the town's administrator. What was ticked lies in `content`, the rest beside it."""

from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import Actor, TenantId, new_id
from tenants.db import Database
from tenants.documents import Documents, Viewer
from tenants.models import Report

KINDS = {"wrong_answer": "答えがまちがっている", "not_working": "動かない・使い方が分からない", "other": "その他"}
MAX_CONTENT = 60_000


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
        own = documents.of(actor.context, app="desk", viewer=Viewer(actor.person_id, actor.section_id))
        await own.create("report", {"text": content}, of_town=True, id=document_id)
    return report_id


async def list_reports(session: AsyncSession, tenant_id: TenantId, *, state: str = "open") -> list[Report]:
    """Newest first; no content is in these rows."""
    found = await session.exec(
        select(Report)
        .where(col(Report.tenant_id) == tenant_id, col(Report.state) == state)
        .order_by(col(Report.created_at).desc())
        .limit(500)
    )
    return list(found.all())


async def count_open(session: AsyncSession, tenant_id: TenantId) -> int:
    found = await session.exec(
        select(func.count()).select_from(Report).where(col(Report.tenant_id) == tenant_id, col(Report.state) == "open")
    )
    return int(found.one())


async def close_report(session: AsyncSession, actor: Actor, report_id: UUID) -> None:
    report = await session.get(Report, report_id)
    if report is None or report.tenant_id != actor.tenant_id:
        raise NotFound
    report.state, report.closed_at, report.closed_by = "closed", datetime.now(UTC), actor.person_id
    session.add(report)
    await audit.record(
        session, actor.tenant_id, By("person", str(actor.person_id)), "report.close", about=("report", report_id)
    )
