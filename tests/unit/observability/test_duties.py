"""Duties go on when they break off, and end when they are stopped, whatever they break off with then."""

import asyncio

import pytest
from structlog.testing import capture_logs

from observability import duties
from observability.duties import Duties


async def test_one_that_breaks_off_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "AGAIN_S", 0)
    began = asyncio.Semaphore(0)

    async def fails() -> None:
        began.release()
        raise RuntimeError

    running = Duties()
    with capture_logs() as lines:
        running.start(fails)
        async with asyncio.timeout(60):
            for _ in range(3):
                await began.acquire()
        await running.stop()
    assert {line["event"] for line in lines} == {"duty_broke_off"}


async def test_one_that_breaks_off_while_it_is_stopped_does_not_begin_anew() -> None:
    """A database that goes away while its connection is closed raises an error of its own in the place of the stop."""
    began = asyncio.Event()

    async def fails_when_stopped() -> None:
        began.set()
        try:
            await asyncio.sleep(600)
        finally:
            raise ConnectionError

    running = Duties()
    running.start(fails_when_stopped)
    async with asyncio.timeout(60):
        await began.wait()
        await running.stop()
