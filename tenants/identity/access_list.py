"""Our own list of what no longer counts, although its tokens still live: checked on every request, polled for change.

The issuer's own revocation is seen only when a token expires (≤ 5 minutes); this one within two polls.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final, Literal

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import NotSignedIn, Problem
from tenants.context import PersonId, TenantId
from tenants.db import Database
from tenants.models import ConfigGeneration, Revocation, Tenant
from tenants.policy import bump_configuration

log = structlog.get_logger("identity")

POLL_S: Final = 0.5
REFRESH_S: Final = 2.0
# Tokens live for minutes, cached keys for one; the rows themselves say for good that a person or a key has ended.
KEEP: Final = timedelta(days=2)
Kind = Literal["tenant", "person", "sid", "sub", "key"]
_UNKNOWN: Final[tuple[str, datetime | None]] = ("unknown", None)


class TenantSuspended(Problem):
    type = "urn:problem:identity:tenant-suspended"
    status = HTTPStatus.FORBIDDEN
    title = "この団体の利用は止められています"


class Revoked(NotSignedIn):
    type = "urn:problem:identity:revoked"
    title = "このサインインは取り消されました"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    generation: int = -1
    statuses: Mapping[TenantId, tuple[str, datetime | None]] = field(default_factory=dict)
    revoked: Mapping[tuple[str, str], datetime] = field(default_factory=dict)


class AccessList:
    """One per process; `load()` before the first request, `poll()` as a task."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._snapshot = _Snapshot()
        self._refreshing = asyncio.Lock()
        self._read_at = 0.0

    @property
    def generation(self) -> int:
        """Which state of the tenants this list knows."""
        return self._snapshot.generation

    async def check(
        self,
        tenant_id: TenantId,
        *,
        issued_at: datetime | None = None,
        person_id: PersonId | None = None,
        sid: str = "",
        sub: str = "",
        key_id: str = "",
    ) -> None:
        """Raises `TenantSuspended` or `Revoked`; an unknown tenant is refused.

        issued_at: of the token. A revocation ends what was issued before it, so a later sign-in counts again.
        A town is refused only by the newest list: one that was made or resumed a moment ago is not turned away.
        """
        status, revoked_before = self._snapshot.statuses.get(tenant_id, _UNKNOWN)
        if status != "active":
            await self._refresh()
            status, revoked_before = self._snapshot.statuses.get(tenant_id, _UNKNOWN)
        if status != "active":
            raise TenantSuspended("共同利用の事務局に問い合わせてください。")
        if revoked_before is not None and issued_at is not None and issued_at < revoked_before:
            raise Revoked("もう一度サインインしてください。")
        if not self._snapshot.revoked:
            return
        for kind, value in (("person", str(person_id or "")), ("sid", sid), ("sub", sub), ("key", key_id)):
            since = self._snapshot.revoked.get((kind, value)) if value else None
            if since is not None and (issued_at is None or issued_at < since):
                raise Revoked("もう一度サインインしてください。")

    async def load(self) -> None:
        """Reads the list; raises when the database is not there."""
        now = datetime.now(UTC)
        async with self._db.platform_session("access list", read_only=True) as session:
            generation = (await session.exec(select(ConfigGeneration.generation))).first() or 0
            tenants = (await session.exec(select(Tenant.id, Tenant.status, Tenant.revoked_before))).all()
            revocations = (
                await session.exec(
                    select(Revocation)
                    .where(or_(col(Revocation.until).is_(None), col(Revocation.until) > now))
                    # The newest of several for one person counts: the later entry of a mapping wins.
                    .order_by(col(Revocation.since))
                )
            ).all()
        self._snapshot = _Snapshot(
            generation,
            {TenantId(id): (status, before) for id, status, before in tenants},
            {(r.kind, r.value): r.since for r in revocations},
        )

    async def poll(self) -> None:
        """Runs until cancelled. A failing poll keeps the last list: nobody is let in by it who was not before."""
        while True:
            await self._db.push.wait(POLL_S)
            await self._refresh()

    async def _refresh(self) -> None:
        """Reads the list again if the tenants have changed; with the database away the last list stays.

        Who waited while another's reading began and ended has what it came for: many refusals are one reading.
        """
        asked = time.monotonic()
        async with self._refreshing:
            if self._read_at >= asked:
                return
            begun = time.monotonic()
            try:
                async with asyncio.timeout(REFRESH_S):
                    async with self._db.platform_session("access list", read_only=True) as session:
                        generation = (await session.exec(select(ConfigGeneration.generation))).first() or 0
                    if generation != self._snapshot.generation:
                        await self.load()
                self._read_at = begun
            except (SQLAlchemyError, OSError):
                log.warning("access_list_poll_failed", exc_info=True)


async def revoke(
    session: AsyncSession, kind: Kind, value: str, *, tenant_id: TenantId | None, until: datetime | None = None
) -> None:
    """Ends what was issued until now; in a platform session. The lists of all processes follow within two polls.

    until: when nothing issued before can live any more; by default after `KEEP`.
    """
    since = datetime.now(UTC)
    session.add(Revocation(kind=kind, value=value, tenant_id=tenant_id, since=since, until=until or since + KEEP))
    await bump_configuration(session)
