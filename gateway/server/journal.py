"""What streamed answers said, kept for some minutes so that a caller who lost the connection can take them up again.

The gateway that makes an answer writes it in batches, sealed by the town's key; any gateway of the region reads it.
Callers who ask for none of this cost nothing here. See docs/adr/0016-streams-taken-up-again.md.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, delete, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.server.authentication import Caller
from gateway.server.http import CutOff, error_event
from gateway.server.providers.base import HEARTBEAT
from observability.problems import NotFound, Problem, Unavailable
from tenants.answers import KEPT_FOR
from tenants.context import TenantContext, TenantId
from tenants.db import Database
from tenants.models import StreamPartRow, StreamRow
from tenants.vault import Keyring, Vault, place

log = structlog.get_logger("gateway")

# Beyond this an answer goes on, but only to who still listens.
MAX_KEPT_BYTES: Final = 8 * 1024 * 1024
# How often what was said is written, and what others wrote is looked for.
WRITE_EVERY_S: Final = 0.2
READ_EVERY_S: Final = 0.2
# Within what an answer's first words are in the database, as a rule.
SOON_S: Final = 1.0
# How often an answer that says nothing is shown to be alive.
BEAT_S: Final = 1.0
FORGET_EVERY_S: Final = 60.0

Headers = list[tuple[bytes, bytes]]


class StreamNotFound(NotFound):
    type = "urn:problem:gateway:stream-not-found"
    title = "その番号の答えの続きはありません"


class StreamLost(Problem):
    """The gateway that made the answer is gone, and what it had not written with it."""

    type = "urn:problem:gateway:stream-lost"
    status = HTTPStatus.BAD_GATEWAY
    title = "答えを作っていた受付が止まり、続きがなくなりました"


class StreamTooLong(Problem):
    type = "urn:problem:gateway:stream-too-long"
    status = HTTPStatus.BAD_GATEWAY
    title = "答えが長く、ここから先は残していません"


class Stopped(CutOff):
    """Its caller wants no more of it."""

    type = "urn:problem:gateway:stopped"
    status = HTTPStatus.CONFLICT
    title = "求めに応じて、答えを途中で終わりにしました"


@dataclass(frozen=True, slots=True)
class _Part:
    """Events that are written together; once tried, the same ones again until it is known that they are there."""

    number: int
    is_last: bool
    plain: bytes = field(repr=False)


class Said:
    """One answer under way in this process: what it said, as far as that is not written yet."""

    def __init__(self, caller: Caller, call_id: UUID, headers: Headers, stop: Callable[[CutOff], None]) -> None:
        """stop: ends the call when its caller asks for that."""
        self.tenant_id = caller.tenant_id
        self.call_id = call_id
        self.owner_id = owner_of(caller)
        self.stop = stop
        self.is_over = False
        # Whether all that was said can be taken up again.
        self.is_kept = True
        self.is_listed = False
        self.beat_at = 0.0
        # When it was first seen to be over.
        self.over_at: datetime | None = None
        self._events = 0
        self._kept_bytes = 0
        self._fresh: list[bytes] = []
        self._first_fresh = 1
        self._parts = 0
        self._is_closed = False
        self.unwritten: list[_Part] = []
        self._part(orjson.dumps([(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers]))

    def add(self, event: bytes) -> bytes:
        """Numbers an event and keeps it; returns it as it is sent."""
        self._events += 1
        numbered = b"id: %d\n" % self._events + event
        if self.is_kept:
            self._kept_bytes += len(numbered)
            self.is_kept = self._kept_bytes <= MAX_KEPT_BYTES
            self._fresh.append(numbered if self.is_kept else error_event(StreamTooLong()))
        return numbered

    @property
    def is_done(self) -> bool:
        """Nothing more will be written of it."""
        return self.is_over and self._is_closed and not self.unwritten

    def freeze(self) -> None:
        """Makes a part of what came since the last one. When the answer is over, or no more of it is kept: the last."""
        is_last = self.is_over or not self.is_kept
        if self._is_closed or not (self._fresh or is_last):
            return
        lengths = [len(event) for event in self._fresh]
        head = orjson.dumps([self._first_fresh, lengths])
        self._part(head + b"\n" + b"".join(self._fresh), is_last=is_last)
        self._first_fresh += len(lengths)
        self._fresh.clear()
        self._is_closed = is_last

    def _part(self, plain: bytes, *, is_last: bool = False) -> None:
        self.unwritten.append(_Part(self._parts, is_last, plain))
        self._parts += 1


def owner_of(caller: Caller) -> UUID:
    """Whom an answer is for: a person, or a system by its key."""
    owner = caller.person_id or caller.api_key_id
    assert owner is not None
    return owner


@dataclass(slots=True, eq=False)
class _Reader:
    """Somebody who takes up an answer that this process reads from the database."""

    call_id: UUID
    next_part: int = 1
    parts: list[StreamPartRow] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    heard_at: datetime | None = None
    silent_since: float | None = None
    is_lost: bool = False


class Journal:
    """One per gateway process."""

    def __init__(
        self,
        db: Database,
        vault: Vault,
        *,
        lost_after_s: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """lost_after_s: without a sign of life for so long, whoever made an answer is taken to be gone."""
        self._db = db
        self._vault = vault
        self._lost_after_s = lost_after_s
        self._clock = clock
        self._said: dict[UUID, Said] = {}
        self._fresh = asyncio.Event()
        self._readers: defaultdict[TenantId, set[_Reader]] = defaultdict(set)
        self._wanted = asyncio.Event()
        # Towns whose answers this process wrote, and when it last did.
        self._wrote: dict[TenantId, float] = {}

    # ── what this process makes ──────────────────────────────────────────────────────────────────────────────────

    def begin(self, caller: Caller, call_id: UUID, headers: Headers, stop: Callable[[CutOff], None]) -> Said:
        said = self._said[call_id] = Said(caller, call_id, headers, stop)
        self._fresh.set()
        return said

    def changed(self) -> None:
        """Something was said that is to be written soon; nobody waits for it."""
        self._fresh.set()

    async def write(self) -> None:
        """Writes what is said, again and again, until it is cancelled."""
        forget_at = time.monotonic() + FORGET_EVERY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S / 2 if self._said else None):
                    await self._fresh.wait()
            self._fresh.clear()
            await self._write_all()
            if time.monotonic() >= forget_at:
                forget_at = time.monotonic() + FORGET_EVERY_S
                await self._forget()
            await asyncio.sleep(WRITE_EVERY_S)

    async def aclose(self) -> None:
        """Writes what is left, as far as the database takes it."""
        for said in self._said.values():
            said.is_over = True
        await self._write_all()

    async def stop(self, caller: Caller, call_id: UUID) -> None:
        """Ends an answer for the caller it is for, here at once, elsewhere within moments. Raises `StreamNotFound`."""
        said = self._said.get(call_id)
        if said is not None and said.tenant_id == caller.tenant_id and said.owner_id == owner_of(caller):
            said.stop(Stopped("ここまでの答えは、そのまま使えます。"))
            return
        is_it = self._is_of(caller, call_id)
        give_up = time.monotonic() + SOON_S
        try:
            while True:
                async with self._db.content_session(TenantContext(caller.tenant_id)) as session:
                    found = await session.exec(update(StreamRow).where(*is_it).values(is_stopped=True))
                if found.rowcount:
                    return
                if time.monotonic() > give_up:
                    raise StreamNotFound("番号を確かめてください。")
                await asyncio.sleep(WRITE_EVERY_S)
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable("少し待って、もう一度送ってください。", retry_after_s=2) from error

    async def _write_all(self) -> None:
        now, at = time.monotonic(), self._clock()
        of_town: defaultdict[TenantId, list[Said]] = defaultdict(list)
        for said in list(self._said.values()):
            said.freeze()
            if said.is_over:
                said.over_at = said.over_at or at
            # What could not be written for so long (a town's keys may be gone) nobody may take up any more.
            if said.is_done or (said.over_at is not None and said.over_at < at - KEPT_FOR):
                del self._said[said.call_id]
            elif said.unwritten or now - said.beat_at >= BEAT_S:
                of_town[said.tenant_id].append(said)
        for tenant_id, answers in of_town.items():
            try:
                await self._write(tenant_id, answers)
            except (SQLAlchemyError, OSError, Problem):
                # The answers go on; what they said is written when the database is back.
                log.warning("streams_not_written", streams=len(answers), exc_info=True)

    async def _write(self, tenant_id: TenantId, answers: Sequence[Said]) -> None:
        ring = await self._vault.ring(tenant_id)
        now = self._clock()
        writing = {said: tuple(said.unwritten) for said in answers}
        new = [
            {"tenant_id": tenant_id, "call_id": s.call_id, "owner_id": s.owner_id, "is_stopped": False, "heard_at": now}
            for s in answers
            if not s.is_listed
        ]
        parts = [
            {
                "tenant_id": tenant_id, "call_id": said.call_id, "number": part.number, "is_last": part.is_last,
                "cipher": ring.seal(part.plain, aad=_place(said.call_id, part.number)),
            }
            for said, written in writing.items()
            for part in written
        ]  # fmt: skip
        beating = [s.call_id for s in answers if s.is_listed]
        stopped: set[UUID] = set()
        async with self._db.content_session(TenantContext(tenant_id)) as session:
            # What an earlier try may have left there is the same as now.
            await self._insert(session, StreamRow, new)
            await self._insert(session, StreamPartRow, parts)
            if beating:
                mine = col(StreamRow.call_id).in_(beating)
                await session.exec(update(StreamRow).where(mine).values(heard_at=now))
                asked = select(StreamRow.call_id).where(mine, col(StreamRow.is_stopped))
                stopped = set(await session.exec(asked))
        beat_at = time.monotonic()
        self._wrote[tenant_id] = beat_at
        for said, written in writing.items():
            said.is_listed, said.beat_at = True, beat_at
            del said.unwritten[: len(written)]
            if said.is_done:
                del self._said[said.call_id]
            elif said.call_id in stopped:
                said.stop(Stopped("ここまでの答えは、そのまま使えます。"))

    async def _insert(self, session: AsyncSession, table: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            dialect = sqlite if self._db.is_sqlite else postgresql
            await session.exec(dialect.insert(table).on_conflict_do_nothing(), params=rows)

    async def _forget(self) -> None:
        for tenant_id, at in list(self._wrote.items()):
            try:
                await forget_streams(self._db, tenant_id, self._clock())
            except (SQLAlchemyError, OSError):
                log.warning("streams_not_forgotten", exc_info=True)
                continue
            if time.monotonic() - at > 2 * KEPT_FOR.total_seconds():
                self._wrote.pop(tenant_id, None)

    # ── what any process reads ───────────────────────────────────────────────────────────────────────────────────

    async def find(self, caller: Caller, call_id: UUID) -> Headers:
        """The headers of an answer that is for this caller. Raises `StreamNotFound`, `Unavailable`."""
        ctx = TenantContext(caller.tenant_id)
        is_there = (*self._is_of(caller, call_id), col(StreamRow.heard_at) > self._clock() - KEPT_FOR)
        give_up = time.monotonic() + SOON_S
        try:
            while True:
                async with self._db.content_session(ctx, read_only=True) as session:
                    head = (
                        await session.exec(
                            select(StreamPartRow)
                            .join(StreamRow, col(StreamRow.call_id) == col(StreamPartRow.call_id))
                            .where(*is_there, col(StreamPartRow.number) == 0)
                        )
                    ).first()
                if head is not None:
                    break
                if time.monotonic() > give_up:
                    raise StreamNotFound("番号を確かめてください。終わって10分を過ぎた答えは残っていません。")
                await asyncio.sleep(WRITE_EVERY_S)
            opened = (await self._opened(caller.tenant_id, [head]))[0]
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable("少し待って、もう一度送ってください。", retry_after_s=2) from error
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in orjson.loads(opened)]

    async def follow(
        self, tenant_id: TenantId, call_id: UUID, *, after: int, heartbeat_s: float
    ) -> AsyncGenerator[bytes]:
        """The events behind number `after`, as they come, until the last; `HEARTBEAT` while none does.

        Raises `StreamLost` when the gateway that made them is gone.
        """
        reader = _Reader(call_id)
        self._readers[tenant_id].add(reader)
        self._wanted.set()
        try:
            while True:
                try:
                    async with asyncio.timeout(heartbeat_s):
                        await reader.news.wait()
                except TimeoutError:
                    yield HEARTBEAT
                    continue
                reader.news.clear()
                parts, reader.parts = reader.parts, []
                for row, plain in zip(parts, await self._opened(tenant_id, parts), strict=True):
                    if events := _events(plain, after):
                        yield events
                    if row.is_last:
                        return
                if reader.is_lost:
                    raise StreamLost("ここまでの答えは、そのまま使えます。続きが要るときは、もう一度送ってください。")
        finally:
            readers = self._readers[tenant_id]
            readers.discard(reader)
            if not readers:
                del self._readers[tenant_id]

    async def read(self) -> None:
        """Looks for what others wrote, for all who wait for it here, until it is cancelled."""
        while True:
            await self._wanted.wait()
            for tenant_id, readers in list(self._readers.items()):
                try:
                    await self._read(tenant_id, readers)
                except (SQLAlchemyError, OSError):
                    for reader in readers:
                        # Nothing can be told from a database that is away.
                        reader.silent_since = None
                    log.warning("streams_not_read", streams=len(readers), exc_info=True)
            if not self._readers:
                self._wanted.clear()
            await asyncio.sleep(READ_EVERY_S)

    async def _read(self, tenant_id: TenantId, readers: set[_Reader]) -> None:
        """One transaction for all of a town's answers that are read here."""
        ids = {reader.call_id for reader in readers}
        waiting = list(readers)
        async with self._db.content_session(TenantContext(tenant_id), read_only=True) as session:
            heard = select(StreamRow.call_id, StreamRow.heard_at).where(col(StreamRow.call_id).in_(ids))
            heard_at = dict((await session.exec(heard)).all())
            newest = select(StreamPartRow.call_id, func.max(StreamPartRow.number)).where(
                col(StreamPartRow.call_id).in_(ids)
            )
            written = dict((await session.exec(newest.group_by(col(StreamPartRow.call_id)))).all())
            for reader in waiting:
                if written.get(reader.call_id, 0) < reader.next_part:
                    continue
                parts = select(StreamPartRow).where(
                    col(StreamPartRow.call_id) == reader.call_id, col(StreamPartRow.number) >= reader.next_part
                )
                found = list(await session.exec(parts.order_by(col(StreamPartRow.number))))
                reader.next_part = found[-1].number + 1
                reader.parts += found
                reader.silent_since = None
                reader.news.set()
        now = time.monotonic()
        for reader in waiting:
            seen = heard_at.get(reader.call_id)
            if seen != reader.heard_at or reader.silent_since is None:
                reader.heard_at, reader.silent_since = seen, now
            elif now - reader.silent_since >= self._lost_after_s:
                reader.is_lost = True
                reader.news.set()

    async def _opened(self, tenant_id: TenantId, parts: Sequence[StreamPartRow]) -> list[bytes]:
        ring: Keyring = await self._vault.ring_for(tenant_id, [part.cipher for part in parts])
        return [ring.open(part.cipher, aad=_place(part.call_id, part.number)) for part in parts]

    def _is_of(self, caller: Caller, call_id: UUID) -> tuple[Any, ...]:
        return (
            col(StreamRow.tenant_id) == caller.tenant_id,
            col(StreamRow.call_id) == call_id,
            col(StreamRow.owner_id) == owner_of(caller),
        )


async def forget_streams(db: Database, tenant_id: TenantId, now: datetime) -> int:
    """A town's answers whose time is over go. Returns how many."""
    async with db.content_session(TenantContext(tenant_id)) as session:
        over = list(
            await session.exec(select(StreamRow.call_id).where(col(StreamRow.heard_at) < now - KEPT_FOR).limit(1_000))
        )
        if over:
            await session.exec(delete(StreamPartRow).where(col(StreamPartRow.call_id).in_(over)))
            await session.exec(delete(StreamRow).where(col(StreamRow.call_id).in_(over)))
    return len(over)


def _place(call_id: UUID, number: int) -> bytes:
    return place("stream_part", call_id, version=number)


def _events(plain: bytes, after: int) -> bytes:
    """A part's events behind number `after`."""
    head, _, said = plain.partition(b"\n")
    first, lengths = orjson.loads(head)
    known = max(0, after - first + 1)
    return said[sum(lengths[:known]) :]
