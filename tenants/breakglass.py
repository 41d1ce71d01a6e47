"""Break-glass: an operator reads, for an hour at most, what a town's staff attached to their reports.

The operator asks with a reason, an administrator of the town approves, both can end it at any moment. Every text that
is opened stands in the town's chain before it is shown, and the town is told of request, approval, use and end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID, uuid5

from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import Actor, PersonId, Role, TenantContext, TenantId
from tenants.db import Database
from tenants.documents import Documents
from tenants.models import BreakGlass, Outbox, Report
from tenants.reports import DESK, get_report

MINUTES: Final = (15, 30, 60)
# A request that nobody answers is no standing offer.
ANSWER_WITHIN: Final = timedelta(hours=24)
MAX_REASON: Final = 300
KIND: Final = "break_glass"
What = Literal["request", "approve", "refuse", "use", "end"]
_SHOWN: Final = 50


def by_person(person_id: PersonId) -> By:
    return By("person", str(person_id))


async def ask(
    db: Database, tenant_id: TenantId, person_id: PersonId, *, reason: str, minutes: int, now: datetime
) -> UUID:
    """An operator's request. Raises `InvalidInput`, and `Conflict` while another one is open."""
    reason = " ".join(reason.split())
    if not 10 <= len(reason) <= MAX_REASON:
        raise InvalidInput(f"理由を10字から{MAX_REASON}字までで書いてください。町の管理者が読みます。", field="reason")
    if minutes not in MINUTES:
        raise InvalidInput("時間を選んでください。", field="minutes")
    async with db.platform_session("break-glass") as session:
        # One request at a time: the chain's head orders those who ask together.
        await audit.locked_head(session, tenant_id)
        if any(is_open(row, now) for row in await glasses_of(session, tenant_id)):
            raise Conflict("この町への依頼が、まだ終わっていません。")
        row = BreakGlass(tenant_id=tenant_id, reason=reason, minutes=minutes, requested_by=person_id, requested_at=now)
        session.add(row)
        await session.flush()
        await _tell(session, row, "request", by_person(person_id), now, reason=reason, minutes=minutes)
        return row.id


async def decide(session: AsyncSession, actor: Actor, id: UUID, *, approve: bool, now: datetime) -> BreakGlass:
    """The town's answer, in its own session. Raises `NotFound`, and `Conflict` when it is too late for it.

    The approver is an administrator of the town and no operator: a second person, of the other side.
    """
    row = await _of_town(session, actor, id)
    if row.state != "requested" or not is_open(row, now):
        raise Conflict("この依頼は、もう返事ができません。")
    if row.requested_by == actor.person_id:
        raise Conflict("自分の依頼は承認できません。")
    row.state, row.decided_by, row.decided_at = "approved" if approve else "refused", actor.person_id, now
    if approve:
        row.until = now + timedelta(minutes=row.minutes)
    assert actor.person_id is not None
    session.add(row)
    await _tell(session, row, "approve" if approve else "refuse", by_person(actor.person_id), now)
    return row


async def end_by_town(session: AsyncSession, actor: Actor, id: UUID, now: datetime) -> None:
    """At once: every reading asks anew. Raises `NotFound`."""
    row = await _of_town(session, actor, id)
    assert actor.person_id is not None
    await _end(session, row, by_person(actor.person_id), now)


async def end_by_operator(db: Database, person_id: PersonId, id: UUID, now: datetime) -> None:
    """What one asked for oneself. Raises `NotFound`."""
    async with db.platform_session("break-glass") as session:
        row = await _locked(session, id)
        if row.requested_by != person_id:
            raise NotFound
        await _end(session, row, by_person(person_id), now)


async def end_expired(db: Database, now: datetime) -> int:
    """What has run out is ended and told; a duty of the worker. Returns how many."""
    async with db.platform_session("break-glass", read_only=True) as session:
        over = or_(
            (col(BreakGlass.state) == "approved") & (col(BreakGlass.until) <= now),
            (col(BreakGlass.state) == "requested") & (col(BreakGlass.requested_at) <= now - ANSWER_WITHIN),
        )
        ids = (await session.exec(select(BreakGlass.id).where(over))).all()
    for id in ids:
        async with db.platform_session("break-glass") as session:
            await _end(session, await _locked(session, id), By("system", "break-glass"), now)
    return len(ids)


def is_open(row: BreakGlass, now: datetime) -> bool:
    """Whether it waits for an answer or may be used."""
    if row.state == "requested":
        return now < row.requested_at + ANSWER_WITHIN
    return row.state == "approved" and row.until is not None and now < row.until


async def glasses_of(session: AsyncSession, tenant_id: TenantId) -> Sequence[BreakGlass]:
    """Of one town, newest first, at most 50."""
    query = select(BreakGlass).where(col(BreakGlass.tenant_id) == tenant_id)
    return (await session.exec(query.order_by(col(BreakGlass.requested_at).desc()).limit(_SHOWN))).all()


async def usable(session: AsyncSession, person_id: PersonId, id: UUID, now: datetime) -> BreakGlass:
    """What this operator may read by now, in a platform session. Raises `NotFound` for everything else."""
    row = await _locked(session, id)
    if row.state != "approved" or not is_open(row, now) or row.requested_by != person_id:
        raise NotFound
    return row


async def readable_reports(
    db: Database, person_id: PersonId, id: UUID, now: datetime
) -> tuple[BreakGlass, list[Report]]:
    """The reports that have a text, newest first; the texts are not in these rows. Raises `NotFound`."""
    async with db.platform_session("break-glass", read_only=True) as session:
        glass = await usable(session, person_id, id, now)
        query = select(Report).where(col(Report.tenant_id) == glass.tenant_id, col(Report.document_id).is_not(None))
        rows = (await session.exec(query.order_by(col(Report.created_at).desc()).limit(_SHOWN))).all()
    return glass, list(rows)


async def read_report(
    db: Database, documents: Documents, person_id: PersonId, id: UUID, report_id: UUID, now: datetime
) -> tuple[Report, str]:
    """One text, after it stands in the town's chain that it is read. Raises `NotFound`."""
    async with db.platform_session("break-glass") as session:
        glass = await usable(session, person_id, id, now)
        report = await get_report(session, TenantId(glass.tenant_id), report_id)
        if report.document_id is None:
            raise NotFound
        await audit.record(
            session, TenantId(glass.tenant_id), by_person(person_id), "break_glass.read",
            about=("report", report_id), glass=str(id),
        )  # fmt: skip
        if glass.used_at is None:
            glass.used_at = now
            session.add(glass)
            _notice(session, glass, "use", now)
    desk = documents.of(TenantContext(TenantId(glass.tenant_id)), app=DESK, viewer=None)
    return report, str((await desk.get(report.document_id, kind="report")).body["text"])


@dataclass(frozen=True, slots=True)
class GlassNotice:
    """What became of one request last. `was_used`: something was opened."""

    id: UUID
    what: What
    was_used: bool


async def notices_of(session: AsyncSession, actor: Actor) -> list[GlassNotice]:
    """What a town's administrator has not seen yet, oldest first; nobody else is told.

    One for a request: what is over is not told as if it still stood.
    """
    if not actor.has(Role.TOWN_ADMIN):
        return []
    query = select(Outbox).where(col(Outbox.tenant_id) == actor.tenant_id, col(Outbox.kind) == KIND)
    rows = (await session.exec(query.order_by(col(Outbox.created_at)))).all()
    last = {row.payload["glass"]: row for row in rows}
    used = {row.payload["glass"] for row in rows if row.payload["what"] == "use"}
    return [
        GlassNotice(row.id, row.payload["what"], glass in used)
        for glass, row in sorted(last.items(), key=lambda pair: pair[1].created_at)
        if str(actor.person_id) not in row.payload["seen_by"]
    ]


async def mark_seen(session: AsyncSession, actor: Actor, notice_id: UUID) -> bool:
    """Not shown to this administrator again. False when there is no such notice, or none for this person."""
    notice = await session.get(Outbox, notice_id)
    if notice is None or notice.tenant_id != actor.tenant_id or notice.kind != KIND or not actor.has(Role.TOWN_ADMIN):
        return False
    notice.payload = {**notice.payload, "seen_by": [*notice.payload["seen_by"], str(actor.person_id)]}
    session.add(notice)
    return True


async def _locked(session: AsyncSession, id: UUID) -> BreakGlass:
    row = (await session.exec(select(BreakGlass).where(col(BreakGlass.id) == id).with_for_update())).first()
    if row is None:
        raise NotFound
    return row


async def _of_town(session: AsyncSession, actor: Actor, id: UUID) -> BreakGlass:
    row = await _locked(session, id)
    if row.tenant_id != actor.tenant_id or not actor.has(Role.TOWN_ADMIN) or actor.has(Role.OPERATOR):
        raise NotFound
    return row


async def _end(session: AsyncSession, row: BreakGlass, by: By, now: datetime) -> None:
    """Once: what has ended stays as it is."""
    if row.state in ("refused", "ended"):
        return
    row.state, row.ended_at = "ended", now
    session.add(row)
    await _tell(session, row, "end", by, now)


async def _tell(session: AsyncSession, row: BreakGlass, what: What, by: By, now: datetime, **facts: str | int) -> None:
    _notice(session, row, what, now)
    await audit.record(
        session, TenantId(row.tenant_id), by, f"break_glass.{what}", about=("break_glass", row.id), **facts
    )


def _notice(session: AsyncSession, row: BreakGlass, what: What, now: datetime) -> None:
    session.add(
        Outbox(
            id=uuid5(row.id, what),
            tenant_id=row.tenant_id,
            kind=KIND,
            payload={"what": what, "glass": str(row.id), "seen_by": []},
            created_at=now,
        )
    )
