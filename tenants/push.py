"""Tells the other processes at once that the configuration moved; they would find it at their next poll anyway.

Losing it loses no session and no money, only half a second: every process goes on polling the database, which alone
decides.
"""

import asyncio
import contextlib
from typing import Final

import structlog
from valkey.asyncio import Valkey
from valkey.exceptions import ValkeyError

log = structlog.get_logger("push")

CHANNEL: Final = "kumiai:configuration"
TIMEOUT_S: Final = 1.0
RETRY_S: Final = 5.0


class Push:
    """One per process. Without a server's address `publish` does nothing and `wait` only sleeps."""

    def __init__(self, url: str = "") -> None:
        self._url = url
        self._client: Valkey | None = None
        self._listener: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Event] = set()

    async def publish(self) -> None:
        """Says that the configuration moved, after the change is committed; a server that is away is passed over."""
        if not self._url:
            return
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._connected().publish(CHANNEL, b"moved")
        except (ValkeyError, OSError):
            log.warning("push_failed", exc_info=True)

    async def wait(self, timeout_s: float) -> None:
        """Returns when another process said so, or after `timeout_s`."""
        if not self._url:
            await asyncio.sleep(timeout_s)
            return
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        moved = asyncio.Event()
        self._waiting.add(moved)
        try:
            async with asyncio.timeout(timeout_s):
                await moved.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(moved)

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
        if self._client is not None:
            await self._client.aclose()
        self._listener = self._client = None

    async def _listen(self) -> None:
        while True:
            try:
                async with self._connected().pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(CHANNEL)
                    async for _message in channel.listen():
                        for moved in self._waiting:
                            moved.set()
            except (ValkeyError, OSError):
                log.warning("push_lost", exc_info=True)
            await asyncio.sleep(RETRY_S)

    def _connected(self) -> Valkey:
        if self._client is None:
            self._client = Valkey.from_url(self._url, socket_connect_timeout=TIMEOUT_S)
        return self._client
