"""The audit chain: append-only, hash-chained per tenant; facts are ids and numbers, never content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.audit.records import instant, link_hash
from tenants.context import TenantId
from tenants.models import Audit, AuditHead, Tenant

ActorKind = Literal["person", "operator", "system", "command"]
# The action of a sign-in: by it one sees whether a town was ever used.
SIGNED_IN: Final = "session.start"


@dataclass(frozen=True, slots=True)
class By:
    """Who did it: a person (id), a system (key id) or a command on the machine (the system user's name)."""

    kind: ActorKind
    id: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One link: what was done to which object. `leaves`: the calls of a segment (`tenants.audit.segments`)."""

    action: str
    object_kind: str = ""
    object_id: str = ""
    facts: Mapping[str, str | int | bool | None] = field(default_factory=dict)
    leaves: Sequence[str] = ()


def told_of(row: Audit) -> dict[str, Any]:
    """What a link's hash covers, apart from the link before."""
    return {
        "seq": row.seq,
        "at": instant(row.created_at),
        "actor": [row.actor_kind, row.actor_id],
        "action": row.action,
        "object": [row.object_kind, row.object_id],
        "facts": row.facts,
    }


async def locked_head(session: AsyncSession, tenant_id: TenantId) -> AuditHead:
    """The end of a tenant's chain; whoever else writes to it waits for this transaction."""
    query = select(AuditHead).where(col(AuditHead.tenant_id) == tenant_id).with_for_update()
    head = (await session.exec(query)).first()
    if head is None:
        # Of two who begin a chain, the second waits here for the first and goes on behind it.
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        first = insert(AuditHead).values(tenant_id=tenant_id, seq=0, hash="")
        await session.exec(first.on_conflict_do_nothing())
        head = (await session.exec(query)).one()
    return head


def add_link(session: AsyncSession, head: AuditHead, by: By, entry: Entry) -> None:
    """Adds a link behind a locked head."""
    row = Audit(
        tenant_id=head.tenant_id,
        created_at=datetime.now(UTC),
        seq=head.seq + 1,
        actor_kind=by.kind,
        actor_id=by.id,
        action=entry.action,
        object_kind=entry.object_kind,
        object_id=entry.object_id,
        facts=dict(entry.facts),
        leaves="\n".join(entry.leaves),
        previous_hash=head.hash,
        hash="",
    )
    row.hash = link_hash(head.hash, told_of(row))
    head.seq, head.hash = row.seq, row.hash
    session.add(row)


async def record_many(session: AsyncSession, tenant_id: TenantId, by: By, entries: Sequence[Entry]) -> None:
    """`record` for many at once (an import): the head is read and written once, which is what costs."""
    if not entries:
        return
    await session.flush()
    head = await locked_head(session, tenant_id)
    for entry in entries:
        add_link(session, head, by, entry)
    session.add(head)
    await session.flush()


async def record(
    session: AsyncSession,
    tenant_id: TenantId,
    by: By,
    action: str,
    *,
    about: tuple[str, str | UUID] = ("", ""),
    **facts: str | int | bool | None,
) -> None:
    """Adds a link in the caller's transaction: who, what, about which object. Writers of one chain wait in turn."""
    await record_many(session, tenant_id, by, [Entry(action, about[0], str(about[1]), facts)])


async def record_in_every_town(
    session: AsyncSession,
    by: By,
    action: str,
    *,
    about: tuple[str, str] = ("", ""),
    **facts: str | int | bool | None,
) -> None:
    """`record` for what concerns all towns (keys, prices); takes a platform session. Erased towns are not told."""
    # In one order, so that two of these never wait for each other.
    towns = await session.exec(select(Tenant.id).where(col(Tenant.status) != "erased").order_by(col(Tenant.id)))
    for tenant_id in towns.all():
        await record(session, TenantId(tenant_id), by, action, about=about, **facts)
