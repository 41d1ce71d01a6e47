"""Row-level security alone and our own filters alone, on every table of a town: either keeps the other town out."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kumiai.isolation.rows import Reach, fill, name_of, try_rows
from kumiai.isolation.run import try_walls
from kumiai.local.postgres import Postgres
from tenants import db as tenants_db
from tenants.context import TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import TENANT_TABLES

MINE, OTHER = TenantId(new_id()), TenantId(new_id())


def _unbound(urls: DatabaseUrls, server: Postgres) -> DatabaseUrls:
    """Every duty by a login that no policy binds."""
    url = server.superuser_url.rsplit("/", 1)[0] + "/" + urls.app.rsplit("/", 1)[1]
    return replace(urls, app=url, platform=url, ledger=url, content=url)


@pytest.fixture
async def policies_only(migrated_postgres: DatabaseUrls, postgres_server: Postgres) -> AsyncIterator[Database]:
    """The product's own logins, over a database in which every table has a row of both towns."""
    filling = Database(_unbound(migrated_postgres, postgres_server))
    await fill(filling, (MINE, OTHER))
    await filling.close()
    db = Database(migrated_postgres)
    yield db
    await db.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def filters_only(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """SQLite, which knows no policies, and PostgreSQL by a login that is exempt."""
    if request.param == "sqlite":
        urls: DatabaseUrls = request.getfixturevalue("migrated_sqlite")
    else:
        urls = _unbound(request.getfixturevalue("migrated_postgres"), request.getfixturevalue("postgres_server"))
    db = Database(urls)
    await fill(db, (MINE, OTHER))
    yield db
    await db.close()


def _check(found: list[Reach]) -> None:
    assert {reach.table for reach in found} == {name_of(model) for model in TENANT_TABLES}
    assert [reach for reach in found if not reach.held] == []


@pytest.mark.real
async def test_row_level_security_alone_keeps_the_other_town_out(policies_only: Database) -> None:
    _check(await try_rows(policies_only, "row-level security", MINE, OTHER))


async def test_the_filters_alone_keep_the_other_town_out(filters_only: Database) -> None:
    _check(await try_rows(filters_only, "filters", MINE, OTHER))


@pytest.mark.real
async def test_without_either_the_other_town_is_seen(
    migrated_postgres: DatabaseUrls, postgres_server: Postgres
) -> None:
    """The same questions find the rows when nothing stands in between, so that finding none means something."""
    db = Database(_unbound(migrated_postgres, postgres_server))
    await fill(db, (MINE, OTHER))
    found = await try_rows(db, "row-level security", MINE, OTHER)
    await db.close()
    assert {reach.table for reach in found if not reach.held and reach.act == "読む"} == {
        name_of(model) for model in TENANT_TABLES
    }


async def test_without_filters_sqlite_shows_all(migrated_sqlite: DatabaseUrls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants_db, "_tenant_criteria", lambda _tenant_id: ())
    db = Database(migrated_sqlite)
    await fill(db, (MINE, OTHER))
    found = await try_rows(db, "filters", MINE, OTHER)
    await db.close()
    assert {reach.table for reach in found if not reach.held and reach.act == "読む"} == {
        name_of(model) for model in TENANT_TABLES
    }


def test_without_postgresql_the_filters_are_still_tried_alone(tmp_path: Path) -> None:
    found = try_walls(tmp_path, None)
    assert {reach.wall for reach in found} == {"filters"}
    _check(found)
