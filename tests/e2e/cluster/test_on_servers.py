"""The demo on PostgreSQL behind PgBouncer, Valkey and Keycloak: a clerk's day in Chromium, and who is told what."""

import contextlib
import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect

from tenants.lgcode import check_digit
from tenants.settings import ENV_FILE
from tests.browsers import Visitor, assert_accessible, sign_in
from tests.e2e.cluster.conftest import ClusterProcess

pytestmark = [pytest.mark.real, pytest.mark.browser, pytest.mark.timeout(900)]

_numbers = itertools.count(1)


@pytest.fixture
def visitor(cluster: ClusterProcess, chromium: Browser) -> Iterator[Visitor]:
    # A first page of a cold Keycloak takes seconds, more beside other tests.
    expect.set_options(timeout=30_000)
    visiting = Visitor(cluster, chromium, {})
    yield visiting
    visiting.close()
    assert visiting.errors == []


def test_a_clerk_signs_in_chats_and_signs_out(cluster: ClusterProcess, visitor: Visitor) -> None:
    clerk = cluster.person("staff")
    page = visitor.open()
    page.goto(f"/t/{clerk.tenant}")
    page.get_by_label("職員番号").fill(clerk.login)
    page.keyboard.press("Enter")
    # Keycloak's page, in our look and words; the name is there, only the password is asked for.
    expect(page.locator("#kc-attempted-username")).to_have_value(f"t{clerk.tenant}.{clerk.login}")
    expect(page.locator("#password")).to_be_focused()
    assert_accessible(page)
    page.locator("#password").fill("not-the-password")
    page.get_by_role("button", name="サインイン").click()
    expect(page.get_by_text("ログイン名かパスワードが違います")).to_be_visible()
    assert_accessible(page)
    page.locator("#password").fill(clerk.password)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{cluster.base_url}/")
    page.goto("/apps/chat")
    page.locator("#compose").fill("防災訓練のお知らせを書いてください")
    page.locator("#send").click()
    if page.get_by_role("button", name="Enterで送る", exact=True).is_visible():
        page.get_by_role("button", name="Enterで送る", exact=True).click()
    expect(page.get_by_text("見本").first).to_be_visible(timeout=60_000)
    expect(page.locator(".is-streaming, [aria-busy=true]")).to_have_count(0, timeout=60_000)
    answer = page.locator("main").inner_text()
    assert "防災訓練" in answer
    page.goto("/")
    page.locator("[data-signout] button").first.evaluate("button => button.form.requestSubmit(button)")
    page.wait_for_url("**/?why=signed_out")
    expect(page.get_by_text("サインアウトしました")).to_be_visible()
    page.goto("/apps/chat")
    assert f"/t/t{clerk.tenant}" in page.url
    # Keycloak has forgotten the browser too.
    page.goto(f"/t/{clerk.tenant}")
    page.get_by_label("職員番号").fill(clerk.login)
    page.keyboard.press("Enter")
    expect(page.locator("#password")).to_be_visible()


@dataclass(frozen=True)
class NewTown:
    code: str
    name: str
    initial_password: str
    sheet: Path


def new_town(cluster: ClusterProcess, folder: Path) -> NewTown:
    """Of a number that no other has: a test that is tried again finds its first town there."""
    five = f"479{next(_numbers):02d}"
    code = f"{five}{check_digit(five)}"
    name, sheet = f"新しい{code}町", folder / "handover.pdf"
    made = cluster.run(
        "tenant", "create", "--name", name, "--code", code, "--admin-login", "0001",
        "--month-yen", "50000", "--section", "総務課", "--sheet", str(sheet),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    [password] = re.findall(r"初期パスワード\s+(\S+)", made.stdout)
    return NewTown(code, name, password, sheet)


def choose(page: Page, password: str) -> None:
    """Twice, on Keycloak's page for a new password."""
    expect(page.get_by_role("heading", name="新しいパスワードを決めてください")).to_be_visible()
    page.locator("#password-new").fill(password)
    page.locator("#password-confirm").fill(password)
    page.get_by_role("button", name="決めて続ける").click()


def test_a_new_town_is_one_command_and_its_administrator_chooses_a_password(
    cluster: ClusterProcess, visitor: Visitor, tmp_path: Path
) -> None:
    town = new_town(cluster, tmp_path)
    assert town.sheet.read_bytes().startswith(b"%PDF")
    page = visitor.open()
    sign_in(page, town.code, "0001", town.initial_password)
    expect(page.get_by_role("heading", name="新しいパスワードを決めてください")).to_be_visible()
    assert_accessible(page)
    choose(page, town.initial_password)
    expect(page.get_by_text("初期パスワードや、前に使ったものとは別の")).to_be_visible()
    assert_accessible(page)
    choose(page, "harimaze-no-7-kaki")
    page.wait_for_url(f"{cluster.base_url}/")
    expect(page.get_by_text(town.name).first).to_be_visible()
    page.goto("/console/town")
    assert page.get_by_role("heading").first.is_visible()


def test_a_password_is_changed_from_the_settings_and_the_old_one_is_dead(
    cluster: ClusterProcess, visitor: Visitor, tmp_path: Path
) -> None:
    town = new_town(cluster, tmp_path)
    old, new = "harimaze-no-7-kaki", "kaede-no-8-michi"
    page = visitor.open()
    sign_in(page, town.code, "0001", town.initial_password)
    choose(page, old)
    page.wait_for_url(f"{cluster.base_url}/")
    elsewhere = visitor.open()
    sign_in(elsewhere, town.code, "0001", old)
    elsewhere.wait_for_url(f"{cluster.base_url}/")
    # The present password is asked for although it was typed a moment ago: somebody else may sit there now.
    page.goto("/settings")
    page.get_by_role("link", name="パスワードを変える").click()
    expect(page.get_by_text("今のパスワードを入れてください。")).to_be_visible()
    assert_accessible(page)
    page.locator("#password").fill("not-the-password")
    page.keyboard.press("Enter")
    expect(page.get_by_text("ログイン名かパスワードが違います")).to_be_visible()
    page.locator("#password").fill(old)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="新しいパスワードを決めてください")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="やめる").click()
    page.wait_for_url(f"{cluster.base_url}/settings")
    expect(page.get_by_role("heading", name="自分の設定")).to_be_visible()
    expect(page.get_by_text("パスワードを変えました")).to_have_count(0)
    page.get_by_role("link", name="パスワードを変える").click()
    # Keycloak counts in whole seconds: what was typed within the last one is not asked for twice.
    asked_again = page.locator("#password")
    expect(asked_again.or_(page.get_by_label("ほかの端末をサインアウトする"))).to_be_visible()
    if asked_again.is_visible():
        asked_again.fill(old)
        page.keyboard.press("Enter")
    page.get_by_label("ほかの端末をサインアウトする").check()
    choose(page, new)
    page.wait_for_url(f"{cluster.base_url}/settings")
    expect(page.get_by_text("パスワードを変えました")).to_be_visible()
    elsewhere.goto("/settings")
    assert f"/t/t{town.code}" in elsewhere.url
    page.locator("main").get_by_role("button", name="サインアウト").click()
    page.wait_for_url("**/?why=signed_out")
    sign_in(page, town.code, "0001", old)
    expect(page.get_by_text("ログイン名かパスワードが違います")).to_be_visible()
    page.locator("#password").fill(new)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{cluster.base_url}/")
    expect(page.get_by_text(town.name).first).to_be_visible()


def test_keycloak_up_finds_nothing_to_do(cluster: ClusterProcess) -> None:
    done = cluster.run("keycloak", "up")
    assert done.returncode == 0, done.stderr
    assert "書き込み 0件" in done.stdout


def test_a_stopped_keycloak_and_a_wrong_password_are_said_plainly(cluster: ClusterProcess) -> None:
    cluster.environment |= {"KUMIAI_KEYCLOAK_ADMIN_PASSWORD": "wrong"}
    wrong = cluster.run("keycloak", "up")
    del cluster.environment["KUMIAI_KEYCLOAK_ADMIN_PASSWORD"]
    assert wrong.returncode == 1
    assert "KUMIAI_KEYCLOAK_ADMIN_PASSWORD を確かめてください" in wrong.stderr
    cluster.environment |= {"KUMIAI_KEYCLOAK_URL": "http://127.0.0.1:1"}
    away = cluster.run("keycloak", "up")
    del cluster.environment["KUMIAI_KEYCLOAK_URL"]
    assert away.returncode == 1
    assert "http://127.0.0.1:1 が応えません" in away.stderr
    assert "Traceback" not in wrong.stderr + away.stderr


def test_a_suspended_town_is_refused_within_two_seconds(cluster: ClusterProcess, visitor: Visitor) -> None:
    town = cluster.towns[2]
    key = cluster.api_key(2)
    page = visitor.open(cluster.person("staff", 2))
    page.goto("/settings")
    assert _models(cluster, key) == 200
    assert cluster.run("tenant", "suspend", town).returncode == 0
    deadline = time.monotonic() + 2
    while _models(cluster, key) == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _models(cluster, key) == 403
    page.goto("/settings")
    assert "/settings" not in page.url or page.get_by_text("止められています").is_visible()
    assert cluster.run("tenant", "resume", town).returncode == 0
    deadline = time.monotonic() + 2
    while _models(cluster, key) != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _models(cluster, key) == 200
    clerk = cluster.person("staff", 2)
    fresh = visitor.open()
    sign_in(fresh, clerk.tenant, clerk.login, clerk.password)
    fresh.wait_for_url(f"{cluster.base_url}/")


def _models(cluster: ClusterProcess, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{cluster.base_url}/v1/models", headers=headers, trust_env=False, timeout=10).status_code


def told(cluster: ClusterProcess) -> dict[str, str]:
    """What commands beside the running demo are told: all that its processes are, and Keycloak's administrator."""
    lines = (cluster.home / ENV_FILE).read_text().splitlines()
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def remembers(process: psutil.Process, words: str) -> bool:
    """Whether these words stand anywhere in the memory of a process."""
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            place, rights = line.split()[:2]
            begin, end = (int(part, 16) for part in place.split("-"))
            if "w" not in rights:
                continue
            memory.seek(begin)
            # A piece that it has given back since the list was read cannot be read any more.
            with contextlib.suppress(OSError):
                if words.encode() in memory.read(end - begin):
                    return True
    return False


@pytest.mark.parametrize("part", ["gateway", "portal"])
def test_the_processes_know_neither_the_schemas_owner_nor_the_administrator(cluster: ClusterProcess, part: str) -> None:
    process, known = cluster.process(part), told(cluster)
    assert remembers(process, known["KUMIAI_KEYCLOAK_CLIENT_SECRET"])
    assert not remembers(process, "://kumiai_owner:")
    assert not remembers(process, known["KUMIAI_KEYCLOAK_ADMIN_PASSWORD"])
    assert not any(known["KUMIAI_KEYCLOAK_CLIENT_SECRET"] in value for value in process.environ().values())


def test_every_login_goes_through_the_pooler_and_sees_one_town_at_a_time(cluster: ClusterProcess) -> None:
    pooler = cluster.process("pgbouncer")
    ports = {c.laddr.port for c in pooler.net_connections(kind="tcp") if c.status == "LISTEN"}
    urls = [told(cluster)[f"KUMIAI_{name}DATABASE_URL"] for name in ("", "PLATFORM_", "LEDGER_", "CONTENT_")]
    assert {int(re.findall(r"127\.0\.0\.1:(\d+)", url)[0]) for url in urls} == ports
    for url in urls:
        assert remembers(cluster.process("gateway"), url)
    with psycopg.connect(urls[0], prepare_threshold=None) as connection:
        assert connection.execute("select count(*) from person").fetchone() == (0,)
        flags = connection.execute(
            "select rolsuper, rolbypassrls from pg_roles where rolname = current_user"
        ).fetchone()
        assert flags == (False, False)
    with psycopg.connect(urls[1], prepare_threshold=None) as connection:
        found = connection.execute("select id from tenant where kind = 'municipality' limit 1").fetchone()
        assert found is not None
    with psycopg.connect(urls[0], prepare_threshold=None) as connection:
        connection.execute("select set_config('app.tenant_id', %s, true)", (str(found[0]),))
        assert connection.execute("select count(distinct tenant_id) from person").fetchone() == (1,)
        assert connection.execute("select count(*) from person").fetchone() != (0,)
