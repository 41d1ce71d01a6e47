"""Closed calls enter the chain as sealed segments, off the request's path.

The ledger queues a call in the transaction that closes it, and again when a later truth corrects it. Sealing takes
calls from the queue and adds their segment in one transaction: whatever is killed, each is sealed exactly once. A
segment keeps its leaves as they were, so a correction adds a leaf and breaks none.
"""

from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import and_, col, delete, select

from tenants.audit import By, Entry, add_link, locked_head
from tenants.audit.records import LEAF_COLUMNS, SEGMENT, leaf, merkle_root
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import Call, SealQueue

log = structlog.get_logger("audit")

MAX_LEAVES: Final = 1_000
SEALER: Final = By("system", "seal")


async def seal_calls(db: Database) -> int:
    """Seals what has been closed in all towns; returns how many leaves.

    A town that cannot be sealed holds up no other; its `SQLAlchemyError` is raised when all have had their turn.
    """
    async with db.platform_session("audit seal", read_only=True) as session:
        waiting = (await session.exec(select(SealQueue.tenant_id).distinct())).all()
    sealed = 0
    failed: SQLAlchemyError | None = None
    for tenant_id in waiting:
        try:
            sealed += await seal_town(db, TenantId(tenant_id))
        except SQLAlchemyError as error:
            log.warning("town_not_sealed", tenant_id=str(tenant_id), error=type(error).__name__)
            failed = error
    if failed is not None:
        raise failed
    return sealed


async def seal_town(db: Database, tenant_id: TenantId) -> int:
    """Seals what has been closed in one town, at most `MAX_LEAVES` in a segment; returns how many leaves."""
    sealed = 0
    while count := await _seal_segment(db, tenant_id):
        sealed += count
        if count < MAX_LEAVES:
            break
    return sealed


async def _seal_segment(db: Database, tenant_id: TenantId) -> int:
    columns = [getattr(Call, name) for name in LEAF_COLUMNS]
    same_call = and_(
        col(Call.tenant_id) == SealQueue.tenant_id,
        col(Call.created_at) == SealQueue.call_created_at,
        col(Call.id) == SealQueue.call_id,
    )
    async with db.platform_session("audit seal") as session:
        # First the head, so that a second worker waits here and then finds nothing left to do.
        head = await locked_head(session, tenant_id)
        found = await session.exec(
            select(SealQueue.id, *columns)
            .join(Call, same_call)
            .where(SealQueue.tenant_id == tenant_id)
            .order_by(SealQueue.call_created_at, SealQueue.id)
            .limit(MAX_LEAVES)
        )
        rows = found.all()
        if not rows:
            return 0
        leaves = [leaf(row[1:]) for row in rows]
        facts: dict[str, str | int | bool | None] = {"count": len(leaves), "root": merkle_root(leaves)}
        add_link(session, head, SEALER, Entry(SEGMENT, facts=facts, leaves=leaves))
        session.add(head)
        taken = [row[0] for row in rows]
        await session.exec(delete(SealQueue).where(col(SealQueue.tenant_id) == tenant_id, col(SealQueue.id).in_(taken)))
    return len(leaves)
