"""A key that comes again while its call's answer is still being put away waits for it, and for nothing else."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.server.authentication import Caller
from gateway.server.idempotency import Answer, Claim, IdempotencyKeys, KeyInUse
from tenants.context import DataClass, new_id
from tenants.db import Database
from tenants.vault import FileRootKeys, Vault
from tests.gateways import Region
from tests.servers import DATABASES

ANSWER = Answer(200, ((b"content-type", b"application/json"),), b'{"a": 1}')


@pytest.fixture(params=["sqlite", "postgresql"])
def region(request: pytest.FixtureRequest, tmp_path: Path) -> Region:
    return Region(tmp_path, request.getfixturevalue(DATABASES[request.param]))


@pytest.fixture
async def db(region: Region) -> AsyncIterator[Database]:
    db = Database(region.urls)
    yield db
    await db.close()


def keys(region: Region, db: Database, *, ending_wait_s: float) -> IdempotencyKeys:
    vault = Vault(db, FileRootKeys(region.settings.key_file("root")))
    return IdempotencyKeys(db, vault, longest_call=timedelta(minutes=10), ending_wait_s=ending_wait_s)


def caller(region: Region) -> Caller:
    town = region.make_town()
    return Caller(town.id, None, None, new_id(), "", frozenset(), frozenset(), DataClass.C1)


@pytest.mark.parametrize("is_spent", [True, False])
async def test_a_key_waits_for_the_end_of_its_call(region: Region, db: Database, is_spent: bool) -> None:
    mine, who = keys(region, db, ending_wait_s=60), caller(region)
    first = await mine.claim(who, "k", b"ask", new_id())
    assert isinstance(first, Claim)
    # It is asked for while the first call is still held: nothing has been put away yet.
    other = keys(region, db, ending_wait_s=60)
    again = asyncio.ensure_future(other.claim(who, "k", b"ask", new_id()))
    await asyncio.sleep(0.2)
    assert not again.done()
    mine.end(first, ANSWER, is_spent=is_spent)
    told = await again
    if is_spent:
        assert told == ANSWER
    else:
        assert isinstance(told, Claim)
        assert told.call_id != first.call_id
    await mine.aclose()


async def test_a_call_that_goes_on_is_not_waited_for(region: Region, db: Database) -> None:
    mine, who = keys(region, db, ending_wait_s=0.1), caller(region)
    assert isinstance(await mine.claim(who, "k", b"ask", new_id()), Claim)
    with pytest.raises(KeyInUse):
        await mine.claim(who, "k", b"ask", new_id())
