"""Break-glass: asked, approved by the other side, short, read-only, told and kept; without approval nothing opens."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import breakglass
from tenants.audit.verification import verify_chain
from tenants.context import Actor, PersonId, Role, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.documents import Documents
from tenants.keyfiles import KeyFile
from tenants.models import Audit, BreakGlass, Outbox, Tenant
from tenants.reports import file_report
from tenants.vault import FileRootKeys, Vault
from tests.servers import DATABASES

NOW = datetime(2027, 3, 1, 1, 0, tzinfo=UTC)
REASON = "表の読み込みが止まる不具合を調べるため"
WORDS = "合言葉はひまわり"


@dataclass
class Site:
    """A town with a clerk's report, its administrator, an operator and a second operator."""

    db: Database
    documents: Documents
    admin: Actor
    clerk: Actor
    operator: PersonId
    colleague: PersonId
    report: UUID

    @property
    def town(self) -> TenantId:
        return self.admin.tenant_id

    async def ask(self, *, minutes: int = 30, now: datetime = NOW) -> UUID:
        return await breakglass.ask(self.db, self.town, self.operator, reason=REASON, minutes=minutes, now=now)

    async def decide(
        self, id: UUID, *, approve: bool = True, actor: Actor | None = None, now: datetime = NOW
    ) -> BreakGlass:
        actor = actor or self.admin
        async with self.db.tenant_session(actor.context) as session:
            return await breakglass.decide(session, actor, id, approve=approve, now=now)

    async def end(self, id: UUID, *, actor: Actor | None = None) -> None:
        actor = actor or self.admin
        async with self.db.tenant_session(actor.context) as session:
            await breakglass.end_by_town(session, actor, id, NOW)

    async def read(self, id: UUID, *, person: PersonId | None = None, now: datetime = NOW) -> str:
        _, text = await breakglass.read_report(self.db, self.documents, person or self.operator, id, self.report, now)
        return text

    async def is_closed(self, id: UUID, **given: object) -> bool:
        """Neither the list nor a text is there, and nothing was written of the attempt."""
        before = await self.told()
        person = given.get("person") or self.operator
        now = given.get("now") or NOW
        with pytest.raises(NotFound):
            await self.read(id, person=person, now=now)  # type: ignore[arg-type]  # as given
        with pytest.raises(NotFound):
            await breakglass.readable_reports(self.db, person, id, now)  # type: ignore[arg-type]  # as given
        return await self.told() == before

    async def told(self) -> list[str]:
        async with self.db.platform_session("test", read_only=True) as session:
            found = await session.exec(
                select(Audit.action)
                .where(col(Audit.tenant_id) == self.town, col(Audit.action).like("break_glass.%"))
                .order_by(col(Audit.seq))
            )
            return [action.removeprefix("break_glass.") for action in found.all()]

    async def notices(self, actor: Actor | None = None) -> list[str]:
        actor = actor or self.admin
        async with self.db.tenant_session(actor.context, read_only=True) as session:
            return [notice.what for notice in await breakglass.notices_of(session, actor)]


@pytest.fixture(params=["sqlite", "postgresql"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    urls: DatabaseUrls = request.getfixturevalue(DATABASES[request.param])
    db = Database(urls)
    town = TenantId(new_id())
    async with db.platform_session("test") as session:
        session.add(Tenant(id=town, name="みどり町", alias="t011011"))
    documents = Documents(db, Vault(db, FileRootKeys(KeyFile(tmp_path / "keys" / "root", create=True))))
    admin = Actor(town, PersonId(new_id()), None, frozenset({Role.STAFF, Role.TOWN_ADMIN}))
    clerk = Actor(town, PersonId(new_id()), None, frozenset({Role.STAFF}))
    report = await file_report(
        db, documents, clerk, app="chat", page="/chat", kind="other", problem_number="", content=WORDS
    )
    yield Site(db, documents, admin, clerk, PersonId(new_id()), PersonId(new_id()), report)
    await db.close()


async def test_with_the_towns_approval_a_text_is_read_and_kept(site: Site) -> None:
    id = await site.ask()
    await site.decide(id)
    glass, reports = await breakglass.readable_reports(site.db, site.operator, id, NOW)
    assert ([r.id for r in reports], glass.until) == ([site.report], NOW + timedelta(minutes=30))
    assert await site.read(id) == WORDS
    assert await site.read(id) == WORDS
    # Every access, row by row, with what was read.
    assert await site.told() == ["request", "approve", "read", "read"]
    async with site.db.platform_session("test", read_only=True) as session:
        row = (await session.exec(select(Audit).where(Audit.action == "break_glass.read"))).first()
    assert row is not None
    assert (row.actor_id, row.object_id, row.facts) == (str(site.operator), str(site.report), {"glass": str(id)})
    await verify_chain(site.db, site.town)


async def test_without_approval_nothing_opens(site: Site) -> None:
    assert await site.is_closed(new_id())
    id = await site.ask()
    assert await site.is_closed(id)
    await site.decide(id, approve=False)
    assert await site.is_closed(id)
    assert await site.told() == ["request", "refuse"]


async def test_it_ends_with_its_time(site: Site) -> None:
    id = await site.ask(minutes=60)
    await site.decide(id)
    assert await site.read(id, now=NOW + timedelta(minutes=59, seconds=59)) == WORDS
    assert await site.is_closed(id, now=NOW + timedelta(minutes=60))
    assert await breakglass.end_expired(site.db, NOW + timedelta(minutes=59)) == 0
    assert await breakglass.end_expired(site.db, NOW + timedelta(minutes=60)) == 1
    assert await breakglass.end_expired(site.db, NOW + timedelta(minutes=61)) == 0
    # Also when the clock goes back.
    assert await site.is_closed(id)
    assert (await site.told())[-1] == "end"


async def test_the_town_ends_it_at_once(site: Site) -> None:
    id = await site.ask()
    await site.decide(id)
    assert await site.read(id) == WORDS
    await site.end(id)
    assert await site.is_closed(id)
    await site.end(id)
    assert await site.told() == ["request", "approve", "read", "end"]


async def test_the_operator_ends_only_what_is_its_own(site: Site) -> None:
    id = await site.ask()
    await site.decide(id)
    with pytest.raises(NotFound):
        await breakglass.end_by_operator(site.db, site.colleague, id, NOW)
    assert await site.read(id) == WORDS
    await breakglass.end_by_operator(site.db, site.operator, id, NOW)
    assert await site.is_closed(id)


async def test_it_is_for_the_one_who_asked(site: Site) -> None:
    id = await site.ask()
    await site.decide(id)
    assert await site.read(id) == WORDS
    assert await site.is_closed(id, person=site.colleague)
    assert await site.is_closed(id, person=site.admin.person_id)


async def test_only_an_administrator_of_the_town_answers(site: Site) -> None:
    id = await site.ask()
    elsewhere = TenantId(new_id())
    nobody = [
        site.clerk,
        Actor(elsewhere, PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN})),
        Actor(site.town, PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN, Role.OPERATOR})),
        Actor(site.town, PersonId(new_id()), None, frozenset({Role.SECTION_ADMIN})),
    ]
    for actor in nobody:
        with pytest.raises(NotFound):
            await site.decide(id, actor=actor)
        with pytest.raises(NotFound):
            await site.end(id, actor=actor)
    with pytest.raises(Conflict, match="自分の依頼"):
        await site.decide(id, actor=Actor(site.town, site.operator, None, frozenset({Role.TOWN_ADMIN})))
    assert await site.is_closed(id)
    await site.decide(id)
    assert await site.read(id) == WORDS


async def test_the_database_refuses_an_approval_by_who_asked(site: Site) -> None:
    id = await site.ask()
    with pytest.raises(IntegrityError):
        async with site.db.tenant_session(site.admin.context) as session:
            row = await session.get_one(BreakGlass, id)
            row.state, row.decided_by, row.until = "approved", site.operator, NOW
            session.add(row)
    assert await site.is_closed(id)


async def test_a_request_is_answered_once_and_in_time(site: Site) -> None:
    id = await site.ask()
    with pytest.raises(Conflict):
        await site.decide(id, now=NOW + timedelta(hours=24))
    await site.decide(id, approve=False)
    with pytest.raises(Conflict):
        await site.decide(id)
    again = await site.ask()
    assert await breakglass.end_expired(site.db, NOW + timedelta(hours=24)) == 1
    with pytest.raises(Conflict):
        await site.decide(again)


async def test_a_request_says_why_and_for_how_long(site: Site) -> None:
    for reason, minutes in (("調査", 30), ("　" * 30, 30), ("あ" * 301, 30), (REASON, 61), (REASON, 0), (REASON, 600)):
        with pytest.raises(InvalidInput):
            await breakglass.ask(site.db, site.town, site.operator, reason=reason, minutes=minutes, now=NOW)
    await site.ask()
    with pytest.raises(Conflict, match="まだ終わって"):
        await site.ask()


async def test_the_town_is_told_of_a_request_what_became_of_it_last(site: Site) -> None:
    id = await site.ask()
    assert await site.notices() == ["request"]
    await site.decide(id)
    await site.read(id)
    await site.read(id)
    await site.end(id)
    assert await site.notices() == ["end"]
    assert await site.notices(site.clerk) == []
    async with site.db.tenant_session(site.admin.context) as session:
        for row in (await session.exec(select(Outbox))).all():
            assert await breakglass.mark_seen(session, site.admin, row.id)
            assert not await breakglass.mark_seen(
                session, Actor(TenantId(new_id()), PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN})), row.id
            )
    assert await site.notices() == []


async def test_another_towns_report_stays_closed(site: Site) -> None:
    """The approval of one town opens nothing of another."""
    id = await site.ask()
    await site.decide(id)
    other = TenantId(new_id())
    async with site.db.platform_session("test") as session:
        session.add(Tenant(id=other, name="あおば町", alias="t012025"))
    clerk = Actor(other, PersonId(new_id()), None, frozenset({Role.STAFF}))
    report = await file_report(
        site.db, site.documents, clerk, app="chat", page="/", kind="other", problem_number="", content="隣の中身"
    )
    with pytest.raises(NotFound):
        await breakglass.read_report(site.db, site.documents, site.operator, id, report, NOW)
    _, listed = await breakglass.readable_reports(site.db, site.operator, id, NOW)
    assert [r.id for r in listed] == [site.report]


@pytest.mark.parametrize("site", ["postgresql"], indirect=True)
async def test_neither_login_can_make_an_approval_alone(site: Site) -> None:
    """The operator's login may not write an answer; the town's may not write a request."""
    id = await site.ask()
    urls = site.db.urls
    with psycopg.connect(urls.platform, autocommit=True) as connection:
        for change in (
            "decided_by = gen_random_uuid()",
            "until = now() + interval '1 hour'",
            "reason = ''",
            "minutes = 60",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"update break_glass set {change}")
    with psycopg.connect(urls.app, autocommit=True) as connection:
        connection.execute("select set_config('app.tenant_id', %s, false)", (str(site.town),))
        for statement in (
            "delete from break_glass",
            "update break_glass set minutes = 60",
            "insert into break_glass default values",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    assert await site.is_closed(id)
