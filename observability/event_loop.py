"""Tells when a process's event loop stood still: everything it serves waited for as long."""

import asyncio
import time
from typing import Final

import structlog

from observability import metrics

log = structlog.get_logger("process")

# How often the loop is asked, and from when on an answer that late is worth a line in the log.
ASK_EVERY_S: Final = 0.5
STALLED_S: Final = 1.0


async def watch_event_loop() -> None:
    """Measures the loop it runs on until it is cancelled: `kumiai_event_loop_lag_seconds`, `event_loop_stalled`."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(ASK_EVERY_S)
        lag_s = max(0.0, time.monotonic() - began - ASK_EVERY_S)
        metrics.EVENT_LOOP_LAG_SECONDS.observe(lag_s)
        if lag_s >= STALLED_S:
            log.warning("event_loop_stalled", seconds=round(lag_s, 3))
