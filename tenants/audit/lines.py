"""The chain as lines of text, one record a line: what an export holds and what is checked."""

from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

from sqlalchemy import tuple_
from sqlmodel import col, select

from tenants.audit import told_of
from tenants.audit.checkpoints import checkpoint_told, key_told, public_keys
from tenants.audit.records import canonical
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import Audit, AuditCheckpoint

LINKS: Final = "audit.jsonl"
CHECKPOINTS: Final = "checkpoints.jsonl"
KEYS: Final = "audit-keys.jsonl"
# Segments are large, a thousand calls each: so many are some 10 MB.
_PAGE: Final = 25


def link_line(row: Audit) -> str:
    told: dict[str, Any] = told_of(row) | {"previous_hash": row.previous_hash, "hash": row.hash}
    if row.leaves:
        told["leaves"] = row.leaves.split("\n")
    return canonical(told)


async def key_lines(db: Database) -> list[str]:
    """Oldest first."""
    async with db.platform_session("audit read", read_only=True) as session:
        return [canonical(key_told(row)) for row in await public_keys(session)]


async def checkpoint_lines(db: Database, tenant_id: TenantId, *, until: int | None = None) -> list[str]:
    """until: the last number."""
    query = select(AuditCheckpoint).where(col(AuditCheckpoint.tenant_id) == tenant_id)
    if until is not None:
        query = query.where(col(AuditCheckpoint.number) <= until)
    async with db.platform_session("audit read", read_only=True) as session:
        rows = (await session.exec(query.order_by(col(AuditCheckpoint.number)))).all()
    return [canonical(checkpoint_told(row) | {"signature": row.signature.hex()}) for row in rows]


async def link_pages(db: Database, tenant_id: TenantId, *, until: int | None = None) -> AsyncIterator[list[str]]:
    """In short transactions, so that a long chain holds no connection. until: the last `seq`."""
    after: tuple[int, UUID] | None = None
    while True:
        query = select(Audit).where(col(Audit.tenant_id) == tenant_id)
        if until is not None:
            query = query.where(col(Audit.seq) <= until)
        if after is not None:
            # A number that stands there twice is to be seen, also where a page ends.
            query = query.where(tuple_(col(Audit.seq), col(Audit.id)) > after)
        async with db.platform_session("audit read", read_only=True) as session:
            rows = (await session.exec(query.order_by(col(Audit.seq), col(Audit.id)).limit(_PAGE))).all()
        if not rows:
            return
        yield [link_line(row) for row in rows]
        after = (rows[-1].seq, rows[-1].id)
