"""Signed checkpoints: by Ed25519, how far a town's chain reached when. The key is the installation's, one at a time.

The private key is wrapped by the root key; the public keys travel in every export. A successor is signed by its
predecessor, so whoever noted one fingerprint can follow to the later ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from sqlmodel import col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.audit import locked_head
from tenants.audit.records import INTERVAL, checkpoint_message, fingerprint, instant, key_message
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import AuditCheckpoint, AuditHead, AuditKey
from tenants.vault import Vault

_KEY_AAD = b"audit signing key"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that signs now."""

    id: str
    private: Ed25519PrivateKey = field(repr=False)


class Signer:
    """Signs what a town can check without us."""

    def __init__(self, db: Database, vault: Vault, *, clock: Callable[[], datetime] = _now) -> None:
        self._db = db
        self._vault = vault
        self._clock = clock

    async def key(self) -> SigningKey:
        """The newest signing key, made when there is none. Raises `ContentUnreadable` under another root key."""
        async with self._db.platform_session("audit key", read_only=True) as session:
            row = await newest_key(session)
        return await self._open(row or await self._add(after=0))

    async def rotate(self) -> str:
        """A successor, signed by its predecessor, whose private half is then forgotten. Returns its fingerprint."""
        async with self._db.platform_session("audit key", read_only=True) as session:
            row = await newest_key(session)
        return fingerprint((await self._add(after=row.number if row else 0)).public_key)

    async def rewrap(self) -> int:
        """Wraps the private half by the current root key; returns 1 when another had wrapped it."""
        async with self._db.platform_session("audit key") as session:
            row = await newest_key(session)
            if row is None or row.wrapped is None:
                return 0
            raw = await self._vault.unwrap(row.wrapped, row.root_key_id, aad=_KEY_AAD)
            before = row.root_key_id
            row.wrapped, row.root_key_id = await self._vault.wrap(raw, aad=_KEY_AAD)
            session.add(row)
        return int(row.root_key_id != before)

    async def sign(self, message: bytes) -> tuple[str, bytes]:
        """(fingerprint of the key, signature)."""
        key = await self.key()
        return key.id, key.private.sign(message)

    async def checkpoint(self, tenant_id: TenantId, purpose: str) -> AuditCheckpoint:
        """Signs the end of a town's chain."""
        key = await self.key()
        async with self._db.platform_session("audit checkpoint") as session:
            head = await locked_head(session, tenant_id)
            # The locked head also orders the numbers.
            last = await session.exec(
                select(func.max(AuditCheckpoint.number)).where(col(AuditCheckpoint.tenant_id) == tenant_id)
            )
            row = AuditCheckpoint(
                tenant_id=tenant_id,
                number=(last.one() or 0) + 1,
                seq=head.seq,
                hash=head.hash,
                created_at=self._clock(),
                purpose=purpose,
                key_id=key.id,
                signature=b"",
            )
            row.signature = key.private.sign(checkpoint_message(tenant_id, checkpoint_told(row)))
            session.add(row)
        return row

    async def checkpoint_all(self) -> int:
        """Signs every chain that has grown since it was signed last; returns how many."""
        signed = (
            select(AuditCheckpoint.tenant_id, func.max(AuditCheckpoint.seq).label("seq"))
            .group_by(col(AuditCheckpoint.tenant_id))
            .subquery()
        )
        grown = (
            select(AuditHead.tenant_id)
            .outerjoin(signed, signed.c.tenant_id == AuditHead.tenant_id)
            .where(or_(signed.c.seq.is_(None), signed.c.seq < AuditHead.seq))
        )
        async with self._db.platform_session("audit checkpoint", read_only=True) as session:
            towns = (await session.exec(grown)).all()
        for tenant_id in towns:
            await self.checkpoint(TenantId(tenant_id), INTERVAL)
        return len(towns)

    async def _open(self, row: AuditKey) -> SigningKey:
        assert row.wrapped is not None
        raw = await self._vault.unwrap(row.wrapped, row.root_key_id, aad=_KEY_AAD)
        return SigningKey(fingerprint(row.public_key), Ed25519PrivateKey.from_private_bytes(raw))

    async def _add(self, *, after: int) -> AuditKey:
        """The key that follows number `after`; when somebody else was first, theirs."""
        private = Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        wrapped, root_key_id = await self._vault.wrap(private.private_bytes_raw(), aad=_KEY_AAD)
        async with self._db.platform_session("audit key") as session:
            if not self._db.is_sqlite:
                await session.exec(text("select pg_advisory_xact_lock(hashtextextended('audit key', 0))"))  # type: ignore[call-overload]  # SQLModel types exec() for select() only
            last = await newest_key(session)
            if last is not None and last.number > after:
                return last
            row = AuditKey(
                number=after + 1,
                public_key=public,
                wrapped=wrapped,
                root_key_id=root_key_id,
                created_at=self._clock(),
                signature=b"",
                endorsement=b"",
            )
            message = key_message(row.number, public, row.created_at)
            row.signature = private.sign(message)
            if last is not None:
                row.endorsement = (await self._open(last)).private.sign(message)
                last.wrapped = None
                session.add(last)
            session.add(row)
        return row


async def newest_key(session: AsyncSession) -> AuditKey | None:
    return (await session.exec(select(AuditKey).order_by(col(AuditKey.number).desc()).limit(1))).first()


async def public_keys(session: AsyncSession) -> list[AuditKey]:
    """All of them, oldest first."""
    return list((await session.exec(select(AuditKey).order_by(col(AuditKey.number)))).all())


def key_told(row: AuditKey) -> dict[str, str | int]:
    """As an export says it."""
    return {
        "number": row.number,
        "public_key": row.public_key.hex(),
        "since": instant(row.created_at),
        "signature": row.signature.hex(),
        "endorsement": row.endorsement.hex(),
    }


def checkpoint_told(row: AuditCheckpoint) -> dict[str, str | int]:
    """What is signed of a checkpoint, apart from the town."""
    return {
        "number": row.number,
        "seq": row.seq,
        "hash": row.hash,
        "at": instant(row.created_at),
        "purpose": row.purpose,
        "key": row.key_id,
    }
