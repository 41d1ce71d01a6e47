"""One Keycloak for all of these tests, one realm per module, and the real portal and gateway in front of it."""

import asyncio
import contextlib
import itertools
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import uvicorn
from pydantic import SecretStr

from apps.host.main import create_portal
from gateway.server.edge import Edge
from gateway.server.main import create_gateway
from kumiai.local.keycloak import Keycloak
from kumiai.processes import listen
from tenants.audit import By
from tenants.context import PersonId, TenantId
from tenants.db import Database, DatabaseUrls
from tenants.identity.directories import open_directory, realm_spec
from tenants.identity.directory import IdentityDirectory
from tenants.identity.keycloak import Admin, Administrator, RealmSpec, reconcile_realm
from tenants.lgcode import check_digit
from tenants.people import NewPerson, add_people
from tenants.registry import NewTenant, create_tenant
from tenants.settings import Settings
from tests.integration.keycloak.browser import Browser
from tests.servers import pooled

BY = By("command", "test")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Realm:
    """A realm of the module's own, and Keycloak's administrator to look at it from outside."""

    spec: RealmSpec
    admin: Admin


@pytest.fixture(scope="module")
def realm(keycloak_server: Keycloak) -> Iterator[Realm]:
    """Empty: not even made."""
    name = f"test-{secrets.token_hex(4)}"
    spec = RealmSpec(
        url=keycloak_server.url, realm=name, issuer=f"{keycloak_server.url}/realms/{name}", admin_user=keycloak_server.admin_user,
        admin_password=keycloak_server.admin_password, public_url="http://127.0.0.1:9",
        portal_client_id="portal", portal_client_secret=secrets.token_hex(16),
        directory_client_id="kumiai-directory", directory_client_secret=secrets.token_hex(16),
        gateway_audience="gateway", product_name="試験用AI",
    )  # fmt: skip
    admin = Admin(spec.url, name, Administrator(spec.admin_user, spec.admin_password))
    yield Realm(spec, admin)
    with contextlib.suppress(Exception):
        admin.write("delete", "")


@dataclass(frozen=True)
class Site:
    """A region at work: realm, PostgreSQL through PgBouncer, portal and gateway on loopback."""

    settings: Settings
    spec: RealmSpec
    admin: Admin
    portal: str
    gateway: str


@pytest.fixture(scope="module")
def site(keycloak_server: Keycloak, modules_postgres: DatabaseUrls) -> Iterator[Site]:
    with running_site(keycloak_server, modules_postgres) as running:
        yield running


@contextlib.contextmanager
def running_site(keycloak_server: Keycloak, postgres: DatabaseUrls, *, front: str = "") -> Iterator[Site]:
    """front: what the realm calls its server, where that is another name than the one it was started under."""
    sockets = {name: listen("127.0.0.1", 0) for name in ("portal", "gateway")}
    urls = {name: f"http://127.0.0.1:{s.getsockname()[1]}" for name, s in sockets.items()}
    realm = f"test-{secrets.token_hex(4)}"
    with (
        tempfile.TemporaryDirectory() as home,
        pooled(postgres) as database,
    ):
        settings = Settings(
            env="test", home=Path(home), public_url=urls["portal"], gateway_url=urls["gateway"],
            database_url=database.app, platform_database_url=SecretStr(database.platform),
            ledger_database_url=SecretStr(database.ledger), content_database_url=SecretStr(database.content),
            issuer_kind="keycloak", issuer=f"{front or keycloak_server.url}/realms/{realm}",
            keycloak_url=keycloak_server.url, keycloak_realm=realm,
            keycloak_admin_user=keycloak_server.admin_user,
            keycloak_admin_password=SecretStr(keycloak_server.admin_password),
            keycloak_client_secret=SecretStr(secrets.token_hex(16)),
            portal_client_secret=SecretStr(secrets.token_hex(16)),
        )  # fmt: skip
        spec = realm_spec(settings)
        admin = Admin(spec.url, realm, Administrator(spec.admin_user, spec.admin_password))
        if front:
            admin.create_realm({"realm": realm, "enabled": True, "attributes": {"frontendUrl": front}})
        reconcile_realm(spec)
        with (
            _served(create_gateway(settings), sockets["gateway"], f"{urls['gateway']}/health/ready", http=Edge),
            _served(create_portal(settings), sockets["portal"], f"{urls['portal']}/portal/ready"),
        ):
            yield Site(settings, spec, admin, urls["portal"], urls["gateway"])
        admin.write("delete", "")


@contextlib.contextmanager
def _served(
    app: Any, sock: socket.socket, ready: str, *, http: type[asyncio.Protocol] | Literal["auto"] = "auto"
) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, http=http, log_config=None, ws="none", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(ready, trust_env=False).status_code == 200:
                break
        time.sleep(0.05)
    else:
        pytest.fail(f"{ready} did not answer")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(15)
        sock.close()


@dataclass(frozen=True)
class Staff:
    login: str
    id: PersonId
    password: str


@dataclass(frozen=True)
class Town:
    """A town with an administrator and a clerk, whose passwords need no change."""

    id: TenantId
    name: str
    code: str
    alias: str
    admin: Staff
    clerk: Staff


@pytest.fixture
async def db(site: Site) -> AsyncIterator[Database]:
    database = Database(site.settings.urls)
    yield database
    await database.close()


@pytest.fixture
def directory(site: Site) -> IdentityDirectory:
    return open_directory(site.settings)


@pytest.fixture
async def town(db: Database, directory: IdentityDirectory) -> Town:
    return await make_town(db, directory)


@pytest.fixture
async def other_town(db: Database, directory: IdentityDirectory) -> Town:
    return await make_town(db, directory)


async def make_town(db: Database, directory: IdentityDirectory) -> Town:
    five = f"{next(_numbers) + 1000:05d}"
    code, name = f"{five}{check_digit(five)}", f"試験町{five}"
    new = NewTenant(name, code, "1001", "情報担当", ("総務課",), 100_000)
    made = await create_tenant(db, directory, new, by=BY, admin_password="admin-2345-word", temporary=False)
    clerk = NewPerson("1003", "職員", "総務課")
    [clerk_id] = await add_people(
        db, directory, made.tenant_id, made.alias, [(clerk, "clerk-2345-word")], by=BY, temporary=False
    )
    return Town(
        made.tenant_id, name, code, made.alias,
        Staff("1001", made.admin_id, "admin-2345-word"), Staff("1003", clerk_id, "clerk-2345-word"),
    )  # fmt: skip


@pytest.fixture
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture
def new_browser() -> Iterator[Callable[..., Browser]]:
    opened: list[Browser] = []

    def make(**options: str) -> Browser:
        opened.append(Browser(**options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


async def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """True as soon as it holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if await asyncio.to_thread(holds):
            return True
        await asyncio.sleep(0.05)
    return await asyncio.to_thread(holds)
