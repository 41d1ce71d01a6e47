"""The issuer of the demo: shaped like Keycloak, strict about the protocol, and nowhere but on loopback."""

import base64
import hashlib
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from pydantic import ValidationError

from gateway.server.providers.factory import compile_all
from gateway.server.settings import ProviderSettings
from tenants.identity.dev_issuer.app import DevIssuer, NotLoopback
from tenants.identity.dev_issuer.store import Store
from tenants.settings import Settings

URL = "http://127.0.0.1:8000/dev-issuer"
REDIRECT = "http://127.0.0.1:8000/auth/callback"
SECRET = "s" * 32
PASSWORD = "first-1234-word"
NEW = "another-5678-word"


class Client(httpx.AsyncClient):
    """A portal and a browser in one."""

    def __init__(self, issuer: DevIssuer, *, address: str = "127.0.0.1") -> None:
        inner = issuer.asgi()

        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            await inner(scope | {"path": scope["path"].removeprefix("/dev-issuer")}, receive, send)

        transport = httpx.ASGITransport(mounted)
        super().__init__(transport=transport, base_url=f"http://{address}:8000/dev-issuer/")

    async def authorize(self, **changes: str | None) -> tuple[httpx.Response, str]:
        """The page for these words, and the verifier that goes with them."""
        verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        asked: dict[str, str | None] = {
            "client_id": "portal", "redirect_uri": REDIRECT, "response_type": "code", "state": "st", "nonce": "no",
            "scope": "openid organization:t046914", "code_challenge_method": "S256",
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        } | changes  # fmt: skip
        words = urlencode({k: v for k, v in asked.items() if v is not None})
        return await self.get(f"protocol/openid-connect/auth?{words}"), verifier

    async def sign_in(self, username: str = "t046914.1001", password: str = PASSWORD) -> tuple[httpx.Response, str]:
        page, verifier = await self.authorize()
        answer = await self.post(str(page.request.url), data={"username": username, "password": password})
        return answer, verifier

    async def code(self) -> tuple[str, str]:
        answer, verifier = await self.sign_in()
        assert answer.status_code == 303, answer.text
        return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0], verifier

    async def token(self, form: dict[str, str], *, auth: Any = ("portal", SECRET)) -> httpx.Response:
        return await self.post("protocol/openid-connect/token", data=form, auth=auth)

    async def redeem(self, code: str, verifier: str, changes: dict[str, str] | None = None) -> httpx.Response:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "code_verifier": verifier}
        return await self.token(form | (changes or {}))

    async def refresh(self, token: str) -> httpx.Response:
        return await self.token({"grant_type": "refresh_token", "refresh_token": token})


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with closing(Store(tmp_path / "dev-issuer.sqlite3")) as made:
        made.ensure_organization("t046914", "見本町 (046914)", "046914")
        made.ensure_organization("t046922", "青葉町 (046922)", "046922")
        sub = made.ensure_account("t046914", "1001", "職員", None)
        made.set_password(sub, PASSWORD, must_change=False, end_sessions=False)
        yield made


@pytest.fixture
def make(store: Store, tmp_path: Path) -> Callable[..., DevIssuer]:
    def make(**changes: Any) -> DevIssuer:
        settings: dict[str, Any] = {
            "url": URL, "key_file": tmp_path / "key.pem", "client_id": "portal", "client_secret": SECRET,
            "redirect_uri": REDIRECT, "audience": "gateway", "production": False, "product_name": "共同AI",
        }  # fmt: skip
        return DevIssuer(store, **(settings | changes))

    return make


@pytest.fixture
async def client(make: Callable[..., DevIssuer]) -> AsyncIterator[Client]:
    async with Client(make()) as found:
        yield found


def claims(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    head, body, _ = token.split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in (head, body))  # type: ignore[return-value]  # two of them


# ── nowhere but here ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", [
    "http://10.0.0.5:8000/dev-issuer", "https://ai.example.jp/dev-issuer", "http://127.0.0.1.evil.test/dev-issuer",
    "http://0.0.0.0:8000/dev-issuer", "http://127.0.0.1@evil.test/dev-issuer",
])  # fmt: skip
def test_it_refuses_an_address_that_is_not_loopback(make: Callable[..., DevIssuer], url: str) -> None:
    assert make()
    with pytest.raises(NotLoopback):
        make(url=url)


def test_it_refuses_production(make: Callable[..., DevIssuer]) -> None:
    with pytest.raises(NotLoopback):
        make(production=True)


async def test_a_process_that_listens_everywhere_serves_nobody_outside(make: Callable[..., DevIssuer]) -> None:
    async with Client(make()) as here, Client(make(), address="192.0.2.7") as outside:
        for path in (".well-known/openid-configuration", "protocol/openid-connect/certs"):
            assert (await here.get(path)).status_code == 200
            assert (await outside.get(path)).status_code == 403
        assert (await outside.authorize())[0].status_code == 403


def _production(home: Path, **changes: Any) -> Settings:
    names = ("root", "session", "delegation", "pepper")
    keys = {f"{n}_key_file" if n != "pepper" else "pepper_file": home / n for n in names}
    given: dict[str, Any] = {
        "env": "production", "home": home, "public_url": "https://ai.example.jp", "database_url": "postgresql://db/k",
        "issuer_kind": "keycloak", "issuer": "https://id.example.jp/realms/kumiai", "portal_client_secret": "x" * 32,
        "keycloak_url": "https://id.example.jp", "keycloak_admin_user": "a", "keycloak_admin_password": "b",
        "platform_database_url": "postgresql://db/k", "ledger_database_url": "postgresql://db/k",
        "content_database_url": "postgresql://db/k",
    }  # fmt: skip
    return Settings(**(given | keys | changes))


@pytest.mark.parametrize(("change", "named"), [
    ({"issuer_kind": "dev"}, "KUMIAI_ISSUER_KIND"),
    ({"database_url": ""}, "KUMIAI_DATABASE_URL"),
    ({"public_url": "http://ai.example.jp"}, "KUMIAI_PUBLIC_URL"),
    ({"public_url": "http://127.0.0.1:8000"}, "KUMIAI_PUBLIC_URL"),
    ({"root_key_file": None}, "KUMIAI_ROOT_KEY_FILE"),
    ({"pepper_file": None}, "KUMIAI_PEPPER_FILE"),
    ({"issuer": ""}, "KUMIAI_ISSUER"),
], ids=str)  # fmt: skip
def test_production_refuses_what_is_for_trying_out(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    assert _production(tmp_path).env == "production"
    with pytest.raises(ValidationError, match=named):
        _production(tmp_path, **change)


def test_the_sample_model_is_not_there_in_production() -> None:
    """Without a key there is nothing to call, rather than an answer that is made up."""
    trying = compile_all(ProviderSettings(), production=False)
    assert {d.provider for d in trying} == {"demo"}
    assert compile_all(ProviderSettings(), production=True) == ()


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_tokens_have_keycloaks_shape(client: Client, store: Store) -> None:
    answer = (await client.redeem(*await client.code())).json()
    head, access = claims(answer["access_token"])
    assert {"alg": "ES256", "typ": "at+jwt"}.items() <= head.items()
    assert head["kid"]
    assert set(access) == {
        "iss", "sub", "sid", "azp", "iat", "exp", "auth_time", "organization", "typ", "aud", "jti", "scope",
    }  # fmt: skip
    found = store.organization("t046914")
    assert found is not None
    assert access["organization"] == {"t046914": {"id": found[0]}}
    assert (access["iss"], access["aud"], access["azp"], access["typ"]) == (URL, "gateway", "portal", "Bearer")
    assert access["scope"].split() == ["openid", "organization:t046914"]
    assert access["exp"] - access["iat"] == 300
    assert access["jti"].startswith("onrtac:")
    head, identity = claims(answer["id_token"])
    assert {"alg": "ES256", "typ": "JWT"}.items() <= head.items()
    assert (identity["typ"], identity["aud"], identity["nonce"]) == ("ID", "portal", "no")
    assert (identity["sub"], identity["sid"]) == (access["sub"], access["sid"])
    digest = hashlib.sha256(answer["access_token"].encode()).digest()[:16]
    assert identity["at_hash"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    for name in ("name", "email", "preferred_username", "roles", "realm_access"):
        assert name not in access
        assert name not in identity


async def test_the_published_key_is_public(client: Client) -> None:
    [key] = (await client.get("protocol/openid-connect/certs")).json()["keys"]
    assert (key["kty"], key["use"], key["alg"]) == ("EC", "sig", "ES256")
    assert "d" not in key
    found = (await client.get(".well-known/openid-configuration")).json()
    assert found["issuer"] == URL
    assert found["code_challenge_methods_supported"] == ["S256"]


async def test_the_signing_key_outlives_a_restart(make: Callable[..., DevIssuer], tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        async with Client(make()) as client:
            found.append((await client.get("protocol/openid-connect/certs")).json())
    assert found[0] == found[1]
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


# ── the protocol ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", [
    {"client_id": "other"}, {"redirect_uri": "https://evil.test/cb"}, {"redirect_uri": REDIRECT + "/x"},
    {"response_type": "token"}, {"code_challenge_method": "plain"}, {"code_challenge": None}, {"state": None},
    {"scope": "openid"}, {"scope": "openid organization:t046914 organization:t046922"},
    {"scope": "openid organization:*"}, {"scope": "openid organization:nowhere"},
], ids=str)  # fmt: skip
async def test_a_wrong_request_gets_a_page_and_no_redirect(client: Client, change: dict[str, str | None]) -> None:
    assert (await client.authorize())[0].status_code == 200
    answer, _ = await client.authorize(**change)
    assert answer.status_code == 400
    assert "location" not in answer.headers


async def test_a_town_that_was_stopped_signs_nobody_in(client: Client, store: Store) -> None:
    tokens = (await client.redeem(*await client.code())).json()
    store.set_organization_enabled("t046914", enabled=False)
    assert (await client.authorize())[0].status_code == 400
    assert (await client.refresh(tokens["refresh_token"])).status_code == 400


@pytest.mark.parametrize("change", [
    {"code_verifier": "x" * 64}, {"code_verifier": ""}, {"redirect_uri": "http://127.0.0.1:8000/other"},
    {"code": "x"}, {"grant_type": "password"}, {"grant_type": "client_credentials"}, {"grant_type": "implicit"},
], ids=str)  # fmt: skip
async def test_a_code_is_for_who_asked(client: Client, change: dict[str, str]) -> None:
    code, verifier = await client.code()
    assert (await client.redeem(code, verifier, change)).status_code == 400


@pytest.mark.parametrize("auth", [
    None, ("portal", "wrong"), ("other", SECRET), "broken",
])  # fmt: skip
async def test_only_the_portal_redeems(client: Client, auth: Any) -> None:
    code, verifier = await client.code()
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "code_verifier": verifier}
    if auth == "broken":
        answer = await client.post("protocol/openid-connect/token", data=form, headers={"authorization": "Basic !!!"})
    else:
        answer = await client.token(form, auth=auth)
    assert answer.status_code == 401
    assert (await client.redeem(code, verifier)).status_code == 200


async def test_a_code_used_twice_ends_what_it_began(client: Client) -> None:
    code, verifier = await client.code()
    tokens = (await client.redeem(code, verifier)).json()
    assert (await client.redeem(code, verifier)).status_code == 400
    assert (await client.refresh(tokens["refresh_token"])).status_code == 400


async def test_a_code_lives_for_a_minute(client: Client, tmp_path: Path) -> None:
    code, verifier = await client.code()
    with closing(sqlite3.connect(tmp_path / "dev-issuer.sqlite3")) as file, file:
        file.execute("update code set expires = expires - 61")
    assert (await client.redeem(code, verifier)).status_code == 400


async def test_refresh_rotates_and_reuse_ends_the_session(client: Client) -> None:
    first = (await client.redeem(*await client.code())).json()["refresh_token"]
    second = (await client.refresh(first)).json()
    assert second["refresh_token"] != first
    assert claims(second["access_token"])[1]["jti"].startswith("onrtrt:")
    assert (await client.refresh(first)).status_code == 400
    assert (await client.refresh(second["refresh_token"])).status_code == 400


async def test_codes_and_refresh_tokens_are_stored_as_hashes(client: Client, tmp_path: Path) -> None:
    code, verifier = await client.code()
    refresh = (await client.redeem(code, verifier)).json()["refresh_token"]
    stored = b"".join(p.read_bytes() for p in tmp_path.glob("dev-issuer.sqlite3*"))
    for secret in (code, refresh, refresh.split(".")[1], PASSWORD):
        assert secret.encode() not in stored


async def test_signing_out_leads_to_our_own_pages_only(client: Client) -> None:
    for target in ("https://evil.test/", "//evil.test", "http://127.0.0.1:8000.evil.test/", ""):
        answer = await client.get("protocol/openid-connect/logout", params={"post_logout_redirect_uri": target})
        assert answer.headers["location"] == "http://127.0.0.1:8000/"


# ── passwords ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def must_change(store: Store) -> Store:
    sub = store.ensure_account("t046914", "1001", "職員", None)
    store.set_password(sub, PASSWORD, must_change=True, end_sessions=True)
    return store


async def test_an_initial_password_has_to_be_changed_first(client: Client, must_change: Store) -> None:
    page, _ = await client.sign_in()
    assert page.status_code == 200
    assert "新しいパスワードを決めてください" in page.text
    done = await client.post("protocol/openid-connect/password", data={"new": NEW, "again": NEW})
    assert done.status_code == 303
    assert done.headers["location"].startswith(REDIRECT)
    # The page was good for one change, the old password is gone, the new one asks for nothing more.
    assert (await client.post("protocol/openid-connect/password", data={"new": NEW, "again": NEW})).status_code == 400
    client.cookies.clear()
    assert (await client.sign_in())[0].status_code == 401
    assert (await client.sign_in(password=NEW))[0].status_code == 303


@pytest.mark.parametrize(("new", "again", "said"), [
    ("short-1", "short-1", "文字以上"), (NEW, NEW + "x", "同じではありません"), (PASSWORD, PASSWORD, "別のパスワード"),
    ("x1001-abcdefgh", "x1001-abcdefgh", "職員番号を含まない"), ("", "", "文字以上"),
])  # fmt: skip
async def test_a_weak_new_password_is_refused(
    client: Client, must_change: Store, new: str, again: str, said: str
) -> None:
    await client.sign_in()
    for _ in range(8):
        refused = await client.post("protocol/openid-connect/password", data={"new": new, "again": again})
        assert refused.status_code == 400
        assert said in refused.text
    # Having tried so often blocks nobody.
    assert (await client.post("protocol/openid-connect/password", data={"new": NEW, "again": NEW})).status_code == 303


async def test_without_the_right_initial_password_nothing_is_changed(client: Client, must_change: Store) -> None:
    await client.sign_in(password="wrong-1234-wrong")
    refused = await client.post("protocol/openid-connect/password", data={"new": NEW, "again": NEW})
    assert refused.status_code == 400
    assert (await client.sign_in())[0].status_code == 200


async def test_wrong_passwords_make_the_account_wait(client: Client, tmp_path: Path) -> None:
    for _ in range(4):
        assert (await client.sign_in(password="wrong-1234-wrong"))[0].status_code == 401
    # The right one in between starts the count anew.
    assert (await client.sign_in())[0].status_code == 303
    client.cookies.clear()
    for _ in range(5):
        assert (await client.sign_in(password="wrong-1234-wrong"))[0].status_code == 401
    assert (await client.sign_in())[0].status_code == 429
    with closing(sqlite3.connect(tmp_path / "dev-issuer.sqlite3")) as file, file:
        file.execute("update account set blocked_until = blocked_until - 61")
    assert (await client.sign_in())[0].status_code == 303


async def test_an_account_is_of_one_town(client: Client, store: Store) -> None:
    sub = store.ensure_account("t046922", "2001", "職員", None)
    store.set_password(sub, PASSWORD, must_change=False, end_sessions=False)
    assert (await client.sign_in("t046922.2001"))[0].status_code == 401
    assert (await client.sign_in("2001"))[0].status_code == 401
    assert (await client.sign_in("1001"))[0].status_code == 303


async def test_a_running_session_does_not_open_another_town(client: Client) -> None:
    assert (await client.sign_in())[0].status_code == 303
    assert (await client.authorize())[0].status_code == 303
    assert (await client.authorize(scope="openid organization:t046922"))[0].status_code == 200
    assert (await client.authorize(prompt="login"))[0].status_code == 200


async def test_a_disabled_account_signs_in_no_more(client: Client, store: Store) -> None:
    tokens = (await client.redeem(*await client.code())).json()
    sub = claims(tokens["access_token"])[1]["sub"]
    store.set_account_enabled(sub, enabled=False)
    assert (await client.refresh(tokens["refresh_token"])).status_code == 400
    client.cookies.clear()
    assert (await client.sign_in())[0].status_code == 401
