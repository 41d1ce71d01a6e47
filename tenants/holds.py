"""消去の停止 (legal hold): while one stands, nothing it covers is removed, by whatever way.

A hold lies beside the content it protects, so that one statement can both look at it and remove. Its reason is sealed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, exists, or_
from sqlalchemy.orm import aliased
from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import Actor, PersonId, TenantContext, TenantId, new_id
from tenants.db import Database
from tenants.models import BlobRow, DocumentRow, LegalHold
from tenants.vault import Vault, place

MAX_REASON: Final = 500


class Held(Conflict):
    """What would be removed is needed as it is."""

    type = "urn:problem:tenants:held"
    title = "町の管理者が、消去を止めています"


@dataclass(frozen=True, slots=True)
class Hold:
    """`app` empty: all apps. `person_id` None: everybody's, and what belongs to the town."""

    id: UUID
    app: str
    person_id: PersonId | None
    reason: str = field(repr=False)
    placed_by: UUID
    placed_at: datetime
    released_at: datetime | None


def is_held(row: type[DocumentRow | BlobRow]) -> ColumnElement[bool]:
    """A condition on documents or files: an open hold of the same town covers them."""
    hold = aliased(LegalHold)
    return exists().where(
        col(hold.tenant_id) == col(row.tenant_id),
        col(hold.released_at).is_(None),
        or_(col(hold.app) == "", col(hold.app) == col(row.app)),
        or_(col(hold.person_id).is_(None), col(hold.person_id) == col(row.owner_id)),
    )


async def open_holds(session: AsyncSession, tenant_id: TenantId) -> int:
    """How many stand; in a content session of the town."""
    open_ones = select(LegalHold.id).where(col(LegalHold.tenant_id) == tenant_id, col(LegalHold.released_at).is_(None))
    return len((await session.exec(open_ones)).all())


class Holds:
    """The holds of towns: placed and released by their administrators, never changed."""

    def __init__(self, db: Database, vault: Vault) -> None:
        self._db = db
        self._vault = vault

    async def all_of(self, ctx: TenantContext) -> list[Hold]:
        """Open ones first, then the newest first."""
        async with self._db.content_session(ctx, read_only=True) as session:
            rows = (await session.exec(select(LegalHold).where(col(LegalHold.tenant_id) == ctx.tenant_id))).all()
        ring = await self._vault.ring_for(ctx.tenant_id, [r.cipher for r in rows])
        found = [
            Hold(
                r.id,
                r.app,
                None if r.person_id is None else PersonId(r.person_id),
                ring.open(r.cipher, aad=place("legal_hold", r.id)).decode(),
                r.placed_by,
                r.placed_at,
                r.released_at,
            )
            for r in rows
        ]
        return sorted(found, key=lambda h: (h.released_at is not None, -h.placed_at.timestamp()))

    async def place(self, actor: Actor, *, app: str, person_id: PersonId | None, reason: str, now: datetime) -> UUID:
        """Raises `InvalidInput` for a reason that is missing or too long. Who and what was checked before."""
        reason = " ".join(reason.split())
        if not 1 <= len(reason) <= MAX_REASON:
            raise InvalidInput(f"理由を{MAX_REASON}字までで書いてください。", field="reason")
        assert actor.person_id is not None
        ring = await self._vault.ring(actor.tenant_id)
        hold_id = new_id()
        # First in the chain: a hold that nobody knows of would be worse than a line about one that failed.
        await self._tell(actor, "hold.place", hold_id, {"app": app, "person": str(person_id) if person_id else None})
        async with self._db.content_session(actor.context) as session:
            session.add(
                LegalHold(
                    id=hold_id,
                    tenant_id=actor.tenant_id,
                    app=app,
                    person_id=person_id,
                    cipher=ring.seal(reason.encode(), aad=place("legal_hold", hold_id)),
                    placed_by=actor.person_id,
                    placed_at=now,
                )
            )
        return hold_id

    async def release(self, actor: Actor, hold_id: UUID, now: datetime) -> None:
        """From now on what it covered may go as everything else. Raises `NotFound`."""
        mine = (
            col(LegalHold.tenant_id) == actor.tenant_id,
            col(LegalHold.id) == hold_id,
            col(LegalHold.released_at).is_(None),
        )
        async with self._db.content_session(actor.context, read_only=True) as session:
            if (await session.exec(select(LegalHold.id).where(*mine))).first() is None:
                raise NotFound("すでに解かれています。")
        await self._tell(actor, "hold.release", hold_id, {})
        async with self._db.content_session(actor.context) as session:
            await session.exec(update(LegalHold).where(*mine).values(released_by=actor.person_id, released_at=now))

    async def _tell(self, actor: Actor, action: str, hold_id: UUID, facts: Mapping[str, str | None]) -> None:
        async with self._db.tenant_session(actor.context) as session:
            by = By("person", str(actor.person_id))
            await audit.record(session, actor.tenant_id, by, action, about=("hold", hold_id), **facts)
