"""A town's own keys for model providers: sealed by the town's vault key, opened by the gateway, shown by their ending.

A key is for one deployment (`openai/gpt-5.6-terra`) or for all of a provider's (`openai`); the nearer one counts. A town
that has one pays the provider itself, so its calls cost nothing here, and the region's key is never used in its stead.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import structlog
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import ProviderKey, utcnow
from tenants.policy import bump_configuration
from tenants.vault import ContentUnreadable, Vault, place

log = structlog.get_logger("tenants")

MIN_CHARACTERS: Final = 16
MAX_CHARACTERS: Final = 4_096


def nearest(targets: Iterable[str], deployment: str) -> str | None:
    """Which of a town's keys is for a deployment: its own before its provider's; None when none is."""
    found = set(targets)
    return next((t for t in (deployment, deployment.partition("/")[0]) if t in found), None)


def clean_key(text: str) -> str:
    """The key as it goes into a header. Raises `InvalidInput`, which never repeats it."""
    key = text.strip()
    if not MIN_CHARACTERS <= len(key) <= MAX_CHARACTERS:
        raise InvalidInput(
            f"鍵は{MIN_CHARACTERS}文字から{MAX_CHARACTERS:,}文字です。事業者の画面から写し直してください。", field="key"
        )
    if not all("!" <= c <= "~" for c in key):
        raise InvalidInput(
            "鍵に空白や全角の文字が入っています。1行だけを、事業者の画面から写し直してください。", field="key"
        )
    return key


async def set_provider_key(db: Database, vault: Vault, tenant_id: TenantId, target: str, key: str, *, by: By) -> bool:
    """Keeps a key in place of the one before, if any; True when there was one. key: as `clean_key` returns it.

    Gateways use it from their next poll on. Raises the vault's problems.
    """
    cipher = await vault.seal(tenant_id, key.encode("ascii"), aad=_place(tenant_id, target))
    async with db.platform_session("provider key") as session:
        row = await session.get(ProviderKey, (tenant_id, target))
        known = row is not None
        row = row or ProviderKey(tenant_id=tenant_id, target=target, cipher=b"", ending="")
        row.cipher, row.ending, row.set_at = cipher, key[-4:], utcnow()
        session.add(row)
        await audit.record(session, tenant_id, by, "provider_key.set", about=("provider", target))
        await bump_configuration(session)
    return known


async def remove_provider_key(db: Database, tenant_id: TenantId, target: str, *, by: By) -> None:
    """From the gateways' next poll on, the region's key is used again where there is one. Raises `NotFound`."""
    async with db.platform_session("provider key") as session:
        row = await session.get(ProviderKey, (tenant_id, target))
        if row is None:
            raise NotFound(f"{target} の鍵は置かれていません。kumiai provider-key list で確かめてください。")
        await session.delete(row)
        await audit.record(session, tenant_id, by, "provider_key.remove", about=("provider", target))
        await bump_configuration(session)


async def list_provider_keys(session: AsyncSession, tenant_id: TenantId | None = None) -> Sequence[ProviderKey]:
    """One town's, or all; by town and target. The keys stay sealed."""
    query = select(ProviderKey).order_by(col(ProviderKey.tenant_id), col(ProviderKey.target))
    if tenant_id is not None:
        query = query.where(col(ProviderKey.tenant_id) == tenant_id)
    return (await session.exec(query)).all()


async def open_provider_key(vault: Vault, row: ProviderKey) -> str:
    """For the gateway. Raises `ContentUnreadable`, `ContentErased`."""
    tenant_id = TenantId(row.tenant_id)
    return (await vault.open(tenant_id, row.cipher, aad=_place(tenant_id, row.target))).decode("ascii")


async def reseal_provider_keys(db: Database, vault: Vault, tenant_id: TenantId) -> int:
    """Seals a town's keys by its newest vault key; returns how many. One that does not open stays as it is."""
    async with db.platform_session("provider key", read_only=True) as session:
        rows = await list_provider_keys(session, tenant_id)
    count = 0
    for row in rows:
        try:
            before, key = row.cipher, await open_provider_key(vault, row)
        except ContentUnreadable:
            # The town's calls stand still already; the rotation of everybody's keys must not.
            log.error("provider_key_not_opened", tenant=str(tenant_id), target=row.target)
            continue
        cipher = await vault.seal(tenant_id, key.encode("ascii"), aad=_place(tenant_id, row.target))
        async with db.platform_session("provider key") as session:
            now = await session.get(ProviderKey, (tenant_id, row.target), with_for_update=True)
            # One that was set or removed meanwhile stays as it is.
            if now is not None and now.cipher == before:
                now.cipher = cipher
                session.add(now)
        count += 1
    return count


def _place(tenant_id: TenantId, target: str) -> bytes:
    return place("provider_key", tenant_id, column=target)
