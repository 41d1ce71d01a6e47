"""Deadlines of many futures on one timer."""

import asyncio

import pytest

from tenants.alarms import Alarms


async def test_each_future_fails_when_its_own_time_is_over() -> None:
    alarms, loop = Alarms(), asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = [loop.create_future() for _ in range(3)]
    for future, after_s in zip(futures, (0.3, 0.05, 60), strict=True):
        alarms.set(future, loop.time() + after_s)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(futures[1], 10)
    assert not futures[0].done()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(futures[0], 10)
    assert not futures[2].done()


async def test_what_is_dropped_or_done_is_left_alone() -> None:
    alarms, loop = Alarms(), asyncio.get_running_loop()
    dropped: asyncio.Future[None] = loop.create_future()
    done: asyncio.Future[int] = loop.create_future()
    last: asyncio.Future[None] = loop.create_future()
    for future in (dropped, done, last):
        alarms.set(future, loop.time() + 0.05)
    alarms.drop(dropped)
    alarms.drop(dropped)
    done.set_result(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(last, 10)
    assert not dropped.done()
    assert done.result() == 1


async def test_it_starts_again_after_a_rest() -> None:
    alarms, loop = Alarms(), asyncio.get_running_loop()
    for _ in range(2):
        future: asyncio.Future[None] = loop.create_future()
        alarms.set(future, loop.time())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 10)
        alarms.drop(future)
        await asyncio.sleep(0.1)
