"""One organization per town: paged, one writer at a time, never enabled, emptied or dropped in passing."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from observability.problems import Conflict
from tenants.db import DatabaseUrls
from tenants.identity.keycloak import (
    Admin,
    Administrator,
    DirectoryClient,
    KeycloakDirectory,
    OrganizationSpec,
    find_organization,
    reconcile_organizations,
    reconcile_realm,
)
from tenants.identity.one_writer import one_writer
from tenants.identity.realm import Json, RealmSpec
from tests.integration.keycloak.conftest import Realm

pytestmark = pytest.mark.real

MANY = 120


@pytest.fixture(scope="module")
def made(realm: Realm) -> Realm:
    reconcile_realm(realm.spec)
    return realm


@pytest.fixture
def directory(made: Realm) -> KeycloakDirectory:
    spec = made.spec
    client = DirectoryClient(spec.directory_client_id, spec.directory_client_secret)
    return KeycloakDirectory(spec.url, spec.realm, client, issuer=f"{spec.url}/realms/{spec.realm}")


# Never the same twice: a test may have given another town the name meanwhile.
_prefixes = itertools.count(100)


def _towns(count: int) -> list[OrganizationSpec]:
    prefix = next(_prefixes)
    return [
        OrganizationSpec(f"t{prefix}{n:03}", f"町{prefix}-{n}", f"{prefix}{n:03}", enabled=True) for n in range(count)
    ]


def _found(admin: Admin, alias: str) -> Json:
    found = find_organization(admin, alias)
    assert found is not None
    return found


def test_more_than_a_hundred_are_made_once_then_read_and_repaired_one_by_one(made: Realm) -> None:
    towns = _towns(MANY)
    first = reconcile_organizations(made.spec, towns)
    assert (first.writes, len(first.organization_ids)) == (MANY, MANY)
    second = reconcile_organizations(made.spec, towns)
    assert (second.writes, second.organization_ids) == (0, first.organization_ids)
    # Drift at one of them, beyond the first hundred: one write.
    renamed = [*towns[:-1], OrganizationSpec(towns[-1].alias, "新しい名前", towns[-1].code, enabled=True)]
    third = reconcile_organizations(made.spec, renamed)
    assert (third.writes, third.organization_ids) == (1, first.organization_ids)
    assert _found(made.admin, towns[-1].alias)["name"] == "新しい名前"


def test_a_rename_keeps_a_suspended_town_suspended_and_its_domains(made: Realm, directory: KeycloakDirectory) -> None:
    [town] = _towns(1)
    reconcile_organizations(made.spec, [town])
    now = _found(made.admin, town.alias)
    domain = {"name": f"{town.alias}.test", "verified": True}
    made.admin.write("put", f"/organizations/{now['id']}", {**now, "domains": [domain], "attributes": {"note": ["x"]}})
    directory.set_organization_enabled(town.alias, enabled=False)
    directory.ensure_organization(alias=town.alias, name=f"改名{town.code}", code=town.code)
    after = _found(made.admin, town.alias)
    assert after["name"] == f"改名{town.code}"
    assert after["enabled"] is False
    assert [d["name"] for d in after["domains"]] == [domain["name"]]
    assert after["attributes"] == {"note": ["x"], "jp.lgcode": [town.code]}
    directory.set_organization_enabled(town.alias, enabled=True)
    assert _found(made.admin, town.alias) == {**after, "enabled": True}


def test_what_our_database_says_of_a_suspension_wins(made: Realm) -> None:
    [town] = _towns(1)
    reconcile_organizations(made.spec, [town])
    stopped = OrganizationSpec(town.alias, town.name, town.code, enabled=False)
    assert reconcile_organizations(made.spec, [stopped]).writes == 1
    assert _found(made.admin, town.alias)["enabled"] is False
    assert reconcile_organizations(made.spec, [stopped]).writes == 0


def test_organizations_and_members_we_do_not_know_are_left_alone(made: Realm) -> None:
    [town] = _towns(1)
    made.admin.write("post", "/organizations", {"name": f"よそ{town.code}", "alias": f"other-{town.code}"})
    reconcile_organizations(made.spec, [town])
    organization = _found(made.admin, town.alias)["id"]
    stranger = made.admin.write("post", "/users", {"username": f"guest-{town.code}", "enabled": True})
    made.admin.write("post", f"/organizations/{organization}/members", stranger)
    assert reconcile_organizations(made.spec, [town]).writes == 0
    assert _found(made.admin, f"other-{town.code}")["enabled"] is True
    assert [m["id"] for m in made.admin.get(f"/organizations/{organization}/members")] == [stranger]


def test_a_name_taken_by_a_stranger_is_said_plainly(made: Realm, directory: KeycloakDirectory) -> None:
    [town] = _towns(1)
    made.admin.write("post", "/organizations", {"name": town.name, "alias": f"other-{town.code}"})
    with pytest.raises(Conflict, match=town.name):
        directory.ensure_organization(alias=town.alias, name=town.name, code=town.code)


@pytest.mark.parametrize("kind", ["migrated_sqlite", "pooled_postgres"])
def test_writers_of_one_town_wait_for_each_other(made: Realm, kind: str, request: pytest.FixtureRequest) -> None:
    urls: DatabaseUrls = request.getfixturevalue(kind)
    lock = one_writer(urls)
    [town] = _towns(1)
    reconcile_organizations(made.spec, [town])
    inside = threading.Semaphore(1)

    def rename(number: int) -> None:
        with lock(town.alias):
            assert inside.acquire(blocking=False), "two writers at once"
            inside.release()
        spec = made.spec
        client = DirectoryClient(spec.directory_client_id, spec.directory_client_secret)
        writer = KeycloakDirectory(spec.url, spec.realm, client, issuer="x", one_writer=lock)
        writer.ensure_organization(alias=town.alias, name=f"{town.name}-{number}", code=f"{number:06}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(rename, range(16)))
    after = _found(made.admin, town.alias)
    # Without the lock Keycloak keeps the values of several writers side by side.
    [code] = after["attributes"]["jp.lgcode"]
    assert after["name"] == f"{town.name}-{int(code)}"


class _LosesAnswers:
    """A proxy before Keycloak that carries out the first write to `path` and then hangs up without an answer."""

    def __init__(self, target: str, path: str) -> None:
        lost = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def _relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                kept = {k: v for k, v in self.headers.items() if k.lower() in ("authorization", "content-type")}
                answer = httpx.request(
                    self.command, target + self.path, content=body, headers=kept, timeout=60, trust_env=False
                )
                if self.command == "POST" and self.path.endswith(path) and not lost.is_set():
                    lost.set()
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                for name in ("content-type", "location"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PUT = do_DELETE = _relay  # noqa: N815 - http.server's names

            def log_message(self, *_args: object) -> None:
                """Silent."""

        self.lost = lost
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def loses_answers(realm: Realm, request: pytest.FixtureRequest) -> Iterator[_LosesAnswers]:
    proxy = _LosesAnswers(realm.spec.url, request.param)
    yield proxy
    proxy.server.shutdown()
    proxy.server.server_close()


def _through(spec: RealmSpec, proxy: _LosesAnswers) -> RealmSpec:
    return replace(spec, url=proxy.url)


@pytest.mark.parametrize("loses_answers", ["/organizations"], indirect=True)
def test_a_town_whose_answer_was_lost_is_made_once(made: Realm, loses_answers: _LosesAnswers) -> None:
    [town] = _towns(1)
    reconcile_organizations(_through(made.spec, loses_answers), [town])
    assert loses_answers.lost.is_set()
    assert [o["alias"] for o in made.admin.pages("/organizations") if o["name"] == town.name] == [town.alias]


@pytest.mark.parametrize("loses_answers", ["/components"], indirect=True)
def test_a_key_whose_answer_was_lost_gets_no_twin(realm: Realm, loses_answers: _LosesAnswers) -> None:
    name, issuer = f"{realm.spec.realm}-twin", f"{realm.spec.issuer}-twin"
    spec = replace(_through(realm.spec, loses_answers), realm=name, issuer=issuer)
    reconcile_realm(spec)
    assert loses_answers.lost.is_set()
    direct = Admin(realm.spec.url, spec.realm, Administrator(spec.admin_user, spec.admin_password))
    keys = direct.get("/components", type="org.keycloak.keys.KeyProvider")
    assert [k["name"] for k in keys if k["providerId"] == "ecdsa-generated"] == ["es256"]
    direct.write("delete", "")


@pytest.mark.parametrize("loses_answers", ["/users", "/members"], indirect=True)
def test_an_account_whose_answer_was_lost_is_made_and_joined_once(made: Realm, loses_answers: _LosesAnswers) -> None:
    [town] = _towns(1)
    organization = reconcile_organizations(made.spec, [town]).organization_ids[town.alias]
    client = DirectoryClient(made.spec.directory_client_id, made.spec.directory_client_secret)
    directory = KeycloakDirectory(loses_answers.url, made.spec.realm, client, issuer="x")
    sub = directory.open_account(alias=town.alias, login="1", display_name="", password="first-2345-word")
    assert loses_answers.lost.is_set()
    assert [m["id"] for m in made.admin.get(f"/organizations/{organization}/members")] == [sub]
    assert [c["type"] for c in made.admin.get(f"/users/{sub}/credentials")] == ["password"]
