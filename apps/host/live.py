"""Work of apps that outlives its request; see `apps.sdk.live`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import structlog

from apps.sdk.live import Live
from tenants.context import PersonId, TenantId

log = structlog.get_logger("portal")

T = TypeVar("T")
Place = tuple[TenantId, PersonId, str, UUID]


class LiveWorks:
    """All that is under way in one portal process."""

    def __init__(self, work: asyncio.TaskGroup) -> None:
        self._work = work
        self._live: dict[Place, Live[Any]] = {}

    def of(self, tenant_id: TenantId, person_id: PersonId, app: str) -> "PersonsLive":
        return PersonsLive(self, tenant_id, person_id, app)

    def find(self, place: Place) -> Live[Any] | None:
        return self._live.get(place)

    def start(self, place: Place, pieces: AsyncGenerator[T, None]) -> Live[T]:
        live: Live[T] = Live()
        self._live[place] = live
        self._work.create_task(self._make(place, live, pieces))
        return live

    def stop_all(self) -> None:
        """The process ends; each keeps what it has."""
        for live in self._live.values():
            live.stop()

    async def _make(self, place: Place, live: Live[T], pieces: AsyncGenerator[T, None]) -> None:
        making = asyncio.ensure_future(_tell_all(live, pieces))
        stopped = asyncio.ensure_future(live.is_stopped.wait())
        try:
            await asyncio.wait((making, stopped), return_when=asyncio.FIRST_COMPLETED)
            making.cancel()
            with suppress(asyncio.CancelledError):
                await making
        except Exception:  # as at the HTTP edge: whoever comes back finds what was stored
            log.error("live_work_failed", app=place[2], exc_info=True)
        finally:
            stopped.cancel()
            if self._live.get(place) is live:
                del self._live[place]
            live.end()


async def _tell_all(live: Live[T], pieces: AsyncGenerator[T, None]) -> None:
    async with aclosing(pieces):
        async for piece in pieces:
            live.tell(piece)


@dataclass(frozen=True, slots=True)
class PersonsLive:
    """One person's part of it, in one app."""

    works: LiveWorks
    tenant_id: TenantId
    person_id: PersonId
    app: str

    def start(self, key: UUID, pieces: AsyncGenerator[T, None]) -> Live[T]:
        return self.works.start((self.tenant_id, self.person_id, self.app, key), pieces)

    def find(self, key: UUID) -> Live[Any] | None:
        return self.works.find((self.tenant_id, self.person_id, self.app, key))
