"""A change of configuration reaches the other processes at once, and reaches them also without Valkey."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from kumiai.local.valkey import Valkey
from tenants.db import Database, DatabaseUrls
from tenants.policy import bump_configuration
from tenants.push import Push

LONG_S = 30


@pytest.fixture
async def listener(valkey_server: Valkey) -> AsyncIterator[Push]:
    push = Push(valkey_server.url)
    yield push
    await push.close()


async def _heard(push: Push, act: asyncio.Event) -> float:
    """Seconds `push` waited; `act` is set once it listens for certain."""
    began = time.monotonic()
    waiting = asyncio.create_task(push.wait(LONG_S))
    await asyncio.sleep(0.3)
    act.set()
    await waiting
    return time.monotonic() - began


async def test_a_committed_change_wakes_the_other_processes(
    migrated_sqlite: DatabaseUrls, valkey_server: Valkey, listener: Push
) -> None:
    db = Database(migrated_sqlite, push_url=valkey_server.url)
    listening = asyncio.Event()
    heard = asyncio.create_task(_heard(listener, listening))
    await listening.wait()
    async with db.platform_session("test") as session:
        await bump_configuration(session)
    assert await heard < LONG_S
    await db.close()


async def test_a_change_that_is_rolled_back_wakes_nobody(
    migrated_sqlite: DatabaseUrls, valkey_server: Valkey, listener: Push
) -> None:
    db = Database(migrated_sqlite, push_url=valkey_server.url)
    waiting = asyncio.create_task(listener.wait(1.5))
    began = time.monotonic()
    await asyncio.sleep(0.3)
    with pytest.raises(RuntimeError):
        async with db.platform_session("test") as session:
            await bump_configuration(session)
            raise RuntimeError
    await waiting
    assert time.monotonic() - began >= 1.5
    await db.close()


async def test_a_server_that_is_away_stops_no_change(migrated_sqlite: DatabaseUrls) -> None:
    db = Database(migrated_sqlite, push_url="valkey://127.0.0.1:9/0")
    async with db.platform_session("test") as session:
        await bump_configuration(session)
    await db.push.wait(0.05)
    await db.close()


async def test_without_a_server_waiting_is_only_sleeping() -> None:
    push = Push()
    await push.publish()
    await push.wait(0.01)
    await push.close()
