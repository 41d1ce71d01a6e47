"""What a process does beside what it is asked for, from its start to its end."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

log = structlog.get_logger("process")

Duty = Callable[[], Coroutine[Any, Any, None]]
# How soon one that broke off begins again.
AGAIN_S: Final = 1.0


class Duties:
    """Duties that are begun anew when they break off: without them a process goes on by the rules and lists of before."""

    def __init__(self) -> None:
        self._is_over = False
        self._running: list[asyncio.Task[None]] = []

    def start(self, *duties: Duty) -> None:
        """Each runs until `stop`."""
        self._running += [asyncio.create_task(self._always(duty)) for duty in duties]

    async def stop(self) -> None:
        self._is_over = True
        for running in self._running:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def _always(self, duty: Duty) -> None:
        # One may break off while it is stopped, and what it breaks off with stand in the place of the stop.
        while not self._is_over:
            try:
                await duty()
            except Exception:
                # A bug in one round costs that round: not all that follow, nor what is left to do when the process stops.
                log.error("duty_broke_off", duty=duty.__qualname__, exc_info=True)
            await asyncio.sleep(AGAIN_S)
