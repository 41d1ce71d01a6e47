"""Keycloak in line with our database, and our links in line with Keycloak: a rebuilt realm orphans nobody."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.db import Database
from tenants.identity.keycloak import reconcile_accounts, reconcile_organizations, reconcile_realm
from tenants.identity.one_writer import one_writer
from tenants.identity.realm import AccountSpec, OrganizationSpec, RealmSpec
from tenants.models import Person, PersonIdentity, Tenant, TenantIdentity
from tenants.people import code_of
from tenants.settings import Settings


@dataclass(frozen=True, slots=True)
class Done:
    """What was written at Keycloak, in words and as a number, and how many of our links changed."""

    lines: tuple[str, ...]
    writes: int
    towns: int
    people: int
    without_password: int


async def bring_in_line(db: Database, spec: RealmSpec, settings: Settings, *, by: By) -> Done:
    """Realm, then one organization per town, then one account per person; a second run changes nothing.

    New accounts have no password: the town's administrator issues one. Raises `Unavailable` in several kinds.
    """
    issuer = settings.resolved_issuer
    realm = await asyncio.to_thread(reconcile_realm, spec)
    async with db.platform_session("keycloak up", read_only=True) as session:
        tenants = (await session.exec(select(Tenant).where(col(Tenant.status) != "erased"))).all()
        codes = {t.id: await code_of(session, TenantId(t.id)) for t in tenants}
        # Who signs in by another town's account needs none of their own.
        guests = select(PersonIdentity.person_id).where(
            col(PersonIdentity.issuer) == issuer, col(PersonIdentity.is_guest).is_(True)
        )
        wanting = select(Person).where(col(Person.status) != "erased", col(Person.id).not_in(guests))
        people = (await session.exec(wanting)).all()
    aliases = {t.id: t.alias for t in tenants}
    towns = [OrganizationSpec(t.alias, f"{t.name} ({codes[t.id]})", codes[t.id], t.status == "active") for t in tenants]
    wanted = [
        AccountSpec(aliases[p.tenant_id], p.login, p.status == "active") for p in people if p.tenant_id in aliases
    ]
    lock = one_writer(settings.urls)
    organizations = await asyncio.to_thread(lambda: reconcile_organizations(spec, towns, one_writer=lock))
    accounts = await asyncio.to_thread(reconcile_accounts, spec, wanted)
    linked_towns = linked_people = 0
    for tenant in tenants:
        subs = {login: sub for (alias, login), sub in accounts.subs.items() if alias == tenant.alias}
        async with db.platform_session("keycloak up") as session:
            tenant_id = TenantId(tenant.id)
            organization_id = organizations.organization_ids[tenant.alias]
            linked_towns += await _link_town(session, tenant_id, issuer, organization_id, by)
            linked_people += await _link_people(session, tenant_id, issuer, subs, by)
    return Done(
        (*realm.lines, *organizations.lines, *accounts.lines),
        realm.writes + organizations.writes + accounts.writes,
        linked_towns,
        linked_people,
        accounts.without_password,
    )


async def _link_town(session: AsyncSession, tenant_id: TenantId, issuer: str, organization_id: str, by: By) -> bool:
    """True when the town was linked to another organization, or to none, of this issuer."""
    query = select(TenantIdentity).where(
        col(TenantIdentity.tenant_id) == tenant_id, col(TenantIdentity.issuer) == issuer
    )
    rows = {row.organization_id: row for row in (await session.exec(query)).all()}
    if organization_id in rows and rows[organization_id].unlinked_at is None:
        return False
    for row in rows.values():
        row.unlinked_at = row.unlinked_at or datetime.now(UTC)
        session.add(row)
    link = rows.get(organization_id) or TenantIdentity(
        tenant_id=tenant_id, issuer=issuer, organization_id=organization_id
    )
    link.unlinked_at = None
    session.add(link)
    await audit.record(session, tenant_id, by, "tenant.link", about=("organization", organization_id))
    return True


async def _link_people(session: AsyncSession, tenant_id: TenantId, issuer: str, subs: Mapping[str, str], by: By) -> int:
    """Points each person at the account that now bears their number; the old link is replaced, the audit keeps it."""
    people = (await session.exec(select(Person).where(col(Person.tenant_id) == tenant_id))).all()
    query = select(PersonIdentity).where(
        col(PersonIdentity.tenant_id) == tenant_id, col(PersonIdentity.issuer) == issuer
    )
    links = {row.person_id: row for row in (await session.exec(query)).all()}
    changed = 0
    for person in people:
        sub = subs.get(person.login)
        link = links.get(person.id)
        if sub is None or (link is not None and (link.sub == sub or link.is_guest)):
            continue
        if link is None:
            link = PersonIdentity(tenant_id=tenant_id, issuer=issuer, sub=sub, person_id=person.id)
        link.sub, link.linked_at = sub, datetime.now(UTC)
        session.add(link)
        await audit.record(session, tenant_id, by, "person.link", about=("person", person.id), sub=sub)
        changed += 1
    return changed
