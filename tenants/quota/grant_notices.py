"""What a town's administrator is told of its grant: that it borrows, that it lends, that the operator moved budget.

A notice is a row of the town's outbox. Borrowing and lending are told once a window, however many slices move.
"""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, cast
from uuid import UUID, uuid5

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import Actor, Role, TenantId, new_id
from tenants.models import Outbox
from tenants.quota.windows import Window, window_start

KIND: Final = "quota.grant"
_NAMESPACE: Final = UUID("3c0f6b0e-6a8b-5a31-9a44-8f6f0e2b7d55")


@dataclass(frozen=True, slots=True)
class GrantNotice:
    """`what`: grant.borrow, grant.lend, budget.move, budget.move_once (for the window alone) or budget.move_back.

    `yen`: what was moved, negative when it went away.
    """

    id: UUID
    what: str
    window: Window
    yen: int


async def tell_once(session: AsyncSession, tenant_id: TenantId, what: str, *, window: Window, start: date) -> None:
    """In the transaction that moves the slice."""
    id = uuid5(_NAMESPACE, f"{tenant_id}:{what}:{window}:{start}")
    if await session.get(Outbox, id) is None:
        session.add(_row(id, tenant_id, what, window, start, 0))
        await session.flush()


def tell_moved(
    session: AsyncSession, tenant_id: TenantId, yen: int, *, what: str = "budget.move", window: Window, start: date
) -> None:
    """Each time: it was a person's decision."""
    session.add(_row(new_id(), tenant_id, what, window, start, yen))


def _row(id: UUID, tenant_id: TenantId, what: str, window: Window, start: date, yen: int) -> Outbox:
    told = {"what": what, "window": window, "window_start": start.isoformat(), "yen": yen, "seen_by": []}
    return Outbox(id=id, tenant_id=tenant_id, kind=KIND, payload=told)


async def grant_notices_of(session: AsyncSession, actor: Actor, now: datetime) -> list[GrantNotice]:
    """What an administrator has not seen yet in the windows that run; nobody else is told."""
    if not actor.has(Role.TOWN_ADMIN):
        return []
    query = select(Outbox).where(col(Outbox.tenant_id) == actor.tenant_id, col(Outbox.kind) == KIND)
    found = []
    for row in (await session.exec(query.order_by(col(Outbox.created_at)))).all():
        window = cast("Window", row.payload["window"])
        is_running = row.payload["window_start"] == window_start(window, now).isoformat()
        if is_running and str(actor.person_id) not in row.payload["seen_by"]:
            found.append(GrantNotice(row.id, row.payload["what"], window, row.payload["yen"]))
    return found


async def mark_grant_seen(session: AsyncSession, actor: Actor, notice_id: UUID) -> bool:
    """Not shown to this person again. False when there is no such notice."""
    notice = await session.get(Outbox, notice_id)
    if notice is None or notice.tenant_id != actor.tenant_id or notice.kind != KIND:
        return False
    person = str(actor.person_id)
    if person not in notice.payload["seen_by"]:
        notice.payload = {**notice.payload, "seen_by": [*notice.payload["seen_by"], person]}
        session.add(notice)
    return True
