"""Envelope encryption of content: every tenant has its own keys, wrapped by a root key that stands elsewhere.

A sealed value is `version | key_id | nonce | ciphertext`, AES-256-GCM. Its associated data binds tenant, table, row
and version, so a value copied to another row, version or tenant does not open. Keys for different purposes are
derived (HKDF) and never reused. Destroying a tenant's keys erases its content; a backup made before still holds the
wrapped key, so erasure is complete when the last such backup has expired.
"""

import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Problem
from tenants.context import TenantContext, TenantId, new_id
from tenants.db import Database
from tenants.keyfiles import KeyFile
from tenants.models import TenantKey

FORMAT: Final = 1
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12  # NIST SP 800-38D: 96 random bits serve 2^32 seals per key; a town writes far less in a decade.
_HEAD: Final = 1 + 16 + NONCE_BYTES


class ContentUnreadable(Problem):
    """A sealed value does not open: damaged, moved to another row, or sealed by a key we do not have."""

    type = "urn:problem:tenants:content-unreadable"
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    title = "保存された内容を開けませんでした"


class ContentErased(Problem):
    """The tenant's keys were destroyed; nothing sealed before can be read and nothing new may be sealed."""

    type = "urn:problem:tenants:content-erased"
    status = HTTPStatus.GONE
    title = "この団体の内容は消去されています"


class RootKey(Protocol):
    """What wraps tenant keys: a file here, a KMS or an HSM elsewhere, possibly the town's own."""

    id: str

    async def wrap(self, key: bytes, *, aad: bytes) -> bytes: ...

    async def unwrap(self, wrapped: bytes, *, aad: bytes) -> bytes:
        """Raises `ContentUnreadable` when this root key did not wrap it with this associated data."""


class RootKeys(Protocol):
    """The root key in use and those before it, from which tenant keys are moved away."""

    def current(self) -> RootKey:
        """The one that wraps now."""

    def find(self, id: str) -> RootKey | None:
        """None when it is not ours, or no longer there."""


class FileRootKey:
    """32 bytes of a file. Its id is a fingerprint, so that a swapped file is noticed before anything is written."""

    def __init__(self, key: bytes) -> None:
        self.id = "file:" + hashlib.sha256(b"kumiai root key id" + key).hexdigest()[:16]
        self._aead = AESGCM(_derive(key, b"kumiai/root/wrap"))

    async def wrap(self, key: bytes, *, aad: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, key, aad)

    async def unwrap(self, wrapped: bytes, *, aad: bytes) -> bytes:
        try:
            return self._aead.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], aad)
        except (InvalidTag, ValueError) as error:
            raise ContentUnreadable("鍵ファイルが変わっていないか、管理者に確認を依頼してください。") from error


class FileRootKeys:
    """The versions of a key file; one that another process adds is used as soon as it is there."""

    def __init__(self, file: KeyFile) -> None:
        self._file = file
        self._made: dict[bytes, FileRootKey] = {}

    def current(self) -> RootKey:
        return self._key(self._file.newest[1])

    def find(self, id: str) -> RootKey | None:
        return next((key for key in map(self._key, self._file.newest_first()) if key.id == id), None)

    def _key(self, raw: bytes) -> FileRootKey:
        if raw not in self._made:
            self._made[raw] = FileRootKey(raw)
        return self._made[raw]


@dataclass(frozen=True, slots=True)
class _TenantKeys:
    """One tenant key's derived keys; the key itself is not kept."""

    id: UUID
    content: AESGCM
    index: bytes
    search: bytes
    files: bytes


@dataclass(frozen=True, slots=True)
class Keyring:
    """A tenant's live keys, newest first: the newest seals, all open. Fetch one per unit of work; never store it."""

    tenant_id: TenantId
    keys: tuple[_TenantKeys, ...] = field(repr=False)

    def seal(self, plaintext: bytes, *, aad: bytes) -> bytes:
        """aad: where the value lies; see `place`."""
        key = self.keys[0]
        nonce = os.urandom(NONCE_BYTES)
        head = bytes((FORMAT,)) + key.id.bytes
        return head + nonce + key.content.encrypt(nonce, plaintext, self._bind(head, aad))

    def open(self, sealed: bytes, *, aad: bytes) -> bytes:
        """Raises `ContentUnreadable`."""
        head, nonce = sealed[:17], sealed[17:_HEAD]
        key = self.find(head[1:])
        if len(sealed) < _HEAD + 16 or head[0] != FORMAT or key is None:
            raise ContentUnreadable("復元の手順を、管理者に確認してください。")
        try:
            return key.content.decrypt(nonce, sealed[_HEAD:], self._bind(head, aad))
        except InvalidTag as error:
            raise ContentUnreadable("復元の手順を、管理者に確認してください。") from error

    def knows(self, sealed: bytes) -> bool:
        """False when the value was sealed by a key made after this ring was fetched (or destroyed before)."""
        return self.find(sealed[1:17]) is not None

    def find(self, key_id: bytes) -> _TenantKeys | None:
        return next((k for k in self.keys if k.id.bytes == key_id), None)

    def index_hash(self, name: str, value: str) -> str:
        """What an index column stores: equality can be asked, the value cannot be read or compared across tenants."""
        return _index_hash(self.keys[0].index, name, value)

    def index_hashes(self, name: str, value: str) -> tuple[str, ...]:
        """All hashes a stored value may have, one per live key: for look-ups."""
        return tuple(_index_hash(k.index, name, value) for k in self.keys)

    def search_key(self) -> bytes:
        """For search structures, apart from the keys of content and index."""
        return self.keys[0].search

    def _bind(self, head: bytes, aad: bytes) -> bytes:
        return head + self.tenant_id.bytes + aad


def place(table: str, row_id: UUID, *, version: int = 0, column: str = "") -> bytes:
    """Associated data naming one cell of one version of one row; unambiguous because every part has its length."""
    parts = (table.encode(), row_id.bytes, str(version).encode(), column.encode())
    return b"".join(len(p).to_bytes(2, "big") + p for p in parts)


def _index_hash(key: bytes, name: str, value: str) -> str:
    label = name.encode()
    return hmac.digest(key, len(label).to_bytes(2, "big") + label + value.encode(), "sha256").hex()


def _derive(key: bytes, purpose: bytes, *, salt: bytes | None = None) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=purpose).derive(key)


def derive_file_key(keys: _TenantKeys, *, salt: bytes, purpose: bytes) -> AESGCM:
    """A key for one file: counters may then serve as nonces. salt: 32 random bytes kept in the file's head."""
    return AESGCM(_derive(keys.files, b"kumiai/file/" + purpose, salt=salt))


class Vault:
    """Fetches and makes tenant keys. Rings are cached per process, at most `cache_size`, for at most `cache_s`.

    `cache_s` bounds how long another process can still open content after `destroy`.
    """

    def __init__(
        self,
        db: Database,
        roots: RootKeys,
        *,
        cache_size: int = 512,
        cache_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._roots = roots
        self._rings: OrderedDict[TenantId, tuple[float, Keyring]] = OrderedDict()
        self._cache_size = cache_size
        self._cache_s = cache_s
        self._clock = clock

    async def ring(self, tenant_id: TenantId, *, fresh: bool = False) -> Keyring:
        """The tenant's keys, made on first use.

        Call it before opening a content session of your own: making a key takes one. fresh: skip the cache.
        Raises `ContentErased`, and `ContentUnreadable` when the root key is not the one that wrapped them.
        """
        cached = self._rings.get(tenant_id)
        if cached is not None and not fresh and self._clock() - cached[0] < self._cache_s:
            self._rings.move_to_end(tenant_id)
            return cached[1]
        started = self._clock()
        rows = await self._rows(tenant_id) or await self._make_first(tenant_id)
        ring = await self._unwrap(tenant_id, rows)
        self._rings[tenant_id] = (started, ring)
        self._rings.move_to_end(tenant_id)
        while len(self._rings) > self._cache_size:
            self._rings.popitem(last=False)
        return ring

    async def ring_for(self, tenant_id: TenantId, sealed: Sequence[bytes]) -> Keyring:
        """A ring that knows the keys of these values, fetched anew once if another process has rotated."""
        ring = await self.ring(tenant_id)
        if all(ring.knows(s) for s in sealed):
            return ring
        return await self.ring(tenant_id, fresh=True)

    async def seal(self, tenant_id: TenantId, plaintext: bytes, *, aad: bytes) -> bytes:
        return (await self.ring(tenant_id)).seal(plaintext, aad=aad)

    async def open(self, tenant_id: TenantId, sealed: bytes, *, aad: bytes) -> bytes:
        """Raises `ContentUnreadable`, `ContentErased`."""
        return (await self.ring_for(tenant_id, [sealed])).open(sealed, aad=aad)

    async def rotate(self, tenant_id: TenantId) -> UUID:
        """Adds a key that seals from now on; the older ones still open. Returns its id."""
        await self.ring(tenant_id)
        async with self._db.content_session(TenantContext(tenant_id)) as session:
            row = await self._new_row(tenant_id)
            session.add(row)
        self._rings.pop(tenant_id, None)
        return row.id

    async def keys(self, tenant_id: TenantId) -> list[TenantKey]:
        """The tenant's keys as they are stored, newest first, destroyed ones too."""
        return await self._rows(tenant_id)

    async def rewrap(self, tenant_id: TenantId) -> int:
        """Wraps the tenant's keys by the current root key; returns how many were not. For a change of root key."""
        changed, root = 0, self._roots.current()
        async with self._db.content_session(TenantContext(tenant_id)) as session:
            rows = await session.exec(select(TenantKey).where(TenantKey.tenant_id == tenant_id).with_for_update())
            for row in rows:
                if row.wrapped is None or row.root_key_id == root.id:
                    continue
                key = await self._root_of(row.root_key_id).unwrap(row.wrapped, aad=_key_aad(row))
                row.wrapped = await root.wrap(key, aad=_key_aad(row))
                row.root_key_id = root.id
                session.add(row)
                changed += 1
        self._rings.pop(tenant_id, None)
        return changed

    async def destroy(self, tenant_id: TenantId, *, now: datetime | None = None) -> int:
        """Erasure: forgets the tenant's keys for good and returns how many. A second run returns 0."""
        destroyed = 0
        async with self._db.content_session(TenantContext(tenant_id)) as session:
            await self._lock(session, tenant_id)
            rows = list(await session.exec(select(TenantKey).where(TenantKey.tenant_id == tenant_id)))
            if not rows:
                # A tombstone, so that a process with an old cache cannot make a first key for an erased tenant.
                rows = [TenantKey(tenant_id=tenant_id, root_key_id=self._roots.current().id, wrapped=b"")]
            for row in rows:
                if row.wrapped is not None:
                    destroyed += row.wrapped != b""
                    row.wrapped = None
                    row.destroyed_at = now or datetime.now(UTC)
                    session.add(row)
        self._rings.pop(tenant_id, None)
        return destroyed

    async def wrap(self, key: bytes, *, aad: bytes) -> tuple[bytes, str]:
        """For keys of the installation: (wrapped by the current root key, that key's id)."""
        root = self._roots.current()
        return await root.wrap(key, aad=aad), root.id

    async def unwrap(self, wrapped: bytes, root_key_id: str, *, aad: bytes) -> bytes:
        """Raises `ContentUnreadable`."""
        return await self._root_of(root_key_id).unwrap(wrapped, aad=aad)

    async def _rows(self, tenant_id: TenantId) -> list[TenantKey]:
        async with self._db.content_session(TenantContext(tenant_id), read_only=True) as session:
            return await _keys_of(session, tenant_id)

    async def _make_first(self, tenant_id: TenantId) -> list[TenantKey]:
        row = await self._new_row(tenant_id)
        async with self._db.content_session(TenantContext(tenant_id)) as session:
            await self._lock(session, tenant_id)
            rows = await _keys_of(session, tenant_id)
            if not rows:
                session.add(row)
                rows = [row]
            return rows

    async def _lock(self, session: AsyncSession, tenant_id: TenantId) -> None:
        """Orders the makers of a tenant's keys; SQLite's writers are ordered already."""
        if not self._db.is_sqlite:
            await session.exec(
                text("select pg_advisory_xact_lock(hashtextextended(:name, 0))").bindparams(name=f"key {tenant_id}")
            )  # type: ignore[call-overload]  # SQLModel types exec() for select() only

    async def _new_row(self, tenant_id: TenantId) -> TenantKey:
        root = self._roots.current()
        row = TenantKey(id=new_id(), tenant_id=tenant_id, root_key_id=root.id)
        row.wrapped = await root.wrap(AESGCM.generate_key(KEY_BYTES * 8), aad=_key_aad(row))
        return row

    def _root_of(self, id: str) -> RootKey:
        root = self._roots.find(id)
        if root is None:
            raise ContentUnreadable("鍵ファイルが変わっていないか、管理者に確認を依頼してください。", root_key=id)
        return root

    async def _unwrap(self, tenant_id: TenantId, rows: Sequence[TenantKey]) -> Keyring:
        keys = []
        for row in rows:
            if row.wrapped is None:
                continue
            key = await self._root_of(row.root_key_id).unwrap(row.wrapped, aad=_key_aad(row))
            keys.append(
                _TenantKeys(
                    id=row.id,
                    content=AESGCM(_derive(key, b"kumiai/content")),
                    index=_derive(key, b"kumiai/index"),
                    search=_derive(key, b"kumiai/search"),
                    files=_derive(key, b"kumiai/files"),
                )
            )
        if not keys:
            raise ContentErased("消去した内容は元に戻せません。")
        return Keyring(tenant_id, tuple(keys))


def _key_aad(row: TenantKey) -> bytes:
    return row.tenant_id.bytes + place("tenant_key", row.id)


async def _keys_of(session: AsyncSession, tenant_id: TenantId) -> list[TenantKey]:
    newest_first = (col(TenantKey.created_at).desc(), col(TenantKey.id).desc())
    return list(await session.exec(select(TenantKey).where(TenantKey.tenant_id == tenant_id).order_by(*newest_first)))
