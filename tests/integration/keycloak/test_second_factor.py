"""A town asks for a second factor: in Chromium, at the real Keycloak, with real codes, and what its tokens say."""

import base64
import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlmodel import col, select

from tenants.db import Database
from tenants.identity.brokering import add_town_provider
from tenants.identity.directory import IdentityDirectory
from tenants.identity.keycloak import Admin, Administrator
from tenants.models import Audit, PortalSession
from tenants.people import list_people
from tenants.policy import SecondFactor, load_policy, save_policy
from tests.browsers import DESKTOP, PHONE, ZOOMED, assert_accessible, sign_in
from tests.integration.keycloak.conftest import BY, Site, Town
from tests.integration.keycloak.test_in_chromium import Region, code_of, expect_in, region, town
from tests.integration.keycloak.test_own_providers import PASSWORD, OwnRealm, tenant_of
from tests.integration.keycloak.test_sign_in import Client, client, status

pytestmark = [pytest.mark.real, pytest.mark.browser]

__all__ = ["client", "region", "town"]

TODAY = datetime.now(UTC).date() - timedelta(days=1)


def demand(region: Region, town: Town, *, since: date = TODAY, vouched: frozenset[str] = frozenset()) -> None:
    """The rule, as the town's page stores it."""

    async def save(db: Database, _directory: IdentityDirectory) -> None:
        async with db.platform_session("test") as session:
            policy, version = await load_policy(session, town.id)
            changed = policy.model_copy(update={"second_factor": SecondFactor(since=since, vouched=vouched)})
            await save_policy(session, town.id, changed, version=version, by=None)

    region.do(save)


class Authenticator:
    """An authenticator app: each code is used once, so the next one is of the next half minute, which is taken early."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._step = 0

    def code(self) -> str:
        self._step = max(self._step + 1, int(time.time() // 30))
        # Keycloak takes the code before and the one after the present one.
        while self._step > int(time.time() // 30) + 1:
            time.sleep(0.5)
        return code_of(self._secret, self._step * 30)


def register(page: Page) -> Authenticator:
    """At Keycloak's page for it."""
    expect(page.get_by_role("heading", name="認証アプリを登録する")).to_be_visible()
    page.get_by_role("link", name="写せないとき").click()
    app = Authenticator(page.locator("#kc-totp-secret-key").inner_text())
    page.locator("#totp").fill(app.code())
    page.get_by_role("button", name="決めて続ける").click()
    return app


def expect_refused(page: Page) -> None:
    expect(page.get_by_role("heading", name="2つ目の確認が要ります")).to_be_visible()
    assert all(c.get("name") != "kumiai_session" for c in page.context.cookies())


def assert_accessible_everywhere(page: Page) -> None:
    for size in (PHONE, ZOOMED, DESKTOP):
        page.set_viewport_size(size)
        assert_accessible(page)


def test_who_has_none_registers_and_gets_in_by_it(site: Site, region: Region, town: Town) -> None:
    demand(region, town)
    page = region.open()
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    expect_refused(page)
    assert_accessible_everywhere(page)
    page.get_by_role("link", name="認証アプリを登録する").click()
    expect(page.get_by_role("heading", name="認証アプリを登録する")).to_be_visible()
    assert_accessible_everywhere(page)
    app = register(page)
    expect(page.get_by_role("heading", name="登録できました")).to_be_visible()
    assert_accessible_everywhere(page)
    # What says so is the address; only the issuer's token counts.
    assert all(c.get("name") != "kumiai_session" for c in page.context.cookies())
    page.get_by_role("link", name="確かめて続ける").click()
    page.locator("#otp").fill(app.code())
    page.keyboard.press("Enter")
    expect_in(page, site, town)
    # The next sign-in asks at once, and the first page of the way is not needed again.
    fresh = region.open()
    sign_in(fresh, town.code, town.clerk.login, town.clerk.password)
    fresh.locator("#otp").fill(app.code())
    fresh.keyboard.press("Enter")
    expect_in(fresh, site, town)


def test_before_the_day_everybody_gets_in_and_is_told(site: Site, region: Region, town: Town) -> None:
    since = datetime.now(UTC).date() + timedelta(days=9)
    demand(region, town, since=since)
    page = region.open()
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    expect_in(page, site, town)
    told = page.get_by_role("link", name=f"{since.month}月{since.day}日から、サインインに2つ目の確認が要ります")
    told.click()
    expect(page.get_by_role("heading", name="2つ目の確認")).to_be_visible()


def test_a_running_session_without_one_ends_with_the_day(site: Site, region: Region, town: Town) -> None:
    page = region.open()
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    expect_in(page, site, town)
    demand(region, town)
    page.goto("/settings")
    expect(page.get_by_text("2つ目の確認が要るようになりました")).to_be_visible()
    assert_accessible(page)

    async def running(db: Database, _directory: IdentityDirectory) -> int:
        async with db.platform_session("test", read_only=True) as session:
            query = select(PortalSession).where(
                col(PortalSession.tenant_id) == town.id, col(PortalSession.ended_at).is_(None)
            )
            return len((await session.exec(query)).all())

    assert region.do(running) == 0


def test_the_administrator_asks_for_it_sees_who_has_none_and_removes_a_lost_one(
    site: Site, region: Region, town: Town
) -> None:
    page = region.open()
    sign_in(page, town.code, town.admin.login, town.admin.password)
    page.goto("/settings")
    page.get_by_role("link", name="認証アプリを登録する").click()
    app = register(page)
    expect(page.get_by_text("認証アプリを登録しました")).to_be_visible()
    page.goto("/console/town/people")
    page.get_by_role("link", name="2つ目の確認").click()
    expect(page.locator(".p-pool__big")).to_have_text("2")
    assert_accessible_everywhere(page)
    page.get_by_label("全員に求める").check()
    page.get_by_label("求めはじめる日").fill("")
    page.get_by_role("button", name="変わることを確かめる").click()
    expect(page.get_by_text("年・月・日で入れてください").first).to_be_visible()
    # What else was chosen stays chosen.
    expect(page.get_by_label("全員に求める")).to_be_checked()
    page.get_by_label("求めはじめる日").fill(TODAY.isoformat())
    page.get_by_role("button", name="変わることを確かめる").click()
    expect(page.get_by_text("きょうから、2つ目の確認のない人は入れません")).to_be_visible()
    page.get_by_role("button", name="このとおり変える").click()
    # Registered is not yet shown: this session, too, was begun by a password alone.
    expect(page.get_by_text("2つ目の確認が要るようになりました")).to_be_visible()
    page.get_by_label("職員番号").fill(town.admin.login)
    page.get_by_role("button", name="続ける").click()
    page.locator("#otp").fill(app.code())
    page.keyboard.press("Enter")
    expect_in(page, site, town)
    page.goto("/console/town/people?state=one_factor")
    expect(page.get_by_role("link", name=town.clerk.login)).to_be_visible()
    expect(page.get_by_role("link", name=town.admin.login, exact=True)).to_have_count(0)
    assert_accessible_everywhere(page)
    page.goto(f"/console/town/people/{town.admin.id}")
    expect(page.get_by_text("最後のサインインで、2つ目の確認をしました")).to_be_visible()
    assert_accessible_everywhere(page)

    clerk = region.open()
    sign_in(clerk, town.code, town.clerk.login, town.clerk.password)
    clerk.get_by_role("link", name="認証アプリを登録する").click()
    register(clerk)
    expect(clerk.get_by_role("heading", name="登録できました")).to_be_visible()
    page.goto(f"/console/town/people/{town.clerk.id}")
    page.get_by_role("button", name="登録したものを消す").click()
    assert_accessible(page)
    page.get_by_role("button", name="2つ目の確認を消す").click()
    expect(page.get_by_text("2つ目の確認を消しました")).to_be_visible()
    [account] = site.admin.get("/users", username=f"{town.alias}.{town.clerk.login}", exact="true")
    assert {c["type"] for c in site.admin.get(f"/users/{account['id']}/credentials")} == {"password"}
    again = region.open()
    sign_in(again, town.code, town.clerk.login, town.clerk.password)
    expect_refused(again)

    async def told(db: Database, _directory: IdentityDirectory) -> set[str]:
        async with db.platform_session("test", read_only=True) as session:
            query = select(Audit.action).where(col(Audit.tenant_id) == town.id)
            return set((await session.exec(query)).all())

    assert {"second_factor.set", "person.remove_second_factor"} <= region.do(told)


def test_a_password_alone_does_not_register_beside_what_is_there(site: Site, region: Region, town: Town) -> None:
    """Whoever knows a password but has no device must not add one of their own, whichever page they start from."""
    page = region.open()
    sign_in(page, town.code, town.clerk.login, town.clerk.password)
    page.goto("/settings")
    page.get_by_role("link", name="認証アプリを登録する").click()
    register(page)
    expect(page.get_by_text("認証アプリを登録しました")).to_be_visible()
    thief = region.open()
    asked = f"client_id=portal&redirect_uri={site.portal}/auth/callback&response_type=code&scope=openid"
    asked += f"&code_challenge={'x' * 43}&code_challenge_method=S256&login_hint={town.alias}.{town.clerk.login}"
    for more in ("", "&acr_values=1"):
        thief.goto(f"{site.spec.issuer}/protocol/openid-connect/auth?{asked}&kc_action=CONFIGURE_TOTP{more}")
        if thief.locator("#password").count():
            thief.locator("#password").fill(town.clerk.password)
            thief.keyboard.press("Enter")
        expect(thief.locator("#otp")).to_be_visible()
        expect(thief.locator("#totp")).to_have_count(0)


# ── a town's own provider ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own(site: Site, town: Town) -> Iterator[OwnRealm]:
    """A realm of the town's own, whose tokens say how somebody signed in there."""
    name = f"town-{secrets.token_hex(4)}"
    admin = Admin(site.spec.url, name, Administrator(site.spec.admin_user, site.spec.admin_password))
    admin.create_realm({"realm": name, "enabled": True})
    realm = OwnRealm(site.spec.url, name, admin)
    realm.register(site, town)
    realm.add(town.clerk.login)
    yield realm
    with contextlib.suppress(Exception):
        admin.write("delete", "")


def declare(region: Region, town: Town, own: OwnRealm, **changes: str) -> None:
    async def work(db: Database, _directory: IdentityDirectory) -> None:
        spec = own.spec(town, "oidc", **changes)
        await add_town_provider(db, region.site.spec, await tenant_of(db, town), spec, by=BY)
        assert (await add_town_provider(db, region.site.spec, await tenant_of(db, town), spec, by=BY)).writes == 0

    region.do(work)


def says(own: OwnRealm, acr: str) -> None:
    """From now on the provider gives everybody this `acr`."""
    [found] = own.admin.get("/clients", clientId="kumiai")
    # Keycloak's own level would be written into the same claim, before or after.
    for scope in own.admin.get(f"/clients/{found['id']}/default-client-scopes"):
        if scope["name"] == "acr":
            own.admin.write("delete", f"/clients/{found['id']}/default-client-scopes/{scope['id']}")
    path = f"/clients/{found['id']}/protocol-mappers/models"
    for mapper in own.admin.get(path):
        if mapper["name"] == "acr":
            own.admin.write("delete", f"{path}/{mapper['id']}")
    own.admin.write("post", path, {
        "name": "acr", "protocol": "openid-connect", "protocolMapper": "oidc-hardcoded-claim-mapper",
        "config": {"claim.name": "acr", "claim.value": acr, "jsonType.label": "String", "id.token.claim": "true",
                   "access.token.claim": "true"},
    })  # fmt: skip


def come(region: Region, town: Town) -> Page:
    page = region.open()
    page.goto(f"/t/{town.code}")
    page.get_by_role("button", name="町のアカウントでサインイン").click()
    page.locator("#username").fill(town.clerk.login)
    page.locator("#password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{region.site.portal}/**")
    return page


def test_the_town_s_provider_counts_when_the_town_says_so(
    site: Site, region: Region, town: Town, own: OwnRealm
) -> None:
    declare(region, town, own)
    demand(region, town)
    page = come(region, town)
    expect_refused(page)
    # Without the town's word, ours is asked for behind the provider.
    page.get_by_role("link", name="認証アプリを登録する").click()
    app = register(page)
    page.get_by_role("link", name="確かめて続ける").click()
    page.locator("#otp").fill(app.code())
    page.keyboard.press("Enter")
    expect_in(page, site, town)
    demand(region, town, vouched=frozenset({"other"}))
    fresh = region.open()
    fresh.goto(f"/t/{town.code}")
    fresh.get_by_role("button", name="町のアカウントでサインイン").click()
    fresh.locator("#username").fill(town.clerk.login)
    fresh.locator("#password").fill(PASSWORD)
    fresh.keyboard.press("Enter")
    expect(fresh.locator("#otp")).to_be_visible()


def test_a_vouched_provider_leads_straight_in(site: Site, region: Region, town: Town, own: OwnRealm) -> None:
    declare(region, town, own)
    demand(region, town, vouched=frozenset({"sso"}))
    expect_in(come(region, town), site, town)
    # The same person by password alone does not.
    page = region.open()
    sign_in(page, town.code, town.admin.login, town.admin.password)
    expect_refused(page)


def test_what_the_provider_says_counts_where_it_says_it(site: Site, region: Region, town: Town, own: OwnRealm) -> None:
    declare(region, town, own, second_factor_acr="gold")
    demand(region, town)
    says(own, "silver")
    expect_refused(come(region, town))
    says(own, "gold")
    expect_in(come(region, town), site, town)

    async def kind(db: Database, _directory: IdentityDirectory) -> list[str | None]:
        async with db.platform_session("test", read_only=True) as session:
            return [p.signed_in_by for p in await list_people(session, town.id) if p.login == town.clerk.login]

    assert region.do(kind) == ["2"]


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────


def claims_of(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def test_the_gateway_takes_a_person_s_token_only_with_the_second_factor_in_it(
    site: Site, region: Region, town: Town, client: Client
) -> None:
    scope = f"openid organization:{town.alias}"
    before = client.tokens(town, town.clerk, scope=scope)["access_token"]
    assert claims_of(before)["acr"] == "1"
    assert status(site, before) == 200
    demand(region, town)
    refused = client.tokens(town, town.clerk, scope=scope)["access_token"]
    told = httpx.get(
        f"{site.gateway}/v1/models", headers={"authorization": f"Bearer {refused}"}, trust_env=False, timeout=30
    )
    assert (told.status_code, told.json()["error"]["code"]) == (403, "second_factor_needed")
