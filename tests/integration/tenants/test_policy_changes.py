"""A town's policy is changed by version: of several who change it at once, one does, and the others hear of it."""

import asyncio

import pytest
from sqlmodel import col, select

from observability.problems import Conflict
from tenants.audit import By
from tenants.context import DataClass, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Audit, ConfigGeneration, Tenant
from tenants.policy import Policy, change_policy, load_policy
from tests.servers import DATABASES

BY = By("command", "test")


@pytest.mark.parametrize("kind", list(DATABASES))
async def test_of_many_at_once_one_changes_it_and_nothing_of_the_others_stays(
    request: pytest.FixtureRequest, kind: str
) -> None:
    urls: DatabaseUrls = request.getfixturevalue(DATABASES[kind])
    db, id = Database(urls), TenantId(new_id())
    async with db.platform_session("test") as session:
        session.add(Tenant(id=id, name="みどり町", alias="t-midori"))

    async def change(data_class: DataClass, version: int) -> None:
        policy = Policy(default_class=data_class)
        facts = {"class": data_class.value}
        await change_policy(db, id, policy, version=version, by=BY, action="policy.set", facts=facts)

    async def told() -> tuple[Policy, int, int, list[Audit]]:
        async with db.platform_session("test", read_only=True) as session:
            policy, version = await load_policy(session, id)
            generation = sum((await session.exec(select(ConfigGeneration.generation))).all())
            entries = await session.exec(select(Audit).where(col(Audit.tenant_id) == id).order_by(col(Audit.seq)))
            return policy, version, generation, list(entries.all())

    # The first of all, where there is none that the others would wait for, and one after it.
    for number in (1, 2):
        _, version, generation, _ = await told()
        outcomes = await asyncio.gather(
            *(change(c, version) for c in (DataClass.C1, DataClass.C3C) * 4), return_exceptions=True
        )
        assert sorted(type(o).__name__ for o in outcomes) == [Conflict.__name__] * 7 + ["NoneType"]
        policy, new_version, new_generation, entries = await told()
        assert (new_version, new_generation) == (version + 1, generation + 1)
        assert len(entries) == number
        assert entries[-1].facts == {"class": policy.default_class.value}
    await db.close()
