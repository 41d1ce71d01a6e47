"""A town's own identity providers: declared at Keycloak, offered on the town's entry page, told to its audit chain."""

import asyncio
import re
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.db import Database
from tenants.identity.keycloak import Changes, reconcile_provider, remove_provider
from tenants.identity.realm import ProviderSpec, RealmSpec, provider_alias
from tenants.models import Tenant, TownProvider

_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,19}")
# What stands between the braces of Keycloak's template; nothing in it may end them.
_CLAIM: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,120}")
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def check_provider(spec: ProviderSpec) -> ProviderSpec:
    """The provider as it can be declared. Raises `InvalidInput` naming the field."""
    if not _NAME.fullmatch(spec.name):
        raise InvalidInput("名前は、英小文字で始まる20文字までの英小文字と数字にしてください。", field="name")
    label = " ".join(spec.label.split())
    if not 1 <= len(label) <= 40:
        raise InvalidInput("ボタンに出す名前は、1文字から40文字にしてください。", field="label")
    if not _CLAIM.fullmatch(spec.staff_claim):
        raise InvalidInput("職員番号の項目の名前を確かめてください（例：employee_number）。", field="staff_claim")
    parts = urlsplit(spec.source)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not is_safe or not parts.hostname:
        raise InvalidInput("町のサービスの場所は https:// で始めてください。", field="source")
    if spec.kind == "oidc" and not spec.client_id:
        raise InvalidInput("町のサービスに登録したクライアントの名前を指定してください。", field="client_id")
    if spec.kind == "oidc" and "openid" not in spec.scope.split():
        raise InvalidInput("スコープには openid が要ります。", field="scope")
    if spec.second_factor_acr and (spec.kind != "oidc" or not _CLAIM.fullmatch(spec.second_factor_acr)):
        raise InvalidInput(
            "2つ目の確認を表す acr の値を確かめてください。SAMLでは使えません（町の管理者が画面で決めます）。",
            field="second_factor_acr",
        )
    return replace(spec, label=label)


async def add_town_provider(db: Database, realm: RealmSpec, tenant: Tenant, spec: ProviderSpec, *, by: By) -> Changes:
    """Declares it, or brings what is there in line; offered once it is whole. A second run changes nothing.

    Raises as `check_provider` and `reconcile_provider`.
    """
    spec = check_provider(spec)
    changes = await asyncio.to_thread(reconcile_provider, realm, spec)
    async with db.platform_session("identity provider") as session:
        row = await session.get(TownProvider, (tenant.id, spec.name))
        wanted = (spec.label, spec.kind, spec.second_factor_acr)
        if row is None or (row.label, row.kind, row.second_factor_acr) != wanted or changes.writes:
            row = row or TownProvider(tenant_id=tenant.id, name=spec.name, label="", kind=spec.kind)
            row.label, row.kind, row.second_factor_acr = wanted
            session.add(row)
            await audit.record(
                session, TenantId(tenant.id), by, "identity_provider.set", about=("identity_provider", spec.alias)
            )
    return changes


async def remove_town_provider(db: Database, realm: RealmSpec, tenant: Tenant, name: str, *, by: By) -> Changes:
    """Offered no more, then gone. Raises `NotFound` when neither we nor Keycloak know it."""
    alias = provider_alias(tenant.alias, name)
    async with db.platform_session("identity provider") as session:
        row = await session.get(TownProvider, (tenant.id, name))
        if row is not None:
            await session.delete(row)
            await audit.record(
                session, TenantId(tenant.id), by, "identity_provider.remove", about=("identity_provider", alias)
            )
    changes = await asyncio.to_thread(remove_provider, realm, alias)
    if row is None and not changes.writes:
        raise NotFound(f"{name} というサインイン元はありません。kumiai idp list で確かめてください。")
    return changes
