"""`Kumiai-Queue-Events: 1`: whoever waits for a stream hears how many are ahead, and until its first word that somebody
is there."""

import asyncio

from gateway.server.http import EVENT_STREAM, AsgiSend, send_start
from gateway.server.providers.base import HEARTBEAT
from gateway.server.record import CallRecord


class QueueTeller:
    """One of a call whose caller asked for it. Its answer begins when there is something to tell."""

    def __init__(self, record: CallRecord, send: AsgiSend, *, heartbeat_s: float) -> None:
        self._record = record
        self._send = send
        self._heartbeat_s = heartbeat_s
        self._beating: asyncio.Task[None] | None = None

    async def __call__(self, ahead: int) -> None:
        if self._beating is None:
            headers = [
                (b"kumiai-call-id", self._record.call_text.encode()),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await send_start(self._send, 200, EVENT_STREAM, headers)
            self._record.headers_sent = self._record.is_queued = True
            self._beating = asyncio.ensure_future(self._beat())
        event = b'event: queue\ndata: {"ahead":%d}\n\n' % ahead
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    def end(self) -> None:
        """Nothing more is told."""
        if self._beating is not None:
            self._beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if not self._record.is_queued:
                # The answer gives signs of its own.
                return
            await self._send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})
