"""What a town has in the database, row by row, so that the smallest change to it is seen and told."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Table, select

from tenants.context import TenantId
from tenants.db import Database
from tenants.models import TENANT_TABLES, Tenant

# The platform signs every town's chain anew every ten minutes, whoever does what.
_BY_ITSELF: Final = frozenset({"audit_checkpoint"})
# What is kept for ten minutes for whoever made the call; the worker then removes it, or marks that it is gone.
_FADING: Final = frozenset({"content.answer", "content.stream", "content.stream_part", "idempotency"})
_FADES_AFTER: Final = timedelta(minutes=9)
# What a person of the town itself writes by using the product: their sessions, their calls, the chain of both.
BOOKS: Final = frozenset(
    {
        "portal_session", "call", "attempt", "account", "budget", "grant", "grant_wanted", "idempotency", "audit", "audit_head",
        "seal_queue", "outbox", "job", "content.answer", "content.stream",
        "content.stream_part", "content.tenant_key",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A row by its hash. `ids`: every id that stands in it. `fades_at`: from when on it may change by itself."""

    table: str
    hash: bytes
    ids: frozenset[UUID]
    fades_at: datetime | None = None


Footprint = Mapping[tuple[str, str], Row]


async def footprint(db: Database, town: TenantId) -> Footprint:
    """(table, primary key) → row, of every table that belongs to a town, and the town's own row.

    db: of a login that no policy binds.
    """
    found: dict[tuple[str, str], Row] = {}
    async with db.platform_session("isolation", read_only=True) as session:
        connection = await session.connection()
        for model in (Tenant, *TENANT_TABLES):
            table: Table = model.__table__  # type: ignore[attr-defined]  # every model of a table has one
            name = f"{table.schema}.{table.name}" if table.schema else table.name
            if name in _BY_ITSELF:
                continue
            owner = table.c.id if model is Tenant else table.c.tenant_id
            keys = [c.name for c in table.primary_key.columns]
            for row in (await connection.execute(select(table).where(owner == town))).mappings():
                key = "|".join(str(row[k]) for k in keys)
                fades_at = _made_at(row["call_id"]) + _FADES_AFTER if name in _FADING else None
                digest = hashlib.sha256(repr(dict(row)).encode()).digest()
                found[name, key] = Row(name, digest, _ids(row.values()), fades_at)
    return found


def _made_at(id: UUID) -> datetime:
    """When a UUIDv7 was made: its first 48 bits are milliseconds."""
    return datetime.fromtimestamp((id.int >> 80) / 1000, UTC)


def _ids(values: Any) -> frozenset[UUID]:
    return frozenset(v for v in values if isinstance(v, UUID))


def changes(before: Footprint, after: Footprint, *, now: datetime) -> list[str]:
    """Tables whose rows were added, changed or removed, each with what happened; nothing when all is as it was.

    now: when `after` was seen.
    """
    found = []
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old is not None and old.fades_at is not None and old.fades_at < now:
            continue
        if old is None or new is None or old.hash != new.hash:
            found.append(f"{key[0]}: {'増えた' if old is None else '消えた' if new is None else '変わった'}")
    return sorted(found)


def others_changes(before: Footprint, after: Footprint, person_id: UUID, *, now: datetime) -> list[str]:
    """The same for somebody of the town itself: what is theirs, and the town's books, they may change."""
    theirs = {person_id}
    # A version hangs on a document, and a document on its owner.
    for (table, key), row in [*before.items(), *after.items()]:
        if table in ("content.document", "content.blob") and person_id in row.ids:
            theirs.add(UUID(key))

    def kept(side: Footprint) -> Footprint:
        return {k: r for k, r in side.items() if r.table not in BOOKS and not r.ids & theirs}

    return changes(kept(before), kept(after), now=now)
