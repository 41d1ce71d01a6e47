"""Sealed files of any size, in the form of `tenants.sealed_files`: neither memory nor disk ever holds a whole file in clear.

Order of a write: the sealed temporary file, then the row, then the name; what a crash leaves is swept.
"""

import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from uuid import UUID

import anyio.to_thread
from sqlalchemy import ColumnElement, true, update
from sqlmodel import col, select

from observability.problems import NotFound, Problem
from tenants.context import PersonId, TenantContext, TenantId, new_id
from tenants.db import Database
from tenants.documents import Viewer
from tenants.holds import is_held
from tenants.models import BlobRow
from tenants.sealed_files import (
    CHUNK_BYTES,
    HEAD_BYTES,
    LAST,
    MIDDLE,
    TAG_BYTES,
    begin_sealed,
    key_of,
    open_chunk,
    open_head,
    seal_chunk,
)
from tenants.vault import ContentUnreadable, Keyring, Vault, place

MAX_BLOB_BYTES: Final = 200 * 1024 * 1024
ORPHAN_AGE_S: Final = 3600


class BlobTooLarge(Problem):
    type = "urn:problem:tenants:blob-too-large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    title = "ファイルが大きすぎます"


@dataclass(frozen=True, slots=True)
class Blob:
    """What is known of a file without reading it; `size_bytes` in clear."""

    id: UUID
    name: str = field(repr=False)
    media_type: str
    size_bytes: int
    owner_id: PersonId | None
    document_id: UUID | None
    created_at: datetime


class Staging(Protocol):
    """An object being written; invisible until `commit`."""

    async def write(self, data: bytes) -> None: ...

    async def commit(self) -> None:
        """Durable and visible under its key, or not at all."""

    async def abort(self) -> None:
        """Leaves nothing; safe to call after `commit`."""


class BlobStore(Protocol):
    """Where sealed bytes lie. It sees ciphertext and ids only; keys are `tenant id` and `blob id`."""

    async def stage(self, tenant_id: TenantId, blob_id: UUID) -> Staging: ...

    def read(self, tenant_id: TenantId, blob_id: UUID, *, part_bytes: int, skip: int) -> AsyncIterator[bytes]:
        """The object after its first `skip` bytes in parts of exactly `part_bytes`, the last one shorter.

        Raises `NotFound`.
        """

    async def head(self, tenant_id: TenantId, blob_id: UUID, length: int) -> bytes:
        """Raises `NotFound`."""

    async def delete(self, tenant_id: TenantId, blob_id: UUID) -> None:
        """A missing object is no error."""

    async def older_than(self, tenant_id: TenantId, age_s: float) -> list[UUID]:
        """Objects written before, for the sweep. Unfinished writes that old are removed on the way."""

    async def delete_tenant(self, tenant_id: TenantId) -> int: ...


class FolderStore:
    """Objects as files under `<root>/<tenant>/<xx>/<id>`, mode 0600."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, tenant_id: TenantId, blob_id: UUID) -> Path:
        # The last two digits are random; the first ones of a UUIDv7 are the time.
        return self._root / str(tenant_id) / blob_id.hex[-2:] / blob_id.hex

    async def stage(self, tenant_id: TenantId, blob_id: UUID) -> "_FolderStaging":
        path = self._path(tenant_id, blob_id)
        return await anyio.to_thread.run_sync(_FolderStaging.begin, path)

    async def read(self, tenant_id: TenantId, blob_id: UUID, *, part_bytes: int, skip: int) -> AsyncIterator[bytes]:
        file = await anyio.to_thread.run_sync(_open_read, self._path(tenant_id, blob_id))
        try:
            await anyio.to_thread.run_sync(file.seek, skip)
            while part := await anyio.to_thread.run_sync(file.read, part_bytes):
                yield part
        finally:
            file.close()

    async def head(self, tenant_id: TenantId, blob_id: UUID, length: int) -> bytes:
        def read() -> bytes:
            with _open_read(self._path(tenant_id, blob_id)) as file:
                return file.read(length)

        return await anyio.to_thread.run_sync(read)

    async def delete(self, tenant_id: TenantId, blob_id: UUID) -> None:
        path = self._path(tenant_id, blob_id)
        await anyio.to_thread.run_sync(lambda: path.unlink(missing_ok=True))

    async def older_than(self, tenant_id: TenantId, age_s: float) -> list[UUID]:
        def scan() -> list[UUID]:
            before = time.time() - age_s
            found = []
            for path in (self._root / str(tenant_id)).glob("*/*"):
                try:
                    if path.stat().st_mtime >= before:
                        continue
                    if path.suffix == ".new":
                        path.unlink()
                    else:
                        found.append(UUID(path.name))
                except FileNotFoundError:
                    continue  # Renamed or deleted meanwhile.
            return found

        return await anyio.to_thread.run_sync(scan)

    async def delete_tenant(self, tenant_id: TenantId) -> int:
        def remove() -> int:
            folder = self._root / str(tenant_id)
            removed = 0
            for path in sorted(folder.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
                    removed += 1
            if folder.is_dir():
                folder.rmdir()
            return removed

        return await anyio.to_thread.run_sync(remove)


class _FolderStaging:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    @classmethod
    def begin(cls, path: Path) -> "_FolderStaging":
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return cls(path, os.fdopen(descriptor, "wb"))

    async def write(self, data: bytes) -> None:
        await anyio.to_thread.run_sync(self._file.write, data)

    async def commit(self) -> None:
        def commit() -> None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.with_suffix(".new").rename(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

        await anyio.to_thread.run_sync(commit)

    async def abort(self) -> None:
        def abort() -> None:
            self._file.close()
            self._path.with_suffix(".new").unlink(missing_ok=True)

        await anyio.to_thread.run_sync(abort)


def _open_read(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise NotFound("ファイルがありません。") from error


class Blobs:
    """The file store of one process."""

    def __init__(
        self,
        db: Database,
        vault: Vault,
        store: BlobStore,
        *,
        max_bytes: int = MAX_BLOB_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.db = db
        self.vault = vault
        self.store = store
        self.max_bytes = max_bytes
        self.clock = clock

    def of(self, ctx: TenantContext, *, app: str, viewer: Viewer | None) -> "AppBlobs":
        """One app's files through one person's eyes; viewer None: all of the app's in this tenant."""
        return AppBlobs(self, ctx, app, viewer)

    async def sweep(self, ctx: TenantContext, *, age_s: float = ORPHAN_AGE_S) -> int:
        """Removes files marked deleted, files without a row and rows without a file; returns how many. A duty.

        What is held stays, though marked.
        """
        before = self.clock() - timedelta(seconds=age_s)
        stored = set(await self.store.older_than(ctx.tenant_id, age_s))
        async with self.db.content_session(ctx, read_only=True) as session:
            rows = list(
                await session.exec(
                    select(BlobRow.id, BlobRow.deleted_at, BlobRow.created_at, is_held(BlobRow)).where(
                        BlobRow.tenant_id == ctx.tenant_id
                    )
                )
            )
        known = {id for id, *_ in rows}
        gone = {id for id, deleted_at, _, held in rows if deleted_at is not None and not held}
        for id, _, created_at, _ in rows:
            if id not in gone and created_at < before and id not in stored and not await self._exists(ctx, id):
                gone.add(id)
        orphans = stored - known
        for id in gone | orphans:
            await self.store.delete(ctx.tenant_id, id)
        async with self.db.content_session(ctx) as session:
            for id in gone:
                row = await session.get(BlobRow, id)
                if row is not None:
                    await session.delete(row)
        return len(gone | orphans)

    async def _exists(self, ctx: TenantContext, id: UUID) -> bool:
        try:
            await self.store.head(ctx.tenant_id, id, 1)
        except NotFound:
            return False
        return True

    async def erase(self, ctx: TenantContext) -> int:
        """Removes every file of a tenant and its rows; returns how many files."""
        async with self.db.content_session(ctx) as session:
            for row in await session.exec(select(BlobRow).where(BlobRow.tenant_id == ctx.tenant_id)):
                await session.delete(row)
        return await self.store.delete_tenant(ctx.tenant_id)


class AppBlobs:
    """One app's files in one tenant through one person's eyes: their own and the town's."""

    def __init__(self, blobs: Blobs, ctx: TenantContext, app: str, viewer: Viewer | None) -> None:
        self._blobs = blobs
        self._ctx = ctx
        self._app = app
        self._viewer = viewer

    async def save(
        self,
        name: str,
        data: bytes | AsyncIterator[bytes],
        *,
        media_type: str = "application/octet-stream",
        document: UUID | None = None,
        of_town: bool = False,
        limit_bytes: int | None = None,
    ) -> Blob:
        """Stores a file, sealed chunk by chunk as it arrives; it goes when its `document` is purged.

        Raises `BlobTooLarge` as soon as the limit is passed, and keeps nothing then.
        """
        limit = min(limit_bytes or self._blobs.max_bytes, self._blobs.max_bytes)
        ring = await self._blobs.vault.ring(self._ctx.tenant_id)
        row = BlobRow(
            id=new_id(),
            tenant_id=self._ctx.tenant_id,
            app=self._app,
            document_id=document,
            owner_id=None if of_town or self._viewer is None else self._viewer.person_id,
            size_bytes=0,
            cipher_name=b"",
            created_at=self._blobs.clock(),
        )
        title = json.dumps({"name": name, "type": media_type}, ensure_ascii=False).encode()
        row.cipher_name = ring.seal(title, aad=place("blob", row.id, column="name"))
        staging = await self._blobs.store.stage(self._ctx.tenant_id, row.id)
        try:
            row.size_bytes = await _write_sealed(staging, ring, row.id, _once(data), limit)
            async with self._blobs.db.content_session(self._ctx) as session:
                session.add(row)
            await staging.commit()
        finally:
            await staging.abort()
        return _blob(row, name, media_type)

    async def get(self, id: UUID) -> Blob:
        """Raises `NotFound`."""
        async with self._blobs.db.content_session(self._ctx, read_only=True) as session:
            row = (await session.exec(select(BlobRow).where(*self._visible(), col(BlobRow.id) == id))).first()
        if row is None:
            raise NotFound
        return (await self._open([row]))[0]

    async def list(self, *, document: UUID | None = None, limit: int = 100) -> tuple[Blob, ...]:
        """The newest files, of one document if given."""
        where = self._visible()
        if document is not None:
            where = (*where, col(BlobRow.document_id) == document)
        async with self._blobs.db.content_session(self._ctx, read_only=True) as session:
            newest = select(BlobRow).where(*where).order_by(col(BlobRow.id).desc()).limit(limit)
            rows = [*await session.exec(newest)]
        return await self._open(rows)

    async def stream(self, id: UUID) -> AsyncIterator[bytes]:
        """The file's bytes in parts. Raises `NotFound`, and `ContentUnreadable` at the first part that was altered.

        Every part is authenticated before it is handed out; that the end was not cut off is known at the end.
        """
        blob = await self.get(id)
        tenant_id = self._ctx.tenant_id
        head = await self._blobs.store.head(tenant_id, id, HEAD_BYTES)
        ring = await self._blobs.vault.ring_for(tenant_id, [b"\0" + key_of(head)])
        parts = self._blobs.store.read(tenant_id, id, part_bytes=CHUNK_BYTES + TAG_BYTES, skip=HEAD_BYTES)
        size = 0
        async with aclosing(_open_sealed(parts, ring, id, head)) as opened:
            async for part in opened:
                size += len(part)
                yield part
        if size != blob.size_bytes:
            raise ContentUnreadable("復元の手順を、管理者に確認してください。")

    async def read(self, id: UUID) -> bytes:
        """The whole file, for what must be parsed at once; bounded by the limit it was stored under."""
        return b"".join([part async for part in self.stream(id)])

    async def attach(self, id: UUID, document: UUID) -> None:
        """Ties a file to a document, so that both go together. Raises `NotFound`."""
        async with self._blobs.db.content_session(self._ctx) as session:
            row = (await session.exec(select(BlobRow).where(*self._visible(), col(BlobRow.id) == id))).first()
            if row is None:
                raise NotFound
            row.document_id = document
            session.add(row)

    async def delete(self, id: UUID) -> None:
        """Unreadable at once; the bytes go now, or with the next sweep if that fails or a hold has ended. Raises `NotFound`."""
        mine = (*self._visible(), col(BlobRow.id) == id)
        async with self._blobs.db.content_session(self._ctx) as session:
            held = (await session.exec(select(is_held(BlobRow)).where(*mine))).first()
            if held is None:
                raise NotFound
            await session.exec(update(BlobRow).where(*mine).values(deleted_at=self._blobs.clock()))
        if held:
            return
        await self._blobs.store.delete(self._ctx.tenant_id, id)

    def _visible(self) -> tuple[ColumnElement[bool], ...]:
        mine: ColumnElement[bool] = true()
        if self._viewer is not None:
            mine = col(BlobRow.owner_id).is_(None) | (col(BlobRow.owner_id) == self._viewer.person_id)
        return (
            col(BlobRow.tenant_id) == self._ctx.tenant_id,
            col(BlobRow.app) == self._app,
            col(BlobRow.deleted_at).is_(None),
            mine,
        )

    async def _open(self, rows: Iterable[BlobRow]) -> tuple[Blob, ...]:
        rows = tuple(rows)
        ring = await self._blobs.vault.ring_for(self._ctx.tenant_id, [r.cipher_name for r in rows])
        blobs = []
        for row in rows:
            title = json.loads(ring.open(row.cipher_name, aad=place("blob", row.id, column="name")))
            blobs.append(_blob(row, title["name"], title["type"]))
        return tuple(blobs)


def _blob(row: BlobRow, name: str, media_type: str) -> Blob:
    return Blob(
        id=row.id,
        name=name,
        media_type=media_type,
        size_bytes=row.size_bytes,
        owner_id=None if row.owner_id is None else PersonId(row.owner_id),
        document_id=row.document_id,
        created_at=row.created_at,
    )


async def _once(data: bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if isinstance(data, bytes):
        yield data
    else:
        async for part in data:
            yield part


async def _write_sealed(staging: Staging, ring: Keyring, blob_id: UUID, data: AsyncIterator[bytes], limit: int) -> int:
    """Writes head and chunks; returns the size in clear."""
    head, sealer = begin_sealed(ring, blob_id.bytes)
    await staging.write(head)
    size = 0
    number = 0
    waiting = bytearray()
    async for part in data:
        size += len(part)
        if size > limit:
            raise BlobTooLarge(f"{limit // 1024 // 1024}MBまでにしてください。", limit_bytes=limit)
        waiting += part
        # The last chunk is marked, so one full chunk is kept back until more arrives.
        while len(waiting) > CHUNK_BYTES:
            chunk = bytes(waiting[:CHUNK_BYTES])
            del waiting[:CHUNK_BYTES]
            await staging.write(await anyio.to_thread.run_sync(seal_chunk, sealer, head, number, MIDDLE, chunk))
            number += 1
    await staging.write(seal_chunk(sealer, head, number, LAST, bytes(waiting)))
    return size


async def _open_sealed(
    parts: AsyncIterator[bytes], ring: Keyring, blob_id: UUID, head: bytes
) -> AsyncGenerator[bytes, None]:
    opener = open_head(ring, blob_id.bytes, head)
    number = 0
    held: bytes | None = None
    async for part in parts:
        if held is not None:
            yield await anyio.to_thread.run_sync(open_chunk, opener, head, number, MIDDLE, held)
            number += 1
        held = part
    yield open_chunk(opener, head, number, LAST, held or b"")
