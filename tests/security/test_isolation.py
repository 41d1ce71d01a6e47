"""One tenant's session on both databases: SQLite has no row-level security, so every query is scoped by us as well."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import pytest
from sqlalchemy import event
from sqlmodel import SQLModel, col, delete, func, select, update

from tenants.context import TenantContext, TenantId, new_id
from tenants.db import Database, DatabaseUrls, TenantMismatch
from tenants.models import TENANT_TABLES, Person, Section, Tenant
from tests.servers import DATABASES


@dataclass(frozen=True)
class Region:
    db: Database
    mine: TenantContext
    other: TenantContext
    person: UUID
    others_person: UUID


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
async def region(request: pytest.FixtureRequest) -> AsyncIterator[Region]:
    urls: DatabaseUrls = request.getfixturevalue(DATABASES[request.param])
    db = Database(urls)
    mine, other = TenantId(new_id()), TenantId(new_id())
    people = {}
    async with db.platform_session("test") as session:
        for tenant_id in (mine, other):
            section = Section(tenant_id=tenant_id, name="総務課")
            session.add(Tenant(id=tenant_id, name="町", alias=f"t{tenant_id.hex}"))
            session.add(section)
            person = Person(tenant_id=tenant_id, login="1001", section_id=section.id)
            session.add(person)
            people[tenant_id] = person.id
    yield Region(db, TenantContext(mine), TenantContext(other), people[mine], people[other])
    await db.close()


async def test_a_query_sees_one_town(region: Region) -> None:
    async with region.db.tenant_session(region.mine, read_only=True) as session:
        assert [p.id for p in (await session.exec(select(Person))).all()] == [region.person]
        assert [t.id for t in (await session.exec(select(Tenant))).all()] == [region.mine.tenant_id]
        assert (await session.exec(select(func.count()).select_from(Person))).one() == 1


async def test_a_join_sees_one_town(region: Region) -> None:
    async with region.db.tenant_session(region.mine, read_only=True) as session:
        joined = await session.exec(select(Person.id).join(Section, col(Section.name) == "総務課"))
        assert joined.all() == [region.person]


async def test_another_towns_row_is_not_there_by_its_id(region: Region) -> None:
    async with region.db.tenant_session(region.mine, read_only=True) as session:
        assert await session.get(Person, region.person) is not None
        assert await session.get(Person, region.others_person) is None
        assert await session.get(Tenant, region.other.tenant_id) is None


async def test_changes_stay_in_one_town(region: Region) -> None:
    async with region.db.tenant_session(region.mine) as session:
        changed = await session.exec(update(Person).values(display_name="変えた"))
        gone = await session.exec(delete(Person).where(col(Person.id) == region.others_person))
    assert (changed.rowcount, gone.rowcount) == (1, 0)
    async with region.db.platform_session("test", read_only=True) as session:
        names = {p.id: p.display_name for p in (await session.exec(select(Person))).all()}
    assert names == {region.person: "変えた", region.others_person: ""}


async def test_a_row_of_another_town_is_refused_before_it_is_written(region: Region) -> None:
    with pytest.raises(TenantMismatch):
        async with region.db.tenant_session(region.mine) as session:
            session.add(Person(tenant_id=region.other.tenant_id, login="x"))


async def test_a_query_without_a_town_sees_all_and_is_for_named_duties(region: Region) -> None:
    async with region.db.platform_session("test", read_only=True) as session:
        assert len((await session.exec(select(Person))).all()) == 2


@pytest.mark.parametrize("table", TENANT_TABLES, ids=lambda t: t.__name__)
async def test_every_table_of_a_tenant_is_scoped(table, migrated_sqlite: DatabaseUrls) -> None:  # type: ignore[no-untyped-def]
    """The statement itself: what is sent to the database names the tenant."""
    db = Database(migrated_sqlite)
    statements: list[str] = []
    try:
        engine = db._engine("app").sync_engine
        event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
        async with db.tenant_session(TenantContext(TenantId(new_id())), read_only=True) as session:
            assert (await session.exec(select(table))).all() == []
    finally:
        await db.close()
    [sent] = [s for s in statements if s.lower().startswith("select")]
    assert "tenant_id = ?" in sent


def test_no_table_with_a_town_is_missing_from_the_filters() -> None:
    """Those partitioned by month among them. The list of what is revoked is the platform's own."""
    with_a_town = {t for t in SQLModel.metadata.tables.values() if "tenant_id" in t.c and t.name != "revocation"}
    assert {t.__table__ for t in TENANT_TABLES} == with_a_town  # type: ignore[attr-defined]  # every table has one
