"""One account in two towns: a person of one town signs in by the account that another town gave them.

The account stays its own town's: that one alone sets its password and closes it. A session is of one town only, and so is
everything in it; who has several chooses.
"""

from dataclasses import dataclass

from anyio import to_thread
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.db import Database
from tenants.identity.access_list import revoke
from tenants.identity.directory import IdentityDirectory
from tenants.models import Person, PersonIdentity, PortalSession, Tenant, TenantCode, TenantIdentity, utcnow


@dataclass(frozen=True, slots=True)
class Place:
    """A town in which an account may work."""

    tenant_id: TenantId
    name: str
    alias: str
    code: str


async def places_of(session: AsyncSession, issuer: str, sub: str) -> list[Place]:
    """The towns whose active person this account is, by code; in a platform session."""
    found = await session.exec(
        select(Tenant.id, Tenant.name, Tenant.alias, TenantCode.code)
        .join(Person, col(Person.tenant_id) == col(Tenant.id))
        .join(PersonIdentity, col(PersonIdentity.person_id) == col(Person.id))
        .join(TenantCode, col(TenantCode.tenant_id) == col(Tenant.id))
        .join(TenantIdentity, col(TenantIdentity.tenant_id) == col(Tenant.id))
        .where(
            col(PersonIdentity.issuer) == issuer,
            col(PersonIdentity.sub) == sub,
            col(Person.status) == "active",
            col(Tenant.status) == "active",
            col(TenantCode.valid_to).is_(None),
            col(TenantIdentity.issuer) == issuer,
            col(TenantIdentity.unlinked_at).is_(None),
        )
        .order_by(col(TenantCode.code))
    )
    return [Place(TenantId(id), name, alias, code) for id, name, alias, code in found.all()]


async def join_account(
    db: Database, directory: IdentityDirectory, guest: tuple[Tenant, str], home: tuple[Tenant, str], *, by: By
) -> bool:
    """Lets the guest, a person of one town, sign in by the account of a person of another; their own is closed.

    guest, home: town and staff number. False when it was so already. Both towns' chains are told.
    Raises `NotFound`, `InvalidInput`, `Conflict`.
    """
    if guest[0].id == home[0].id:
        raise InvalidInput("同じ団体の2人を、1つのアカウントにはできません。", field="account_town")
    async with db.platform_session("guests", read_only=True) as session:
        person, link = await _linked(session, guest, directory.issuer)
        _, account = await _linked(session, home, directory.issuer)
        if account.is_guest:
            raise Conflict("元にするアカウントは、その団体が管理するものにしてください。")
        if not link.is_guest:
            shared = await session.exec(
                select(PersonIdentity.id).where(
                    col(PersonIdentity.issuer) == directory.issuer,
                    col(PersonIdentity.sub) == link.sub,
                    col(PersonIdentity.is_guest).is_(True),
                )
            )
            if shared.first() is not None:
                raise Conflict("この職員のアカウントは、ほかの団体でも使われています。先にそちらを外してください。")
    if link.is_guest and link.sub == account.sub:
        return False
    await to_thread.run_sync(directory.join_organization, guest[0].alias, account.sub)
    async with db.platform_session("guests") as session:
        row = await session.get(PersonIdentity, link.id)
        assert row is not None
        row.sub, row.is_guest, row.linked_at = account.sub, True, utcnow()
        session.add(row)
        await _relinked(session, person, by)
        await audit.record(session, TenantId(home[0].id), by, "person.lend_account", about=("account", account.sub))
    if not link.is_guest:
        await to_thread.run_sync(_close, directory, link.sub)
    return True


async def leave_account(db: Database, directory: IdentityDirectory, guest: tuple[Tenant, str], *, by: By) -> None:
    """The guest gets an account of their own town back, which needs a new initial password. Raises as above."""
    tenant, login = guest
    async with db.platform_session("guests", read_only=True) as session:
        person, link = await _linked(session, guest, directory.issuer)
    if not link.is_guest:
        raise Conflict("この職員は、自分の団体のアカウントを使っています。")
    sub = await to_thread.run_sync(_own_account, directory, tenant.alias, login)
    async with db.platform_session("guests") as session:
        row = await session.get(PersonIdentity, link.id)
        assert row is not None
        row.sub, row.is_guest, row.linked_at = sub, False, utcnow()
        session.add(row)
        await _relinked(session, person, by)


def _close(directory: IdentityDirectory, sub: str) -> None:
    directory.set_user_enabled(sub, enabled=False)
    directory.logout_user(sub)


def _own_account(directory: IdentityDirectory, alias: str, login: str) -> str:
    sub = directory.ensure_user(alias=alias, login=login, display_name="", initial_password=None)
    directory.set_user_enabled(sub, enabled=True)
    return sub


async def _relinked(session: AsyncSession, person: Person, by: By) -> None:
    """What ran under the account of before ends."""
    tenant_id = TenantId(person.tenant_id)
    running = select(PortalSession).where(
        col(PortalSession.person_id) == person.id, col(PortalSession.ended_at).is_(None)
    )
    for row in (await session.exec(running)).all():
        row.ended_at = utcnow()
        session.add(row)
    await revoke(session, "person", str(person.id), tenant_id=tenant_id)
    await audit.record(session, tenant_id, by, "person.link", about=("person", person.id))


async def _linked(session: AsyncSession, who: tuple[Tenant, str], issuer: str) -> tuple[Person, PersonIdentity]:
    tenant, login = who
    found = await session.exec(
        select(Person, PersonIdentity)
        .join(PersonIdentity, col(PersonIdentity.person_id) == col(Person.id))
        .where(
            col(Person.tenant_id) == tenant.id,
            col(Person.login) == login,
            col(Person.status) == "active",
            col(PersonIdentity.issuer) == issuer,
        )
    )
    row = found.first()
    if row is None:
        raise NotFound(f"{tenant.name}に、職員番号 {login} の使える職員がいません。")
    return row[0], row[1]
