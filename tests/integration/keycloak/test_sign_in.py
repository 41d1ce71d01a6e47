"""A clerk at the real portal and Keycloak's real pages: in by staff number, out again, and out when others say so."""

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from sqlmodel import col, select, update

from tenants.db import Database
from tenants.identity.directory import IdentityDirectory
from tenants.models import PersonIdentity, PortalSession
from tenants.people import NewPerson, add_people, reset_password, suspend_person
from tenants.registry import resume_tenant, suspend_tenant
from tests.integration.keycloak.browser import Browser, Page
from tests.integration.keycloak.conftest import BY, Site, Staff, Town, within

pytestmark = pytest.mark.real

NewBrowser = Callable[..., Browser]


def enter(site: Site, browser: Browser, town: Town, login: str) -> Page:
    """From the town's entry page, with the staff number typed there."""
    page = browser.get(f"{site.portal}/t/{town.code}")
    assert town.name in page.text
    return browser.submit(page, "login", login=login)


def sign_in(site: Site, browser: Browser, town: Town, who: Staff) -> Page:
    page = enter(site, browser, town, who.login)
    return browser.submit(page, "password", password=who.password)


def is_signed_in(site: Site, browser: Browser) -> bool:
    return "data-signout" in browser.get(f"{site.portal}/").text


def test_the_staff_number_leads_straight_to_the_password(site: Site, town: Town, browser: Browser) -> None:
    page = enter(site, browser, town, town.clerk.login)
    assert page.url.startswith(site.spec.url)
    assert f'value="{town.alias}.{town.clerk.login}"' in page.text
    assert "password" in page.form("password").fields
    assert "username" not in page.form("password").fields
    home = browser.submit(page, "password", password=town.clerk.password)
    assert home.url == f"{site.portal}/"
    assert town.name in home.text


def test_keycloaks_pages_are_in_japanese_and_in_our_words(site: Site, town: Town, browser: Browser) -> None:
    page = enter(site, browser, town, town.clerk.login)
    assert 'lang="ja"' in page.text
    assert "ログイン名（町の番号.職員番号）" in page.text
    wrong = browser.submit(page, "password", password="not-this-one")
    assert "ログイン名かパスワードが違います" in wrong.text
    assert not is_signed_in(site, browser)


def test_the_full_name_of_the_slip_works_without_a_number(site: Site, town: Town, browser: Browser) -> None:
    page = enter(site, browser, town, "")
    page = browser.submit(page, "username", username=f"{town.alias}.{town.clerk.login}")
    home = browser.submit(page, "password", password=town.clerk.password)
    assert home.url == f"{site.portal}/"


async def test_a_new_account_must_choose_a_password_of_its_own(
    site: Site, town: Town, browser: Browser, db: Database, directory: IdentityDirectory
) -> None:
    new = (NewPerson("3001", "新任", "総務課"), "first-2345-word")
    await add_people(db, directory, town.id, town.alias, [new], by=BY)

    def walk() -> None:
        page = browser.submit(enter(site, browser, town, "3001"), "password", password="first-2345-word")
        assert "新しいパスワードを決めてください" in page.text
        for password, again, refusal in (
            ("short", "short", "10文字以上"),
            ("first-2345-word", "first-2345-word", "初期パスワードや、前に使ったもの"),
            ("quite-another-1", "quite-another-2", "同じではありません"),
        ):
            page = browser.submit(page, "password-new", **{"password-new": password, "password-confirm": again})
            assert refusal in page.text
        page = browser.submit(
            page, "password-new", **{"password-new": "quite-another-1", "password-confirm": "quite-another-1"}
        )
        assert page.url == f"{site.portal}/"

    await asyncio.to_thread(walk)


async def test_a_reset_ends_running_sessions_and_asks_for_a_new_password(
    site: Site, town: Town, browser: Browser, new_browser: NewBrowser, db: Database, directory: IdentityDirectory
) -> None:
    await asyncio.to_thread(sign_in, site, browser, town, town.clerk)
    assert await asyncio.to_thread(is_signed_in, site, browser)
    await reset_password(db, directory, town.id, town.clerk.id, "reset-2345-word", by=BY)
    assert not await asyncio.to_thread(is_signed_in, site, browser)

    def walk(one: Browser) -> None:
        page = enter(site, one, town, town.clerk.login)
        assert "違います" in one.submit(page, "password", password=town.clerk.password).text
        page = one.submit(enter(site, one, town, town.clerk.login), "password", password="reset-2345-word")
        assert "password-new" in page.form("password-new").fields

    await asyncio.to_thread(walk, new_browser())


async def test_a_reset_lets_in_who_was_locked_out_for_guessing(
    site: Site, town: Town, browser: Browser, db: Database, directory: IdentityDirectory
) -> None:
    def guess() -> None:
        page = enter(site, browser, town, town.clerk.login)
        for _ in range(6):
            page = browser.submit(page, "password", password=secrets.token_hex(8))
        page = browser.submit(page, "password", password=town.clerk.password)
        assert "違います" in page.text, "the right password must not work now"

    await asyncio.to_thread(guess)
    await reset_password(db, directory, town.id, town.clerk.id, "reset-2345-word", by=BY)

    def walk() -> None:
        page = browser.submit(enter(site, browser, town, town.clerk.login), "password", password="reset-2345-word")
        assert "password-new" in page.form("password-new").fields

    await asyncio.to_thread(walk)


async def test_a_suspended_person_is_out_and_stays_out(
    site: Site, town: Town, browser: Browser, db: Database, directory: IdentityDirectory
) -> None:
    await asyncio.to_thread(sign_in, site, browser, town, town.clerk)
    await suspend_person(db, directory, town.id, town.clerk.id, by=BY)
    assert await within(2, lambda: not is_signed_in(site, browser))
    page = await asyncio.to_thread(sign_in, site, browser, town, town.clerk)
    assert "このアカウントは止められています" in page.text


def test_signing_out_ends_the_session_at_keycloak_too(site: Site, town: Town, browser: Browser) -> None:
    home = sign_in(site, browser, town, town.clerk)
    out = browser.submit(home, "csrf")
    assert out.url == f"{site.portal}/?why=signed_out"
    assert not is_signed_in(site, browser)
    assert "password" in enter(site, browser, town, town.clerk.login).form("password").fields


def test_keycloaks_logout_ends_the_portals_session(
    site: Site, town: Town, browser: Browser, directory: IdentityDirectory
) -> None:
    sign_in(site, browser, town, town.clerk)
    assert is_signed_in(site, browser)
    [account] = site.admin.get("/users", username=f"{town.alias}.{town.clerk.login}", exact="true")
    directory.logout_user(account["id"])
    # It is sent once and before the call returns; nothing is polled here.
    assert not is_signed_in(site, browser)


def test_the_next_person_at_a_shared_machine_does_not_get_the_last_ones_session(
    site: Site, town: Town, browser: Browser
) -> None:
    sign_in(site, browser, town, town.admin)
    browser.cookies(site.portal).clear()
    page = enter(site, browser, town, town.clerk.login)
    assert "ほかの人がサインインしたままです" in page.text
    assert not is_signed_in(site, browser)
    asked = browser.get(f"{site.portal}/auth/signout-other")
    assert "サインアウトしますか" in asked.text
    out = browser.submit(asked, "session_code")
    assert out.url == f"{site.portal}/?why=signed_out"
    assert town.name in sign_in(site, browser, town, town.clerk).text


def test_an_account_of_another_town_gets_no_session(site: Site, town: Town, other_town: Town, browser: Browser) -> None:
    sign_in(site, browser, town, town.clerk)
    browser.cookies(site.portal).clear()
    # Keycloak knows the person of the running session, who is not of the other town: nothing comes back that counts.
    page = enter(site, browser, other_town, "")
    assert "ほかの人がサインインしたままです" in page.text
    assert not is_signed_in(site, browser)


def test_after_somebody_of_another_town_the_way_in_is_on_the_page(
    site: Site, town: Town, other_town: Town, browser: Browser
) -> None:
    sign_in(site, browser, town, town.clerk)
    browser.cookies(site.portal).clear()
    page = enter(site, browser, other_town, other_town.admin.login)
    assert 'href="/auth/signout-other"' in page.text
    browser.submit(browser.get(f"{site.portal}/auth/signout-other"), "session_code")
    home = sign_in(site, browser, other_town, other_town.admin)
    assert home.url == f"{site.portal}/"
    assert other_town.name in home.text


async def test_two_requests_at_once_refresh_once(site: Site, town: Town, browser: Browser, db: Database) -> None:
    await asyncio.to_thread(sign_in, site, browser, town, town.clerk)
    before = await _session_row(db, town)
    # As if the access token were about to run out.
    async with db.platform_session("test") as session:
        await session.exec(
            update(PortalSession)
            .where(col(PortalSession.id) == before.id)
            .values(access_expires_at=datetime.now(UTC) + timedelta(seconds=5))
        )
    cookies = browser.cookies(site.portal)
    async with httpx.AsyncClient(cookies=cookies, trust_env=False) as http:
        answers = await asyncio.gather(*(http.get(f"{site.portal}/settings") for _ in range(12)))
    assert [a.status_code for a in answers] == [200] * 12
    after = await _session_row(db, town)
    assert after.ended_at is None
    assert after.access_expires_at > datetime.now(UTC) + timedelta(seconds=200)
    assert after.tokens != before.tokens
    # Keycloak would have ended the session at a second use of the old token.
    [account] = site.admin.get("/users", username=f"{town.alias}.{town.clerk.login}", exact="true")
    assert len(site.admin.get(f"/users/{account['id']}/sessions")) == 1


async def _session_row(db: Database, town: Town) -> PortalSession:
    async with db.platform_session("test", read_only=True) as session:
        query = select(PortalSession).where(col(PortalSession.tenant_id) == town.id)
        return (await session.exec(query)).one()


# ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """The portal's client at Keycloak, in the hands of a test: it stops before the portal and redeems the code itself."""

    def __init__(self, site: Site, new_browser: NewBrowser) -> None:
        self._site = site
        self._callback = f"{site.portal}/auth/callback"
        self._new_browser = new_browser
        self.client_id = "portal"
        self.base = f"{site.spec.url}/realms/{site.spec.realm}/protocol/openid-connect"

    def tokens(self, town: Town, who: Staff, *, scope: str) -> dict[str, Any]:
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "client_id": self.client_id, "redirect_uri": self._callback, "response_type": "code", "scope": scope,
            "state": "s", "nonce": "n", "code_challenge": challenge, "code_challenge_method": "S256",
            "login_hint": f"{town.alias}.{who.login}",
        }  # fmt: skip
        browser = self._new_browser(stop_before=self._callback)
        page = browser.get(f"{self.base}/auth?{urlencode(asked)}")
        page = browser.submit(page, "password", password=who.password)
        [code] = parse_qs(urlsplit(page.url).query)["code"]
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self._callback, "code_verifier": verifier,
        }  # fmt: skip
        return self.exchange(form)

    def exchange(self, form: dict[str, str]) -> dict[str, Any]:
        secret = (self.client_id, self._site.spec.portal_client_secret)
        answer: dict[str, Any] = httpx.post(f"{self.base}/token", data=form, auth=secret, trust_env=False).json()
        return answer


@pytest.fixture
def client(site: Site, new_browser: NewBrowser) -> Client:
    return Client(site, new_browser)


def status(site: Site, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.get(f"{site.gateway}/v1/models", headers=headers, trust_env=False, timeout=30).status_code


def test_a_clerks_token_is_taken_and_an_id_token_is_not(site: Site, town: Town, client: Client) -> None:
    tokens = client.tokens(town, town.clerk, scope=f"openid organization:{town.alias}")
    assert status(site, tokens["access_token"]) == 200
    assert status(site, tokens["id_token"]) == 401
    assert status(site, tokens["refresh_token"]) == 401


def test_a_token_without_a_town_is_refused(site: Site, town: Town, client: Client) -> None:
    assert status(site, client.tokens(town, town.clerk, scope="openid")["access_token"]) == 401


def test_a_token_with_two_towns_is_refused(site: Site, town: Town, other_town: Town, client: Client) -> None:
    _join(site, town, other_town)
    assert status(site, client.tokens(town, town.clerk, scope="openid organization:*")["access_token"]) == 401


def test_a_token_for_a_town_that_does_not_know_the_person_is_refused(
    site: Site, town: Town, other_town: Town, client: Client
) -> None:
    _join(site, town, other_town)
    mine = client.tokens(town, town.clerk, scope=f"openid organization:{town.alias}")
    theirs = client.tokens(town, town.clerk, scope=f"openid organization:{other_town.alias}")
    assert status(site, mine["access_token"]) == 200
    assert status(site, theirs["access_token"]) == 401


def _join(site: Site, town: Town, other: Town) -> None:
    """The clerk of one town becomes a member of the other at Keycloak alone."""
    [account] = site.admin.get("/users", username=f"{town.alias}.{town.clerk.login}", exact="true")
    [organization] = site.admin.get("/organizations", q=f"jp.lgcode:{other.code}")
    site.admin.write("post", f"/organizations/{organization['id']}/members", account["id"])


async def test_a_suspended_town_refuses_a_live_token_within_two_seconds_and_for_good(
    site: Site, town: Town, client: Client, browser: Browser, db: Database, directory: IdentityDirectory
) -> None:
    scope = f"openid organization:{town.alias}"
    tokens = await asyncio.to_thread(lambda: client.tokens(town, town.clerk, scope=scope))
    assert await asyncio.to_thread(status, site, tokens["access_token"]) == 200
    await asyncio.to_thread(sign_in, site, browser, town, town.admin)
    began = asyncio.get_running_loop().time()
    suspending = asyncio.create_task(suspend_tenant(db, directory, town.id, by=BY))
    assert await within(2, lambda: status(site, tokens["access_token"]) == 403)
    assert asyncio.get_running_loop().time() - began < 2
    await suspending
    assert not await asyncio.to_thread(is_signed_in, site, browser)
    refused = await asyncio.to_thread(browser.get, f"{site.portal}/t/{town.code}")
    assert refused.status == 403
    renewed = await asyncio.to_thread(
        client.exchange, {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    )
    assert "access_token" not in renewed
    # Back again: what was issued before stays dead, a new sign-in works.
    await resume_tenant(db, directory, town.id, by=BY)
    assert not await within(1.5, lambda: status(site, tokens["access_token"]) == 200)
    again = await asyncio.to_thread(lambda: client.tokens(town, town.clerk, scope=scope))
    assert await within(2, lambda: status(site, again["access_token"]) == 200)


def test_a_refresh_token_used_twice_ends_its_session(site: Site, town: Town, client: Client) -> None:
    tokens = client.tokens(town, town.clerk, scope=f"openid organization:{town.alias}")
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    newer = client.exchange(form)
    assert "access_token" in newer
    assert "access_token" not in client.exchange(form)
    assert "access_token" not in client.exchange({**form, "refresh_token": newer["refresh_token"]})


def test_nobody_gets_tokens_by_password_alone(site: Site, town: Town, client: Client) -> None:
    form = {"grant_type": "password", "username": f"{town.alias}.{town.clerk.login}", "password": town.clerk.password}
    assert "access_token" not in client.exchange(form)
    by_cli = httpx.post(f"{client.base}/token", data={**form, "client_id": "admin-cli"}, trust_env=False)
    assert by_cli.status_code == 400
    assert by_cli.json()["error"] == "unauthorized_client"


async def test_the_token_names_nobody(site: Site, town: Town, client: Client, db: Database) -> None:
    tokens = await asyncio.to_thread(lambda: client.tokens(town, town.clerk, scope=f"openid organization:{town.alias}"))
    body = tokens["access_token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert claims["aud"] == "gateway"
    assert claims["exp"] - claims["iat"] == 300
    assert not {"preferred_username", "name", "email", "realm_access", "resource_access"} & claims.keys()
    async with db.platform_session("test", read_only=True) as session:
        link = await session.exec(select(PersonIdentity.person_id).where(col(PersonIdentity.sub) == claims["sub"]))
        assert link.one() == town.clerk.id
