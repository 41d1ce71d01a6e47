"""The audit chain: append-only, hash-chained per tenant; facts are ids and numbers, never content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import TenantId
from tenants.models import Audit, AuditHead

ActorKind = Literal["person", "operator", "system", "command"]
# The action of a sign-in: by it one sees whether a town was ever used.
SIGNED_IN: Final = "session.start"


@dataclass(frozen=True, slots=True)
class By:
    """Who did it: a person (id), a system (key id) or a command on the machine (the system user's name)."""

    kind: ActorKind
    id: str = ""


def _hash(previous: str, seq: int, row: Audit) -> str:
    told = {
        "seq": seq,
        "at": row.created_at.astimezone(UTC).isoformat(),
        "actor": [row.actor_kind, row.actor_id],
        "action": row.action,
        "object": [row.object_kind, row.object_id],
        "facts": row.facts,
    }
    text = json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


async def append(
    session: AsyncSession,
    tenant_id: TenantId,
    *,
    actor_kind: str,
    actor_id: str,
    action: str,
    object_kind: str = "",
    object_id: str = "",
    facts: Mapping[str, str | int | bool | None] | None = None,
) -> None:
    """Adds a link in the caller's transaction; writers of one tenant's chain wait for each other."""
    head = (
        await session.exec(select(AuditHead).where(col(AuditHead.tenant_id) == tenant_id).with_for_update())
    ).first()
    if head is None:
        head = AuditHead(tenant_id=tenant_id)
        session.add(head)
        await session.flush()
    row = Audit(
        tenant_id=tenant_id,
        created_at=datetime.now(UTC),
        seq=head.seq + 1,
        actor_kind=actor_kind,
        actor_id=actor_id,
        action=action,
        object_kind=object_kind,
        object_id=object_id,
        facts=dict(facts or {}),
        previous_hash=head.hash,
        hash="",
    )
    row.hash = _hash(head.hash, row.seq, row)
    head.seq, head.hash = row.seq, row.hash
    session.add(row)
    session.add(head)
    await session.flush()


@dataclass(frozen=True, slots=True)
class Entry:
    """One link of `record_many`: what was done to which object."""

    action: str
    object_kind: str
    object_id: str
    facts: Mapping[str, str | int | bool | None] = field(default_factory=dict)


async def record_many(session: AsyncSession, tenant_id: TenantId, by: By, entries: Sequence[Entry]) -> None:
    """`record` for many at once (an import): the head is read and written once, which is what costs."""
    if not entries:
        return
    await session.flush()
    query = select(AuditHead).where(col(AuditHead.tenant_id) == tenant_id).with_for_update()
    head = (await session.exec(query)).first() or AuditHead(tenant_id=tenant_id)
    for entry in entries:
        row = Audit(
            tenant_id=tenant_id,
            created_at=datetime.now(UTC),
            seq=head.seq + 1,
            actor_kind=by.kind,
            actor_id=by.id,
            action=entry.action,
            object_kind=entry.object_kind,
            object_id=entry.object_id,
            facts=dict(entry.facts),
            previous_hash=head.hash,
            hash="",
        )
        row.hash = _hash(head.hash, row.seq, row)
        head.seq, head.hash = row.seq, row.hash
        session.add(row)
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
    """`append` in the form most callers need: who, what, about which object."""
    await append(
        session,
        tenant_id,
        actor_kind=by.kind,
        actor_id=by.id,
        action=action,
        object_kind=about[0],
        object_id=str(about[1]),
        facts=facts,
    )


async def verify_chain(session: AsyncSession, tenant_id: TenantId) -> int:
    """How many links hold; raises `ValueError` naming the first that does not."""
    previous, seq = "", 0
    rows = await session.exec(select(Audit).where(col(Audit.tenant_id) == tenant_id).order_by(col(Audit.seq)))
    for row in rows.all():
        seq += 1
        if row.seq != seq or row.previous_hash != previous or row.hash != _hash(previous, seq, row):
            raise ValueError(f"audit link {row.seq} of tenant {tenant_id} does not hold")
        previous = row.hash
    return seq
