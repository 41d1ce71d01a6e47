"""The towns: created by one command, found by code or name, suspended, resumed."""

import re
import secrets
import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import anyio.to_thread
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import PersonId, Role, TenantId, new_id
from tenants.db import Database
from tenants.identity.directory import IdentityDirectory
from tenants.lgcode import parse_code
from tenants.models import Person, Tenant, TenantCode, TenantIdentity
from tenants.people import NewPerson, add_people, clean_login, ensure_sections
from tenants.policy import Policy, bump_configuration, save_policy
from tenants.quota.tree import set_budget

# Without letters and digits that look alike on paper.
_LETTERS = "abcdefghjkmnpqrstuvwxyz"
_DIGITS = "23456789"


@dataclass(frozen=True, slots=True)
class NewTenant:
    """What one command needs to make a town. `admin` is its first administrator."""

    name: str
    code: str
    admin_login: str
    admin_name: str
    sections: tuple[str, ...]
    month_yen: int
    kind: Literal["municipality", "operator"] = "municipality"
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class Created:
    tenant_id: TenantId
    alias: str
    admin_id: PersonId
    admin_login: str
    admin_password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ListedTenant:
    id: TenantId
    name: str
    code: str
    alias: str
    kind: str
    status: str
    people: int
    created_at: datetime


def new_password() -> str:
    """Twelve characters in three groups that can be typed from paper: about 53 bits."""
    groups = ["".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(2)]
    digits = "".join(secrets.choice(_DIGITS) for _ in range(4))
    return "-".join([groups[0], digits, groups[1]])


async def create_tenant(
    db: Database,
    directory: IdentityDirectory,
    new: NewTenant,
    *,
    by: By,
    admin_password: str = "",
    temporary: bool = True,
) -> Created:
    """Organization and administrator at the issuer, then tenant, policy, sections and budget, in one go.

    Everything is checked before anything is written. Interrupted, it can be run again.
    Raises `BadCode`, `InvalidInput`, `Conflict`.
    """
    code = parse_code(new.code)
    name = unicodedata.normalize("NFKC", " ".join(new.name.split()))
    if not 1 <= len(name) <= 60:
        raise InvalidInput("団体の名前を60字までで書いてください。", field="name")
    login = clean_login(new.admin_login)
    sections = tuple(" ".join(s.split()) for s in new.sections)
    alias = f"t{code}"
    async with db.platform_session("tenant create", read_only=True) as session:
        taken = (
            await session.exec(
                select(Tenant.name)
                .join(TenantCode, col(TenantCode.tenant_id) == col(Tenant.id))
                .where(col(TenantCode.code) == code, col(TenantCode.valid_to).is_(None))
            )
        ).first()
        if taken is not None:
            raise Conflict(f"団体コード {code} は「{taken}」で使われています。")
    # Two towns may share a name (府中市); at the issuer names are unique.
    organization_id = await anyio.to_thread.run_sync(
        lambda: directory.ensure_organization(alias=alias, name=f"{name} ({code})", code=code)
    )
    tenant_id = TenantId(new_id())
    async with db.platform_session("tenant create") as session:
        session.add(Tenant(id=tenant_id, kind=new.kind, name=name, alias=alias))
        await session.flush()
        session.add(TenantCode(tenant_id=tenant_id, code=code, valid_from=datetime.now(UTC).date()))
        session.add(TenantIdentity(tenant_id=tenant_id, issuer=directory.issuer, organization_id=organization_id))
        await save_policy(session, tenant_id, new.policy, version=0, by=None)
        await ensure_sections(session, tenant_id, sections)
        await set_budget(session, tenant_id, yen=new.month_yen)
        await audit.record(session, tenant_id, by, "tenant.create", about=("tenant", tenant_id), code=code)
        await bump_configuration(session)
    password = admin_password or new_password()
    roles = frozenset({Role.OPERATOR if new.kind == "operator" else Role.TOWN_ADMIN, Role.STAFF})
    admin = NewPerson(login, new.admin_name, sections[0] if sections else "", roles)
    [admin_id] = await add_people(db, directory, tenant_id, alias, [(admin, password)], by=by, temporary=temporary)
    return Created(tenant_id, alias, admin_id, admin.login, password)


async def find_tenant(session: AsyncSession, text: str) -> Tenant:
    """By 団体コード, name or alias; in a platform session. Raises `NotFound`, or `InvalidInput` for a wrong digit."""
    wanted = unicodedata.normalize("NFKC", text).strip()
    if re.fullmatch(r"\d{5,6}", wanted):
        wanted = parse_code(wanted)
        query = (
            select(Tenant)
            .join(TenantCode, col(TenantCode.tenant_id) == col(Tenant.id))
            .where(col(TenantCode.code) == wanted, col(TenantCode.valid_to).is_(None))
        )
    else:
        query = select(Tenant).where((col(Tenant.name) == wanted) | (col(Tenant.alias) == wanted))
    found = (await session.exec(query)).all()
    if not found:
        raise NotFound(f"「{text}」という団体は登録されていません。")
    if len(found) > 1:
        raise Conflict(f"「{text}」という団体が{len(found)}つあります。団体コードで指定してください。")
    return found[0]


async def list_tenants(session: AsyncSession) -> list[ListedTenant]:
    """All tenants by code; in a platform session."""
    codes = {
        c.tenant_id: c.code
        for c in (await session.exec(select(TenantCode).where(col(TenantCode.valid_to).is_(None)))).all()
    }
    counts = dict(
        (
            await session.exec(
                select(Person.tenant_id, func.count())
                .where(col(Person.status) == "active")
                .group_by(col(Person.tenant_id))
            )
        ).all()
    )
    tenants = (await session.exec(select(Tenant))).all()
    listed = [
        ListedTenant(
            TenantId(t.id), t.name, codes.get(t.id, ""), t.alias, t.kind, t.status, counts.get(t.id, 0), t.created_at
        )
        for t in tenants
    ]
    return sorted(listed, key=lambda t: (t.kind != "operator", t.code))


async def suspend_tenant(db: Database, directory: IdentityDirectory, tenant_id: TenantId, *, by: By) -> None:
    """Our own list first (every process follows within two polls), then the issuer."""
    async with db.platform_session("tenant suspend") as session:
        tenant = await _active(session, tenant_id, "active")
        tenant.status, tenant.revoked_before = "suspended", datetime.now(UTC)
        session.add(tenant)
        await bump_configuration(session)
        await audit.record(session, tenant_id, by, "tenant.suspend", about=("tenant", tenant_id))
    await anyio.to_thread.run_sync(lambda: directory.set_organization_enabled(tenant.alias, enabled=False))


async def resume_tenant(db: Database, directory: IdentityDirectory, tenant_id: TenantId, *, by: By) -> None:
    """The issuer first; tokens issued before the suspension stay refused (`revoked_before`)."""
    async with db.platform_session("tenant resume", read_only=True) as session:
        tenant = await _active(session, tenant_id, "suspended")
    await anyio.to_thread.run_sync(lambda: directory.set_organization_enabled(tenant.alias, enabled=True))
    async with db.platform_session("tenant resume") as session:
        tenant = await _active(session, tenant_id, "suspended")
        tenant.status = "active"
        session.add(tenant)
        await bump_configuration(session)
        await audit.record(session, tenant_id, by, "tenant.resume", about=("tenant", tenant_id))


async def _active(session: AsyncSession, tenant_id: TenantId, status: str) -> Tenant:
    tenant = await session.get(Tenant, tenant_id)
    if tenant is None:
        raise NotFound
    if tenant.status != status:
        words = {"active": "利用中", "suspended": "停止中", "erased": "消去済み"}
        raise Conflict(f"「{tenant.name}」は{words[tenant.status]}です。")
    return tenant
