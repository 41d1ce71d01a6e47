"""What a failing page looks like: a Japanese title, what to do, a number that the log has too, and the usual headers."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import structlog
from asgi_lifespan import LifespanManager
from sqlalchemy.exc import OperationalError
from structlog.testing import LogCapture

from apps.host.main import create_portal
from tenants.db import DatabaseUrls
from tenants.identity.keycloak import KeycloakUnavailable
from tenants.settings import Settings

NUMBER = re.compile(r"[0-9a-f]{4}-[0-9a-f]{4}")


async def _bug() -> None:
    raise RuntimeError("a bug whose words stay out of the page")


async def _keycloak() -> None:
    raise KeycloakUnavailable("http://inner:8080 が応えません。")


async def _away() -> None:
    raise OperationalError("select 1", {}, Exception("connection refused"))


@pytest.fixture
async def client(migrated_sqlite: DatabaseUrls, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(env="test", home=tmp_path, database_url=migrated_sqlite.app, public_url="http://127.0.0.1:8999")
    portal = create_portal(settings)
    portal.add_api_route("/bug", _bug)
    portal.add_api_route("/away", _away)
    portal.add_api_route("/keycloak", _keycloak)
    async with LifespanManager(portal) as running:
        transport = httpx.ASGITransport(running.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8999") as found:
            yield found


async def test_a_bug_is_a_page_with_a_number_that_the_log_has(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LogCapture()
    monkeypatch.setattr("apps.host.main.log", structlog.wrap_logger(None, processors=[written]))
    answer = await client.get("/bug")
    assert answer.status_code == 500
    assert "<h1>処理を続けられませんでした</h1>" in answer.text
    assert "やり直す" in answer.text
    assert "a bug whose words" not in answer.text
    number = NUMBER.search(answer.text.split("問合せ番号")[1])
    assert number is not None
    failed = next(e for e in written.entries if e["event"] == "page_failed")
    assert (failed["number"], failed["path"], failed["log_level"]) == (number[0], "/bug", "error")


@pytest.mark.parametrize("path", ["/bug", "/away", "/nowhere"])
async def test_a_failing_page_carries_the_headers_of_every_page(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_database_that_is_away_is_a_passing_state(client: httpx.AsyncClient) -> None:
    answer = await client.get("/away")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "30"
    assert "<h1>一時的に使えません</h1>" in answer.text
    assert "数分待ってから" in answer.text


async def test_what_the_operator_must_look_at_is_in_the_log_and_not_on_the_page(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LogCapture()
    monkeypatch.setattr("apps.host.main.log", structlog.wrap_logger(None, processors=[written]))
    answer = await client.get("/keycloak")
    assert answer.status_code == 503
    assert "共同利用の事務局に知らせてください" in answer.text
    assert "inner:8080" not in answer.text
    number = NUMBER.search(answer.text.split("問合せ番号")[1])
    assert number is not None
    refused = next(e for e in written.entries if e["event"] == "refused")
    assert (refused["number"], refused["hint"]) == (number[0], "http://inner:8080 が応えません。")


async def test_two_failures_never_share_a_number(client: httpx.AsyncClient) -> None:
    numbers = set()
    for _ in range(20):
        found = NUMBER.search((await client.get("/nowhere")).text.split("問合せ番号")[1])
        assert found is not None
        numbers.add(found[0])
    assert len(numbers) == 20


async def test_scripts_are_told_the_same_number_as_json(client: httpx.AsyncClient) -> None:
    answer = await client.get("/bug", headers={"kumiai-request": "fetch"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert NUMBER.fullmatch(answer.json()["trace_id"])
    assert answer.json()["title"] == "処理を続けられませんでした"


async def test_the_address_of_a_form_opened_as_a_page_is_no_page(client: httpx.AsyncClient) -> None:
    answer = await client.get("/auth/signout")
    assert answer.status_code == 404
    assert "ページが見つかりません" in answer.text
