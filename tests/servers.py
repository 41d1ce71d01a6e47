"""Real servers for tests: started once per test process, ended with it; skipped with the reason when not to be had.

Under KUMIAI_REQUIRE_REAL=1 a missing server is a failure, so that nothing goes untested unseen.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from zlib import crc32

import psycopg
import pytest
from psycopg import sql

from kumiai.local.keycloak import Keycloak
from kumiai.local.pgbouncer import PgBouncer
from kumiai.local.postgres import Postgres, ServerNotFound
from kumiai.local.valkey import Valkey
from tenants.db import DatabaseUrls
from tenants.schema import LOGINS, bootstrap_postgres, migrate

# What a test of both databases is parametrised with → the fixture that gives its `DatabaseUrls`.
DATABASES = {"sqlite": "migrated_sqlite", "postgresql": "migrated_postgres", "pgbouncer": "pooled_postgres"}

# Set on a machine too slow for all of them: a test that runs on several databases runs on one, the tests of a file on
# the same.
ONE_DATABASE_EACH = os.environ.get("KUMIAI_ONE_DATABASE_EACH") == "1"  # noqa: TID251 - a switch of the test run itself


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not ONE_DATABASE_EACH:
        return
    found: dict[tuple[Path, str], set[str]] = {}
    for item in items:
        if database := _database_of(item):
            found.setdefault(_test_of(item), set()).add(database)
    one = {test: sorted(several)[crc32(str(test[0].name).encode()) % len(several)] for test, several in found.items()}
    others = [item for item in items if one.get(_test_of(item), "") != _database_of(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if one.get(_test_of(item), "") == _database_of(item)]


def _test_of(item: pytest.Item) -> tuple[Path, str]:
    return item.path, item.name.partition("[")[0]


def _database_of(item: pytest.Item) -> str:
    """What it is parametrised with, of the databases; nothing for most tests."""
    callspec = getattr(item, "callspec", None)
    return (
        next((value for value in callspec.params.values() if isinstance(value, str) and value in DATABASES), "")
        if callspec
        else ""
    )


def not_available(reason: str) -> NoReturn:
    """Skips, or fails where everything must be real."""
    if os.environ.get("KUMIAI_REQUIRE_REAL") == "1":  # noqa: TID251 - a switch of the test run itself
        pytest.fail(f"a real server is required here: {reason}")
    pytest.skip(reason)


@contextlib.contextmanager
def _postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="kumiai-pg-"))
    server = Postgres(folder, fsync=False)
    try:
        server.start()
    except ServerNotFound as missing:
        not_available(str(missing))
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL of this test process alone, from the wheel."""
    with _postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that this test may stop."""
    with _postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Postgres) -> DatabaseUrls:
    """A migrated database that tests clone; it is never written to."""
    passwords = {login: secrets.token_hex(8) for login in LOGINS}
    urls = bootstrap_postgres(postgres_server.access, "kumiai_template", passwords)
    migrate(urls)
    return urls


@contextlib.contextmanager
def cloned(server: Postgres, template: DatabaseUrls) -> Iterator[DatabaseUrls]:
    """An empty migrated database, dropped on leaving."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server.superuser_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template kumiai_template owner kumiai_owner").format(sql.Identifier(name))
        )
    changed = {f: getattr(template, f).replace("/kumiai_template", f"/{name}") for f in
               ("app", "platform", "ledger", "content", "owner")}  # fmt: skip
    yield DatabaseUrls(**changed)
    with contextlib.suppress(psycopg.Error), psycopg.connect(server.superuser_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def migrated_postgres(postgres_server: Postgres, postgres_template: DatabaseUrls) -> Iterator[DatabaseUrls]:
    """An empty migrated database of the test's own, with the five logins."""
    with cloned(postgres_server, postgres_template) as urls:
        yield urls


@pytest.fixture(scope="module")
def modules_postgres(postgres_server: Postgres, postgres_template: DatabaseUrls) -> Iterator[DatabaseUrls]:
    """The same for all tests of a module, which share what takes long to arrange."""
    with cloned(postgres_server, postgres_template) as urls:
        yield urls


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> DatabaseUrls:
    urls = DatabaseUrls(f"sqlite:///{tmp_path_factory.mktemp('template') / 'kumiai.sqlite3'}")
    migrate(urls)
    return urls


@pytest.fixture
def migrated_sqlite(sqlite_template: DatabaseUrls, tmp_path: Path) -> DatabaseUrls:
    """A copy of the migrated files in the test's own folder."""
    urls = DatabaseUrls(f"sqlite:///{tmp_path / 'kumiai.sqlite3'}")
    shutil.copy(sqlite_template.sqlite_path, urls.sqlite_path)
    shutil.copy(sqlite_template.sqlite_content_path, urls.sqlite_content_path)
    return urls


@pytest.fixture
def pooled_postgres(migrated_postgres: DatabaseUrls) -> Iterator[DatabaseUrls]:
    """The same through PgBouncer in transaction mode, as in a cluster."""
    with pooled(migrated_postgres) as urls:
        yield urls


@contextlib.contextmanager
def pooled(direct: DatabaseUrls) -> Iterator[DatabaseUrls]:
    """A pooler of the caller's own before a database."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-pgbouncer-"))
    pooler = PgBouncer(folder, direct)
    try:
        pooler.start()
    except ServerNotFound as missing:
        not_available(str(missing))
    try:
        yield pooler.urls
    finally:
        pooler.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """A Valkey of this test process alone, from the wheel."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-valkey-"))
    server = Valkey(folder)
    try:
        server.start()
    except ServerNotFound as missing:
        not_available(str(missing))
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def keycloak_server(postgres_server: Postgres) -> Iterator[Keycloak]:
    """A Keycloak of this test process alone, on its PostgreSQL; the first ever is fetched and built."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-keycloak-"))
    server = Keycloak(folder, postgres_server.access, environment=os.environ)  # noqa: TID251 - where Java and Maven are
    try:
        server.start()
    except ServerNotFound as missing:
        not_available(str(missing))
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
