"""Documents of apps: sealed JSON bodies, seen through one tenant, one app and one person.

`Documents.of(...)` gives the handle apps work with: it cannot name another tenant or app, and shows a person what is
their own, what belongs to the town (no owner) and what was shared with them. Another tenant's or person's document
is `NotFound`. Every call is one transaction on schema `content`.
"""

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final, Literal
from uuid import UUID

import anyio.to_thread
from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, true, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants.context import PersonId, SectionId, TenantContext, new_id
from tenants.db import Database
from tenants.holds import Held, is_held
from tenants.models import BlobRow, DocumentIndex, DocumentRow, DocumentVersion, LegalHold
from tenants.vault import Keyring, Vault, place

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
MAX_PAGE: Final = 200
TRASH_DAYS: Final = 30
_SHARED: Final = "*shared"  # No declared field can have this name.
_FIELD_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")
_SCAN_BATCH: Final = 100
# A long conversation is hundreds of documents, and a statement names each.
_TREES: Final = 20

Body = Mapping[str, Any]
Order = Literal["newest", "oldest", "updated"]
Clock = Callable[[], datetime]
Condition = ColumnElement[bool]


class DocumentTooLarge(Problem):
    type = "urn:problem:tenants:document-too-large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    title = "保存できる大きさを超えました"


class DocumentChanged(Conflict):
    """Someone else saved in between; `version` is what stands now."""

    type = "urn:problem:tenants:document-changed"
    title = "ほかの画面で先に保存されています"


@dataclass(frozen=True, slots=True)
class Viewer:
    """Through whose eyes documents are seen. Without a person only what belongs to the town is visible."""

    person_id: PersonId | None
    section_id: SectionId | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """`owner_id` None: it belongs to the town. `version` rises with every update and is asked back by the next."""

    id: UUID
    app: str
    kind: str
    owner_id: PersonId | None
    parent_id: UUID | None
    version: int
    body: dict[str, Any] = field(repr=False)
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    purge_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What `create_many` takes; see `create` for the fields."""

    kind: str
    body: Body = field(repr=False)
    parent: UUID | None = None
    index: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    of_town: bool = False
    id: UUID | None = None
    purge_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """`next_cursor` None: nothing follows."""

    items: tuple[Document, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A document whose text has the words asked for; `excerpt` is the NFKC text around the first that it has.

    `words` are the folded ones it has: all of them, unless `search` was asked for any.
    """

    document: Document
    excerpt: str = field(repr=False)
    words: frozenset[str] = field(repr=False, default=frozenset())


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`scanned` of `total` documents were read; go on from `next_cursor` if it is not None."""

    hits: tuple[Hit, ...]
    scanned: int
    total: int
    next_cursor: str | None


def fold(text: str) -> str:
    """What search compares: full and half width, case and compatibility forms are the same. Never stored."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


class Documents:
    """The document store of one process."""

    def __init__(self, db: Database, vault: Vault, *, clock: Clock = lambda: datetime.now(UTC)) -> None:
        self.db = db
        self.vault = vault
        self.clock = clock

    def of(self, ctx: TenantContext, *, app: str, viewer: Viewer | None) -> "AppDocuments":
        """One app's documents through one person's eyes.

        viewer None: everything of the app in this tenant, for jobs and the town's own content pages.
        """
        return AppDocuments(self, ctx, app, viewer)

    async def purge_due(self, ctx: TenantContext) -> int:
        """Removes for good what passed its `purge_after`; returns how many documents. A periodic duty."""
        return await self._remove(ctx, col(DocumentRow.purge_after) <= self.clock())

    async def expire(self, ctx: TenantContext, *, app: str, older_than: datetime) -> int:
        """Retention: removes an app's top-level documents (and what hangs on them) not updated since; a duty."""
        return await self._remove(ctx, *_expired(app, older_than))

    async def expiring(self, ctx: TenantContext, *, app: str, older_than: datetime) -> int:
        """How many top-level documents `expire` would take, what hangs on them not counted."""
        where = (col(DocumentRow.tenant_id) == ctx.tenant_id, *_expired(app, older_than), ~is_held(DocumentRow))
        async with self.db.content_session(ctx, read_only=True) as session:
            return (await session.exec(select(func.count()).select_from(DocumentRow).where(*where))).one()

    async def sweep(self, ctx: TenantContext) -> int:
        """Removes documents whose parent is gone; returns how many. A periodic duty."""
        parent = select(DocumentRow.id).subquery()
        return await self._remove(
            ctx,
            col(DocumentRow.parent_id).is_not(None),
            ~exists().where(parent.c.id == DocumentRow.parent_id),
        )

    async def _remove(self, ctx: TenantContext, *where: Condition) -> int:
        """Removes what meets all conditions with what hangs on it, a few trees a transaction. What is held stays."""
        gone = 0
        after: UUID | None = None
        while True:
            query = select(DocumentRow.id).where(DocumentRow.tenant_id == ctx.tenant_id, *where, ~is_held(DocumentRow))
            if after is not None:
                query = query.where(col(DocumentRow.id) > after)
            async with self.db.content_session(ctx) as session:
                ids = list(await session.exec(query.order_by(col(DocumentRow.id)).limit(_TREES)))
                gone += await _purge(session, await _without_held(session, ids), self.clock())
            if len(ids) < _TREES:
                return gone
            after = ids[-1]

    async def erase_person(self, ctx: TenantContext, person_id: PersonId) -> int:
        """Removes everything a person owns, in all apps; returns how many documents. Raises `Held`."""
        async with self.db.content_session(ctx) as session:
            mine = (DocumentRow.tenant_id == ctx.tenant_id, DocumentRow.owner_id == person_id)
            ids = list(await session.exec(select(DocumentRow.id).where(*mine)))
            if (await session.exec(select(DocumentRow.id).where(*mine, is_held(DocumentRow)).limit(1))).first():
                raise Held("止めている間は、この人のものを消せません。")
            await session.exec(
                update(BlobRow)
                .where(col(BlobRow.tenant_id) == ctx.tenant_id, col(BlobRow.owner_id) == person_id)
                .values(deleted_at=self.clock())
            )
            return await _purge(session, await _with_descendants(session, ids), self.clock())

    async def erase(self, ctx: TenantContext) -> int:
        """Removes all documents of a tenant; the caller then destroys its keys. Returns how many documents."""
        async with self.db.content_session(ctx) as session:
            tenant_id = ctx.tenant_id
            await session.exec(delete(DocumentIndex).where(col(DocumentIndex.tenant_id) == tenant_id))
            await session.exec(delete(DocumentVersion).where(col(DocumentVersion.tenant_id) == tenant_id))
            await session.exec(delete(LegalHold).where(col(LegalHold.tenant_id) == tenant_id))
            gone = await session.exec(delete(DocumentRow).where(col(DocumentRow.tenant_id) == tenant_id))
            return gone.rowcount

    async def count(self, ctx: TenantContext) -> int:
        """How many documents a tenant has, deleted ones included."""
        async with self.db.content_session(ctx, read_only=True) as session:
            return (
                await session.exec(
                    select(func.count()).select_from(DocumentRow).where(DocumentRow.tenant_id == ctx.tenant_id)
                )
            ).one()


class AppDocuments:
    """One app's documents in one tenant through one person's eyes."""

    def __init__(self, store: Documents, ctx: TenantContext, app: str, viewer: Viewer | None) -> None:
        self._store = store
        self._ctx = ctx
        self._app = app
        self._viewer = viewer

    async def create(
        self,
        kind: str,
        body: Body,
        *,
        parent: UUID | None = None,
        index: Mapping[str, str | Sequence[str]] | None = None,
        of_town: bool = False,
        id: UUID | None = None,
        purge_after: datetime | None = None,
    ) -> Document:
        """Stores a document owned by the viewer, or by the town with `of_town`.

        index: declared fields to look up by, each one value or several; kept as keyed hashes.
        Raises `NotFound` for a parent the viewer cannot see, `DocumentTooLarge`, `Conflict` for a used id.
        """
        new = NewDocument(kind, body, parent, index or {}, of_town, id, purge_after)
        return (await self.create_many([new]))[0]

    async def create_many(self, new: Sequence[NewDocument]) -> tuple[Document, ...]:
        """All or none, in one transaction."""
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        now = self._store.clock()
        made: list[Document] = []
        together = {n.id for n in new}
        async with _refuse_used_id(), self._store.db.content_session(self._ctx) as session:
            for parent in {n.parent for n in new if n.parent is not None} - together:
                await self._visible(session, ring, parent)
            for n in new:
                row = DocumentRow(
                    id=n.id or new_id(),
                    tenant_id=self._ctx.tenant_id,
                    app=self._app,
                    kind=n.kind,
                    parent_id=n.parent,
                    owner_id=None if n.of_town or self._viewer is None else self._viewer.person_id,
                    cipher=b"",
                    created_at=now,
                    updated_at=now,
                    purge_after=n.purge_after,
                )
                row.cipher = _seal(ring, row, n.body)
                session.add(row)
                session.add_all(self._index_rows(ring, row, n.index))
                made.append(_document(row, dict(n.body)))
        return tuple(made)

    async def get(self, id: UUID, *, kind: str | None = None, deleted: bool = False) -> Document:
        """Raises `NotFound`. deleted: also finds what lies in the trash."""
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        async with self._store.db.content_session(self._ctx, read_only=True) as session:
            row = await self._visible(session, ring, id, deleted=deleted)
        if kind is not None and row.kind != kind:
            raise NotFound
        return (await self._open([row]))[0]

    async def list(
        self,
        kind: str,
        *,
        parent: UUID | None = None,
        index: Mapping[str, str] | None = None,
        mine: bool = False,
        deleted: bool = False,
        order: Order = "updated",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """One page of visible documents.

        index: all given fields must equal. mine: only the viewer's own. deleted: only what lies in the trash.
        order: `updated` and `newest` fall, `oldest` rises. Raises `InvalidInput` for a cursor we did not give.
        """
        limit = max(1, min(limit, MAX_PAGE))
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        async with self._store.db.content_session(self._ctx, read_only=True) as session:
            where: list[Condition] = [
                *self._own(),
                col(DocumentRow.kind) == kind,
                _in_trash() if deleted else ~_in_trash(),
            ]
            where.append(await self._sight(session, ring, parent) if not mine else self._is_owner())
            if parent is not None:
                where.append(col(DocumentRow.parent_id) == parent)
            where += [self._has(ring, kind, name, value) for name, value in (index or {}).items()]
            rows = await _page_of(session, where, order=order, cursor=cursor, limit=limit + 1)
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(await self._open(rows), _cursor(rows[-1], order) if more else None)

    async def count(self, kind: str, *, index: Mapping[str, str] | None = None, mine: bool = False) -> int:
        """How many a `list` without limit would show."""
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        async with self._store.db.content_session(self._ctx, read_only=True) as session:
            where: list[Condition] = [*self._own(), col(DocumentRow.kind) == kind, ~_in_trash()]
            where.append(self._is_owner() if mine else await self._sight(session, ring, None))
            where += [self._has(ring, kind, name, value) for name, value in (index or {}).items()]
            return (await session.exec(select(func.count()).select_from(DocumentRow).where(*where))).one()

    async def update(
        self,
        id: UUID,
        body: Body,
        *,
        version: int,
        index: Mapping[str, str | Sequence[str]] | None = None,
        keep_version: bool = False,
        touch: bool = True,
    ) -> Document:
        """Replaces the body if `version` still stands, else raises `DocumentChanged`. Only its owner may.

        index: None keeps the fields, a mapping replaces them all. keep_version: the old body stays readable by
        `version`, as it does under a hold. touch: False leaves `updated_at`, so that renaming or pinning does not reorder a history.
        """
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        async with self._store.db.content_session(self._ctx) as session:
            row = await self._writable(session, id)
            if row.version != version:
                raise DocumentChanged("画面を読み直してから、もう一度保存してください。", version=row.version)
            if keep_version or await _holds(session, id):
                session.add(_kept(row, self._store.clock()))
            row.version += 1
            row.cipher = _seal(ring, row, body)
            if touch:
                row.updated_at = self._store.clock()
            session.add(row)
            if index is not None:
                await session.exec(
                    delete(DocumentIndex).where(
                        col(DocumentIndex.tenant_id) == self._ctx.tenant_id,
                        col(DocumentIndex.document_id) == id,
                        col(DocumentIndex.field) != _SHARED,
                    )
                )
                session.add_all(self._index_rows(ring, row, index))
            return _document(row, dict(body))

    async def touch(self, id: UUID) -> None:
        """Moves a document to the front of its list without changing it, such as a conversation with a new message."""
        async with self._store.db.content_session(self._ctx) as session:
            row = await self._writable(session, id)
            row.updated_at = self._store.clock()
            session.add(row)

    async def hang(self, ids: Sequence[UUID], parent: UUID) -> None:
        """Puts documents under another, with which they go from then on; a `purge_after` of their own ends.

        All or none. Raises `NotFound` for one the viewer may not change.
        """
        async with self._store.db.content_session(self._ctx) as session:
            await self._writable(session, parent)
            for id in ids:
                row = await self._writable(session, id)
                row.parent_id, row.purge_after = parent, None
                session.add(row)

    async def versions(self, id: UUID) -> tuple[int, ...]:
        """Kept versions, newest first, the current one included."""
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        async with self._store.db.content_session(self._ctx, read_only=True) as session:
            row = await self._visible(session, ring, id)
            kept = await session.exec(
                select(DocumentVersion.version)
                .where(DocumentVersion.tenant_id == self._ctx.tenant_id, DocumentVersion.document_id == id)
                .order_by(col(DocumentVersion.version).desc())
            )
            return (row.version, *kept)

    async def version(self, id: UUID, number: int) -> dict[str, Any]:
        """The body as it stood then. Raises `NotFound` when that version was not kept."""
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        async with self._store.db.content_session(self._ctx, read_only=True) as session:
            row = await self._visible(session, ring, id)
            cipher = row.cipher
            if number != row.version:
                found = await session.exec(
                    select(DocumentVersion.cipher).where(
                        DocumentVersion.tenant_id == self._ctx.tenant_id,
                        DocumentVersion.document_id == id,
                        DocumentVersion.version == number,
                    )
                )
                kept = found.first()
                if kept is None:
                    raise NotFound("この版は残っていません。")
                cipher = kept
        ring = await self._store.vault.ring_for(self._ctx.tenant_id, [cipher])
        return _parse(ring.open(cipher, aad=place("document", id, version=number)))

    async def delete(self, id: UUID, *, keep_days: int = TRASH_DAYS) -> None:
        """Moves a document and what hangs on it to the trash, from which it is purged after `keep_days`."""
        now = self._store.clock()
        async with self._store.db.content_session(self._ctx) as session:
            await self._writable(session, id)
            await session.exec(
                update(DocumentRow)
                .where(*self._own(), col(DocumentRow.id).in_(await _with_descendants(session, [id])), ~_in_trash())
                .values(deleted_at=now, purge_after=now + timedelta(days=keep_days))
            )

    async def restore(self, id: UUID) -> None:
        """Brings back from the trash what was deleted together."""
        async with self._store.db.content_session(self._ctx) as session:
            row = await self._writable(session, id, deleted=True)
            if row.deleted_at is None:
                return
            await session.exec(
                update(DocumentRow)
                .where(
                    *self._own(),
                    col(DocumentRow.id).in_(await _with_descendants(session, [id])),
                    col(DocumentRow.deleted_at) == row.deleted_at,
                )
                .values(deleted_at=None, purge_after=None)
            )

    async def purge(self, id: UUID) -> None:
        """Removes a document for good, with its versions, index, children and files. Raises `Held`."""
        async with self._store.db.content_session(self._ctx) as session:
            await self._writable(session, id, deleted=True)
            ids = await _without_held(session, [id])
            if not ids:
                raise Held("完全に消すことはできません。ごみ箱に入れておけます。")
            await _purge(session, ids, self._store.clock())

    async def share(
        self,
        id: UUID,
        *,
        section_id: SectionId | None = None,
    ) -> None:
        """Lets a section, or without one everybody in the town, read a document and what hangs on it."""
        ring = await self._store.vault.ring(self._ctx.tenant_id)
        async with self._store.db.content_session(self._ctx) as session:
            row = await self._writable(session, id)
            audience = ring.index_hash(_SHARED, _audience(section_id))
            if await session.get(DocumentIndex, (id, _SHARED, audience)) is None:
                session.add(
                    DocumentIndex(tenant_id=self._ctx.tenant_id, document_id=row.id, field=_SHARED, value_hash=audience)
                )

    async def unshare(self, id: UUID) -> None:
        """Takes back every sharing of a document."""
        async with self._store.db.content_session(self._ctx) as session:
            await self._writable(session, id)
            await session.exec(
                delete(DocumentIndex).where(
                    col(DocumentIndex.tenant_id) == self._ctx.tenant_id,
                    col(DocumentIndex.document_id) == id,
                    col(DocumentIndex.field) == _SHARED,
                )
            )

    async def search(
        self,
        query: str,
        *,
        kinds: Sequence[str],
        fields: Sequence[str] = (),
        any_word: bool = False,
        limit: int = 50,
        scan_limit: int = 5_000,
        cursor: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> SearchResult:
        """Finds the viewer's own documents that contain every word of `query`, newest first, by reading them.

        Width, case and compatibility forms do not matter. At most `limit` hits and `scan_limit` documents a call.
        fields: of the body that are read; all if none is named. any_word: one of the words is enough, for whoever
        looks for them across several documents. on_progress: called with (scanned, total) after each batch.
        """
        words = fold(query).split()
        if not words:
            return SearchResult((), 0, 0, None)
        where = [*self._own(), col(DocumentRow.kind).in_(kinds), ~_in_trash(), self._is_owner()]
        async with self._store.db.content_session(self._ctx, read_only=True) as session:
            total = (await session.exec(select(func.count()).select_from(DocumentRow).where(*where))).one()
        hits: list[Hit] = []
        scanned = 0
        async for rows in self._batches(where, cursor, scan_limit):
            documents = await self._open(rows)
            found = await anyio.to_thread.run_sync(_scan, documents, words, tuple(fields), any_word)
            for number, hit in enumerate(found, start=1):
                if hit is not None:
                    hits.append(hit)
                    if len(hits) == limit:
                        return SearchResult(tuple(hits), scanned + number, total, _cursor(rows[number - 1], "updated"))
            scanned += len(rows)
            cursor = _cursor(rows[-1], "updated")
            if on_progress is not None:
                on_progress(scanned, total)
        return SearchResult(tuple(hits), scanned, total, cursor if scanned >= scan_limit else None)

    async def _batches(
        self, where: Sequence[Condition], cursor: str | None, scan_limit: int
    ) -> AsyncIterator[Sequence[DocumentRow]]:
        """Rows in short transactions, so that a long scan holds no connection."""
        left = scan_limit
        while left > 0:
            size = min(_SCAN_BATCH, left)
            async with self._store.db.content_session(self._ctx, read_only=True) as session:
                rows = await _page_of(session, where, order="updated", cursor=cursor, limit=size)
            if rows:
                yield rows
            if len(rows) < size:
                return
            left -= size
            cursor = _cursor(rows[-1], "updated")

    async def _open(self, rows: Sequence[DocumentRow]) -> tuple[Document, ...]:
        ring = await self._store.vault.ring_for(self._ctx.tenant_id, [r.cipher for r in rows])
        if sum(len(r.cipher) for r in rows) < 256 * 1024:
            return tuple(_open(ring, r) for r in rows)
        return await anyio.to_thread.run_sync(lambda: tuple(_open(ring, r) for r in rows))

    def _own(self) -> tuple[Condition, ...]:
        return (col(DocumentRow.tenant_id) == self._ctx.tenant_id, col(DocumentRow.app) == self._app)

    def _is_owner(self) -> Condition:
        if self._viewer is None:
            return true()
        return col(DocumentRow.owner_id) == self._viewer.person_id

    async def _sight(self, session: AsyncSession, ring: Keyring, parent: UUID | None) -> Condition:
        """What the viewer may read; under a parent shared with them, also what its owner wrote there."""
        if self._viewer is None:
            return true()
        shared = exists().where(
            col(DocumentIndex.tenant_id) == self._ctx.tenant_id,
            col(DocumentIndex.document_id) == col(DocumentRow.id),
            col(DocumentIndex.field) == _SHARED,
            col(DocumentIndex.value_hash).in_(self._audiences(ring)),
        )
        seen = [self._is_owner(), col(DocumentRow.owner_id).is_(None), shared]
        if parent is not None:
            above = await self._visible(session, ring, parent, deleted=True)
            seen.append(col(DocumentRow.owner_id) == above.owner_id)
        return or_(*seen)

    def _audiences(self, ring: Keyring) -> tuple[str, ...]:
        """The hashes of every sharing that includes the viewer."""
        names = [_audience(None)]
        if self._viewer is not None and self._viewer.section_id is not None:
            names.append(_audience(self._viewer.section_id))
        return tuple(h for name in names for h in ring.index_hashes(_SHARED, name))

    async def _visible(self, session: AsyncSession, ring: Keyring, id: UUID, *, deleted: bool = False) -> DocumentRow:
        row = (await session.exec(select(DocumentRow).where(*self._own(), col(DocumentRow.id) == id))).first()
        if row is None or (row.deleted_at is not None and not deleted):
            raise NotFound
        viewer = self._viewer
        if viewer is None or row.owner_id is None or row.owner_id == viewer.person_id:
            return row
        # What hangs on a shared document is shared with it, but only what the same person wrote.
        shelf = {row.id}
        if row.parent_id is not None:
            above = await session.get(DocumentRow, row.parent_id)
            if above is not None and above.owner_id == row.owner_id and above.app == self._app:
                shelf.add(above.id)
        shared = await session.exec(
            select(DocumentIndex.document_id).where(
                DocumentIndex.tenant_id == self._ctx.tenant_id,
                col(DocumentIndex.document_id).in_(shelf),
                DocumentIndex.field == _SHARED,
                col(DocumentIndex.value_hash).in_(self._audiences(ring)),
            )
        )
        if shared.first() is None:
            raise NotFound
        return row

    async def _writable(self, session: AsyncSession, id: UUID, *, deleted: bool = False) -> DocumentRow:
        """The row, locked for change. Who may only read it is told it is not there."""
        where = [*self._own(), col(DocumentRow.id) == id]
        row = (await session.exec(select(DocumentRow).where(*where).with_for_update())).first()
        if row is None or (row.deleted_at is not None and not deleted):
            raise NotFound
        if self._viewer is not None and row.owner_id not in (None, self._viewer.person_id):
            raise NotFound
        return row

    def _label(self, kind: str, name: str) -> str:
        """Equal values in different apps, kinds and fields have different hashes."""
        return f"{self._app}\0{kind}\0{name}"

    def _has(self, ring: Keyring, kind: str, name: str, value: str) -> Condition:
        return exists().where(
            col(DocumentIndex.tenant_id) == self._ctx.tenant_id,
            col(DocumentIndex.document_id) == col(DocumentRow.id),
            col(DocumentIndex.field) == name,
            col(DocumentIndex.value_hash).in_(ring.index_hashes(self._label(kind, name), value)),
        )

    def _index_rows(
        self, ring: Keyring, row: DocumentRow, index: Mapping[str, str | Sequence[str]]
    ) -> Iterator[DocumentIndex]:
        for name, given in index.items():
            if not _FIELD_NAME.fullmatch(name):
                raise ValueError(f"not a field name: {name!r}")
            for value in {given} if isinstance(given, str) else set(given):
                yield DocumentIndex(
                    tenant_id=self._ctx.tenant_id,
                    document_id=row.id,
                    field=name,
                    value_hash=ring.index_hash(self._label(row.kind, name), value),
                )


@asynccontextmanager
async def _refuse_used_id() -> AsyncIterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise Conflict("同じ番号の文書がすでにあります。") from error


def _audience(section_id: SectionId | None) -> str:
    return "town" if section_id is None else f"section:{section_id}"


def _expired(app: str, older_than: datetime) -> tuple[Condition, ...]:
    return (
        col(DocumentRow.app) == app,
        col(DocumentRow.parent_id).is_(None),
        col(DocumentRow.updated_at) < older_than,
    )


def _in_trash() -> Condition:
    return col(DocumentRow.deleted_at).is_not(None)


def _seal(ring: Keyring, row: DocumentRow, body: Body) -> bytes:
    plaintext = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    if len(plaintext) > MAX_BODY_BYTES:
        raise DocumentTooLarge(f"{MAX_BODY_BYTES // 1024 // 1024}MBまでにしてください。", limit_bytes=MAX_BODY_BYTES)
    return ring.seal(plaintext, aad=place("document", row.id, version=row.version))


def _parse(plaintext: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(plaintext)
    return body


def _open(ring: Keyring, row: DocumentRow) -> Document:
    return _document(row, _parse(ring.open(row.cipher, aad=place("document", row.id, version=row.version))))


def _document(row: DocumentRow, body: dict[str, Any]) -> Document:
    return Document(
        id=row.id,
        app=row.app,
        kind=row.kind,
        owner_id=None if row.owner_id is None else PersonId(row.owner_id),
        parent_id=row.parent_id,
        version=row.version,
        body=body,
        created_at=row.created_at,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
        purge_after=row.purge_after,
    )


def _kept(row: DocumentRow, now: datetime) -> DocumentVersion:
    """The cipher is bound to document and version, so it moves as it is."""
    return DocumentVersion(
        tenant_id=row.tenant_id, document_id=row.id, version=row.version, cipher=row.cipher, created_at=now
    )


async def _with_descendants(session: AsyncSession, ids: Sequence[UUID]) -> list[UUID]:
    """The ids and all that hangs on them; a tree a few levels deep at most."""
    found = list(ids)
    level = found
    while level:
        level = list(await session.exec(select(DocumentRow.id).where(col(DocumentRow.parent_id).in_(level))))
        level = [i for i in level if i not in set(found)]
        found += level
    return found


async def _without_held(session: AsyncSession, ids: Sequence[UUID]) -> list[UUID]:
    """The ids with all that hangs on them, without the whole trees in which something is held."""
    tree = await _with_descendants(session, ids)
    rows = await session.exec(
        select(DocumentRow.id, DocumentRow.parent_id, is_held(DocumentRow)).where(col(DocumentRow.id).in_(tree))
    )
    above: dict[UUID, UUID | None] = {}
    kept: set[UUID] = set()
    for id, parent_id, held in rows.all():
        above[id] = parent_id
        if held:
            kept.add(id)
    if not kept:
        return tree
    level = kept
    while level:
        level = {parent for id in level if (parent := above.get(id)) is not None} - kept
        kept |= level
    return await _with_descendants(session, [id for id in ids if id not in kept])


async def _holds(session: AsyncSession, id: UUID) -> bool:
    found = await session.exec(select(DocumentRow.id).where(col(DocumentRow.id) == id, is_held(DocumentRow)))
    return found.first() is not None


async def _purge(session: AsyncSession, ids: Sequence[UUID], now: datetime) -> int:
    if not ids:
        return 0
    await session.exec(delete(DocumentIndex).where(col(DocumentIndex.document_id).in_(ids)))
    await session.exec(delete(DocumentVersion).where(col(DocumentVersion.document_id).in_(ids)))
    await session.exec(update(BlobRow).where(col(BlobRow.document_id).in_(ids)).values(deleted_at=now))
    gone = await session.exec(delete(DocumentRow).where(col(DocumentRow.id).in_(ids)))
    return gone.rowcount


async def _page_of(
    session: AsyncSession,
    where: Sequence[Condition],
    *,
    order: Order,
    cursor: str | None,
    limit: int,
) -> list[DocumentRow]:
    """Keyset paging by (time, id): stable while rows are added."""
    time = col(DocumentRow.updated_at) if order == "updated" else col(DocumentRow.created_at)
    key = tuple_(time, col(DocumentRow.id))
    conditions = list(where)
    if cursor is not None:
        at, row_id = _read_cursor(cursor, order)
        after = key > (at, row_id) if order == "oldest" else key < (at, row_id)
        conditions.append(after)
    ordering = (time, col(DocumentRow.id)) if order == "oldest" else (time.desc(), col(DocumentRow.id).desc())
    return list(await session.exec(select(DocumentRow).where(and_(*conditions)).order_by(*ordering).limit(limit)))


def _cursor(row: DocumentRow, order: Order) -> str:
    at = row.updated_at if order == "updated" else row.created_at
    return base64.urlsafe_b64encode(f"{order} {at.isoformat()} {row.id}".encode()).decode()


def _read_cursor(cursor: str, order: Order) -> tuple[datetime, UUID]:
    try:
        given, at, row_id = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ")
        if given != order:
            raise ValueError
        return datetime.fromisoformat(at), UUID(row_id)
    except (ValueError, binascii.Error) as error:
        raise InvalidInput("一覧を最初から開き直してください。", field="cursor") from error


def _scan(
    documents: Sequence[Document], words: Sequence[str], fields: Sequence[str], any_word: bool
) -> list[Hit | None]:
    return [_hit(d, words, fields, any_word) for d in documents]


def _hit(
    document: Document, words: Sequence[str], fields: Sequence[str], any_word: bool, *, around: int = 40
) -> Hit | None:
    """With the text around the first word that occurs in the body's strings; None if too few of them do."""
    body = {name: document.body[name] for name in fields if name in document.body} if fields else document.body
    texts = [unicodedata.normalize("NFKC", t) for t in _strings(body)]
    folded = [fold(t) for t in texts]
    found = [w for w in words if any(w in f for f in folded)]
    if not found or (len(found) < len(words) and not any_word):
        return None
    for text, f in zip(texts, folded, strict=True):
        at = f.find(found[0])
        if at >= 0:
            # Case folding may change lengths (ß); then the folded text is shown instead.
            shown = text if len(text) == len(f) else f
            start, end = max(0, at - around), at + len(found[0]) + around
            excerpt = ("…" if start else "") + shown[start:end] + ("…" if end < len(shown) else "")
            return Hit(document, excerpt, frozenset(found))
    return None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for item in value:
            yield from _strings(item)
