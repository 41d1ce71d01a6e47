"""Persons, sections and roles of one tenant: added, moved, suspended, never deleted. The issuer follows."""

import unicodedata
from asyncio import to_thread as in_thread
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import Actor, PersonId, Role, SectionId, TenantId
from tenants.db import Database
from tenants.identity.access_list import revoke
from tenants.identity.directory import IdentityDirectory
from tenants.models import (
    Person,
    PersonIdentity,
    PortalSession,
    RoleGrant,
    Section,
    Tenant,
    TenantCode,
    TenantIdentity,
)
from tenants.policy import SecondFactor


@dataclass(frozen=True, slots=True)
class NewPerson:
    """`login` is the staff number as the town writes it."""

    login: str
    display_name: str
    section: str = ""
    roles: frozenset[Role] = frozenset({Role.STAFF})


@dataclass(frozen=True, slots=True)
class Listed:
    """A person as an administrator sees them."""

    id: PersonId
    login: str
    display_name: str
    status: str
    section_id: SectionId | None
    section_name: str
    roles: tuple[Role, ...]
    # How the last sign-in was, as in `tenants.identity.second_factor`; None: none since that is kept.
    signed_in_by: str | None = None


@dataclass(frozen=True, slots=True)
class PlainPassword:
    """An initial password in clear, for a slip; never stored by us."""

    login: str
    text: str = field(repr=False)


def clean_login(text: str) -> str:
    """A staff number as it is stored: half-width, without spaces. Raises `InvalidInput`."""
    login = unicodedata.normalize("NFKC", text).strip()
    if not 1 <= len(login) <= 32 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in login):
        raise InvalidInput("職員番号は英数字・ハイフン・下線で32字までにしてください。", field="login")
    return login.lower()


async def load_actor(session: AsyncSession, tenant_id: TenantId, person_id: PersonId) -> Actor:
    """Who this person is now, with the roles in force. Raises `NotFound` unless the person is active."""
    now = datetime.now(UTC)
    person = (
        await session.exec(select(Person).where(col(Person.id) == person_id, col(Person.tenant_id) == tenant_id))
    ).first()
    tenant = await session.get(Tenant, tenant_id)
    if person is None or tenant is None or person.status != "active":
        raise NotFound
    if person.ends_on is not None and person.ends_on < now.date():
        raise NotFound
    grants = await session.exec(
        select(RoleGrant.role).where(
            col(RoleGrant.tenant_id) == tenant_id,
            col(RoleGrant.person_id) == person_id,
            col(RoleGrant.revoked_at).is_(None),
            or_(col(RoleGrant.expires_at).is_(None), col(RoleGrant.expires_at) > now),
        )
    )
    section = await session.get(Section, person.section_id) if person.section_id else None
    return Actor(
        tenant_id=tenant_id,
        person_id=person_id,
        section_id=SectionId(section.id) if section else None,
        roles=frozenset(Role(r) for r in grants.all()),
        login=person.login,
        display_name=person.display_name,
        section_name=section.name if section else "",
        tenant_name=tenant.name,
        tenant_code=await code_of(session, tenant_id),
    )


async def code_of(session: AsyncSession, tenant_id: TenantId) -> str:
    """The団体コード in force, or an empty text."""
    found = await session.exec(
        select(TenantCode.code)
        .where(col(TenantCode.tenant_id) == tenant_id, col(TenantCode.valid_to).is_(None))
        .order_by(col(TenantCode.valid_from).desc())
    )
    return found.first() or ""


async def person_of_token(
    session: AsyncSession, *, issuer: str, sub: str, organization_id: str
) -> tuple[TenantId, PersonId]:
    """The person behind an issuer's account in one organization; in a platform session. Raises `NotFound`."""
    found = (
        await session.exec(
            select(Person.tenant_id, Person.id)
            .join(PersonIdentity, col(PersonIdentity.person_id) == col(Person.id))
            .join(TenantIdentity, col(TenantIdentity.tenant_id) == col(Person.tenant_id))
            .where(
                col(PersonIdentity.issuer) == issuer,
                col(PersonIdentity.sub) == sub,
                col(TenantIdentity.issuer) == issuer,
                col(TenantIdentity.organization_id) == organization_id,
                col(TenantIdentity.unlinked_at).is_(None),
            )
        )
    ).first()
    if found is None:
        raise NotFound
    return TenantId(found[0]), PersonId(found[1])


async def ensure_sections(session: AsyncSession, tenant_id: TenantId, names: Iterable[str]) -> dict[str, SectionId]:
    """Adds the sections that are missing, in order; closed ones open again. Name → id of all that are open."""
    rows = {s.name: s for s in (await session.exec(select(Section).where(col(Section.tenant_id) == tenant_id))).all()}
    position = max((s.position for s in rows.values()), default=0)
    for raw in names:
        name = section_name(raw)
        if name not in rows:
            position += 1
            rows[name] = Section(tenant_id=tenant_id, name=name, position=position)
            session.add(rows[name])
        elif rows[name].closed_at is not None:
            rows[name].closed_at = None
            session.add(rows[name])
    await session.flush()
    return {s.name: SectionId(s.id) for s in rows.values() if s.closed_at is None}


async def list_sections(session: AsyncSession, tenant_id: TenantId) -> list[Section]:
    found = await session.exec(
        select(Section)
        .where(col(Section.tenant_id) == tenant_id, col(Section.closed_at).is_(None))
        .order_by(col(Section.position), col(Section.name))
    )
    return list(found.all())


async def rename_section(session: AsyncSession, tenant_id: TenantId, section_id: UUID, name: str, *, by: By) -> None:
    """Raises `InvalidInput`, `Conflict` for a name that another section has or had, `NotFound`."""
    name = section_name(name)
    section = await session.get(Section, section_id)
    if section is None or section.tenant_id != tenant_id:
        raise NotFound
    others = await session.exec(
        select(Section.id).where(
            col(Section.tenant_id) == tenant_id, col(Section.name) == name, col(Section.id) != section_id
        )
    )
    if others.first() is not None:
        raise Conflict(f"「{name}」という課は、もうあるか、前にありました。別の名前にしてください。")
    section.name = name
    session.add(section)
    await audit.record(session, tenant_id, by, "section.rename", about=("section", section_id))


async def close_section(session: AsyncSession, tenant_id: TenantId, section_id: UUID, *, by: By) -> None:
    """Raises `NotFound`, and `Conflict` while people are in it. What it used stays told under its name."""
    section = await session.get(Section, section_id)
    if section is None or section.tenant_id != tenant_id:
        raise NotFound
    members = await session.exec(
        select(Person.id).where(
            col(Person.tenant_id) == tenant_id,
            col(Person.section_id) == section_id,
            col(Person.status).in_(("active", "suspended")),
        )
    )
    if members.first() is not None:
        raise Conflict("この課には職員がいます。先に、ほかの課へ移してください。")
    section.closed_at = datetime.now(UTC)
    session.add(section)
    await audit.record(session, tenant_id, by, "section.close", about=("section", section_id))


def section_name(raw: str) -> str:
    """A section's name as it is stored. Raises `InvalidInput`."""
    name = " ".join(raw.split())
    if not name or len(name) > 60:
        raise InvalidInput("課の名前は60字までで書いてください。", field="section")
    return name


async def list_people(session: AsyncSession, tenant_id: TenantId, *, query: str = "") -> list[Listed]:
    """Persons who have not left, by section and staff number; `query` matches number, name or section."""
    now = datetime.now(UTC)
    sections = {s.id: s for s in await list_sections(session, tenant_id)}
    roles: dict[UUID, set[Role]] = {}
    for grant in (
        await session.exec(
            select(RoleGrant).where(col(RoleGrant.tenant_id) == tenant_id, col(RoleGrant.revoked_at).is_(None))
        )
    ).all():
        if grant.expires_at is None or grant.expires_at > now:
            roles.setdefault(grant.person_id, set()).add(Role(grant.role))
    people = await session.exec(
        select(Person).where(col(Person.tenant_id) == tenant_id, col(Person.status).in_(("active", "suspended")))
    )
    wanted = unicodedata.normalize("NFKC", query).strip().lower()
    listed = []
    for person in people.all():
        section = sections.get(person.section_id) if person.section_id else None
        row = Listed(
            PersonId(person.id),
            person.login,
            person.display_name,
            person.status,
            SectionId(section.id) if section else None,
            section.name if section else "",
            tuple(sorted(roles.get(person.id, ()))),
            person.signed_in_by,
        )
        told = unicodedata.normalize("NFKC", f"{row.login} {row.display_name} {row.section_name}").lower()
        if all(word in told for word in wanted.split()):
            listed.append(row)
    order = {s.id: i for i, s in enumerate(sections.values())}
    return sorted(listed, key=lambda p: (order.get(p.section_id, 10**6) if p.section_id else 10**6, p.login))


async def add_people(
    db: Database,
    directory: IdentityDirectory,
    tenant_id: TenantId,
    alias: str,
    people: Sequence[tuple[NewPerson, str]],
    *,
    by: By,
    temporary: bool = True,
) -> list[PersonId]:
    """Adds persons with their initial passwords: accounts at the issuer first, then one transaction for all rows.

    An account without a row cannot sign in anywhere, and a second run completes it: nothing is half-done.
    Raises `Conflict` when a staff number is taken, `InvalidInput` for an unknown section.
    """
    logins = [clean_login(p.login) for p, _ in people]
    if len(set(logins)) != len(logins):
        raise Conflict("同じ職員番号が2回あります。")
    async with db.platform_session("people", read_only=True) as session:
        taken = await session.exec(
            select(Person.login).where(col(Person.tenant_id) == tenant_id, col(Person.login).in_(logins))
        )
        if already := sorted(taken.all()):
            raise Conflict(f"職員番号 {'、'.join(already[:5])} はもう使われています。")
        sections = {s.name: s.id for s in await list_sections(session, tenant_id)}
    for person, _ in people:
        if person.section and person.section not in sections:
            raise InvalidInput(f"「{person.section}」という課がありません。先に課を作ってください。", field="section")
    subs = []
    for (person, password), login in zip(people, logins, strict=True):
        account = {"alias": alias, "login": login, "display_name": person.display_name, "password": password}
        subs.append(await in_thread(directory.open_account, **account, temporary=temporary))
    async with db.platform_session("people") as session:
        return [
            await record_person(
                session,
                tenant_id,
                replace(person, login=login),
                directory.issuer,
                sub,
                sections.get(person.section),
                by=by,
            )
            for (person, _), login, sub in zip(people, logins, subs, strict=True)
        ]


async def record_person(
    session: AsyncSession,
    tenant_id: TenantId,
    person: NewPerson,
    issuer: str,
    sub: str,
    section_id: UUID | None,
    *,
    by: By,
) -> PersonId:
    """The rows of a person whose account exists at the issuer, in the caller's transaction."""
    row = Person(
        tenant_id=tenant_id,
        login=person.login,
        display_name=" ".join(person.display_name.split())[:60],
        section_id=section_id,
    )
    session.add(row)
    session.add(PersonIdentity(tenant_id=tenant_id, issuer=issuer, sub=sub, person_id=row.id))
    for role in sorted(person.roles):
        scope = row.section_id if role is Role.SECTION_ADMIN else None
        session.add(RoleGrant(tenant_id=tenant_id, person_id=row.id, role=role.value, section_id=scope))
    await audit.record(session, tenant_id, by, "person.add", about=("person", row.id))
    return PersonId(row.id)


async def _person(
    session: AsyncSession, tenant_id: TenantId, person_id: PersonId, issuer: str = ""
) -> tuple[Person, list[str]]:
    """The person, and their accounts at this issuer; at others they may have had some before.

    One that another town manages is not theirs to close or to give a password to.
    """
    person = (
        await session.exec(select(Person).where(col(Person.tenant_id) == tenant_id, col(Person.id) == person_id))
    ).first()
    if person is None:
        raise NotFound
    subs = await session.exec(
        select(PersonIdentity.sub).where(
            col(PersonIdentity.person_id) == person_id,
            col(PersonIdentity.issuer) == issuer,
            col(PersonIdentity.is_guest).is_(False),
        )
    )
    return person, list(subs.all())


async def suspend_person(
    db: Database, directory: IdentityDirectory, tenant_id: TenantId, person_id: PersonId, *, by: By
) -> None:
    """Ours first, then the issuer: within two polls no process serves this person, whatever tokens still live."""
    async with db.platform_session("people") as session:
        person, subs = await _person(session, tenant_id, person_id, directory.issuer)
        if person.id == (UUID(by.id) if by.kind == "person" else None):
            raise Conflict("自分自身は止められません。ほかの管理者に依頼してください。")
        person.status, person.revoked_before = "suspended", datetime.now(UTC)
        session.add(person)
        await _end_sessions(session, person_id)
        await revoke(session, "person", str(person_id), tenant_id=tenant_id)
        await audit.record(session, tenant_id, by, "person.suspend", about=("person", person_id))
    for sub in subs:
        await in_thread(_disable, directory, sub)


def _disable(directory: IdentityDirectory, sub: str) -> None:
    directory.set_user_enabled(sub, enabled=False)
    directory.logout_user(sub)


async def resume_person(
    db: Database, directory: IdentityDirectory, tenant_id: TenantId, person_id: PersonId, *, by: By
) -> None:
    """The issuer first; tokens from before the suspension stay refused."""
    async with db.platform_session("people", read_only=True) as session:
        _, subs = await _person(session, tenant_id, person_id, directory.issuer)
    for sub in subs:
        await in_thread(directory.set_user_enabled, sub, enabled=True)
    async with db.platform_session("people") as session:
        person, _ = await _person(session, tenant_id, person_id)
        person.status = "active"
        session.add(person)
        await audit.record(session, tenant_id, by, "person.resume", about=("person", person_id))


async def reset_password(
    db: Database, directory: IdentityDirectory, tenant_id: TenantId, person_id: PersonId, password: str, *, by: By
) -> PlainPassword:
    """A new initial password, to be changed at the next sign-in; running sessions end."""
    async with db.platform_session("people") as session:
        person, subs = await _person(session, tenant_id, person_id, directory.issuer)
        await _end_sessions(session, person_id)
        await revoke(session, "person", str(person_id), tenant_id=tenant_id)
        await audit.record(session, tenant_id, by, "person.reset_password", about=("person", person_id))
    if not subs:
        raise Conflict("この人のアカウントは、この町の認証基盤では管理していません。")
    await in_thread(directory.reset_password, subs[0], password, temporary=True)
    return PlainPassword(person.login, password)


def has_one_factor(person: Listed, rule: SecondFactor) -> bool:
    """Who uses the product and has not signed in yet in the way that the town asks for."""
    return person.status == "active" and not rule.accepts(person.signed_in_by or "")


async def remove_second_factor(
    db: Database, directory: IdentityDirectory, tenant_id: TenantId, person_id: PersonId, *, by: By
) -> None:
    """For a device that is lost: the next sign-in is by password, and another one can be registered then.

    Raises `Conflict` for whose account is managed elsewhere.
    """
    async with db.platform_session("people") as session:
        person, subs = await _person(session, tenant_id, person_id, directory.issuer)
        if not subs:
            raise Conflict("この人のアカウントは、この町の認証基盤では管理していません。")
        person.signed_in_by = ""
        session.add(person)
        await _end_sessions(session, person_id)
        await revoke(session, "person", str(person_id), tenant_id=tenant_id)
        await audit.record(session, tenant_id, by, "person.remove_second_factor", about=("person", person_id))
    await in_thread(directory.remove_second_factors, subs[0])


async def _end_sessions(session: AsyncSession, person_id: PersonId) -> None:
    rows = await session.exec(
        select(PortalSession).where(col(PortalSession.person_id) == person_id, col(PortalSession.ended_at).is_(None))
    )
    for row in rows.all():
        row.ended_at = datetime.now(UTC)
        session.add(row)


async def move_person(
    session: AsyncSession, tenant_id: TenantId, person_id: PersonId, section_id: SectionId | None, *, by: By
) -> None:
    """To another section; what was spent stays with the old one, and so does the role of its head."""
    person, _ = await _person(session, tenant_id, person_id)
    if section_id is not None:
        section = await session.get(Section, section_id)
        if section is None or section.tenant_id != tenant_id:
            raise NotFound
    if person.section_id == section_id:
        return
    headed = await session.exec(
        select(RoleGrant).where(
            col(RoleGrant.tenant_id) == tenant_id,
            col(RoleGrant.person_id) == person_id,
            col(RoleGrant.role) == Role.SECTION_ADMIN.value,
            col(RoleGrant.revoked_at).is_(None),
        )
    )
    for grant in headed.all():
        grant.revoked_at = datetime.now(UTC)
        session.add(grant)
    person.section_id = section_id
    session.add(person)
    await audit.record(session, tenant_id, by, "person.move", about=("person", person_id))


async def set_role(
    session: AsyncSession, tenant_id: TenantId, person_id: PersonId, role: Role, *, granted: bool, by: By
) -> None:
    """Grants or takes a role; the last administrator who can sign in cannot be taken away. History is kept.

    The head of a section is head of the one they are in. Raises `InvalidInput` for one who is in none.
    """
    person, _ = await _person(session, tenant_id, person_id)
    held = (
        await session.exec(
            select(RoleGrant, Person.status)
            .join(Person, col(Person.id) == col(RoleGrant.person_id))
            .where(
                col(RoleGrant.tenant_id) == tenant_id,
                col(RoleGrant.role) == role.value,
                col(RoleGrant.revoked_at).is_(None),
            )
        )
    ).all()
    mine = [g for g, _ in held if g.person_id == person_id]
    if granted and not mine:
        scope = person.section_id if role is Role.SECTION_ADMIN else None
        if role is Role.SECTION_ADMIN and scope is None:
            raise InvalidInput("先に課を決めてください。課長は、いる課の課長になります。", field="section")
        session.add(RoleGrant(tenant_id=tenant_id, person_id=person_id, role=role.value, section_id=scope))
    if not granted and mine:
        others = {g.person_id for g, status in held if status == "active"} - {person_id}
        if role is Role.TOWN_ADMIN and not others:
            raise Conflict("管理者がいなくなります。先に、ほかの人を管理者にしてください。")
        for grant in mine:
            grant.revoked_at = datetime.now(UTC)
            session.add(grant)
    await audit.record(
        session, tenant_id, by, "role.set", about=("person", person_id), role=role.value, granted=granted
    )
