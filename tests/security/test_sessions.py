"""Sessions of the running portal, seen from the browser, from the database and from the issuer."""

import base64
import contextlib
import hashlib
import os
import re
import signal
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from pydantic import ValidationError
from starlette.responses import Response

from apps.host.services import Services
from apps.host.signin import set_session_cookie
from tenants.identity.issuers import BACKCHANNEL_LOGOUT
from tenants.settings import Settings
from tests import warm
from tests.demo_process import Browser, DemoProcess, form_action

COOKIE = "kumiai_session"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    """A demo whose database these tests move about in."""
    with DemoProcess(tmp_path_factory.mktemp("sessions") / "home") as demo:
        yield demo


def stored(demo: DemoProcess, browser: Browser) -> sqlite3.Row:
    """The row behind a browser's cookie."""
    id_hash = hashlib.sha256(browser.cookies[COOKIE].encode()).hexdigest()
    with demo.database() as connection:
        row: sqlite3.Row | None = connection.execute(
            "select * from portal_session where id_hash = ?", (id_hash,)
        ).fetchone()
    assert row is not None
    return row


def shift(demo: DemoProcess, browser: Browser, column: str, to: datetime) -> None:
    text = to.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    with demo.database() as connection:
        connection.execute(f"update portal_session set {column} = ? where id = ?", (text, stored(demo, browser)["id"]))


def is_signed_in(browser: Browser) -> bool:
    return browser.get("/settings").status_code == 200


# ── the cookie ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cookie_is_opaque_and_kept_from_scripts(alone: DemoProcess) -> None:
    with alone.browser() as browser:
        person = alone.person("staff")
        answer = browser.try_to_sign_in(person.tenant, person.login, person.password)
        [cookie] = [c for c in answer.headers.get_list("set-cookie") if c.startswith(f"{COOKIE}=")]
    value, *attributes = cookie.removeprefix(f"{COOKIE}=").split("; ")
    assert re.fullmatch(r"[\w-]{43}", value)
    assert {a.lower() for a in attributes} == {"httponly", "path=/", "samesite=lax"}
    for path in alone.home.rglob("*"):
        if path.is_file():
            assert value.encode() not in path.read_bytes(), path


def test_no_token_of_the_issuer_reaches_browser_or_database_in_clear(alone: DemoProcess) -> None:
    seen = ""
    with alone.browser() as browser:
        person = alone.person("staff")
        answer = browser.try_to_sign_in(person.tenant, person.login, person.password)
        for page in (answer, browser.get("/"), browser.get("/settings"), browser.get("/apps/chat")):
            seen += page.text + str(page.headers.multi_items())
        row = stored(alone, browser)
    assert "eyJ" not in seen
    assert "refresh_token" not in seen
    assert len(row["tokens"]) > 300
    assert b"eyJ" not in row["tokens"]
    assert b"refresh_token" not in row["tokens"]
    for path in (alone.home / "kumiai.sqlite3", alone.home / "kumiai.sqlite3-wal"):
        assert b"eyJ" not in path.read_bytes()


def test_sealed_tokens_do_not_open_in_another_row(alone: DemoProcess) -> None:
    with alone.signed_in("staff") as victim, alone.signed_in("staff", nth=1) as thief:
        with alone.database() as connection:
            connection.execute(
                "update portal_session set tokens = ? where id = ?",
                (stored(alone, victim)["tokens"], stored(alone, thief)["id"]),
            )
        shift(alone, thief, "access_expires_at", datetime.now(UTC))
        assert not is_signed_in(thief)
        assert is_signed_in(victim)


@pytest.fixture
def cookie_of(tmp_path: Path) -> Any:
    def cookie(public_url: str) -> str:
        settings = Settings(
            env="test", home=tmp_path, public_url=public_url, issuer_kind="keycloak", issuer="https://i.test"
        )
        response = Response()
        set_session_cookie(response, Services(settings, {}), "value")
        return response.headers["set-cookie"]

    return cookie


async def test_off_loopback_the_cookie_is_bound_to_its_host(cookie_of: Any) -> None:
    there = cookie_of("https://ai.pref.example.jp")
    assert there.startswith("__Host-kumiai_session=value;")
    assert {"Secure", "HttpOnly", "Path=/"} <= set(there.split("; "))
    assert "domain" not in there.lower()
    assert cookie_of("http://127.0.0.1:8000").startswith("kumiai_session=value;")


@pytest.mark.parametrize("url", ["http://ai.pref.example.jp", "http://10.0.0.5:8000", "http://127.0.0.1.example.jp"])
def test_without_https_the_portal_stands_on_loopback_only(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="KUMIAI_PUBLIC_URL"):
        Settings(env="demo", home=tmp_path, public_url=url)


# ── begin and end ────────────────────────────────────────────────────────────────────────────────────────────────


def test_signing_in_gives_a_new_name_and_ends_the_old_one(alone: DemoProcess) -> None:
    with alone.signed_in("staff") as browser, alone.browser() as thief:
        before = browser.cookies[COOKIE]
        thief.cookies.set(COOKIE, before)
        assert is_signed_in(thief)
        browser.sign_in_again(alone.person("staff"))
        assert browser.cookies[COOKIE] != before
        assert is_signed_in(browser)
        assert not is_signed_in(thief)


def test_a_name_that_somebody_put_there_is_not_taken_over(alone: DemoProcess) -> None:
    planted = base64.urlsafe_b64encode(b"a" * 32).rstrip(b"=").decode()
    with alone.browser() as browser:
        browser.cookies.set(COOKIE, planted, domain="127.0.0.1")
        browser.sign_in(alone.person("staff"))
        values = {c.value for c in browser.cookies.jar if c.name == COOKIE}
    with alone.browser() as thief:
        thief.cookies.set(COOKIE, planted)
        assert not is_signed_in(thief)
    assert values - {planted}


def test_a_callback_belongs_to_the_browser_that_began(alone: DemoProcess) -> None:
    """Somebody else's code and state, sent to a victim's browser, sign nobody in."""
    person = alone.person("staff")
    with alone.browser() as attacker, alone.browser() as victim:
        form = attacker.issuer_form(person.tenant, person.login)
        answer = attacker.post(
            form_action(form), data={"username": person.login, "password": person.password},
            headers={"origin": attacker.origin},
        )  # fmt: skip
        assert victim.get(answer.headers["location"]).status_code == 403
        assert COOKIE not in victim.cookies
        victim.issuer_form(person.tenant, person.login)
        assert victim.get(answer.headers["location"]).status_code == 403
        assert attacker.get(answer.headers["location"]).status_code == 303


def test_a_code_is_good_once(alone: DemoProcess) -> None:
    person = alone.person("staff")
    with alone.browser() as browser:
        form = browser.issuer_form(person.tenant, person.login)
        pending = browser.cookies["kumiai_signin"]
        answer = browser.post(
            form_action(form), data={"username": person.login, "password": person.password},
            headers={"origin": browser.origin},
        )  # fmt: skip
        assert browser.get(answer.headers["location"]).status_code == 303
        assert is_signed_in(browser)
        browser.cookies.set("kumiai_signin", pending, path="/auth")
        assert browser.get(answer.headers["location"]).status_code == 403


def test_after_signing_out_the_password_is_asked_for_again(alone: DemoProcess) -> None:
    person = alone.person("staff")
    with alone.signed_in("staff") as browser:
        cookie = browser.cookies[COOKIE]
        row = stored(alone, browser)
        out = browser.submit("/auth/signout")
        assert "/dev-issuer/protocol/openid-connect/logout" in out.headers["location"]
        assert browser.get(out.headers["location"]).headers["location"].endswith("/?why=signed_out")
        assert COOKIE not in browser.cookies
        assert "パスワード" in browser.issuer_form(person.tenant, person.login).text
    with alone.browser() as thief:
        thief.cookies.set(COOKIE, cookie)
        assert not is_signed_in(thief)
    with alone.database() as connection:
        kept = connection.execute("select ended_at, tokens from portal_session where id = ?", (row["id"],)).fetchone()
    assert kept["ended_at"] is not None
    assert kept["tokens"] == b""


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_nobody_used_for_half_an_hour_ends(alone: DemoProcess) -> None:
    with alone.signed_in("staff") as browser:
        shift(alone, browser, "seen_at", datetime.now(UTC) - timedelta(minutes=29))
        assert is_signed_in(browser)
        shift(alone, browser, "seen_at", datetime.now(UTC) - timedelta(minutes=31))
        answer = browser.get("/settings")
        assert answer.status_code == 303
        assert "why=idle" in answer.headers["location"]
        # For good: a clock that is set back does not bring it to life.
        shift(alone, browser, "seen_at", datetime.now(UTC))
        assert not is_signed_in(browser)


def test_a_session_ends_after_ten_hours_however_busy(alone: DemoProcess) -> None:
    with alone.signed_in("staff") as browser:
        row = stored(alone, browser)
        length = datetime.fromisoformat(row["expires_at"]) - datetime.fromisoformat(row["created_at"])
        assert length == timedelta(hours=10)
        shift(alone, browser, "expires_at", datetime.now(UTC) - timedelta(seconds=1))
        assert not is_signed_in(browser)


@pytest.fixture
def second_portal(alone: DemoProcess) -> Iterator[str]:
    """Another process of the same portal, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = alone.environment | {
        "KUMIAI_ENV": "demo", "KUMIAI_PUBLIC_URL": alone.base_url, "KUMIAI_GATEWAY_URL": alone.base_url,
    }  # fmt: skip
    with (alone.home / "logs" / "second-portal.log").open("ab") as log:
        process = warm.start("portal", "--port", str(port), env=environment, stdout=log)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/portal/ready", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_at_expiry_many_requests_refresh_once(alone: DemoProcess, second_portal: str) -> None:
    with alone.signed_in("staff") as browser:
        sid = stored(alone, browser)["sid"]
        with alone.database("dev-issuer") as issuer:
            issuer.execute("create table refreshed(sid text)")
            issuer.execute(
                "create trigger count_refresh after update of refresh_hash on session"
                " begin insert into refreshed values (new.sid); end"
            )
        sealed = stored(alone, browser)["tokens"]
        shift(alone, browser, "access_expires_at", datetime.now(UTC) + timedelta(seconds=5))
        headers = {"cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}

        def ask(number: int) -> int:
            base = (alone.base_url, second_portal)[number % 2]
            return httpx.get(f"{base}/settings", headers=headers, timeout=60, trust_env=False).status_code

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(48)))
        assert set(answers) == {200}
        with alone.database("dev-issuer") as issuer:
            refreshes = issuer.execute("select count(*) from refreshed where sid = ?", (sid,)).fetchone()[0]
            issuer.execute("drop trigger count_refresh")
            issuer.execute("drop table refreshed")
        assert refreshes == 1
        row = stored(alone, browser)
        assert row["tokens"] != sealed
        assert row["refresh_locked_until"] is None
        assert datetime.fromisoformat(row["access_expires_at"]).replace(tzinfo=UTC) > datetime.now(UTC) + timedelta(
            seconds=200
        )
        assert is_signed_in(browser)


@contextlib.contextmanager
def issuer_away(demo: DemoProcess) -> Iterator[None]:
    """The process that is the issuer stands still: whoever asks it gets no reply."""
    [pid] = [int(p.name) for p in demo.processes() if (p / "comm").read_text() == "kumiai portal\n"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_issuer_that_goes_away_ends_no_session_for_a_quarter_of_an_hour(
    alone: DemoProcess, second_portal: str
) -> None:
    with alone.signed_in("staff") as browser:
        headers = {"cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}

        def ask(minutes_past: int) -> int:
            shift(alone, browser, "access_expires_at", datetime.now(UTC) - timedelta(minutes=minutes_past))
            with alone.database() as connection:
                connection.execute("update portal_session set refresh_locked_until = null")
            return httpx.get(f"{second_portal}/settings", headers=headers, timeout=60, trust_env=False).status_code

        sealed = stored(alone, browser)["tokens"]
        with issuer_away(alone):
            assert ask(14) == 200
            # Nobody could say any more whether the person may still be here.
            assert ask(16) == 303
        # Nothing was thrown away: with the issuer the session is back.
        assert stored(alone, browser)["tokens"] == sealed
        assert ask(16) == 200
        assert stored(alone, browser)["tokens"] != sealed


def test_a_used_refresh_token_ends_the_session_at_the_issuer(alone: DemoProcess) -> None:
    """What single flight is for: the second use of a rotated token is taken for a thief's."""
    with alone.signed_in("staff") as browser:
        old = stored(alone, browser)["tokens"]
        shift(alone, browser, "access_expires_at", datetime.now(UTC))
        assert is_signed_in(browser)
        with alone.database() as connection:
            connection.execute("update portal_session set tokens = ? where id = ?", (old, stored(alone, browser)["id"]))
        shift(alone, browser, "access_expires_at", datetime.now(UTC))
        assert not is_signed_in(browser)


# ── back-channel logout ──────────────────────────────────────────────────────────────────────────────────────────


def _logout_token(demo: DemoProcess, *, key: ECKey | None = None, **claims: Any) -> str:
    """As the issuer of this demo signs it."""
    own = ECKey.import_key((demo.home / "keys" / "dev-issuer.pem").read_bytes())
    now = int(time.time())
    told = {
        "iss": f"{demo.base_url}/dev-issuer", "aud": "portal", "typ": "Logout", "iat": now, "exp": now + 120,
        "jti": str(uuid.uuid4()), "events": {BACKCHANNEL_LOGOUT: {}},
    }  # fmt: skip
    header = {"alg": "ES256", "typ": "logout+jwt", "kid": own.thumbprint()}
    return jwt.encode(header, told | claims, key or own)


def _send_logout(demo: DemoProcess, token: str) -> int:
    return httpx.post(
        f"{demo.base_url}/auth/backchannel-logout", data={"logout_token": token}, trust_env=False
    ).status_code


def test_the_issuer_ends_a_session(alone: DemoProcess) -> None:
    with alone.signed_in("staff") as browser, alone.signed_in("staff") as elsewhere:
        sid = stored(alone, browser)["sid"]
        for forged in (
            _logout_token(alone, key=ECKey.generate_key("P-256"), sid=sid),
            _logout_token(alone, sid=sid, aud="gateway"),
            _logout_token(alone, sid=sid, nonce="n"),
            "x.y.z",
            "",
        ):
            assert _send_logout(alone, forged) == 400
        assert is_signed_in(browser)
        assert _send_logout(alone, _logout_token(alone, sid=sid)) == 200
        assert not is_signed_in(browser)
        assert is_signed_in(elsewhere)


def test_the_issuer_ends_all_sessions_of_an_account(alone: DemoProcess) -> None:
    with alone.signed_in("staff") as one, alone.signed_in("staff") as two, alone.signed_in("staff", 1) as other:
        sub = stored(alone, one)["sub"]
        assert _send_logout(alone, _logout_token(alone, sub=sub)) == 200
        assert not is_signed_in(one)
        assert not is_signed_in(two)
        assert is_signed_in(other)


# ── guessing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wrong_passwords_make_an_account_wait(alone: DemoProcess) -> None:
    person = alone.person("staff", 2, nth=1)
    with alone.browser() as guesser, alone.browser() as owner:
        for _ in range(5):
            answer = guesser.try_to_sign_in(person.tenant, person.login, "wrong-1234-wrong")
            assert answer.status_code == 401
            assert "職員番号かパスワードが違います" in answer.text
        blocked = owner.try_to_sign_in(person.tenant, person.login, person.password)
        assert blocked.status_code == 429
        assert "待ってください" in blocked.text
        with alone.database("dev-issuer") as issuer:
            issuer.execute("update account set blocked_until = ?", (time.time() - 1,))
        assert owner.try_to_sign_in(person.tenant, person.login, person.password).status_code == 303


def test_a_wrong_number_looks_like_a_wrong_password(alone: DemoProcess) -> None:
    person = alone.person("staff", 1)
    with alone.browser() as browser:
        unknown = browser.try_to_sign_in(person.tenant, "9999", person.password)
        wrong = browser.try_to_sign_in(person.tenant, person.login, "wrong-1234-wrong")
        elsewhere = browser.try_to_sign_in(alone.towns[2], person.login, person.password)
    assert [a.status_code for a in (unknown, wrong, elsewhere)] == [401, 401, 401]
    assert "職員番号かパスワードが違います" in unknown.text


def test_guessed_keys_make_their_sender_wait_whatever_it_says_of_itself(alone: DemoProcess) -> None:
    with httpx.Client(base_url=alone.base_url, trust_env=False) as client:

        def ask(key: str, **headers: str) -> httpx.Response:
            return client.get("/v1/models", headers={"authorization": f"Bearer {key}", **headers})

        good = alone.api_key(1)
        assert ask(good).status_code == 200
        key_id = alone.api_key(2).split("_")[2]
        answers = [
            ask(f"kmi_demo_{key_id}_{'x' * 40}{n:03}", **{"x-forwarded-for": f"203.0.113.{n}"}).status_code
            for n in range(30)
        ]
        assert answers[:10] == [401] * 10
        assert answers[-1] == 429
        # The key that was right before goes on; so does everybody else's.
        assert ask(good).status_code == 200


# ── the pending sign-in ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", [
    "https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/auth/signout", "\\\\evil",
    "/%0d%0aset-cookie:x=1", "http:evil.example", "/a\r\nset-cookie: x=1", "", "evil.example",
])  # fmt: skip
def test_sign_in_leads_to_our_own_pages_only(alone: DemoProcess, target: str) -> None:
    person = alone.person("staff")
    with alone.browser() as browser:
        begun = browser.get("/auth/signin", params={"town": person.tenant, "login": person.login, "next": target})
        form = browser.get(begun.headers["location"])
        answer = browser.post(
            form_action(form), data={"username": person.login, "password": person.password},
            headers={"origin": browser.origin},
        )  # fmt: skip
        arrived = browser.get(answer.headers["location"])
    location = arrived.headers["location"]
    assert arrived.status_code == 303
    assert location == "/" or re.fullmatch(r"/[^/\\].*", location)
    assert "set-cookie" not in {c.split("=")[0] for c in arrived.headers.get_list("set-cookie")}


def test_what_the_browser_keeps_of_a_sign_in_is_sealed(alone: DemoProcess) -> None:
    person = alone.person("staff")
    with alone.browser() as browser:
        browser.issuer_form(person.tenant, person.login)
        opened = base64.urlsafe_b64decode(browser.cookies["kumiai_signin"])
        assert b"pending" not in opened
        assert person.tenant.encode() not in opened
        changed = bytearray(opened)
        changed[20] ^= 1
        browser.cookies.set("kumiai_signin", base64.urlsafe_b64encode(bytes(changed)).decode(), path="/auth")
        assert browser.get("/auth/callback", params={"code": "c", "state": "s"}).status_code == 403


def test_a_crash_leaves_no_dump_of_the_memory(alone: DemoProcess) -> None:
    found = alone.processes()
    assert len(found) >= 3
    for folder in found:
        [limit] = [line for line in (folder / "limits").read_text().splitlines() if line.startswith("Max core file")]
        assert limit.split()[4:6] == ["0", "0"], folder


def test_keys_and_facts_are_readable_by_their_owner_only(alone: DemoProcess) -> None:
    names = {p.name for p in (alone.home / "keys").iterdir()}
    assert {"root", "session", "delegation", "pepper", "portal-client", "dev-issuer.pem"} <= names
    for path in (*(alone.home / "keys").iterdir(), alone.home / "demo.json", alone.home / "demo-people.json"):
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert os.stat(alone.home / "keys").st_mode & 0o777 == 0o700
    assert os.stat(alone.home).st_mode & 0o777 == 0o700
