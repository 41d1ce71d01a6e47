"""Many tenants over few pooled connections: PgBouncer in transaction mode hands each transaction whatever is free."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from kumiai.local.pgbouncer import PgBouncer
from kumiai.local.postgres import ServerNotFound
from tenants.context import TenantContext, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import DocumentRow, Person, Tenant
from tests.servers import not_available

pytestmark = pytest.mark.real

TOWNS = 6
TRANSACTIONS = 240
# Fewer connections than towns, so that every one of them serves several.
SERVER_CONNECTIONS = 2


@pytest.fixture
async def narrow(migrated_postgres: DatabaseUrls) -> AsyncIterator[Database]:
    """A database behind a pooler with two server connections a login."""
    # Not below the test's own folder, into which the pooler's user (nobody, for root) may not go.
    folder = Path(tempfile.mkdtemp(prefix="kumiai-narrow-"))
    pooler = PgBouncer(folder, migrated_postgres, pool_size=SERVER_CONNECTIONS)
    try:
        pooler.start()
    except ServerNotFound as missing:
        not_available(str(missing))
    db = Database(pooler.urls, pool_size=10)
    yield db
    await db.close()
    pooler.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def towns(narrow: Database) -> list[TenantId]:
    """Towns with one clerk and one document each."""
    found = [TenantId(new_id()) for _ in range(TOWNS)]
    async with narrow.platform_session("test") as session:
        for number, tenant_id in enumerate(found):
            session.add(Tenant(id=tenant_id, name=f"町{number}", alias=f"t{number}"))
            session.add(Person(tenant_id=tenant_id, login=f"{number}"))
    for tenant_id in found:
        async with narrow.content_session(TenantContext(tenant_id)) as session:
            session.add(DocumentRow(tenant_id=tenant_id, app="chat", kind="conversation", cipher=b"sealed"))
    return found


async def _ask(session: AsyncSession, query: str) -> list[tuple[object, ...]]:
    """Past the ORM's own criteria: only the database's policy stands before the rows."""
    return [tuple(row) for row in (await session.exec(text(query))).all()]  # type: ignore[call-overload]  # typed for select() only


async def test_no_transaction_sees_another_towns_rows(narrow: Database, towns: list[TenantId]) -> None:
    rng = random.Random(20260401)
    seen: set[TenantId] = set()
    backends: set[int] = set()

    async def one(tenant_id: TenantId) -> None:
        await asyncio.sleep(rng.random() / 50)
        async with narrow.tenant_session(TenantContext(tenant_id), read_only=True) as session:
            [(pid,)] = await _ask(session, "select pg_backend_pid()")
            rows = await _ask(session, "select tenant_id, pg_sleep(0.001) from person")
        async with narrow.content_session(TenantContext(tenant_id), read_only=True) as session:
            documents = await _ask(session, "select tenant_id from content.document")
        assert [row[0] for row in rows] == [tenant_id]
        assert [row[0] for row in documents] == [tenant_id]
        backends.add(int(str(pid)))
        seen.add(tenant_id)

    async with asyncio.TaskGroup() as group:
        for tenant_id in rng.choices(towns, k=TRANSACTIONS):
            group.create_task(one(tenant_id))
    assert seen == set(towns)
    # The pool was shared, or this would prove nothing.
    assert len(backends) <= SERVER_CONNECTIONS


async def test_a_connection_forgets_its_town(narrow: Database, towns: list[TenantId]) -> None:
    for tenant_id in towns:
        async with narrow.tenant_session(TenantContext(tenant_id), read_only=True) as session:
            assert len(await _ask(session, "select 1 from person")) == 1
    with psycopg.connect(narrow.urls.app, autocommit=True, prepare_threshold=None) as connection:
        for _ in range(SERVER_CONNECTIONS * 3):
            assert connection.execute("select count(*) from person").fetchone() == (0,)
            assert connection.execute("select current_setting('app.tenant_id', true)").fetchone() in ((None,), ("",))


async def test_a_setting_for_the_whole_connection_would_leak(narrow: Database, towns: list[TenantId]) -> None:
    """Why `set_config(…, true)`: with `false`, this arrangement shows one town's row to the next comer."""
    with psycopg.connect(narrow.urls.app, autocommit=True, prepare_threshold=None) as careless:
        careless.execute("select set_config('app.tenant_id', %s, false)", (str(towns[0]),))
    leaks = 0
    for _ in range(SERVER_CONNECTIONS * 3):
        with psycopg.connect(narrow.urls.app, autocommit=True, prepare_threshold=None) as next_comer:
            leaks += next_comer.execute("select count(*) from person").fetchone() == (1,)
    assert leaks > 0


async def test_a_failed_transaction_leaves_no_town_behind(narrow: Database, towns: list[TenantId]) -> None:
    for tenant_id in towns * 2:
        with pytest.raises(RuntimeError):
            async with narrow.tenant_session(TenantContext(tenant_id)) as session:
                await _ask(session, "select 1 from person")
                raise RuntimeError
    with psycopg.connect(narrow.urls.app, autocommit=True, prepare_threshold=None) as connection:
        assert connection.execute("select count(*) from person").fetchone() == (0,)


@pytest.mark.parametrize("statement", [
    "insert into person (tenant_id, id, login, display_name, status, preferences, created_at)"
    " values (:other, gen_random_uuid(), 'x', '', 'active', '{}', now())",
    "update person set tenant_id = :other",
])  # fmt: skip
async def test_no_row_is_written_for_another_town(narrow: Database, towns: list[TenantId], statement: str) -> None:
    mine, other = towns[:2]
    with pytest.raises(Exception, match="row-level security"):
        async with narrow.tenant_session(TenantContext(mine)) as session:
            await session.exec(text(statement).bindparams(other=other))  # type: ignore[call-overload]  # as above
    async with narrow.platform_session("test", read_only=True) as session:
        assert len((await session.exec(select(Person).where(Person.tenant_id == other))).all()) == 1


async def test_another_towns_rows_are_neither_changed_nor_deleted(narrow: Database, towns: list[TenantId]) -> None:
    mine, other = towns[:2]
    async with narrow.tenant_session(TenantContext(mine)) as session:
        changed = await session.exec(text("update person set display_name = 'x'"))  # type: ignore[call-overload]  # as above
        gone = await session.exec(text("delete from person where tenant_id = :t").bindparams(t=other))  # type: ignore[call-overload]  # as above
    assert (changed.rowcount, gone.rowcount) == (1, 0)
    async with narrow.content_session(TenantContext(mine)) as session:
        gone = await session.exec(text("delete from content.document"))  # type: ignore[call-overload]  # as above
    assert gone.rowcount == 1
    async with narrow.content_session(TenantContext(other), read_only=True) as session:
        assert len(await _ask(session, "select 1 from content.document")) == 1
