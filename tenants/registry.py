"""The towns: created by one command, found by code or name, suspended, resumed."""

import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal

import anyio.to_thread
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import SIGNED_IN, By
from tenants.context import PersonId, Role, TenantId, new_id
from tenants.db import Database
from tenants.identity.directory import IdentityDirectory
from tenants.lgcode import parse_code
from tenants.models import Audit, Call, Person, Tenant, TenantCode, TenantIdentity, TownProvider
from tenants.people import NewPerson, clean_login, ensure_sections, record_person, section_name
from tenants.policy import Policy, bump_configuration, save_policy
from tenants.quota.grants import read_region
from tenants.quota.tree import MAX_YEN, set_budget
from tenants.quota.windows import JST

# Without letters and digits that look alike on paper.
_LETTERS = "abcdefghjkmnpqrstuvwxyz"
_DIGITS = "23456789"
MAX_NAME: Final = 60


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
    is_new: bool = True


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
    """Organization and administrator at the issuer, then all rows of the town in one transaction.

    Everything is checked before anything is written. Interrupted at any point, the same call completes it; so does
    calling it again for a town nobody has used yet, whose administrator then gets a new password.
    Raises `BadCode`, `InvalidInput`, `Conflict` (`PoolTooSmall` too).
    """
    new = check_new(new)
    code, alias = new.code, f"t{new.code}"
    roles = frozenset({Role.OPERATOR if new.kind == "operator" else Role.TOWN_ADMIN, Role.STAFF})
    admin = NewPerson(new.admin_login, new.admin_name, new.sections[0] if new.sections else "", roles)
    password = admin_password or new_password()
    async with db.platform_session("tenant create", read_only=True) as session:
        begun = await _begun(session, new)
        pool = await read_region(session, "month", datetime.now(UTC)) if begun is None else None
    if pool is not None:
        pool.check_room(new.month_yen)
    # Two towns may share a name (府中市); at the issuer names are unique.
    organization_id = await anyio.to_thread.run_sync(
        lambda: directory.ensure_organization(alias=alias, name=f"{new.name} ({code})", code=code)
    )
    sub = await anyio.to_thread.run_sync(
        lambda: directory.open_account(
            alias=alias, login=admin.login, display_name=admin.display_name, password=password, temporary=temporary
        )
    )
    try:
        async with db.platform_session("tenant create") as session:
            tenant_id = begun or TenantId(new_id())
            if begun is None:
                session.add(Tenant(id=tenant_id, kind=new.kind, name=new.name, alias=alias))
                await session.flush()
                today = datetime.now(JST).date()
                session.add(TenantCode(tenant_id=tenant_id, code=code, valid_from=today))
                identity = TenantIdentity(tenant_id=tenant_id, issuer=directory.issuer, organization_id=organization_id)
                session.add(identity)
                await save_policy(session, tenant_id, new.policy, version=0, by=None)
            sections = await ensure_sections(session, tenant_id, new.sections)
            await set_budget(session, tenant_id, yen=new.month_yen)
            if await read_region(session, "fiscal_year", datetime.now(UTC)) is not None:
                # Nothing of the year's pool is its own until the operator says so.
                await set_budget(session, tenant_id, yen=0, window="fiscal_year")
            await audit.record(session, tenant_id, by, "tenant.create", about=("tenant", tenant_id), code=code)
            admin_id = await _administrator(session, tenant_id, admin.login)
            if admin_id is None:
                admin_id = await record_person(
                    session, tenant_id, admin, directory.issuer, sub, sections.get(admin.section), by=by
                )
            await bump_configuration(session)
    except IntegrityError as error:
        raise Conflict(f"団体コード {code} の団体が、いま別に作られました。") from error
    return Created(tenant_id, alias, admin_id, admin.login, password, is_new=begun is None)


def check_new(new: NewTenant) -> NewTenant:
    """As it will be stored. Raises `BadCode`, `InvalidInput`."""
    name = unicodedata.normalize("NFKC", " ".join(new.name.split()))
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidInput(f"団体の名前を{MAX_NAME}字までで書いてください。", field="name")
    if not 0 <= new.month_yen <= MAX_YEN:
        raise InvalidInput(f"予算は0円から{MAX_YEN:,}円までの整数で入れてください。", field="month_yen")
    return replace(
        new,
        code=parse_code(new.code),
        name=name,
        admin_login=clean_login(new.admin_login),
        sections=tuple(dict.fromkeys(section_name(s) for s in new.sections)),
    )


async def _begun(session: AsyncSession, new: NewTenant) -> TenantId | None:
    """The town of this code, when it is this very one and nobody has used it yet. Raises `Conflict` for any other."""
    query = select(Tenant).join(TenantCode, col(TenantCode.tenant_id) == col(Tenant.id))
    found = (
        await session.exec(query.where(col(TenantCode.code) == new.code, col(TenantCode.valid_to).is_(None)))
    ).first()
    if found is None:
        return None
    tenant_id = TenantId(found.id)
    others = await session.exec(
        select(Person.id).where(col(Person.tenant_id) == tenant_id, col(Person.login) != new.admin_login)
    )
    called = await session.exec(select(Call.id).where(col(Call.tenant_id) == tenant_id).limit(1))
    signed_in = await session.exec(
        select(Audit.id).where(col(Audit.tenant_id) == tenant_id, col(Audit.action) == SIGNED_IN).limit(1)
    )
    is_same = (found.name, found.kind, found.status) == (new.name, new.kind, "active")
    is_used = any(rows.first() is not None for rows in (others, called, signed_in))
    if not is_same or is_used:
        raise Conflict(f"団体コード {new.code} は「{found.name}」で使われています。")
    return tenant_id


async def _administrator(session: AsyncSession, tenant_id: TenantId, login: str) -> PersonId | None:
    query = select(Person.id).where(col(Person.tenant_id) == tenant_id, col(Person.login) == login)
    found = (await session.exec(query)).first()
    return None if found is None else PersonId(found)


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


async def list_town_providers(session: AsyncSession, tenant_id: TenantId) -> Sequence[TownProvider]:
    """In a platform session; by name."""
    query = select(TownProvider).where(col(TownProvider.tenant_id) == tenant_id)
    return (await session.exec(query.order_by(col(TownProvider.name)))).all()
