"""Sign-in with Chromium at the real portal and the real Keycloak: a town's own provider, the choice of the town, second factors."""

import base64
import contextlib
import hmac
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, Page, expect

from tenants.db import Database
from tenants.identity.brokering import add_town_provider
from tenants.identity.directories import open_directory
from tenants.identity.directory import IdentityDirectory
from tenants.identity.guests import join_account
from tenants.identity.keycloak import Admin, Administrator
from tests.browsers import DESKTOP, PHONE, ZOOMED, assert_accessible, sign_in
from tests.gateways import in_thread
from tests.integration.keycloak.conftest import BY, Site, Town, make_town
from tests.integration.keycloak.test_own_providers import PASSWORD, OwnRealm, tenant_of
from tests.integration.keycloak.test_two_towns import people_of

pytestmark = [pytest.mark.real, pytest.mark.browser]

T = TypeVar("T")


class Region:
    """The running site, asked from a test that has a browser (and its event loop) in its thread."""

    def __init__(self, site: Site, browser: Browser) -> None:
        self.site = site
        self._browser = browser
        self._pages: list[Page] = []

    def do(self, work: Callable[[Database, IdentityDirectory], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            db = Database(self.site.settings.urls)
            try:
                return await work(db, open_directory(self.site.settings))
            finally:
                await db.close()

        return in_thread(run())

    def town(self) -> Town:
        return self.do(make_town)

    def open(self, **options: Any) -> Page:
        context = self._browser.new_context(
            **({"locale": "ja-JP", "base_url": self.site.portal, "viewport": DESKTOP} | options)
        )
        context.set_default_timeout(30_000)
        self._pages.append(context.new_page())
        return self._pages[-1]

    def close(self) -> None:
        for page in self._pages:
            page.context.close()


@pytest.fixture
def region(site: Site, chromium: Browser) -> Iterator[Region]:
    expect.set_options(timeout=30_000)
    one = Region(site, chromium)
    yield one
    one.close()


@pytest.fixture
def town(region: Region) -> Town:
    return region.town()


def expect_in(page: Page, site: Site, town: Town) -> None:
    page.wait_for_url(f"{site.portal}/**")
    expect(page.locator("[data-signout]").first).to_be_attached()
    expect(page.get_by_text(town.name).first).to_be_visible()


def test_the_button_of_the_town_leads_through_its_own_page(site: Site, region: Region, town: Town) -> None:
    name = f"town-{secrets.token_hex(4)}"
    admin = Admin(site.spec.url, name, Administrator(site.spec.admin_user, site.spec.admin_password))
    admin.create_realm({"realm": name, "enabled": True, "displayName": "町の入口"})
    try:
        own = OwnRealm(site.spec.url, name, admin)
        own.register(site, town)
        own.add(town.clerk.login)
        own.add("9999")

        async def declare(db: Database, _directory: IdentityDirectory) -> None:
            await add_town_provider(db, site.spec, await tenant_of(db, town), own.spec(town, "oidc"), by=BY)

        region.do(declare)
        for number in (town.clerk.login, "9999"):
            page = region.open()
            page.goto(f"/t/{town.code}")
            for size in (DESKTOP, PHONE, ZOOMED):
                page.set_viewport_size(size)
                assert_accessible(page)
            page.set_viewport_size(DESKTOP)
            button = page.get_by_role("button", name="町のアカウントでサインイン")
            button.focus()
            page.keyboard.press("Enter")
            page.wait_for_url(f"{own.issuer}/**")
            page.locator("#username").fill(number)
            page.locator("#password").fill(PASSWORD)
            page.keyboard.press("Enter")
            if number == town.clerk.login:
                expect_in(page, site, town)
            else:
                expect(page.get_by_text("この町の職員として登録されていません")).to_be_visible()
                assert_accessible(page)
    finally:
        with contextlib.suppress(Exception):
            admin.write("delete", "")


def test_who_works_in_two_towns_chooses_by_keyboard_and_changes_without_a_password(
    site: Site, region: Region, town: Town
) -> None:
    other = region.town()

    async def join(db: Database, directory: IdentityDirectory) -> None:
        guest, home = await people_of(db, other, town)
        await join_account(db, directory, guest, home, by=BY)

    region.do(join)
    page = region.open()
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    expect(page.get_by_role("heading", level=1, name="どの団体の仕事をしますか")).to_be_visible()
    for size in (PHONE, ZOOMED, DESKTOP):
        page.set_viewport_size(size)
        assert_accessible(page)
    stay = page.get_by_role("link", name=f"このまま{town.name}で続ける")
    stay.focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name=f"{other.name}に切り替える")).to_be_focused()
    page.keyboard.press("Enter")
    expect_in(page, site, other)
    page.goto("/settings")
    assert_accessible(page)
    page.get_by_role("link", name="団体を切り替える").click()
    page.get_by_role("button", name=f"{town.name}に切り替える").click()
    expect_in(page, site, town)


def code_of(secret: str, at: float) -> str:
    """RFC 6238, six digits of HMAC-SHA1 every 30 seconds: what an authenticator shows."""
    key = base64.b32decode(secret.replace(" ", "").upper() + "=" * (-len(secret.replace(" ", "")) % 8))
    digest = hmac.digest(key, int(at // 30).to_bytes(8, "big"), "sha1")
    start = digest[-1] & 15
    return f"{(int.from_bytes(digest[start : start + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06d}"


def test_whoever_registers_an_authenticator_is_asked_for_its_code_from_then_on(
    site: Site, region: Region, town: Town
) -> None:
    page = region.open()
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    page.goto("/settings")
    for size in (PHONE, ZOOMED, DESKTOP):
        page.set_viewport_size(size)
        assert_accessible(page)
    page.get_by_role("link", name="認証アプリを登録する").click()
    expect(page.get_by_role("heading", name="認証アプリを登録する")).to_be_visible()
    page.get_by_role("link", name="写せないとき").click()
    secret = page.locator("#kc-totp-secret-key").inner_text()
    began = time.time()
    page.locator("#totp").fill(code_of(secret, began))
    page.get_by_role("button", name="決めて続ける").click()
    expect(page.get_by_text("認証アプリを登録しました")).to_be_visible()

    fresh = region.open()
    sign_in(fresh, town.code, town.clerk.login, town.clerk.password)
    expect(fresh.locator("#otp")).to_be_visible()
    assert_accessible(fresh)
    fresh.locator("#otp").fill("000000" if code_of(secret, time.time()) != "000000" else "111111")
    fresh.keyboard.press("Enter")
    expect(fresh.get_by_text("番号が違います")).to_be_visible()
    # A code is good once: the one of the next half minute is taken, which Keycloak knows already.
    fresh.locator("#otp").fill(code_of(secret, max(time.time(), began + 30)))
    fresh.keyboard.press("Enter")
    expect_in(fresh, site, town)
