"""API keys of systems: `kmi_<env>_<key id>_<secret>`, shown once, stored as an HMAC with a versioned pepper."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants.context import SectionId, TenantId
from tenants.identity.access_list import revoke
from tenants.keyfiles import KeyFile
from tenants.models import ApiKey
from tenants.settings import Settings

SCOPES: Final = frozenset({"models", "chat", "completions", "embeddings", "rerank", "audio", "images"})
# During a rotation the old key lives on beside the new one, so that a system can change over without a gap.
ROTATION_OVERLAP: Final = timedelta(days=7)
_FORM = re.compile(r"kmi_([a-z]{2,8})_([a-z2-7]{16})_([A-Za-z0-9]{43})")
_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True)
class Peppers:
    """The secret side of the hash. The newest version hashes, older ones still verify."""

    file: KeyFile = field(repr=False)

    @property
    def newest(self) -> int:
        return self.file.newest[0]

    def hash(self, secret: str, version: int) -> str:
        return hmac.new(self.file.versions()[version], secret.encode(), hashlib.sha256).hexdigest()

    def verify(self, secret: str, version: int, expected: str) -> bool:
        """In constant time; an unknown pepper version never matches."""
        return version in self.file.versions() and hmac.compare_digest(self.hash(secret, version), expected)


def load_peppers(settings: Settings) -> Peppers:
    """Raises `KeyFileError`."""
    return Peppers(settings.key_file("pepper"))


@dataclass(frozen=True, slots=True)
class PlainKey:
    """A key in clear: shown once to the person who made it."""

    key_id: str
    text: str = field(repr=False)


def parse_key(text: str) -> tuple[str, str, str] | None:
    """(environment, key id, secret), or None for anything else."""
    found = _FORM.fullmatch(text)
    return (found[1], found[2], found[3]) if found else None


def _new(env: str) -> tuple[PlainKey, str]:
    key_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(16))
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(43))
    return PlainKey(key_id, f"kmi_{env}_{key_id}_{secret}"), secret


def key_environment(env: str) -> str:
    return {"production": "live"}.get(env, env)


async def create_key(
    session: AsyncSession,
    tenant_id: TenantId,
    peppers: Peppers,
    *,
    env: str,
    label: str,
    app: str = "",
    section_id: SectionId | None = None,
    scopes: frozenset[str] = frozenset(),
    models: tuple[str, ...] = (),
    expires_at: datetime | None = None,
    by: UUID | None = None,
) -> PlainKey:
    """Adds a key. scopes empty: all; models empty: all the policy allows."""
    label = " ".join(label.split())
    if not label or len(label) > 60:
        raise InvalidInput("鍵の名前を60字までで書いてください。", field="label")
    if unknown := scopes - SCOPES:
        raise InvalidInput(
            f"「{'」「'.join(sorted(unknown))}」という範囲はありません。次のどれかです：{'、'.join(sorted(SCOPES))}",
            field="scopes",
        )
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidInput("期限は先の日時にしてください。", field="expires_at")
    plain, secret = _new(key_environment(env))
    session.add(
        ApiKey(
            tenant_id=tenant_id,
            key_id=plain.key_id,
            label=label,
            app=app,
            section_id=section_id,
            secret_hash=peppers.hash(secret, peppers.newest),
            pepper_version=peppers.newest,
            scopes=sorted(scopes),
            models=list(models),
            expires_at=expires_at,
            created_by=by,
        )
    )
    await session.flush()
    return plain


async def list_keys(session: AsyncSession, tenant_id: TenantId) -> list[ApiKey]:
    """All keys of a tenant, newest first, revoked ones too."""
    found = await session.exec(
        select(ApiKey).where(col(ApiKey.tenant_id) == tenant_id).order_by(col(ApiKey.created_at).desc())
    )
    return list(found.all())


async def _get(session: AsyncSession, tenant_id: TenantId, key_id: str) -> ApiKey:
    row = (
        await session.exec(select(ApiKey).where(col(ApiKey.tenant_id) == tenant_id, col(ApiKey.key_id) == key_id))
    ).first()
    if row is None:
        raise NotFound("鍵の番号を確かめてください。")
    return row


async def rotate_key(
    session: AsyncSession, tenant_id: TenantId, peppers: Peppers, key_id: str, *, env: str, by: UUID | None = None
) -> PlainKey:
    """A successor with the same rights and as long a life; the old key lives on for the overlap. Two live at most."""
    old = await _get(session, tenant_id, key_id)
    now = datetime.now(UTC)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict("取り消した鍵や期限の切れた鍵は、取り替えられません。新しい鍵を作ってください。")
    if old.replaced_by is not None:
        raise Conflict("この鍵はもう取り替えの途中です。新しいほうの鍵を使ってください。")
    plain = await create_key(
        session,
        tenant_id,
        peppers,
        env=env,
        label=old.label,
        app=old.app,
        section_id=SectionId(old.section_id) if old.section_id else None,
        scopes=frozenset(old.scopes),
        models=tuple(old.models),
        expires_at=None if old.expires_at is None else now + (old.expires_at - old.created_at),
        by=by,
    )
    successor = await _get(session, tenant_id, plain.key_id)
    old.replaced_by = successor.id
    old.expires_at = min(old.expires_at or now + ROTATION_OVERLAP, now + ROTATION_OVERLAP)
    session.add(old)
    await session.flush()
    return plain


async def revoke_key(session: AsyncSession, tenant_id: TenantId, key_id: str) -> None:
    """At once and for good; in a platform session, since every gateway must hear of it."""
    row = await _get(session, tenant_id, key_id)
    if row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
        session.add(row)
        await revoke(session, "key", key_id, tenant_id=tenant_id)
