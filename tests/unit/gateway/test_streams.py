"""What an answer that can be taken up again leaves behind: nothing, whatever becomes of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.server.authentication import Caller
from gateway.server.http import Client
from gateway.server.journal import MAX_KEPT_BYTES, Journal
from gateway.server.streams import Outlet
from tenants.answers import KEPT_FOR
from tenants.context import DataClass, TenantId, new_id
from tenants.vault import ContentErased

CALLER = Caller(TenantId(new_id()), None, None, new_id(), "", frozenset(), frozenset(), DataClass.C1)


class Erased:
    """The keys of a town whose content was erased."""

    async def ring(self, _tenant_id: TenantId) -> Any:
        raise ContentErased


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 28, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def journal_of(clock: Clock) -> Journal:
    return Journal(None, Erased(), lost_after_s=10, clock=clock)  # type: ignore[arg-type]  # it comes no further than the keys


async def test_what_can_not_be_written_is_forgotten_when_nobody_could_take_it_up() -> None:
    clock = Clock()
    journal = journal_of(clock)
    over, going_on = (journal.begin(CALLER, new_id(), [], lambda _: None) for _ in range(2))
    for said in (over, going_on):
        said.add(b"data: x\n\n")
    over.is_over = True
    await journal._write_all()
    clock.now += KEPT_FOR
    await journal._write_all()
    assert set(journal._said.values()) == {over, going_on}
    clock.now += timedelta(seconds=1)
    await journal._write_all()
    assert set(journal._said.values()) == {going_on}


async def test_a_call_that_is_ended_while_it_waits_for_its_listener_leaves_no_task() -> None:
    exchange: Any = SimpleNamespace(watch=lambda _: None, unwatch=lambda _: None, is_gone=False)
    listening: Any = SimpleNamespace(journal=journal_of(Clock()), tell=lambda *_: asyncio.sleep(60))
    outlet = Outlet(listening, CALLER, new_id(), exchange, lambda _: asyncio.sleep(0))
    outlet.begin([], Client(exchange))
    before = asyncio.all_tasks()
    waiting = asyncio.ensure_future(
        outlet({"type": "http.response.body", "body": b"x" * (MAX_KEPT_BYTES + 1), "more_body": True})
    )
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    telling = {task for task in left if task is outlet._telling}
    assert left == telling
    for task in telling:
        task.cancel()
