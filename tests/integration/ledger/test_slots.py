"""As many calls at the same time as were bought, and never one more, whatever becomes of them."""

import asyncio
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from observability.problems import InvalidInput
from tenants.audit import By, record
from tenants.context import new_id
from tenants.models import Agreement, Audit
from tenants.quota.ledger import LedgerWriter, sweep
from tenants.quota.slots import Slots, SlotsGap, SlotsInUse, SlotsSold, enforce_sold, set_slots, slots_gaps, slots_of
from tenants.quota.terms import Ending, Reservation, Settlement, SlotsTaken
from tenants.quota.tree import Node
from tests.integration.ledger.conftest import Town

YEN = 1_000_000


async def allow(town: Town, count: int | None, node: Node = "town", node_id: str = "") -> None:
    async with town.db.platform_session("test") as session:
        await set_slots(session, town.id, count, now=datetime.now(UTC), node=node, node_id=node_id)


async def slots(town: Town) -> list[Slots]:
    async with town.db.platform_session("test", read_only=True) as session:
        return await slots_of(session, town.id)


async def sell(town: Town, count: int, *, since: date) -> None:
    async with town.db.platform_session("test") as session:
        session.add(
            Agreement(
                tenant_id=town.id, valid_from=since, kind="fee", taxable="all", legal_basis="規約",
                legal_basis_on=date(2025, 3, 20), slots=count,
            )
        )  # fmt: skip


async def gaps(town: Town) -> list[SlotsGap]:
    async with town.db.platform_session("test", read_only=True) as session:
        return await slots_gaps(session, datetime.now(UTC), town.id)


async def told(town: Town) -> list[dict[str, Any]]:
    """What the town's chain says of its slots, oldest first."""
    async with town.db.platform_session("test", read_only=True) as session:
        query = select(Audit).where(col(Audit.tenant_id) == town.id, col(Audit.action) == "slots.set")
        return [link.facts for link in (await session.exec(query.order_by(col(Audit.seq)))).all()]


async def test_of_many_calls_at_once_as_many_start_as_there_are_slots(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(1000 * YEN)
    await allow(town, 5)
    answers = await asyncio.gather(*(ledger.reserve(town.hold(YEN)) for _ in range(40)), return_exceptions=True)
    granted = [a for a in answers if isinstance(a, Reservation)]
    assert len(granted) == 5
    assert {type(a) for a in answers} == {Reservation, SlotsTaken}
    [full] = await slots(town)
    assert (full.limit, full.taken) == (5, 5)
    # Each that ends makes room for one, by whatever end.
    await asyncio.wrap_future(ledger.settle(granted[0], Settlement(YEN // 2)))
    await asyncio.wrap_future(ledger.void(granted[1], "connect_failed"))
    again = await asyncio.gather(*(ledger.reserve(town.hold(YEN)) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(a, Reservation) for a in again) == 2
    # Money is counted beside it, as ever.
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (5 * YEN, YEN // 2)


async def test_two_processes_share_the_slots(town: Town, ledger: LedgerWriter, tmp_path: Path) -> None:
    await town.set_budget(1000 * YEN)
    await allow(town, 7)
    other = LedgerWriter(town.urls, owner_epoch="other", spool_dir=tmp_path / "other", max_queue_wait_s=10)
    other.start()
    try:
        answers = await asyncio.gather(
            *(writer.reserve(town.hold(YEN)) for _ in range(20) for writer in (ledger, other)), return_exceptions=True
        )
    finally:
        await other.close()
    assert sum(isinstance(a, Reservation) for a in answers) == 7


async def test_another_attempt_takes_no_second_slot(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(1000 * YEN)
    await allow(town, 1)
    hold = town.hold(YEN)
    first = await ledger.reserve(hold)
    retry = town.hold(YEN, call_id=hold.call_id)
    second = await ledger.reserve(retry, Ending(first, Settlement(0, problem="upstream_overloaded")))
    assert [s.taken for s in await slots(town)] == [1]
    await asyncio.wrap_future(ledger.settle(second, Settlement(YEN)))
    assert [s.taken for s in await slots(town)] == [0]


@pytest.mark.parametrize("node", ["section", "app", "model"])
async def test_a_section_an_app_or_a_model_may_have_its_own(town: Town, ledger: LedgerWriter, node: Node) -> None:
    await town.set_budget(1000 * YEN)
    section = new_id()
    await allow(town, 1, node, {"section": str(section), "app": "chat", "model": "standard"}[node])
    await ledger.reserve(town.hold(YEN, section_id=section))
    with pytest.raises(SlotsTaken) as refused:
        await ledger.reserve(town.hold(YEN, section_id=section))
    assert refused.value.extensions["node"] == node
    await ledger.reserve(town.hold(YEN, section_id=new_id(), app="other", alias="fast"))


async def test_a_dead_process_s_slots_come_back(town: Town, tmp_path: Path) -> None:
    await town.set_budget(1000 * YEN)
    await allow(town, 2)
    dead = LedgerWriter(town.urls, owner_epoch="dead", spool_dir=tmp_path / "dead", max_queue_wait_s=10)
    dead.start()
    for _ in range(2):
        await dead.reserve(town.hold(YEN))
    await dead.close()
    assert await asyncio.to_thread(sweep, town.urls, now=datetime.now(UTC) + timedelta(hours=1)) == 2
    assert [s.taken for s in await slots(town)] == [0]
    # A late word about a call that was given up changes its cost and no slot.
    assert (await town.town_account()).posted_uyen == 2 * YEN


async def test_a_number_sold_below_what_is_under_way_falls_with_it(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(1000 * YEN)
    now = datetime.now(UTC)
    await allow(town, 3)
    running = [await ledger.reserve(town.hold(YEN)) for _ in range(2)]
    await sell(town, 1, since=date(2025, 4, 1))
    with pytest.raises(SlotsSold):
        await allow(town, 3)
    for taken in (2, 1, 0):
        await enforce_sold(town.db, now)
        assert [(s.limit, s.taken) for s in await slots(town)] == [(max(1, taken), taken)]
        assert [(g.sold, g.limit, g.is_falling) for g in await gaps(town)] == ([(1, 2, True)] if taken == 2 else [])
        with suppress(IndexError):
            await asyncio.wrap_future(ledger.settle(running.pop(), Settlement(0)))
    # However many turns that took, the chain tells what was decided, once.
    [decided] = await told(town)
    assert (decided["slots"], decided["slots_before"]) == (1, 3)


async def test_a_sale_that_ended_leaves_its_number_and_says_so(town: Town) -> None:
    now = datetime.now(UTC)
    await sell(town, 4, since=date(2025, 4, 1))
    await enforce_sold(town.db, now)
    assert await gaps(town) == []
    await sell(town, 0, since=date(2025, 5, 1))
    await enforce_sold(town.db, now)
    [left] = await gaps(town)
    assert (left.sold, left.limit, left.is_falling) == (0, 4, False)
    assert f"kumiai budget set {left.code} --lift at_once" in left.advice
    # A number that the operator has set since is meant, be it the same.
    async with town.db.platform_session("test") as session:
        await set_slots(session, town.id, 4, now=now)
        await record(session, town.id, By("command", "test"), "slots.set", node="town", node_id="", slots=4)
    assert await gaps(town) == []
    # Sold anew, it waits for the worker.
    await sell(town, 6, since=date(2025, 6, 1))
    [waiting] = await gaps(town)
    assert (waiting.sold, waiting.limit) == (6, 4)
    assert "ワーカー" in waiting.advice
    await enforce_sold(town.db, now)
    assert await gaps(town) == []
    assert [(f["slots"], f.get("slots_before")) for f in await told(town)] == [(4, None), (4, None), (6, 4)]


async def test_a_number_below_what_is_under_way_is_refused(town: Town, ledger: LedgerWriter) -> None:
    await town.set_budget(1000 * YEN)
    await allow(town, 3)
    running = [await ledger.reserve(town.hold(YEN)) for _ in range(2)]
    with pytest.raises(SlotsInUse):
        await allow(town, 1)
    for wrong in (0, -1, 10_001):
        with pytest.raises(InvalidInput):
            await allow(town, wrong)
    assert [(s.limit, s.taken) for s in await slots(town)] == [(3, 2)]
    # Lifted: the calls under way still give back what they took.
    await allow(town, None)
    assert await slots(town) == []
    for reservation in running:
        await asyncio.wrap_future(ledger.settle(reservation, Settlement(0)))
    await allow(town, 1)
    assert [(s.limit, s.taken) for s in await slots(town)] == [(1, 0)]
