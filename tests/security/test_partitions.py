"""The months of `call`, `attempt` and `audit` on PostgreSQL, and one history of migrations for two databases."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg
import pytest
from alembic import command
from sqlmodel import select

from kumiai.local.postgres import Postgres
from kumiai.worker import Worker
from tenants.audit import By, record
from tenants.audit.verification import verify_chain
from tenants.context import TenantContext, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Call, Tenant
from tenants.schema import alembic_config
from tenants.settings import Settings
from tests.servers import DATABASES

pytestmark = pytest.mark.real

# 15:30 UTC on the last of February is the first of March in Japan.
FIRST_OF_MARCH = datetime(2031, 2, 28, 15, 30, tzinfo=UTC)
Make = Callable[[datetime], Awaitable[int]]


def _settings(urls: DatabaseUrls, home: Path) -> Settings:
    return Settings(
        env="test", home=home, database_url=urls.app, platform_database_url=urls.platform,
        ledger_database_url=urls.ledger, content_database_url=urls.content,
    )  # type: ignore[arg-type]  # pydantic makes secrets of texts  # fmt: skip


@pytest.fixture
def make_partitions(migrated_postgres: DatabaseUrls, tmp_path: Path) -> Make:
    """The worker's duty at a time of the test's choosing."""

    async def make(now: datetime) -> int:
        worker = Worker(_settings(migrated_postgres, tmp_path), clock=lambda: now)
        try:
            return await worker.partitions()
        finally:
            await worker.close()

    return make


@pytest.fixture
async def db(migrated_postgres: DatabaseUrls) -> AsyncIterator[Database]:
    database = Database(migrated_postgres)
    yield database
    await database.close()


@pytest.fixture
async def town(db: Database) -> TenantId:
    tenant_id = TenantId(new_id())
    async with db.platform_session("test") as session:
        session.add(Tenant(id=tenant_id, name="見本町", alias="t046914"))
    return tenant_id


async def _add_call(db: Database, town: TenantId, at: datetime) -> None:
    async with db.platform_session("test") as session:
        session.add(
            Call(tenant_id=town, created_at=at, month=date(at.year, at.month, 1), state="settled", operation="chat",
                 alias="standard")
        )  # fmt: skip


def _where(urls: DatabaseUrls, parent: str, superuser: str) -> list[tuple[str, int]]:
    database = urls.app.rsplit("/", 1)[1]
    with psycopg.connect(superuser.rsplit("/", 1)[0] + f"/{database}") as connection:
        rows = connection.execute(
            f'select tableoid::regclass::text, count(*) from "{parent}" group by 1 order by 1'
        ).fetchall()
    return [(str(name), int(count)) for name, count in rows]


def _months(urls: DatabaseUrls, superuser: str) -> set[str]:
    database = urls.app.rsplit("/", 1)[1]
    with psycopg.connect(superuser.rsplit("/", 1)[0] + f"/{database}") as connection:
        rows = connection.execute("select inhrelid::regclass::text from pg_inherits where inhparent = 'call'::regclass")
        return {str(name) for (name,) in rows.fetchall()}


async def test_the_worker_makes_this_month_and_the_next_two(
    make_partitions: Make, migrated_postgres: DatabaseUrls, postgres_server: Postgres
) -> None:
    before = _months(migrated_postgres, postgres_server.superuser_url)
    assert "call_default" in before
    assert await make_partitions(FIRST_OF_MARCH) == 9
    assert _months(migrated_postgres, postgres_server.superuser_url) - before == {
        "call_203103", "call_203104", "call_203105"
    }  # fmt: skip
    assert await make_partitions(FIRST_OF_MARCH) == 0
    # A month later one more of each is enough.
    assert await make_partitions(datetime(2031, 4, 10, tzinfo=UTC)) == 3


async def test_a_row_lands_in_its_month_of_japan(
    db: Database, town: TenantId, make_partitions: Make, migrated_postgres: DatabaseUrls, postgres_server: Postgres
) -> None:
    await make_partitions(FIRST_OF_MARCH)
    await _add_call(db, town, FIRST_OF_MARCH)
    assert _where(migrated_postgres, "call", postgres_server.superuser_url) == [("call_203103", 1)]


async def test_rows_of_a_month_nobody_prepared_move_into_it(
    db: Database, town: TenantId, make_partitions: Make, migrated_postgres: DatabaseUrls, postgres_server: Postgres
) -> None:
    await _add_call(db, town, FIRST_OF_MARCH)
    await _add_call(db, town, datetime(2031, 7, 1, tzinfo=UTC))
    assert _where(migrated_postgres, "call", postgres_server.superuser_url) == [("call_default", 2)]
    await make_partitions(FIRST_OF_MARCH)
    assert _where(migrated_postgres, "call", postgres_server.superuser_url) == [
        ("call_203103", 1), ("call_default", 1)
    ]  # fmt: skip
    async with db.tenant_session(TenantContext(town), read_only=True) as session:
        assert len((await session.exec(select(Call))).all()) == 2


async def test_new_partitions_are_under_a_forced_policy(
    make_partitions: Make, migrated_postgres: DatabaseUrls, postgres_server: Postgres
) -> None:
    await make_partitions(FIRST_OF_MARCH)
    database = migrated_postgres.app.rsplit("/", 1)[1]
    with psycopg.connect(postgres_server.superuser_url.rsplit("/", 1)[0] + f"/{database}") as connection:
        found = connection.execute(
            """select c.relname, c.relrowsecurity and c.relforcerowsecurity, count(p.oid)
               from pg_class c left join pg_policy p on p.polrelid = c.oid and p.polname = 'own_tenant'
               where c.relispartition and c.relkind = 'r' group by c.oid"""
        ).fetchall()
    told = {name: (forced, policies) for name, forced, policies in found}
    assert {"call_203103", "attempt_203104", "audit_203105", "call_default", "audit_default"} <= set(told)
    assert set(told.values()) == {(True, 1)}


async def test_the_audit_chain_holds_across_partitions(db: Database, town: TenantId, make_partitions: Make) -> None:
    async with db.platform_session("test") as session:
        await record(session, town, By("system"), "one")
    await make_partitions(FIRST_OF_MARCH)
    async with db.platform_session("test") as session:
        await record(session, town, By("system"), "two")
    assert (await verify_chain(db, town)).links == 2


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_models_and_migrated_database_agree(kind: str, request: pytest.FixtureRequest) -> None:
    urls: DatabaseUrls = request.getfixturevalue(DATABASES[kind])
    # Raises, naming the difference.
    command.check(alembic_config(urls.owner or urls.app))
