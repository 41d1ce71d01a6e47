"""Who works in two towns signs in once, chooses, and is in one of them at a time."""

import asyncio
from collections.abc import Callable

import pytest
from sqlmodel import col, select

from observability.problems import Conflict, InvalidInput, NotFound
from tenants.db import Database
from tenants.identity.directory import IdentityDirectory
from tenants.identity.guests import join_account, leave_account
from tenants.identity.linking import bring_in_line
from tenants.models import Audit, PersonIdentity, Tenant
from tenants.people import reset_password, resume_person, suspend_person
from tests.integration.keycloak.browser import Browser, Page
from tests.integration.keycloak.conftest import BY, Site, Town
from tests.integration.keycloak.test_own_providers import is_in, tenant_of
from tests.integration.keycloak.test_sign_in import enter, sign_in

pytestmark = pytest.mark.real

NewBrowser = Callable[..., Browser]


async def people_of(db: Database, guest: Town, home: Town) -> tuple[tuple[Tenant, str], tuple[Tenant, str]]:
    return (await tenant_of(db, guest), guest.clerk.login), (await tenant_of(db, home), home.clerk.login)


@pytest.fixture
async def joined(db: Database, directory: IdentityDirectory, town: Town, other_town: Town) -> Town:
    """The other town, whose clerk now signs in by the account of the town's clerk."""
    guest, home = await people_of(db, other_town, town)
    assert await join_account(db, directory, guest, home, by=BY)
    return other_town


def choose(site: Site, browser: Browser, page: Page, town: Town) -> Page:
    [form] = [form for form in page.forms if form.fields.get("town") == town.alias]
    page.forms = [form]
    return browser.submit(page, "town")


async def test_one_sign_in_serves_both_towns_one_at_a_time(
    site: Site, town: Town, joined: Town, browser: Browser
) -> None:
    def walk() -> None:
        page = sign_in(site, browser, town, town.clerk)
        assert page.url.startswith(f"{site.portal}/auth/towns"), page.url
        assert f"このまま{town.name}で続ける" in page.text and f"{joined.name}に切り替える" in page.text
        before = browser.cookies(site.portal)["kumiai_session"]
        home = choose(site, browser, page, joined)
        assert home.url == f"{site.portal}/" and is_in(site, browser, joined)
        # The session of the first town has ended, also for whoever kept its cookie.
        kept = Browser()
        kept.cookies(site.portal)["kumiai_session"] = before
        assert not is_in(site, kept, town)
        kept.close()
        # And back, from the settings.
        assert "/auth/towns?next=/settings" in browser.get(f"{site.portal}/settings").text
        choose(site, browser, browser.get(f"{site.portal}/auth/towns"), town)
        assert is_in(site, browser, town)

    await asyncio.to_thread(walk)


async def test_who_has_one_town_is_not_asked(site: Site, town: Town, browser: Browser) -> None:
    def walk() -> None:
        assert sign_in(site, browser, town, town.clerk).url == f"{site.portal}/"
        assert "団体を切り替える" not in browser.get(f"{site.portal}/settings").text
        assert "登録されている団体は1つです" in browser.get(f"{site.portal}/auth/towns").text

    await asyncio.to_thread(walk)


async def test_a_town_that_is_not_the_person_s_cannot_be_chosen(
    site: Site, town: Town, other_town: Town, browser: Browser, db: Database, directory: IdentityDirectory
) -> None:
    guest, home = await people_of(db, other_town, town)

    def walk(chooses: Town) -> tuple[int, bool]:
        page = browser.get(f"{site.portal}/auth/towns")
        csrf = next(f.fields["csrf"] for f in page.forms if "csrf" in f.fields)
        answer = browser._go("POST", f"{site.portal}/auth/towns", {"csrf": csrf, "town": chooses.alias}, page.url)
        return answer.status, is_in(site, browser, chooses)

    await asyncio.to_thread(sign_in, site, browser, town, town.clerk)
    assert await asyncio.to_thread(walk, other_town) == (404, False)
    await join_account(db, directory, guest, home, by=BY)
    assert await asyncio.to_thread(walk, other_town) == (200, True)


async def test_the_account_is_its_own_town_s_to_manage(
    site: Site, town: Town, joined: Town, new_browser: NewBrowser, db: Database, directory: IdentityDirectory
) -> None:
    with pytest.raises(Conflict):
        await reset_password(db, directory, joined.id, joined.clerk.id, "taken-over-1234", by=BY)
    await suspend_person(db, directory, joined.id, joined.clerk.id, by=BY)

    def only_in_town() -> None:
        browser = new_browser()
        assert sign_in(site, browser, town, town.clerk).url == f"{site.portal}/"
        assert is_in(site, browser, town)

    await asyncio.to_thread(only_in_town)
    await resume_person(db, directory, joined.id, joined.clerk.id, by=BY)
    # The account of the other town's own is closed.
    closed = await asyncio.to_thread(sign_in, site, new_browser(), joined, joined.clerk)
    assert "町の管理者に連絡してください" in closed.text
    # Its full name is a way into the other town, too.
    other = new_browser()

    def by_full_name() -> None:
        page = other.submit(enter(site, other, joined, ""), "username", username=f"{town.alias}.{town.clerk.login}")
        page = other.submit(page, "password", password=town.clerk.password)
        assert f"このまま{joined.name}で続ける" in page.text

    await asyncio.to_thread(by_full_name)


async def test_keycloak_up_leaves_it_as_it_is(
    site: Site, town: Town, joined: Town, db: Database, directory: IdentityDirectory
) -> None:
    done = await bring_in_line(db, site.spec, site.settings, by=BY)
    assert (done.writes, done.people) == (0, 0), done.lines
    guest, home = await people_of(db, joined, town)
    assert not await join_account(db, directory, guest, home, by=BY)
    async with db.platform_session("test", read_only=True) as session:
        told = select(Audit.action).where(col(Audit.tenant_id).in_([town.id, joined.id]))
        actions = set((await session.exec(told)).all())
    assert {"person.link", "person.lend_account"} <= actions


async def test_it_can_be_undone(
    site: Site, town: Town, joined: Town, browser: Browser, db: Database, directory: IdentityDirectory
) -> None:
    guest, _ = await people_of(db, joined, town)
    await leave_account(db, directory, guest, by=BY)
    await reset_password(db, directory, joined.id, joined.clerk.id, "initial-2345-word", by=BY)
    assert (await asyncio.to_thread(sign_in, site, browser, town, town.clerk)).url == f"{site.portal}/"
    async with db.platform_session("test", read_only=True) as session:
        query = select(PersonIdentity).where(col(PersonIdentity.person_id) == joined.clerk.id)
        [link] = (await session.exec(query)).all()
    assert not link.is_guest
    with pytest.raises(Conflict):
        await leave_account(db, directory, guest, by=BY)


async def test_what_cannot_be_joined_is_refused(
    town: Town, joined: Town, db: Database, directory: IdentityDirectory
) -> None:
    guest, home = await people_of(db, joined, town)
    with pytest.raises(InvalidInput):
        await join_account(db, directory, (home[0], "1001"), home, by=BY)
    with pytest.raises(NotFound):
        await join_account(db, directory, (guest[0], "9999"), home, by=BY)
    # No chains: what is lent is not lent on, and who lends does not borrow.
    with pytest.raises(Conflict):
        await join_account(db, directory, (home[0], "1001"), guest, by=BY)
    with pytest.raises(Conflict):
        await join_account(db, directory, home, (guest[0], "1001"), by=BY)
