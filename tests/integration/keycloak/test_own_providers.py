"""A town's own identity provider: a second realm of the real Keycloak, by OpenID Connect and by SAML."""

import asyncio
import contextlib
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pytest
from pydantic import SecretStr
from sqlmodel import col, select

from observability.problems import InvalidInput, NotFound
from tenants.db import Database
from tenants.identity.brokering import add_town_provider, remove_town_provider
from tenants.identity.directory import IdentityDirectory
from tenants.identity.keycloak import Admin, Administrator
from tenants.identity.realm import FIRST_SIGN_IN, Json, ProviderSpec, provider_alias
from tenants.models import Audit, Tenant
from tenants.people import NewPerson, add_people, suspend_person
from tests import warm
from tests.integration.keycloak.browser import Browser, Page
from tests.integration.keycloak.conftest import BY, Site, Town

pytestmark = pytest.mark.real

NewBrowser = Callable[..., Browser]
PASSWORD = "of-the-town-s-own-1"
KINDS = ("oidc", "saml")


@dataclass
class OwnRealm:
    """What a town runs itself: accounts with a staff number, known to its clients by that."""

    url: str
    name: str
    admin: Admin
    secret: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/{self.name}"

    def source(self, kind: str) -> str:
        place = "/.well-known/openid-configuration" if kind == "oidc" else "/protocol/saml/descriptor"
        return self.issuer + place

    def register(self, site: Site, town: Town) -> None:
        """Our realm as a client, of both kinds."""
        returns = f"{site.spec.issuer}/broker/{provider_alias(town.alias, 'sso')}/endpoint"
        number: Json = {"user.attribute": "username", "claim.name": "staff_no", "id.token.claim": "true",
                        "jsonType.label": "String"}  # fmt: skip
        self.admin.write("post", "/clients", {
            "clientId": "kumiai", "protocol": "openid-connect", "publicClient": False, "secret": self.secret,
            "standardFlowEnabled": True, "redirectUris": [returns],
            "protocolMappers": [{"name": "n", "protocol": "openid-connect", "config": number,
                                 "protocolMapper": "oidc-usermodel-attribute-mapper"}],
        })  # fmt: skip
        self.admin.write("post", "/clients", {
            "clientId": site.spec.issuer, "protocol": "saml", "redirectUris": [returns],
            "attributes": {"saml.assertion.signature": "true", "saml.server.signature": "true",
                           "saml.client.signature": "false", "saml_force_name_id_format": "true",
                           "saml_name_id_format": "persistent"},
            "protocolMappers": [{"name": "n", "protocol": "saml", "protocolMapper": "saml-user-property-mapper",
                                 "config": {"user.attribute": "username", "attribute.name": "staff_no",
                                            "attribute.nameformat": "Basic"}}],
        })  # fmt: skip

    def add(self, number: str, email: str = "") -> str:
        body: Json = {
            "username": number, "enabled": True, "firstName": "氏", "lastName": "名",
            "email": email or f"{number}@town.test", "emailVerified": True,
            "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
        }  # fmt: skip
        return self.admin.write("post", "/users", body)

    def spec(self, town: Town, kind: str, **changes: str) -> ProviderSpec:
        values = {
            "town": town.alias, "name": "sso", "label": "町のアカウント", "kind": kind, "source": self.source(kind),
            "staff_claim": "staff_no",
        } | ({"client_id": "kumiai", "client_secret": self.secret} if kind == "oidc" else {})  # fmt: skip
        return ProviderSpec(**(values | changes))  # type: ignore[arg-type]  # kinds are texts here


@pytest.fixture
def make_realm(site: Site) -> Iterator[Callable[[Town], OwnRealm]]:
    made: list[OwnRealm] = []

    def make(town: Town) -> OwnRealm:
        name = f"town-{secrets.token_hex(4)}"
        admin = Admin(site.spec.url, name, Administrator(site.spec.admin_user, site.spec.admin_password))
        admin.create_realm({"realm": name, "enabled": True})
        own = OwnRealm(site.spec.url, name, admin)
        made.append(own)
        own.register(site, town)
        return own

    yield make
    for own in made:
        with contextlib.suppress(Exception):
            own.admin.write("delete", "")


async def tenant_of(db: Database, town: Town) -> Tenant:
    async with db.platform_session("test", read_only=True) as session:
        tenant = await session.get(Tenant, town.id)
    assert tenant is not None
    return tenant


@pytest.fixture(params=KINDS)
async def own(
    request: pytest.FixtureRequest, site: Site, db: Database, town: Town, make_realm: Callable[[Town], OwnRealm]
) -> AsyncIterator[OwnRealm]:
    """A town's provider with its clerk in it, declared."""
    realm = await asyncio.to_thread(make_realm, town)
    await asyncio.to_thread(realm.add, town.clerk.login)
    await add_town_provider(db, site.spec, await tenant_of(db, town), realm.spec(town, request.param), by=BY)
    yield realm


def told(site: Site, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """`kumiai` as an operator runs it beside the site, with what was typed on its standard input."""
    values = site.settings.model_dump(include=site.settings.model_fields_set)
    env = {
        f"KUMIAI_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }
    return warm.run("idp", *words, env=env, stdin=typed, timeout=300)


def carried(browser: Browser, page: Page) -> Page:
    """What a script sends on by itself: SAML goes through the browser in forms."""
    while sent := next((n for form in page.forms for n in form.fields if n in ("SAMLRequest", "SAMLResponse")), None):
        page = browser.submit(page, sent)
    return page


def come(site: Site, browser: Browser, town: Town, number: str) -> Page:
    """By the button of the town's entry page, through the town's own sign-in page, as far as it goes."""
    page = browser.get(f"{site.portal}/t/{town.code}")
    page = carried(browser, browser.submit(page, "via"))
    return carried(browser, browser.submit(page, "password", username=number, password=PASSWORD))


def is_in(site: Site, browser: Browser, town: Town) -> bool:
    page = browser.get(f"{site.portal}/")
    return "data-signout" in page.text and town.name in page.text


async def test_a_clerk_signs_in_by_the_town_s_own_account(
    site: Site, town: Town, own: OwnRealm, new_browser: NewBrowser, directory: IdentityDirectory
) -> None:
    def walk() -> None:
        for browser in (new_browser(), new_browser()):
            page = come(site, browser, town, town.clerk.login)
            assert page.url == f"{site.portal}/", page.text[:2000]
            assert is_in(site, browser, town)
        # The account that was imported, and no second one; nothing about the person was taken over.
        [account] = site.admin.get("/users", username=f"{town.alias}.{town.clerk.login}", exact="true")
        assert not account.get("email") and not account.get("firstName")
        assert account["username"] == f"{town.alias}.{town.clerk.login}"

    await asyncio.to_thread(walk)


async def test_who_is_not_imported_is_refused_in_plain_words(
    site: Site, town: Town, own: OwnRealm, new_browser: NewBrowser
) -> None:
    def walk() -> None:
        before = site.admin.get("/users/count")
        own.add("9999")
        browser = new_browser()
        page = come(site, browser, town, "9999")
        assert "職員として登録されていません" in page.text and "町の管理者" in page.text
        assert not is_in(site, browser, town)
        assert site.admin.get("/users/count") == before

    await asyncio.to_thread(walk)


async def test_an_email_says_nothing_about_who_somebody_is(
    site: Site, town: Town, own: OwnRealm, new_browser: NewBrowser
) -> None:
    def walk() -> None:
        [admin] = site.admin.get("/users", username=f"{town.alias}.{town.admin.login}", exact="true")
        mail = f"{secrets.token_hex(4)}@town.test"
        site.admin.write("put", f"/users/{admin['id']}", {"email": mail, "emailVerified": True})
        own.add("9998", mail)
        browser = new_browser()
        assert "職員として登録されていません" in come(site, browser, town, "9998").text
        assert not is_in(site, browser, town)

    await asyncio.to_thread(walk)


async def test_nobody_of_one_town_s_provider_becomes_somebody_of_another(
    site: Site, town: Town, other_town: Town, own: OwnRealm, new_browser: NewBrowser
) -> None:
    """Both towns have a 1003; the provider may call its people what it likes."""

    def walk() -> None:
        for number in (f"{other_town.alias}.{other_town.clerk.login}", f"x{other_town.alias}"):
            own.add(number)
            assert "職員として登録されていません" in come(site, new_browser(), town, number).text
        browser = new_browser()
        # The other town's entry does not offer it, and an address made by hand does not lead into it.
        entry = browser.get(f"{site.portal}/t/{other_town.code}")
        assert all("via" not in form.fields for form in entry.forms)
        assert browser.get(f"{site.portal}/auth/signin?town={other_town.alias}&via=sso").status == 404
        stopped = new_browser(stop_before=site.spec.issuer)
        asked = stopped.submit(stopped.get(f"{site.portal}/t/{other_town.code}"), "login", login="").url
        stopped._stop_before = ""
        parts = urlsplit(asked)
        query = dict(parse_qsl(parts.query)) | {"kc_idp_hint": provider_alias(town.alias, "sso")}
        page = carried(stopped, stopped.get(urlunsplit(parts._replace(query=urlencode(query)))))
        carried(stopped, stopped.submit(page, "password", username=town.clerk.login, password=PASSWORD))
        assert not is_in(site, stopped, other_town)
        assert not is_in(site, stopped, town)

    await asyncio.to_thread(walk)


async def test_who_is_suspended_here_does_not_come_in_by_the_town_s_account(
    site: Site, town: Town, own: OwnRealm, new_browser: NewBrowser, db: Database, directory: IdentityDirectory
) -> None:
    browser = new_browser()
    await asyncio.to_thread(come, site, browser, town, town.clerk.login)
    assert await asyncio.to_thread(is_in, site, browser, town)
    await suspend_person(db, directory, town.id, town.clerk.id, by=BY)
    fresh = new_browser()
    page = await asyncio.to_thread(come, site, fresh, town, town.clerk.login)
    assert "町の管理者に連絡してください" in page.text
    assert not await asyncio.to_thread(is_in, site, fresh, town)


async def test_whoever_has_not_used_the_slip_chooses_a_password_once(
    site: Site, town: Town, own: OwnRealm, new_browser: NewBrowser, db: Database, directory: IdentityDirectory
) -> None:
    new = (NewPerson("3001", "新任", "総務課"), "first-2345-word")
    await add_people(db, directory, town.id, town.alias, [new], by=BY)

    def walk() -> None:
        own.add("3001")
        browser = new_browser()
        chosen = {"password-new": "for-a-day-without-1", "password-confirm": "for-a-day-without-1"}
        page = come(site, browser, town, "3001")
        assert browser.submit(page, "password-new", **chosen).url == f"{site.portal}/"
        assert come(site, new_browser(), town, "3001").url == f"{site.portal}/"

    await asyncio.to_thread(walk)


async def test_an_account_made_anew_at_the_provider_is_not_taken_for_the_old_one(
    site: Site, town: Town, own: OwnRealm, new_browser: NewBrowser
) -> None:
    """A number that the provider gives to somebody else does not give them the first one's account."""

    def walk() -> None:
        assert come(site, new_browser(), town, town.clerk.login).url == f"{site.portal}/"
        [first] = own.admin.get("/users", username=town.clerk.login, exact="true")
        own.admin.write("delete", f"/users/{first['id']}")
        own.add(town.clerk.login)
        browser = new_browser()
        page = come(site, browser, town, town.clerk.login)
        assert "町のアカウントを作り直したとき" in page.text
        assert not is_in(site, browser, town)

    await asyncio.to_thread(walk)


@pytest.mark.parametrize("kind", KINDS)
async def test_declaring_it_again_writes_nothing_and_drift_is_put_back(
    site: Site, town: Town, db: Database, make_realm: Callable[[Town], OwnRealm], kind: str
) -> None:
    realm = await asyncio.to_thread(make_realm, town)
    tenant, spec = await tenant_of(db, town), realm.spec(town, kind)
    path = f"/identity-provider/instances/{spec.alias}"
    made = await add_town_provider(db, site.spec, tenant, spec, by=BY)
    assert made.writes >= 4
    assert (await add_town_provider(db, site.spec, tenant, spec, by=BY)).writes == 0
    # Without its secret it stays as it is.
    bare = realm.spec(town, kind, client_secret="") if kind == "oidc" else spec
    assert (await add_town_provider(db, site.spec, tenant, bare, by=BY)).writes == 0

    def loosen() -> None:
        now = site.admin.get(path)
        site.admin.write("put", path, {**now, "trustEmail": True, "firstBrokerLoginFlowAlias": "first broker login"})
        [mapper] = site.admin.get(f"{path}/mappers")
        site.admin.write("delete", f"{path}/mappers/{mapper['id']}")

    await asyncio.to_thread(loosen)
    assert (await add_town_provider(db, site.spec, tenant, bare, by=BY)).writes == 2
    now = await asyncio.to_thread(site.admin.get, path)
    assert (now["trustEmail"], now["firstBrokerLoginFlowAlias"], now["enabled"]) == (False, FIRST_SIGN_IN, True)
    async with db.platform_session("test", read_only=True) as session:
        query = select(Audit.object_id).where(col(Audit.tenant_id) == town.id, Audit.action == "identity_provider.set")
        assert list((await session.exec(query)).all()) == [spec.alias] * 2
    await remove_town_provider(db, site.spec, tenant, "sso", by=BY)
    assert await asyncio.to_thread(site.admin.get, path) is None
    with pytest.raises(NotFound):
        await remove_town_provider(db, site.spec, tenant, "sso", by=BY)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "S S"}, "name"),
        ({"label": " "}, "label"),
        ({"staff_claim": "no} ${CLAIM.sub"}, "staff_claim"),
        ({"source": "http://id.example.jp/x"}, "source"),
        ({"client_id": ""}, "client_id"),
        ({"scope": "profile"}, "scope"),
        ({"client_secret": ""}, "secret"),
        ({"source": "http://127.0.0.1:9/nothing"}, "source"),
    ],
)
async def test_what_cannot_be_declared_names_the_field(
    site: Site, town: Town, db: Database, changes: dict[str, str], field: str
) -> None:
    own = OwnRealm(site.spec.url, "master", site.admin)
    with pytest.raises(InvalidInput) as refused:
        await add_town_provider(db, site.spec, await tenant_of(db, town), own.spec(town, "oidc", **changes), by=BY)
    assert refused.value.extensions["field"] == field


def test_the_commands_declare_show_and_take_away_a_towns_provider(
    site: Site, town: Town, make_realm: Callable[[Town], OwnRealm], new_browser: NewBrowser
) -> None:
    realm = make_realm(town)
    realm.add(town.clerk.login)
    add = ("add", town.code, "--label", "町のアカウント", "--staff-claim", "staff_no", "--client-id", "kumiai")
    both = told(site, *add, "--oidc", realm.source("oidc"), "--saml", realm.source("saml"))
    assert both.returncode != 0
    assert "--oidc か --saml の、どちらか1つを指定してください" in both.stdout + both.stderr
    assert "サインイン元はありません" in told(site, "list", town.code).stdout

    done = told(site, *add, "--oidc", realm.source("oidc"), typed=f"{realm.secret}\n")
    assert done.returncode == 0, done.stderr
    assert f"{town.name}：「町のアカウント」でサインインできます" in done.stdout
    assert f"/broker/{provider_alias(town.alias, 'sso')}/endpoint" in done.stdout
    assert realm.secret not in done.stdout + done.stderr
    browser = new_browser()
    come(site, browser, town, town.clerk.login)
    assert is_in(site, browser, town)

    # An empty line keeps the secret, and a second run has nothing to do.
    again = told(site, *add, "--oidc", realm.source("oidc"), typed="\n")
    assert "Keycloakへの書き込み 0件" in again.stdout, again.stderr
    assert json.loads(told(site, "list", town.code, "--json").stdout) == [
        {"name": "sso", "alias": provider_alias(town.alias, "sso"), "kind": "oidc", "label": "町のアカウント"}
    ]
    assert "sso を消しました" in told(site, "remove", town.code).stdout
    assert "サインイン元はありません" in told(site, "list", town.code).stdout
    assert "via" not in {
        name for form in new_browser().get(f"{site.portal}/t/{town.code}").forms for name in form.fields
    }
