"""Usage is told by the days and months of Japan, on every database alike."""

from datetime import UTC, date, datetime
from uuid import uuid4

from tenants.context import TenantContext, new_id
from tenants.models import Call
from tenants.usage import charges_of, usage_by_day, usage_rows

NOVEMBER = date(2026, 11, 1)


def call(tenant_id: object, at: datetime, month: date, cost: int) -> Call:
    return Call(
        tenant_id=tenant_id, created_at=at, id=new_id(), month=month, state="settled", app="chat",
        operation="chat/completions", alias="standard", deployment="demo", zone="onprem", data_class="1",
        cost_uyen=cost,
    )  # fmt: skip


async def test_the_edges_of_a_month_and_of_a_day_are_japanese(town) -> None:
    async with town.db.platform_session("test") as session:
        session.add(call(town.id, datetime(2026, 10, 31, 14, 59, tzinfo=UTC), date(2026, 10, 1), 1))
        session.add(call(town.id, datetime(2026, 10, 31, 15, 0, tzinfo=UTC), NOVEMBER, 10))
        session.add(call(town.id, datetime(2026, 11, 1, 14, 59, tzinfo=UTC), NOVEMBER, 100))
        session.add(call(town.id, datetime(2026, 11, 1, 15, 0, tzinfo=UTC), NOVEMBER, 1_000))
        session.add(call(town.id, datetime(2026, 11, 30, 15, 0, tzinfo=UTC), date(2026, 12, 1), 10_000))
    async with town.db.platform_session("test", read_only=True) as session:
        days = await usage_by_day(session, NOVEMBER, tenant_id=town.id)
        rows = await usage_rows(session, NOVEMBER, tenant_id=town.id)
    assert [(d.day, d.calls, d.cost_uyen) for d in days] == [(date(2026, 11, 1), 2, 110), (date(2026, 11, 2), 1, 1_000)]
    assert [(r.calls, r.cost_uyen) for r in rows] == [(3, 1_110)]


async def test_how_a_persons_calls_were_charged_is_told_to_that_person(town) -> None:
    me, other = new_id(), new_id()
    now = datetime.now(UTC)
    month = date(now.year, now.month, 1)

    def mine(cost: int, **facts: object) -> Call:
        made = call(town.id, now, month, cost)
        for name, value in ({"person_id": me, "usage_source": "provider"} | facts).items():
            setattr(made, name, value)
        return made

    calls = [
        mine(5), mine(9, usage_source="hold"), mine(0, state="void", usage_source=""), mine(0, state="held"),
        mine(5, person_id=other),
    ]  # fmt: skip
    ids = [c.id for c in calls]
    async with town.db.platform_session("test") as session:
        session.add_all(calls)
    async with town.db.tenant_session(TenantContext(town.id), read_only=True) as session:
        told = await charges_of(session, me, [*ids, new_id(), uuid4()])
        assert await charges_of(session, me, []) == {}
    assert told == {ids[0]: "counted", ids[1]: "held", ids[2]: "nothing"}
