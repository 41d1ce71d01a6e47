"""A passkey with Chromium's own virtual device. It is tied to a name, so Keycloak goes by `localhost` here."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from kumiai.local.keycloak import Keycloak
from tenants.db import DatabaseUrls
from tests.browsers import sign_in
from tests.integration.keycloak.conftest import Site, Town, running_site
from tests.integration.keycloak.test_in_chromium import Region, expect_in, region, town
from tests.integration.keycloak.test_second_factor import assert_accessible_everywhere

pytestmark = [pytest.mark.real, pytest.mark.browser]

__all__ = ["region", "town"]


@pytest.fixture(scope="module")
def site(keycloak_server: Keycloak, modules_postgres: DatabaseUrls) -> Iterator[Site]:
    front = keycloak_server.url.replace("127.0.0.1", "localhost")
    with running_site(keycloak_server, modules_postgres, front=front) as running:
        yield running


def test_a_passkey_is_registered_and_asked_for(site: Site, region: Region, town: Town) -> None:
    page = region.open()
    devices = page.context.new_cdp_session(page)
    devices.send("WebAuthn.enable")
    devices.send("WebAuthn.addVirtualAuthenticator", {"options": {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True,
    }})  # fmt: skip
    page.on("dialog", lambda dialog: dialog.accept())
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    page.goto("/settings")
    page.get_by_role("link", name="パスキーを登録する").click()
    expect(page.get_by_role("heading", name="パスキーを登録する")).to_be_visible()
    expect(page.get_by_text("端末が指紋や顔、暗証番号を尋ねます")).to_be_visible()
    assert_accessible_everywhere(page)
    page.locator("#registerWebAuthn").click()
    expect(page.get_by_text("パスキーを登録しました")).to_be_visible()
    page.context.clear_cookies()
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    expect(page.locator("#authenticateWebAuthnButton")).to_be_visible()
    assert_accessible_everywhere(page)
    page.locator("#authenticateWebAuthnButton").click()
    expect_in(page, site, town)

    # Elsewhere, without the device, the password alone leads nowhere.
    elsewhere = region.open()
    sign_in(elsewhere, town.code, town.clerk.login, town.clerk.password)
    expect(elsewhere.locator("#authenticateWebAuthnButton")).to_be_visible()
    elsewhere.goto("/settings")
    expect(elsewhere.locator("[data-signout]")).to_have_count(0)


def test_a_passkey_that_was_not_made_is_told_in_japanese(region: Region, town: Town) -> None:
    page = region.open()
    # As when somebody closes the window in which the machine asks.
    page.add_init_script(
        "navigator.credentials.create = () => Promise.reject(new DOMException('It was not allowed.', 'NotAllowedError'))"
    )
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    page.goto("/settings")
    page.get_by_role("link", name="パスキーを登録する").click()
    page.locator("#registerWebAuthn").click()
    expect(page.get_by_text("パスキーを登録できませんでした")).to_be_visible()
    expect(page.get_by_text("NotAllowed")).to_have_count(0)
    assert_accessible_everywhere(page)
    page.get_by_role("button", name="やめる").click()
    expect(page.get_by_role("heading", name="自分の設定")).to_be_visible()
