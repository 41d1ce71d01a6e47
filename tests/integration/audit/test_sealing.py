"""Closed calls enter the chain exactly once, whoever seals and whoever is killed meanwhile."""

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, func, select

from kumiai.worker import Worker, work
from tenants.audit.records import LEAF_COLUMNS, SEGMENT, merkle_root
from tenants.audit.segments import MAX_LEAVES, seal_calls
from tenants.audit.verification import verify_chain
from tenants.context import TenantId, new_id
from tenants.models import Audit, Call, SealQueue, Tenant
from tenants.quota.ledger import LEASE, LedgerWriter, sweep
from tenants.quota.terms import Ending, Reservation, Settlement
from tenants.settings import Settings
from tests.integration.ledger.conftest import Town

YEN = 1_000_000
COST = Settlement(30 * YEN, 10, 30, "provider", "stop")
Leaf = dict[str, object]


async def leaves(town: Town) -> list[Leaf]:
    """All that was sealed, in order."""
    async with town.db.platform_session("test", read_only=True) as session:
        found = await session.exec(
            select(Audit.leaves)
            .where(col(Audit.tenant_id) == town.id, Audit.action == SEGMENT)
            .order_by(col(Audit.seq))
        )
        texts = [text for told in found.all() for text in told.split("\n")]
    return [dict(zip(LEAF_COLUMNS, json.loads(text), strict=True)) for text in texts]


async def queued(town: Town) -> int:
    async with town.db.platform_session("test", read_only=True) as session:
        return (await session.exec(select(func.count()).select_from(SealQueue))).one()


async def closed_calls(town: Town, ledger: LedgerWriter, count: int) -> list[Reservation]:
    reservations = await asyncio.gather(*(ledger.reserve(town.hold(80 * YEN)) for _ in range(count)))
    await asyncio.gather(*(asyncio.wrap_future(ledger.settle(r, COST)) for r in reservations))
    return list(reservations)


async def test_a_closed_call_is_sealed_as_it_was_closed(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(1000 * YEN)
    [reservation] = await closed_calls(town, ledger, 1)
    running = await ledger.reserve(town.hold(80 * YEN))
    assert await seal_calls(town.db) == 1
    [sealed] = await leaves(town)
    assert sealed["id"] == str(reservation.call_id) != str(running.call_id)
    assert (sealed["state"], sealed["cost_uyen"], sealed["completion_tokens"]) == ("settled", 30 * YEN, 30)
    assert (sealed["app"], sealed["alias"], sealed["zone"], sealed["finish_reason"]) == (
        "chat", "standard", "onprem", "stop"
    )  # fmt: skip
    assert await seal_calls(town.db) == 0
    assert (await verify_chain(town.db, town.id)).calls == 1


async def test_a_voided_call_is_sealed_too(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    await asyncio.wrap_future(ledger.void(await ledger.reserve(town.hold(80 * YEN)), "connect"))
    assert await seal_calls(town.db) == 1
    assert [(one["state"], one["cost_uyen"], one["problem"]) for one in await leaves(town)] == [("void", 0, "connect")]


async def test_a_call_of_two_attempts_is_sealed_once(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(1000 * YEN)
    hold = town.hold(80 * YEN)
    first = await ledger.reserve(hold)
    second = await ledger.reserve(
        replace(hold, attempt_id=new_id()), after=Ending(first, Settlement(0, problem="reset"), is_void=True)
    )
    assert await seal_calls(town.db) == 0
    await asyncio.wrap_future(ledger.settle(second, COST))
    assert await seal_calls(town.db) == 1


async def test_a_later_truth_adds_a_leaf_and_breaks_none(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    reservation = await ledger.reserve(town.hold(80 * YEN))
    expired = datetime.now(UTC) + LEASE + timedelta(seconds=1)
    await asyncio.to_thread(lambda: sweep(town.urls, now=expired))
    assert await seal_calls(town.db) == 1
    await asyncio.wrap_future(ledger.settle(reservation, COST))
    assert await seal_calls(town.db) == 1
    told = [(one["state"], one["cost_uyen"]) for one in await leaves(town)]
    assert told == [("suspense", 80 * YEN), ("settled", 30 * YEN)]
    assert (await verify_chain(town.db, town.id)).calls == 2


async def test_a_segment_holds_a_thousand_at_most(town: Town) -> None:
    start = datetime.now(UTC)
    async with town.db.platform_session("test") as session:
        for n in range(MAX_LEAVES + 5):
            at = start + timedelta(microseconds=n)
            session.add(
                Call(tenant_id=town.id, created_at=at, month=at.date(), state="settled", operation="chat", alias="a")
            )
    if town.db.is_sqlite:
        with closing(sqlite3.connect(town.urls.sqlite_path)) as file, file:
            file.execute(
                "insert into seal_queue select tenant_id, lower(hex(randomblob(16))), created_at, id from call"
            )
    else:
        # Only the ledger's login may queue.
        with psycopg.connect(town.urls.ledger) as connection:
            connection.execute("insert into seal_queue select tenant_id, gen_random_uuid(), created_at, id from call")
    assert await seal_calls(town.db) == MAX_LEAVES + 5
    async with town.db.platform_session("test", read_only=True) as session:
        rows = (await session.exec(select(Audit.facts, Audit.leaves).order_by(col(Audit.seq)))).all()
    assert [facts["count"] for facts, _ in rows] == [MAX_LEAVES, 5]
    assert all(facts["root"] == merkle_root(text.split("\n")) for facts, text in rows)


async def test_two_sealers_share_the_work(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(100_000 * YEN)
    await closed_calls(town, ledger, 40)
    done = await asyncio.gather(*(seal_calls(town.db) for _ in range(4)))
    assert sum(done) == 40
    assert len({one["id"] for one in await leaves(town)}) == 40


@contextmanager
def unable(town: Town) -> Iterator[None]:
    """Nothing enters the town's chain for a while."""
    if town.db.is_sqlite:
        with closing(sqlite3.connect(town.urls.sqlite_path)) as file, file:
            file.execute(
                f"create trigger unable before insert on audit when new.tenant_id = '{town.id.hex}'"
                " begin select raise(abort, 'unable'); end"
            )
    else:
        with psycopg.connect(town.urls.owner) as connection:
            connection.execute(f"alter table audit add constraint unable check (tenant_id <> '{town.id}') not valid")
    yield
    if town.db.is_sqlite:
        with closing(sqlite3.connect(town.urls.sqlite_path)) as file, file:
            file.execute("drop trigger unable")
    else:
        with psycopg.connect(town.urls.owner) as connection:
            connection.execute("alter table audit drop constraint unable")


async def test_a_town_that_cannot_be_sealed_holds_up_no_other(town: Town, ledger: LedgerWriter) -> None:
    other = replace(town, id=TenantId(new_id()))
    async with town.db.platform_session("test") as session:
        session.add(Tenant(id=other.id, name="別の町", alias=f"t{other.id.hex}"))
    for one in (town, other):
        await one.set_budget(1000 * YEN)
    # Each in its turn, for one of them is sealed first.
    for failing, well in ((town, other), (other, town)):
        for one in (town, other):
            await closed_calls(one, ledger, 2)
        before = len(await leaves(well)), len(await leaves(failing))
        with unable(failing):
            with pytest.raises(SQLAlchemyError):
                await seal_calls(town.db)
            assert (len(await leaves(well)), len(await leaves(failing))) == (before[0] + 2, before[1])
        assert await seal_calls(town.db) == 2
    assert [(await verify_chain(town.db, one.id)).calls for one in (town, other)] == [4, 4]


SEALER = """
import asyncio, json, sys
from tenants.audit.segments import seal_calls
from tenants.db import Database, DatabaseUrls

async def main():
    db = Database(DatabaseUrls(**json.loads(sys.argv[1])))
    print("ready", flush=True)
    while True:
        await seal_calls(db)

asyncio.run(main())
"""


@pytest.mark.timeout(300)
async def test_killed_sealers_lose_and_double_no_call(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(1_000_000 * YEN)
    dice = random.Random(7)
    told = json.dumps(asdict(town.urls))
    reservations: list[Reservation] = []
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", SEALER, told], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        before = len(await leaves(town))
        while len(await leaves(town)) == before:
            reservations += await closed_calls(town, ledger, dice.randrange(1, 30))
        reservations += await closed_calls(town, ledger, dice.randrange(1, 30))
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        process.stdout.close()
    await seal_calls(town.db)
    assert await queued(town) == 0
    sealed = [one["id"] for one in await leaves(town)]
    assert sorted(map(str, sealed)) == sorted(str(r.call_id) for r in reservations)
    assert (await verify_chain(town.db, town.id)).calls == len(reservations)


async def test_the_worker_seals_and_signs_without_being_asked(town: Town, ledger: LedgerWriter, tmp_path: Path) -> None:
    await town.set_budget(200 * YEN)
    await closed_calls(town, ledger, 1)
    settings = Settings(
        env="test", home=tmp_path, database_url=town.urls.app, platform_database_url=town.urls.platform,
        ledger_database_url=town.urls.ledger, content_database_url=town.urls.content,
    )  # type: ignore[arg-type]  # pydantic makes secrets of texts  # fmt: skip
    stop = asyncio.Event()
    working = asyncio.create_task(work(settings, stop))
    # Not once alone: what is closed later is sealed too, and not at some later turn of ten minutes.
    async with asyncio.timeout(90):
        while (await verify_chain(town.db, town.id)).calls < 1:
            await asyncio.sleep(0.1)
        await closed_calls(town, ledger, 1)
        while (checked := await verify_chain(town.db, town.id)).calls < 2:
            await asyncio.sleep(0.1)
    stop.set()
    await working
    assert checked.calls == 2
    worker = Worker(settings)
    await worker.checkpoints()
    await worker.close()
    assert (await verify_chain(town.db, town.id)).signed_seq == checked.links
