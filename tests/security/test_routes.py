"""Every address of the running product, asked from outside: by nobody, by another site, by the wrong person."""

import re
import socket
from pathlib import Path

import httpx
import pytest

from apps.host.discovery import discover
from gateway.server.main import create_gateway
from gateway.server.providers.base import Operation
from kumiai.isolation.surface import BY_TOKEN, OFFICES, PUBLIC, UNSAFE, Address
from tenants.settings import Settings
from tests.demo_process import Browser, DemoProcess

FORGED = "urn:problem:portal:forged-request"


def guarded(addresses: list[Address]) -> list[Address]:
    return [a for a in addresses if (a.method, a.path) not in PUBLIC | BY_TOKEN]


def test_the_addresses_were_found(addresses: list[Address]) -> None:
    told = {(a.method, a.path) for a in addresses}
    assert len(told) > 60
    assert told >= BY_TOKEN
    for known in (
        ("POST", "/apps/chat/send"), ("GET", "/apps/chat/c/{conversation_id}"), ("GET", "/console/operator"),
        ("POST", "/console/town/people/{person_id}/suspend"), ("GET", "/desk/reports/{report_id}"), ("POST", "/report"),
        ("POST", "/auth/signout"),
    ):  # fmt: skip
        assert known in told
    # None of an app's own routes hides from the description.
    for app in discover().values():
        own = {
            (method, f"/apps/{app.manifest.id}{route.path}")
            for route in app.router.routes
            for method in route.methods  # type: ignore[attr-defined]  # an app has plain routes only
        }
        assert own
        assert own <= told


def test_everything_but_the_way_in_refuses_nobody(running: DemoProcess, addresses: list[Address]) -> None:
    answered: dict[str, int] = {}
    with running.browser() as browser:
        for address in guarded(addresses):
            headers = {"origin": browser.origin} if address.method in UNSAFE else {}
            answer = browser.request(address.method, address.url(), headers=headers)
            answered[str(address)] = answer.status_code
            if address.method in UNSAFE:
                assert answer.status_code == 401, address
            else:
                assert answer.status_code == 303, address
                assert re.fullmatch(r"/(t/\w+)?\?.*why=\w+.*", answer.headers["location"]), address
    assert len(answered) > 55


def _head_only(running: DemoProcess, *lines: str) -> str:
    """The answer to the beginning of a request whose rest never comes."""
    host, port = running.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = (
            "POST /apps/chat/files HTTP/1.1", f"Host: {host}:{port}", f"Origin: {running.base_url}",
            "Content-Type: multipart/form-data; boundary=x", *lines, "", "",
        )  # fmt: skip
        # The proxy of the demo sends the head on with the first piece of the body.
        connection.sendall("\r\n".join(head).encode() + b"3\r\n--x\r\n")
        return connection.recv(4096).decode(errors="replace").split()[1]


def test_a_body_is_not_read_before_its_sender_is_known(running: DemoProcess) -> None:
    assert _head_only(running, "Content-Length: 50000000") == "401"


def test_a_body_has_a_length_and_a_limit(running: DemoProcess) -> None:
    assert _head_only(running, "Content-Length: 70000000") == "413"
    assert _head_only(running, "Transfer-Encoding: chunked") == "411"


def test_scripts_of_nobody_get_401_instead_of_a_redirect(running: DemoProcess) -> None:
    with running.browser() as browser:
        answer = browser.get("/apps/chat", headers={"kumiai-request": "fetch"})
    assert answer.status_code == 401
    assert answer.json()["type"] == "urn:problem:portal:session-ended"


def test_what_is_public_answers(running: DemoProcess, addresses: list[Address]) -> None:
    town = running.towns[0]
    with running.browser() as browser:
        for address in (a for a in addresses if (a.method, a.path) in PUBLIC):
            answer = browser.get(address.url(town=town, name="rules"), params={"town": town})
            assert answer.status_code in (200, 303, 403), address
            assert "なりすまし" not in answer.text


def _forgeries(browser: Browser) -> dict[str, dict[str, str]]:
    """Headers of requests that are not from our own pages. Each lacks one thing only."""
    right = {"origin": browser.origin, "kumiai-csrf": browser.csrf, "kumiai-request": "fetch"}
    return {
        "another site": right | {"origin": "https://evil.example"},
        "another port": right | {"origin": "http://127.0.0.1:1"},
        "a sandboxed frame": right | {"origin": "null"},
        "no origin": {k: v for k, v in right.items() if k != "origin"},
        "no token": {k: v for k, v in right.items() if k != "kumiai-csrf"},
        "another person's token": right | {"kumiai-csrf": "x" * len(browser.csrf)},
    }


def test_every_change_refuses_a_forged_request(running: DemoProcess, addresses: list[Address]) -> None:
    checked = 0
    with running.signed_in("staff") as browser:
        forgeries = _forgeries(browser)
        for address in (a for a in guarded(addresses) if a.method in UNSAFE):
            for kind, headers in forgeries.items():
                answer = browser.request(address.method, address.url(), headers=headers)
                assert (answer.status_code, answer.json()["type"]) == (403, FORGED), f"{kind}: {address}"
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("role", ["staff", "town_admin", "operator"])
def test_the_same_request_of_our_own_pages_is_not_forged(
    running: DemoProcess, addresses: list[Address], role: str
) -> None:
    """Something else refuses what is empty and names an id that nobody has; nothing breaks on it."""
    with running.signed_in(role) as browser:
        right = {"origin": browser.origin, "kumiai-csrf": browser.csrf, "kumiai-request": "fetch"}
        for address in (a for a in guarded(addresses) if a.method in UNSAFE and a.path != "/auth/signout"):
            answer = browser.request(address.method, address.url(), headers=right)
            assert "forged" not in answer.text, address
            assert answer.status_code < 500, f"{address}: {answer.status_code}"


def test_a_forged_sign_out_leaves_the_person_signed_in(running: DemoProcess) -> None:
    with running.signed_in("staff") as browser:
        for headers in _forgeries(browser).values():
            assert browser.post("/auth/signout", headers=headers).status_code == 403
        assert browser.get("/settings").status_code == 200
        assert browser.submit("/auth/signout").status_code == 303
        assert browser.get("/settings").status_code == 303


# The demo's own issuer has no second factors to demand.
KEYCLOAK_ONLY = ("/console/town/second-factor",)


@pytest.mark.parametrize("role", ["staff", "section_admin", "town_admin", "operator"])
def test_an_office_is_not_there_for_other_roles(running: DemoProcess, addresses: list[Address], role: str) -> None:
    refused = opened = 0
    with running.signed_in(role) as browser:
        for address in addresses:
            if not address.office:
                continue
            answer = browser.get(address.url()) if address.method == "GET" else browser.submit(address.url())
            if role not in OFFICES[address.office]:
                assert answer.status_code == 404, address
                refused += 1
            elif "{" not in address.path and address.method == "GET":
                assert answer.status_code == (404 if address.path in KEYCLOAK_ONLY else 200), address
                opened += 1
    assert refused > (25 if role in ("staff", "section_admin") else 5)
    assert opened >= (3 if role in ("town_admin", "operator") else 0)


def test_what_is_refused_looks_like_what_does_not_exist(running: DemoProcess) -> None:
    with running.signed_in("staff") as browser:
        refused = browser.get("/console/town/people")
        missing = browser.get("/console/nowhere")
    assert refused.status_code == missing.status_code == 404

    def words(page: httpx.Response) -> str:
        main = page.text.split("<main", 1)[1].split("</main>", 1)[0]
        return re.sub(r"[0-9a-f]{4}-[0-9a-f]{4}|page=[^&\"]*", "", main)

    assert words(refused) == words(missing)


def test_who_is_operator_and_administrator_of_the_own_body_reads_no_report(running: DemoProcess) -> None:
    """The console of the own body opens; the desk, where content is read, does not."""
    with running.signed_in("operator") as operator:
        assert operator.get("/console/town").status_code == 404
        with running.database() as database:
            database.execute(
                """insert into role_grant (tenant_id, id, person_id, role, granted_at)
                   select tenant_id, 'f0000000000000000000000000000000', person_id, 'town_admin', granted_at
                   from role_grant where role = 'operator'"""
            )
        try:
            assert operator.get("/console/town").status_code == 200
            assert operator.get("/desk/reports").status_code == 404
        finally:
            with running.database() as database:
                database.execute("delete from role_grant where id = 'f0000000000000000000000000000000'")


@pytest.mark.parametrize("role", ["operator", "auditor", "adviser", "nobody"])
def test_a_town_grants_no_role_beyond_its_own(running: DemoProcess, role: str) -> None:
    with running.signed_in("town_admin") as admin:
        found = re.search(r"/people/([0-9a-f-]{36})", admin.get("/console/town/people").text)
        assert found is not None
        person = admin.submit(
            "/console/town/people/new",
            {"login": f"x-{role}", "display_name": "職員", "section": "総務課", "role": role},
        )
        granted = admin.submit(f"/console/town/people/{found[1]}/role", {"role": role, "granted": "1"})
        malformed = admin.submit(f"/console/town/people/{found[1]}/move", {"section": "x"})
    assert person.status_code == 422
    assert granted.status_code == 404
    assert malformed.status_code == 404


# ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        *(f"/v1/{o.value}" for o in Operation),
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v2/rerank",
        "/v1/guard/inspect",
        "/v1/models",
        "/v1/models/standard",
    ],
)
def test_the_api_refuses_who_has_no_key(running: DemoProcess, path: str) -> None:
    assert "/v1/chat/completions" in {f"/v1/{o.value}" for o in Operation}
    method = "GET" if "models" in path else "POST"
    body = {"model": "standard", "messages": [{"role": "user", "content": "あ"}], "prompt": "あ", "input": "あ"}
    with httpx.Client(base_url=running.base_url, trust_env=False) as client:
        nobody = client.request(method, path, json=body if method == "POST" else None)
        known = client.request(
            method, path, json=body if method == "POST" else None,
            headers={"authorization": f"Bearer {running.api_key()}"},
        )  # fmt: skip
    assert nobody.status_code == 401
    assert nobody.json()["error"]["code"] == "no_credential"
    assert known.status_code in (200, 400)


def test_the_gateway_serves_nothing_else(tmp_path: Path) -> None:
    gateway = create_gateway(Settings(env="test", home=tmp_path))
    gateway._rest.openapi_url = "/described"
    described = set(gateway._rest.openapi()["paths"])
    assert described == {
        "/health/live", "/health/ready", "/metrics", "/v1/guard/inspect", "/v1/messages/count_tokens", "/v1/models",
        "/v1/models/{alias}",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_what_machines_ask_tells_nothing_of_a_town(running: DemoProcess, path: str) -> None:
    with httpx.Client(base_url=running.base_url, trust_env=False) as client:
        answer = client.get(path)
    assert answer.status_code == 200
    for code in running.towns:
        assert code not in answer.text
    assert not re.search(r"tenant|person", answer.text.replace("kumiai_tenants", ""))


@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
def test_no_site_is_allowed_to_read_across(running: DemoProcess, method: str) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    with httpx.Client(base_url=running.base_url, trust_env=False) as client:
        for path in ("/", "/apps/chat", "/v1/chat/completions", "/v1/models"):
            answer = client.request(method, path, headers=headers)
            assert "access-control-allow-origin" not in answer.headers


def test_pages_carry_the_headers_that_contain_a_mistake(running: DemoProcess) -> None:
    with running.signed_in("staff") as browser:
        for path in ("/", "/apps/chat", "/settings", "/nowhere"):
            headers = browser.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert headers["cross-origin-opener-policy"] == "same-origin"


def test_no_file_beside_the_static_ones_is_served(running: DemoProcess) -> None:
    with httpx.Client(base_url=running.base_url, trust_env=False) as client:
        assert client.get("/static/kumiai.css").status_code == 200
        for path in (
            "/static/../render.py",
            "/static/%2e%2e/render.py",
            "/static/..%2frender.py",
            "/static//etc/passwd",
        ):
            assert client.get(path).status_code in (404, 400), path
    assert Path("apps/sdk/ui/render.py").exists()
