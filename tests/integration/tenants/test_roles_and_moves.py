"""Roles and moves given one by one, on both databases."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlmodel import col, select

from observability.problems import Conflict, InvalidInput
from tenants.audit import By
from tenants.context import PersonId, Role, SectionId, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.identity.dev_issuer.directory import DevDirectory
from tenants.identity.dev_issuer.store import Store
from tenants.models import RoleGrant, Tenant
from tenants.people import NewPerson, add_people, ensure_sections, move_person, set_role, suspend_person
from tenants.registry import NewTenant, create_tenant

BY = By("command", "test")


@dataclass(frozen=True)
class Town:
    db: Database
    id: TenantId
    directory: DevDirectory
    people: dict[str, PersonId]
    sections: dict[str, SectionId]

    async def grants(self, login: str) -> set[tuple[str, SectionId | None]]:
        async with self.db.platform_session("test", read_only=True) as session:
            found = await session.exec(
                select(RoleGrant.role, RoleGrant.section_id).where(
                    RoleGrant.person_id == self.people[login], col(RoleGrant.revoked_at).is_(None)
                )
            )
            return {(role, SectionId(section) if section else None) for role, section in found.all()}

    async def set(self, login: str, role: Role, *, granted: bool) -> None:
        async with self.db.platform_session("test") as session:
            await set_role(session, self.id, self.people[login], role, granted=granted, by=BY)


@pytest.fixture(params=["sqlite", "postgresql"])
async def town(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Town]:
    urls: DatabaseUrls = request.getfixturevalue(
        "migrated_sqlite" if request.param == "sqlite" else "migrated_postgres"
    )
    db, store, id = Database(urls), Store(tmp_path / "issuer.sqlite3"), TenantId(new_id())
    store.ensure_organization("t-midori", "みどり町", "011011")
    directory = DevDirectory(store, "https://issuer.example")
    async with db.platform_session("test") as session:
        session.add(Tenant(id=id, name="みどり町", alias="t-midori"))
        sections = await ensure_sections(session, id, ["総務課", "税務課"])
    new = [
        (NewPerson("1", "甲", "総務課", frozenset({Role.STAFF, Role.TOWN_ADMIN})), "aaaa-2222-bbbb"),
        (NewPerson("2", "乙", "総務課", frozenset({Role.STAFF, Role.TOWN_ADMIN})), "aaaa-2222-bbbb"),
        (NewPerson("3", "丙", "総務課"), "aaaa-2222-bbbb"),
        (NewPerson("4", "丁"), "aaaa-2222-bbbb"),
    ]
    ids = await add_people(db, directory, id, "t-midori", new, by=BY)
    yield Town(db, id, directory, dict(zip("1234", ids, strict=True)), sections)
    store.close()
    await db.close()


async def test_a_section_head_heads_the_section_they_are_in(town: Town) -> None:
    await town.set("3", Role.SECTION_ADMIN, granted=True)
    assert ("section_admin", town.sections["総務課"]) in await town.grants("3")


async def test_nobody_heads_no_section(town: Town) -> None:
    with pytest.raises(InvalidInput):
        await town.set("4", Role.SECTION_ADMIN, granted=True)


async def test_a_section_head_who_moves_is_no_longer_head(town: Town) -> None:
    await town.set("3", Role.SECTION_ADMIN, granted=True)
    async with town.db.platform_session("test") as session:
        await move_person(session, town.id, town.people["3"], town.sections["税務課"], by=BY)
    assert await town.grants("3") == {("staff", None)}


async def test_moving_to_the_same_section_changes_nothing(town: Town) -> None:
    await town.set("3", Role.SECTION_ADMIN, granted=True)
    async with town.db.platform_session("test") as session:
        await move_person(session, town.id, town.people["3"], town.sections["総務課"], by=BY)
    assert ("section_admin", town.sections["総務課"]) in await town.grants("3")


async def test_one_of_two_administrators_can_be_taken_away_and_the_last_cannot(town: Town) -> None:
    await town.set("2", Role.TOWN_ADMIN, granted=False)
    with pytest.raises(Conflict):
        await town.set("1", Role.TOWN_ADMIN, granted=False)


async def test_a_suspended_administrator_does_not_count(town: Town) -> None:
    await suspend_person(town.db, town.directory, town.id, town.people["2"], by=BY)
    with pytest.raises(Conflict):
        await town.set("1", Role.TOWN_ADMIN, granted=False)


async def test_a_town_is_not_made_without_its_administrator(town: Town) -> None:
    wanted = NewTenant("浜田村", "049964", "職 員", "情報担当", ("総務課",), 1_000)
    with pytest.raises(InvalidInput):
        await create_tenant(town.db, town.directory, wanted, by=BY)
    async with town.db.platform_session("test", read_only=True) as session:
        assert (await session.exec(select(Tenant.name))).all() == ["みどり町"]
    created = await create_tenant(
        town.db, town.directory, NewTenant("浜田村", "049964", "1", "情報担当", (" 総務  課 ",), 1_000), by=BY
    )
    assert created.admin_login == "1"
