"""A people file applied to a town, on both databases and with the dev issuer as directory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlmodel import col, select

from observability.problems import Conflict, Unavailable
from tenants.audit import By
from tenants.audit.verification import verify_chain
from tenants.context import TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.identity.dev_issuer.directory import DevDirectory
from tenants.identity.dev_issuer.store import Store
from tenants.models import Person, PersonIdentity, Revocation, RoleGrant, Section, Tenant
from tenants.people_import import (
    Applied,
    Plan,
    apply,
    apply_sections,
    close_accounts,
    load_current,
    parse_people,
    parse_sections,
    plan,
    plan_sections,
)

NOW = datetime(2027, 4, 1, 1, 0, tzinfo=UTC)
BY = By("command", "test")
FIRST = "職員番号,氏名,所属,役割\n1001,職員 甲,総務課,管理者\n1002,職員 乙,総務課,課長\n1003,職員 丙,税務課,職員\n"


class Failing(DevDirectory):
    """An issuer that stops answering for one kind of call."""

    def __init__(self, store: Store, issuer: str) -> None:
        super().__init__(store, issuer)
        self.fails_on_login = ""
        self.fails_on_disable = False

    def ensure_user(self, *, alias: str, login: str, display_name: str, initial_password: str | None) -> str:
        if login == self.fails_on_login:
            raise Unavailable
        return super().ensure_user(
            alias=alias, login=login, display_name=display_name, initial_password=initial_password
        )

    def set_user_enabled(self, sub: str, *, enabled: bool) -> None:
        if self.fails_on_disable and not enabled:
            raise Unavailable
        super().set_user_enabled(sub, enabled=enabled)


@dataclass(frozen=True)
class Town:
    db: Database
    id: TenantId
    store: Store
    directory: Failing

    async def plan(self, text: str, *, remove_absent: bool = False) -> Plan:
        async with self.db.platform_session("test", read_only=True) as session:
            people, sections = await load_current(session, self.id, now=NOW)
        return plan(parse_people(text.encode()), people, sections, remove_absent=remove_absent)

    async def read(self, text: str, *, remove_absent: bool = False, by: By = BY) -> Applied:
        made = await self.plan(text, remove_absent=remove_absent)
        return await apply(self.db, self.directory, self.id, "t-midori", made, by=by, now=NOW)

    async def person(self, login: str) -> Person:
        async with self.db.platform_session("test", read_only=True) as session:
            return (await session.exec(select(Person).where(Person.tenant_id == self.id, Person.login == login))).one()

    async def heads(self) -> set[tuple[str, str]]:
        async with self.db.platform_session("test", read_only=True) as session:
            found = await session.exec(
                select(Person.login, Section.name)
                .join(RoleGrant, col(RoleGrant.person_id) == col(Person.id))
                .join(Section, col(Section.id) == col(RoleGrant.section_id))
                .where(RoleGrant.role == "section_admin", col(RoleGrant.revoked_at).is_(None))
            )
            return {(login, name) for login, name in found.all()}


@pytest.fixture(params=["sqlite", "postgresql"])
async def town(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Town]:
    name = "migrated_sqlite" if request.param == "sqlite" else "migrated_postgres"
    urls: DatabaseUrls = request.getfixturevalue(name)
    db, store, id = Database(urls), Store(tmp_path / "issuer.sqlite3"), TenantId(new_id())
    store.ensure_organization("t-midori", "みどり町", "011011")
    async with db.platform_session("test") as session:
        session.add(Tenant(id=id, name="みどり町", alias="t-midori"))
    yield Town(db, id, store, Failing(store, "https://issuer.example"))
    store.close()
    await db.close()


async def test_new_people_get_rows_accounts_and_passwords_that_work(town: Town) -> None:
    applied = await town.read(FIRST)
    assert [i.login for i in applied.added] == ["1001", "1002", "1003"]
    for issued in applied.added:
        account = town.store.check_password(f"t-midori.{issued.login}", issued.password)
        assert account is not None
        async with town.db.platform_session("test", read_only=True) as session:
            link = (await session.exec(select(PersonIdentity).where(PersonIdentity.sub == account.sub))).one()
        assert link.person_id == issued.person_id
    assert await town.heads() == {("1002", "総務課")}


async def test_the_same_file_again_changes_nothing(town: Town) -> None:
    await town.read(FIRST)
    again = await town.plan(FIRST, remove_absent=True)
    assert again.is_empty
    assert again.unchanged == 3


async def test_a_head_who_moves_as_head_heads_the_new_section_only(town: Town) -> None:
    await town.read(FIRST)
    applied = await town.read(FIRST.replace("乙,総務課", "乙,税務課"))
    assert applied.moved == 1
    assert await town.heads() == {("1002", "税務課")}


async def test_a_leaver_is_refused_everywhere(town: Town) -> None:
    await town.read(FIRST)
    password = (await town.read(FIRST + "1004,職員 丁,税務課,職員\n")).added[0].password
    assert town.store.check_password("t-midori.1004", password) is not None
    applied = await town.read(FIRST, remove_absent=True)
    person = await town.person("1004")
    assert (applied.left, applied.still_open) == (1, ())
    assert (person.status, person.left_at, person.revoked_before) == ("left", NOW, NOW)
    assert town.store.check_password("t-midori.1004", password) is None
    async with town.db.platform_session("test", read_only=True) as session:
        assert (await session.exec(select(Revocation.value).where(Revocation.kind == "person"))).all() == [
            str(person.id)
        ]


async def test_who_returns_is_the_same_person_with_a_new_password(town: Town) -> None:
    before = {i.login: i for i in (await town.read(FIRST)).added}
    await town.read(FIRST.replace("1003,職員 丙,税務課,職員\n", ""), remove_absent=True)
    [issued] = (await town.read(FIRST)).added
    assert issued.person_id == before["1003"].person_id
    assert town.store.check_password("t-midori.1003", issued.password) is not None


async def test_an_issuer_that_fails_leaves_the_town_as_it_was(town: Town) -> None:
    await town.read(FIRST)
    town.directory.fails_on_login = "1005"
    changed = FIRST.replace("丙,税務課", "丙,新設課") + "1004,職員 丁,税務課,職員\n1005,職員 戊,税務課,職員\n"
    with pytest.raises(Unavailable):
        await town.read(changed)
    assert (await town.plan(FIRST, remove_absent=True)).is_empty
    town.directory.fails_on_login = ""
    applied = await town.read(changed)
    assert all(town.store.check_password(f"t-midori.{i.login}", i.password) for i in applied.added)


async def test_a_leaver_whose_account_stays_open_is_told_and_closed_later(town: Town) -> None:
    await town.read(FIRST)
    town.directory.fails_on_disable = True
    applied = await town.read(FIRST.replace("1003,職員 丙,税務課,職員\n", ""), remove_absent=True)
    person = await town.person("1003")
    assert (person.status, applied.still_open) == ("left", (person.id,))
    town.directory.fails_on_disable = False
    assert await close_accounts(town.db, town.directory, town.id, applied.still_open) == ()


async def test_a_plan_from_an_older_state_is_refused(town: Town) -> None:
    await town.read(FIRST)
    old = await town.plan(FIRST.replace("丙,税務課", "丙,総務課"))
    await town.read(FIRST.replace("丙,税務課", "丙,出納室"))
    with pytest.raises(Conflict, match="ほかの人"):
        await apply(town.db, town.directory, town.id, "t-midori", old, by=BY, now=NOW)
    assert (await town.plan(FIRST.replace("丙,税務課", "丙,出納室"))).is_empty


async def test_nobody_removes_themselves(town: Town) -> None:
    first = await town.read(FIRST)
    by = By("person", str(first.added[0].person_id))
    other_admin = "職員番号,氏名,所属,役割\n1002,職員 乙,総務課,管理者\n"
    with pytest.raises(Conflict, match="自分自身"):
        await town.read(other_admin, remove_absent=True, by=by)
    assert (await town.person("1001")).status == "active"


async def test_every_change_stands_in_the_audit_chain(town: Town) -> None:
    await town.read(FIRST)
    await town.read(FIRST.replace("丙,税務課,職員", "丁,総務課,課長"))
    # Two sections, three people, one summary; then a rename, a move, a role and one summary.
    assert (await verify_chain(town.db, town.id)).links == 6 + 4


async def test_a_sections_file_is_applied(town: Town) -> None:
    await town.read(FIRST)
    rows = parse_sections("課名,コード,並び順\n税務課,02,1\n総務課,01,2\n出納室,03,\n".encode())
    async with town.db.platform_session("test", read_only=True) as session:
        _, sections = await load_current(session, town.id, now=NOW)
    await apply_sections(town.db, town.id, plan_sections(rows, sections), by=BY, now=NOW)
    async with town.db.platform_session("test", read_only=True) as session:
        _, sections = await load_current(session, town.id, now=NOW)
    assert [(s.name, s.code, s.position) for s in sections] == [
        ("税務課", "02", 1),
        ("総務課", "01", 2),
        ("出納室", "03", 3),
    ]
    assert plan_sections(rows, sections).is_empty
