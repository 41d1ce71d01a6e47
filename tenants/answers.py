"""How long a call's answer is kept for a caller that gave it a key of its own, and its end."""

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import update
from sqlmodel import col, delete, select

from tenants.context import TenantContext, TenantId
from tenants.db import Database
from tenants.models import AnswerRow, Idempotency

KEPT_FOR: Final = timedelta(minutes=10)
# A key is known for so long; a client that comes back with it later makes a new call.
KNOWN_FOR: Final = timedelta(days=1)


async def forget_answers(db: Database, now: datetime) -> int:
    """Answers whose time is over go, and keys of yesterday; run by the worker. Returns how many answers went."""
    async with db.platform_session("idempotency", read_only=True) as session:
        over = (
            await session.exec(
                select(Idempotency.tenant_id)
                .where(col(Idempotency.state) == "kept", col(Idempotency.finished_at) < now - KEPT_FOR)
                .distinct()
            )
        ).all()
    gone = 0
    for tenant_id in over:
        async with db.content_session(TenantContext(TenantId(tenant_id))) as content:
            done = await content.exec(
                delete(AnswerRow).where(
                    col(AnswerRow.tenant_id) == tenant_id, col(AnswerRow.created_at) < now - KEPT_FOR
                )
            )
            gone += int(done.rowcount)
    async with db.platform_session("idempotency") as session:
        await session.exec(
            update(Idempotency)
            .where(col(Idempotency.state) == "kept", col(Idempotency.finished_at) < now - KEPT_FOR)
            .values(state="spent")
        )
        await session.exec(delete(Idempotency).where(col(Idempotency.created_at) < now - KNOWN_FOR))
    return gone
