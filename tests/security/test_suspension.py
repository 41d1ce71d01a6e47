"""A town or a person that was stopped is refused everywhere within two seconds, whatever tokens still live."""

import asyncio
import base64
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlmodel import col, select

from tenants.context import PersonId, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.identity.access_list import AccessList, Revoked, TenantSuspended, revoke
from tenants.models import Person, Revocation, Tenant
from tenants.policy import bump_configuration
from tenants.registry import find_tenant
from tests.demo_process import Browser, DemoPerson, DemoProcess, form_action
from tests.month import sqlite_of
from tests.servers import DATABASES

WITHIN_S = 2.0
# What the page of questions sends back when it is answered with yes.
CONFIRMED = {"confirmed": "1"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    with DemoProcess(tmp_path_factory.mktemp("suspension") / "home") as demo:
        yield demo


def seconds_until(holds: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < 10, "never"
        time.sleep(0.02)
    return time.monotonic() - began


def access_token(demo: DemoProcess, person: DemoPerson) -> str:
    """What a client of the issuer gets for this person: the portal's own dance, its last step taken by us."""
    secret = base64.urlsafe_b64decode((demo.home / "keys" / "portal-client").read_text()).hex()
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    redirect = f"{demo.base_url}/auth/callback"
    asked = {
        "client_id": "portal", "redirect_uri": redirect, "response_type": "code", "state": "s",
        "scope": f"openid organization:t{person.tenant}", "code_challenge": challenge, "code_challenge_method": "S256",
    }  # fmt: skip
    with Browser(demo.base_url) as browser:
        form = browser.get("/dev-issuer/protocol/openid-connect/auth", params=asked)
        answer = browser.post(form_action(form), data={"username": person.login, "password": person.password})
        code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
        tokens = browser.post(
            "/dev-issuer/protocol/openid-connect/token", auth=("portal", secret),
            data={"grant_type": "authorization_code", "code": code, "redirect_uri": redirect, "code_verifier": verifier},
        )  # fmt: skip
    return str(tokens.json()["access_token"])


def call(demo: DemoProcess, credential: str) -> int:
    headers = {"authorization": f"Bearer {credential}"}
    return httpx.get(f"{demo.base_url}/v1/models", headers=headers, timeout=10, trust_env=False).status_code


def test_a_stopped_town_is_refused_by_portal_and_gateway(alone: DemoProcess) -> None:
    code, key = alone.towns[0], alone.api_key(0)
    clerk_person = alone.person("staff")
    token = access_token(alone, clerk_person)
    with alone.signed_in("staff") as clerk, alone.signed_in("staff", 1) as neighbour, alone.browser() as anew:
        assert (clerk.get("/apps/chat").status_code, call(alone, key), call(alone, token)) == (200, 200, 200)

        done = alone.run("tenant", "suspend", code)
        assert done.returncode == 0, done.stderr
        assert seconds_until(lambda: clerk.get("/apps/chat").status_code == 403) < WITHIN_S
        assert seconds_until(lambda: call(alone, key) == 403) < WITHIN_S
        assert call(alone, token) == 403
        assert "止められています" in clerk.get("/").text
        assert clerk.submit("/apps/chat/send", {"text": "水"}).status_code == 403
        # Its own people are told why, and that nothing is lost; the list of towns does not lead there.
        for path in (f"/t/{code}", f"/auth/signin?town={code}"):
            refused = anew.get(path)
            assert refused.status_code == 403
            assert "止められています" in refused.text
        assert code not in anew.get("/").text
        # The neighbour notices nothing.
        assert (neighbour.get("/apps/chat").status_code, call(alone, alone.api_key(1))) == (200, 200)

        done = alone.run("tenant", "resume", code)
        assert done.returncode == 0, done.stderr
        assert seconds_until(lambda: call(alone, key) == 200) < WITHIN_S
        # What was issued before the stop does not come back to life.
        assert call(alone, token) == 401
        assert clerk.get("/apps/chat").status_code == 303
        anew.sign_in(clerk_person)
        assert anew.get("/apps/chat").status_code == 200
        assert call(alone, access_token(alone, clerk_person)) == 200


def _person_id(admin: Browser, login: str) -> str:
    page = admin.get("/console/town/people", params={"q": login}).text
    found = re.search(r"/people/([0-9a-f-]{36})", page)
    assert found is not None
    return found[1]


def test_a_stopped_person_is_refused_by_portal_and_gateway(alone: DemoProcess) -> None:
    person = alone.person("staff", 2)
    token = access_token(alone, person)
    with (
        alone.signed_in("staff", 2) as clerk, alone.signed_in("staff", 2, nth=1) as colleague,
        alone.signed_in("town_admin", 2) as admin, alone.browser() as anew,
    ):  # fmt: skip
        person_id = _person_id(admin, person.login)
        assert (clerk.get("/apps/chat").status_code, call(alone, token)) == (200, 200)

        assert admin.submit(f"/console/town/people/{person_id}/suspend", CONFIRMED).status_code == 303
        assert seconds_until(lambda: clerk.get("/apps/chat").status_code == 303) < WITHIN_S
        assert seconds_until(lambda: call(alone, token) == 401) < WITHIN_S
        assert colleague.get("/apps/chat").status_code == 200
        assert anew.try_to_sign_in(person.tenant, person.login, person.password).status_code in (401, 403)

        assert admin.submit(f"/console/town/people/{person_id}/resume").status_code == 303
        # Tokens tell their time in whole seconds: one of the same second counts as issued before.
        time.sleep(1)
        anew.sign_in(person)
        assert anew.get("/apps/chat").status_code == 200
        assert clerk.get("/apps/chat").status_code == 303
        assert call(alone, token) == 401
        assert call(alone, access_token(alone, person)) == 200


def test_a_reset_password_ends_what_runs(alone: DemoProcess) -> None:
    person = alone.person("staff", 1, nth=1)
    token = access_token(alone, person)
    with alone.signed_in("staff", 1, nth=1) as clerk, alone.signed_in("town_admin", 1) as admin:
        person_id = _person_id(admin, person.login)
        reset = admin.submit("/console/town/people/reset", {"person": person_id, **CONFIRMED})
        assert reset.status_code in (200, 303)
        assert seconds_until(lambda: clerk.get("/apps/chat").status_code == 303) < WITHIN_S
        assert seconds_until(lambda: call(alone, token) == 401) < WITHIN_S
        with alone.browser() as anew:
            assert anew.try_to_sign_in(person.tenant, person.login, person.password).status_code == 401


def test_a_revoked_key_ends_within_two_seconds(alone: DemoProcess) -> None:
    key = alone.run("key", "create", alone.towns[1], "--label", "試験").stdout.strip()
    assert call(alone, key) == 200
    done = alone.run("key", "revoke", alone.towns[1], key.split("_")[2])
    assert done.returncode == 0, done.stderr
    assert seconds_until(lambda: call(alone, key) == 401) < WITHIN_S


def test_who_signs_in_within_the_second_of_a_revocation_is_let_in(alone: DemoProcess) -> None:
    staff = alone.person("staff", 1)

    async def revoke_now() -> None:
        db = Database(sqlite_of(alone.home))
        async with db.platform_session("test") as session:
            tenant = await find_tenant(session, staff.tenant)
            of_town = select(Person.id).where(Person.tenant_id == tenant.id, Person.login == staff.login)
            person_id = (await session.exec(of_town)).one()
            await revoke(session, "person", str(person_id), tenant_id=TenantId(tenant.id))
        await db.close()

    for _ in range(3):
        with alone.signed_in("staff", 1) as before:
            # Early in a second, so that the token of the new sign-in is of the same one: it looks older than the revocation.
            time.sleep(1 - time.time() % 1)
            asyncio.run(revoke_now())
            seconds_until(lambda: before.get("/apps/chat").status_code == 303)
            with alone.signed_in("staff", 1) as anew:
                assert anew.get("/apps/chat").status_code == 200


# ── the list itself ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    urls: DatabaseUrls = request.getfixturevalue(DATABASES[request.param])
    database = Database(urls)
    yield database
    await database.close()


async def _town(db: Database) -> TenantId:
    tenant_id = TenantId(new_id())
    async with db.platform_session("test") as session:
        session.add(Tenant(id=tenant_id, name="見本町", alias=f"t{tenant_id.hex}"))
        await bump_configuration(session)
    return tenant_id


async def test_the_newest_of_several_revocations_counts(db: Database) -> None:
    town, person = await _town(db), PersonId(new_id())
    now = datetime.now(UTC)
    async with db.platform_session("test") as session:
        for hours in (1, 3, 2):
            session.add(
                Revocation(kind="person", value=str(person), tenant_id=town, since=now - timedelta(hours=hours))
            )
    access = AccessList(db)
    await access.load()
    await access.check(town, issued_at=now - timedelta(minutes=59), person_id=person)
    with pytest.raises(Revoked):
        await access.check(town, issued_at=now - timedelta(minutes=61), person_id=person)


async def test_a_revocation_is_forgotten_when_nothing_older_can_live(db: Database) -> None:
    town, person = await _town(db), PersonId(new_id())
    async with db.platform_session("test") as session:
        await revoke(session, "person", str(person), tenant_id=town)
    async with db.platform_session("test", read_only=True) as session:
        [row] = (await session.exec(select(Revocation))).all()
    assert row.until is not None
    assert timedelta(days=1) < row.until - row.since < timedelta(days=7)


async def test_an_unknown_town_is_refused(db: Database) -> None:
    await _town(db)
    access = AccessList(db)
    await access.load()
    with pytest.raises(TenantSuspended):
        await access.check(TenantId(new_id()))


async def test_a_town_is_not_turned_away_by_a_list_older_than_itself(db: Database) -> None:
    access = AccessList(db)
    await access.load()
    town = await _town(db)
    await access.check(town)
    async with db.platform_session("test") as session:
        (await session.exec(select(Tenant).where(col(Tenant.id) == town))).one().status = "suspended"
        await bump_configuration(session)
    await access.load()
    with pytest.raises(TenantSuspended):
        await access.check(town)
    async with db.platform_session("test") as session:
        (await session.exec(select(Tenant).where(col(Tenant.id) == town))).one().status = "active"
        await bump_configuration(session)
    await access.check(town)


async def test_many_refusals_at_once_are_few_readings(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await _town(db)
    access = AccessList(db)
    await access.load()
    readings, opened = 0, db.platform_session

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal readings
        readings += 1
        return opened(*args, **more)

    monkeypatch.setattr(db, "platform_session", counted)
    refused = await asyncio.gather(*(access.check(TenantId(new_id())) for _ in range(50)), return_exceptions=True)
    assert {type(problem) for problem in refused} == {TenantSuspended}
    assert readings <= 2
