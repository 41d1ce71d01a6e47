"""Deadlines of many futures on one timer: a timer each costs more than what they wait for.

A future whose time is over fails with `TimeoutError`, up to `TICK_S` late.
"""

import asyncio
from typing import Any, Final

TICK_S: Final = 0.02


class Alarms:
    """One per event loop and owner."""

    def __init__(self) -> None:
        self._until: dict[asyncio.Future[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, future: "asyncio.Future[Any]", until: float) -> None:
        """until: of the loop's clock. Whoever waits calls `drop` when it is over, whatever came of it."""
        self._until[future] = until
        if self._timer is None:
            self._timer = future.get_loop().call_later(TICK_S, self._look)

    def drop(self, future: "asyncio.Future[Any]") -> None:
        self._until.pop(future, None)

    def _look(self) -> None:
        self._timer = None
        if not self._until:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        for future, until in tuple(self._until.items()):
            if until <= now:
                del self._until[future]
                if not future.done():
                    future.set_exception(TimeoutError())
        self._timer = loop.call_later(TICK_S, self._look)
