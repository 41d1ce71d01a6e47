"""`kumiai keycloak up`: a realm that was lost, or an issuer that was changed, orphans nobody."""

import asyncio

import pytest
from sqlmodel import col, select

from tenants.audit.verification import verify_chain
from tenants.db import Database
from tenants.identity.directories import open_directory
from tenants.identity.directory import IdentityDirectory
from tenants.identity.linking import bring_in_line
from tenants.models import Audit, Person
from tenants.people import reset_password
from tests.integration.keycloak.browser import Browser
from tests.integration.keycloak.conftest import BY, Site, Town
from tests.integration.keycloak.test_sign_in import enter

pytestmark = pytest.mark.real


async def test_a_lost_realm_is_made_again_and_everybody_linked(
    site: Site, town: Town, other_town: Town, browser: Browser, db: Database
) -> None:
    await bring_in_line(db, site.spec, site.settings, by=BY)
    assert (await bring_in_line(db, site.spec, site.settings, by=BY)).writes == 0
    site.admin.write("delete", "")
    done = await bring_in_line(db, site.spec, site.settings, by=BY)
    assert done.towns >= 2
    assert done.people == done.without_password >= 4
    again = await bring_in_line(db, site.spec, site.settings, by=BY)
    assert (again.writes, again.towns, again.people) == (0, 0, 0)
    async with db.platform_session("test", read_only=True) as session:
        linked = await session.exec(
            select(Audit.action).where(col(Audit.tenant_id) == town.id, col(Audit.action).like("%.link"))
        )
        assert sorted(linked.all()) == ["person.link", "person.link", "tenant.link"]
    assert (await verify_chain(db, town.id)).links > 0
    # Nobody has a password until the town's administrator gives one out.
    fresh = open_directory(site.settings)
    await reset_password(db, fresh, town.id, town.clerk.id, "given-2345-word", by=BY)

    def walk() -> None:
        page = browser.submit(enter(site, browser, town, town.clerk.login), "password", password="given-2345-word")
        chosen = {"password-new": "quite-another-1", "password-confirm": "quite-another-1"}
        assert browser.submit(page, "password-new", **chosen).url == f"{site.portal}/"

    await asyncio.to_thread(walk)


async def test_an_account_left_open_is_closed_and_a_missing_one_made(
    site: Site, town: Town, db: Database, directory: IdentityDirectory
) -> None:
    await bring_in_line(db, site.spec, site.settings, by=BY)
    async with db.platform_session("test") as session:
        person = (await session.exec(select(Person).where(col(Person.id) == town.clerk.id))).one()
        # As if Keycloak had been away when the person was suspended.
        person.status = "suspended"
        session.add(person)
        session.add(Person(tenant_id=town.id, login="4001"))
    done = await bring_in_line(db, site.spec, site.settings, by=BY)
    assert (done.people, done.without_password) == (1, 1)
    [closed] = site.admin.get("/users", username=f"{town.alias}.{town.clerk.login}", exact="true")
    [made] = site.admin.get("/users", username=f"{town.alias}.4001", exact="true")
    assert (closed["enabled"], made["enabled"]) == (False, True)
    assert (await bring_in_line(db, site.spec, site.settings, by=BY)).writes == 0
