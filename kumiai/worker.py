"""What outlives a request: holds of crashed gateways, the trash, ended sessions, next months' partitions."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, delete, select

from apps.sdk.app import installed_manifests
from observability import metrics
from tenants.answers import forget_answers
from tenants.audit.checkpoints import Signer
from tenants.audit.segments import seal_calls
from tenants.blobs import Blobs, FolderStore
from tenants.breakglass import end_expired
from tenants.context import TenantContext, TenantId
from tenants.db import Database
from tenants.documents import Documents
from tenants.keyfiles import KeyFileError
from tenants.models import PortalSession, Revocation, Tenant, Throttle
from tenants.quota.grants import move_slices, move_wanted
from tenants.quota.invoice import close_months
from tenants.quota.ledger import sweep
from tenants.quota.slots import enforce_sold
from tenants.quota.soft_limits import raise_notices
from tenants.quota.suspense import finalise
from tenants.quota.windows import window_start
from tenants.retention import Retention
from tenants.settings import Settings
from tenants.vault import FileRootKeys, Vault

log = structlog.get_logger("worker")

KEEP_ENDED_SESSIONS: Final = timedelta(days=7)
KEEP_EXPORTS: Final = timedelta(days=30)
# A segment holds what was closed in a second at most, while the worker keeps up.
SEAL_EVERY_S: Final = 1
# A worker that is away for weeks leaves no gap.
MONTHS_AHEAD: Final = 3


class Worker:
    """The recurring duties of one worker process; two of them do no harm to each other."""

    def __init__(self, settings: Settings, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._settings = settings
        self._clock = clock
        self._db = Database(settings.urls, push_url=settings.valkey_url.get_secret_value())
        vault = Vault(self._db, FileRootKeys(settings.key_file("root")))
        self._documents = Documents(self._db, vault)
        self._blobs = Blobs(self._db, vault, FolderStore(settings.blobs))
        self._retention = Retention(self._db, self._documents, {m.id: m.retention_days for m in installed_manifests()})
        self._signer = Signer(self._db, vault, clock=clock)

    async def close(self) -> None:
        await self._db.close()

    async def sweep_holds(self) -> int:
        """Holds whose gateway died go to suspense at the full amount; none is voided."""
        return await asyncio.to_thread(sweep, self._settings.urls.filled())

    async def final_suspense(self) -> int:
        """What nobody could tell the cost of for 35 days stands at its full hold for good."""
        return await asyncio.to_thread(lambda: finalise(self._settings.urls.filled(), now=self._clock()))

    async def seal(self) -> int:
        """What gateways have closed enters the towns' audit chains."""
        return await seal_calls(self._db)

    async def checkpoints(self) -> int:
        """Signs how far the towns' chains reach."""
        return await self._signer.checkpoint_all()

    async def break_glass(self) -> int:
        """Ends what has run out, so that the town is told."""
        return await end_expired(self._db, self._clock())

    async def soft_limits(self) -> int:
        """Tells those whom it concerns that a limit is 70, 90 or 100 per cent used."""
        async with self._db.platform_session("soft limits") as session:
            return await raise_notices(session, self._clock())

    async def invoices(self) -> int:
        """Closes the month that is over: its bills say the same from then on."""
        return await close_months(self._db, self._clock())

    async def sold_slots(self) -> int:
        """What a town has bought for the month is what it may use at the same time."""
        return await enforce_sold(self._db, self._clock())

    async def grants(self) -> int:
        """Lends and gives back slices of the region's pools, so that no town stops while another has too much."""
        return await move_slices(self._db, self._clock())

    async def wanted_grants(self) -> int:
        """The same at once for a town that has just run low: calls of it wait for that."""
        return await move_wanted(self._db, self._clock())

    async def purge(self) -> int:
        """What was kept or lay in the trash for its time goes for good, files without a document too."""
        async with self._db.platform_session("retention", read_only=True) as session:
            tenants = (await session.exec(select(Tenant.id).where(col(Tenant.status) != "erased"))).all()
        gone = 0
        for tenant_id in tenants:
            ctx = TenantContext(TenantId(tenant_id))
            gone += await self._retention.expire(ctx.tenant_id, self._clock())
            gone += await self._documents.purge_due(ctx)
            gone += await self._documents.sweep(ctx)
            gone += await self._blobs.sweep(ctx)
        return gone

    async def exports(self) -> int:
        """Exports of whole towns that nobody needs any more."""
        return await asyncio.to_thread(_remove_older, self._settings.exports, datetime.now(UTC) - KEEP_EXPORTS)

    async def forget(self) -> int:
        """Sessions and revocations that can no longer matter."""
        now = self._clock()
        async with self._db.platform_session("retention") as session:
            ended = await session.exec(
                delete(PortalSession).where(col(PortalSession.expires_at) < now - KEEP_ENDED_SESSIONS)
            )
            await session.exec(delete(Revocation).where(col(Revocation.until) < now))
            await session.exec(delete(Throttle).where(col(Throttle.first_at) < now - timedelta(days=1)))
        return int(ended.rowcount)

    async def answers(self) -> int:
        """Answers kept for callers who might ask for them again, when nobody may any more."""
        return await forget_answers(self._db, self._clock())

    async def partitions(self) -> int:
        """This month and the next, so that no row ever lacks its partition. Returns how many were made."""
        if self._db.is_sqlite:
            return 0
        first = window_start("month", self._clock())
        async with self._db.platform_session("partitions") as session:
            made = await session.exec(
                text("select ensure_month_partitions(:first, :months)").bindparams(first=first, months=MONTHS_AHEAD)
            )  # type: ignore[call-overload]  # SQLModel types exec() for select() only
            return int(made.scalar_one())


def _remove_older(folder: Path, limit: datetime) -> int:
    old = [f for f in folder.glob("*") if f.is_file() and datetime.fromtimestamp(f.stat().st_mtime, UTC) < limit]
    for file in old:
        file.unlink(missing_ok=True)
    return len(old)


async def work(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the duties until `stop` is set; a duty that fails is logged and tried again at its next turn."""
    worker = Worker(settings)
    duties: list[tuple[str, float, Callable[[], Awaitable[int]]]] = [
        ("seal", SEAL_EVERY_S, worker.seal),
        ("checkpoints", 600, worker.checkpoints),
        ("sweep_holds", 15, worker.sweep_holds),
        ("final_suspense", 3600, worker.final_suspense),
        ("grants", 2, worker.grants),
        ("wanted_grants", 0.2, worker.wanted_grants),
        ("break_glass", 30, worker.break_glass),
        ("soft_limits", 30, worker.soft_limits),
        ("purge", 3600, worker.purge),
        ("forget", 3600, worker.forget),
        ("exports", 3600, worker.exports),
        ("answers", 60, worker.answers),
        ("invoices", 60, worker.invoices),
        ("sold_slots", 30, worker.sold_slots),
        ("partitions", 86_400, worker.partitions),
    ]
    try:
        await asyncio.gather(*(_repeat(name, every_s, duty, stop) for name, every_s, duty in duties))
    finally:
        await worker.close()


async def _repeat(name: str, every_s: float, duty: Callable[[], Awaitable[int]], stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            done = await duty()
            metrics.JOBS.labels(name, "ok").inc()
            if done and every_s > SEAL_EVERY_S:
                log.info("duty_done", duty=name, count=done)
        except (SQLAlchemyError, OSError, KeyFileError):
            metrics.JOBS.labels(name, "failed").inc()
            log.warning("duty_failed", duty=name, exc_info=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_s)
