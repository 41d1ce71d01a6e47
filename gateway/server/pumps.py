"""Reading on where nobody listens any more: some providers bill a whole answer, whoever hung up in the middle of it.

The answer of such a provider is read by a task of its own. When the caller has gone it reads on until the provider has
said what it counted, so that this is what is paid. So many answers at most, and for so long; otherwise the full hold
stands.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from gateway.server.providers.base import UpstreamResponse

log = structlog.get_logger("gateway.pumps")

# Events that wait for the caller; then the provider waits.
AHEAD: Final = 16
_END: Final = b""


class Pumped:
    """The stream of an `UpstreamResponse`, whose reading does not end with its reader; all else is told by that."""

    def __init__(self, response: UpstreamResponse) -> None:
        self._response = response
        self._events: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        self._is_heard = True
        self.reading = asyncio.create_task(self._read())
        self.reading.add_done_callback(self._ended)

    async def chunks(self) -> AsyncIterator[bytes]:
        while not (self._events.empty() and self.reading.done()):
            if (event := await self._events.get()) is not _END:
                yield event
        self.reading.result()

    def hear_no_more(self) -> None:
        """From now on what is read is thrown away."""
        self._is_heard = False
        while not self._events.empty():
            self._events.get_nowait()

    async def aclose(self) -> None:
        self.reading.cancel()
        await asyncio.wait([self.reading])
        if not self.reading.cancelled():
            # Whoever wanted to know of an error has heard of it.
            self.reading.exception()
        await self._response.aclose()

    async def _read(self) -> None:
        async for event in self._response.chunks():
            if self._is_heard:
                await self._events.put(event)

    def _ended(self, _reading: object) -> None:
        # A full queue has no one waiting before it.
        with contextlib.suppress(asyncio.QueueFull):
            self._events.put_nowait(_END)


class Pumps:
    """Those of this process that read on for nobody: `most` at once, each for `within_s`."""

    def __init__(self, *, most: int, within_s: float) -> None:
        self._most = most
        self._within_s = within_s
        self._running: set[asyncio.Task[None]] = set()

    def leave(self, answer: Pumped, settle: Callable[[], None]) -> bool:
        """Reads the rest and settles then; False, and nothing is done, when too many are being read."""
        if len(self._running) >= self._most:
            log.warning("pumps_busy", running=len(self._running))
            return False
        answer.hear_no_more()
        pump = asyncio.create_task(self._pump(answer, settle))
        self._running.add(pump)
        pump.add_done_callback(self._running.discard)
        return True

    async def _pump(self, answer: Pumped, settle: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(self._within_s):
                await asyncio.wait([answer.reading])
            if not answer.reading.cancelled() and (error := answer.reading.exception()) is not None:
                log.warning("pump_broke", kind=type(error).__name__)
        except TimeoutError:
            log.warning("pump_gave_up", seconds=self._within_s)
        finally:
            settle()
            await answer.aclose()

    async def aclose(self) -> None:
        """What has not been counted by now stands at its full hold."""
        running = tuple(self._running)
        for pump in running:
            pump.cancel()
        if running:
            await asyncio.wait(running)
