"""The way in and out for callers who speak otherwise than `/v1/chat/completions`, on whose words the pipeline works."""

import re
from typing import Final, Protocol

from gateway.contracts import ModelRequest
from gateway.server.http import AsgiMessage, AsgiSend, pieces_of
from gateway.server.providers.outbound import data_of

_EVENT: Final = re.compile(rb".+?\r?\n\r?\n", re.DOTALL)
# Events of our own, which tell of the queue, and comments pass as they are.
_OURS: Final = (b"event: queue\n", b"event: answer\n", b":")


class Wire(Protocol):
    """What one caller asks and hears, in their own words. One per request."""

    def parse(self, raw: bytes) -> ModelRequest:
        """The call for `/v1/chat/completions`. Raises `BadRequest` or `BodyTooLarge`, naming the field as it was written."""

    def begin(self, call_id: str) -> list[tuple[bytes, bytes]]:
        """Headers beside the pipeline's own; an answer follows. call_id: the number of the call it is to."""

    def event(self, data: bytes) -> bytes:
        """One event's data → any number of whole events."""

    def answer(self, body: bytes) -> bytes:
        """A whole answer."""

    def error(self, body: bytes, status: int) -> bytes:
        """A refusal in OpenAI's shape."""


class WireOutlet:
    """A `send` that takes answers of `/v1/chat/completions` and sends on what `wire` makes of them."""

    def __init__(self, wire: Wire, send: AsgiSend) -> None:
        self._wire = wire
        self._send = send
        self._start: AsgiMessage = {}
        self._parts: list[bytes] = []
        self._is_stream = False

    async def __call__(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            more = self._wire.begin(headers.get(b"kumiai-call-id", b"").decode("ascii"))
            self._start = {**message, "headers": [*message["headers"], *more]}
            self._is_stream = headers[b"content-type"].startswith(b"text/event-stream")
            if self._is_stream:
                await self._send(self._start)
            return
        self._parts.append(message.get("body", b""))
        is_last = not message.get("more_body")
        if self._is_stream:
            await self._send({"type": "http.response.body", "body": self._told(), "more_body": not is_last})
        elif is_last:
            await self._send_whole(b"".join(self._parts), in_pieces=len(self._parts) > 1)

    def _told(self) -> bytes:
        """Whole events out of what came so far; the rest waits for its end."""
        came = b"".join(self._parts)
        told = []
        end = 0
        for found in _EVENT.finditer(came):
            event, end = found.group(), found.end()
            told.append(event if event.startswith(_OURS) else self._wire.event(data_of(event)))
        self._parts = [came[end:]] if end < len(came) else []
        return b"".join(told)

    async def _send_whole(self, body: bytes, *, in_pieces: bool) -> None:
        """in_pieces: as it came, for whoever looks at how fast they are taken."""
        status = self._start["status"]
        told = self._wire.answer(body) if status == 200 else self._wire.error(body, status)
        headers = [(k, v) for k, v in self._start["headers"] if k != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", b"%d" % len(told))]})
        for part in pieces_of(told) if in_pieces else ({"type": "http.response.body", "body": told},):
            await self._send(part)
