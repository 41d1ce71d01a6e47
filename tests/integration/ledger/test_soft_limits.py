"""Notices at 70, 90 and 100 per cent of a limit: once each, to those whom it concerns, on each database."""

from datetime import UTC, datetime

import pytest
from sqlmodel import col, update

from tenants.audit import By
from tenants.context import Actor, PersonId, Role, SectionId, TenantId, new_id
from tenants.models import Account, Person, RoleGrant, Tenant
from tenants.quota.grants import set_pool
from tenants.quota.soft_limits import mark_seen, notices_of, passed, raise_notices
from tenants.quota.tree import Node, set_budget
from tenants.quota.windows import Window
from tests.integration.ledger.conftest import Town

YEN = 1_000_000
SECTION, OTHER_SECTION = SectionId(new_id()), SectionId(new_id())
PERSON = PersonId(new_id())


def actor(town: Town, *roles: Role, section: SectionId = SECTION, person: PersonId | None = None) -> Actor:
    return Actor(town.id, person or PersonId(new_id()), section, frozenset({Role.STAFF, *roles}))


async def use(town: Town, yen: int, node: Node = "town", node_id: str = "", window: Window = "day") -> None:
    """A limit of 100 yen of which so much is used."""
    async with town.db.platform_session("test") as session:
        await set_budget(session, town.id, yen=100, node=node, node_id=node_id, window=window)
        where = (col(Account.tenant_id) == town.id, col(Account.node) == node, col(Account.window) == window)
        await session.exec(update(Account).where(*where).values(posted_uyen=yen * YEN))


async def raised(town: Town) -> int:
    async with town.db.platform_session("test") as session:
        return await raise_notices(session, datetime.now(UTC))


async def told(town: Town, who: Actor) -> list[tuple[str, str, int]]:
    async with town.db.tenant_session(who.context, read_only=True) as session:
        return [(n.node, n.window, n.percent) for n in await notices_of(session, who, datetime.now(UTC))]


@pytest.mark.parametrize(
    ("posted", "limit", "steps"),
    [(69, 100, []), (70, 100, [70]), (90, 100, [70, 90]), (995, 1000, [70, 90, 100]), (0, 0, []), (99, 2**62, [])],
)
def test_steps(posted: int, limit: int, steps: list[int]) -> None:
    assert passed(posted, limit) == steps


async def test_each_step_is_raised_once(town: Town) -> None:
    await use(town, 69)
    assert await raised(town) == 0
    await use(town, 71)
    assert await raised(town) == 1
    assert await raised(town) == 0
    await use(town, 100)
    assert await raised(town) == 2
    assert await told(town, actor(town, Role.TOWN_ADMIN)) == [("town", "day", 100)]


async def test_whom_a_limit_concerns(town: Town) -> None:
    await use(town, 91)
    await use(town, 71, "section", str(SECTION), "month")
    await use(town, 75, "person", str(PERSON), "fiscal_year")
    await use(town, 92, "model", "standard")
    assert await raised(town) == 6
    assert await told(town, actor(town)) == []
    assert await told(town, actor(town, person=PERSON)) == [("person", "fiscal_year", 70)]
    assert await told(town, actor(town, Role.SECTION_ADMIN)) == [("section", "month", 70)]
    assert await told(town, actor(town, Role.SECTION_ADMIN, section=OTHER_SECTION)) == []
    everything = await told(town, actor(town, Role.TOWN_ADMIN))
    assert set(everything) == {("town", "day", 90), ("model", "day", 90), ("section", "month", 70)}


async def test_what_was_seen_is_not_shown_again_but_the_next_step_is(town: Town) -> None:
    await use(town, 91)
    await raised(town)
    who, other = actor(town, Role.TOWN_ADMIN), actor(town, Role.TOWN_ADMIN)
    async with town.db.tenant_session(who.context) as session:
        [notice] = await notices_of(session, who, datetime.now(UTC))
        assert await mark_seen(session, who, notice.id)
        assert not await mark_seen(session, who, new_id())
    assert await told(town, who) == []
    assert await told(town, other) == [("town", "day", 90)]
    await use(town, 100)
    await raised(town)
    assert await told(town, who) == [("town", "day", 100)]


async def test_another_town_s_notice_cannot_be_put_away(town: Town) -> None:
    await use(town, 91)
    await raised(town)
    who = actor(town, Role.TOWN_ADMIN)
    async with town.db.tenant_session(who.context, read_only=True) as session:
        [notice] = await notices_of(session, who, datetime.now(UTC))
    stranger = Actor(TenantId(new_id()), PersonId(new_id()), None, frozenset({Role.TOWN_ADMIN}))
    async with town.db.tenant_session(stranger.context) as session:
        assert not await mark_seen(session, stranger, notice.id)
    assert await told(town, who) == [("town", "day", 90)]


async def appoint_operator(town: Town) -> Actor:
    """In the town of the test, as an operator's own body is one, too."""
    async with town.db.platform_session("test") as session:
        person = Person(tenant_id=town.id, login="9001", display_name="運用担当")
        session.add(person)
        await session.flush()
        session.add(RoleGrant(tenant_id=town.id, person_id=person.id, role=Role.OPERATOR.value))
    return Actor(town.id, PersonId(person.id), None, frozenset({Role.OPERATOR}))


async def add_town_that_spends(town: Town) -> TenantId:
    id = TenantId(new_id())
    async with town.db.platform_session("test") as session:
        session.add(Tenant(id=id, name="緑町", alias=f"t{id.hex}"))
        await session.flush()
        await set_budget(session, id, yen=100)
    return id


async def test_a_pool_is_told_to_the_operator_once_a_step_by_what_its_towns_spent_together(town: Town) -> None:
    operator = await appoint_operator(town)
    other = await add_town_that_spends(town)
    async with town.db.platform_session("test") as session:
        await set_budget(session, town.id, yen=100)
        await set_pool(session, "month", 200, by=By("command", "test"), now=datetime.now(UTC))

    async def spent(yen: int) -> list[tuple[str, str, int]]:
        async with town.db.platform_session("test") as session:
            for id in (town.id, other):
                where = (col(Account.tenant_id) == id, col(Account.window) == "month", col(Account.node) == "town")
                await session.exec(update(Account).where(*where).values(posted_uyen=yen * YEN))
        await raised(town)
        return [n for n in await told(town, operator) if n[0] == "pool"]

    assert await spent(69) == []
    assert await spent(71) == [("pool", "month", 70)]
    # Nothing new to tell, and nobody else to tell it to.
    assert await raised(town) == 0
    assert not [n for n in await told(town, actor(town, Role.TOWN_ADMIN)) if n[0] == "pool"]
    async with town.db.tenant_session(operator.context) as session:
        [notice] = [n for n in await notices_of(session, operator, datetime.now(UTC)) if n.node == "pool"]
        assert await mark_seen(session, operator, notice.id)
    assert await spent(75) == []
    assert await spent(100) == [("pool", "month", 100)]
