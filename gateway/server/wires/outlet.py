"""The way out for callers of Anthropic's wire: what the pipeline sends, in the words of `messages`."""

import re
from typing import Final

import orjson

from gateway.server.http import AsgiMessage, AsgiSend
from gateway.server.wires.messages import MessageStream, error_of, message_of

_EVENT: Final = re.compile(rb".+?\r?\n\r?\n", re.DOTALL)
# Events of our own, which tell of the queue, and comments begin otherwise and pass as they are.
_DATA: Final = b"data: "


class MessagesOutlet:
    """A `send` that takes answers of `/v1/chat/completions` and sends on messages. One per request."""

    def __init__(self, send: AsgiSend) -> None:
        self._send = send
        # By which `Client` finds the connection.
        self.__self__ = getattr(send, "__self__", None)
        self._start: AsgiMessage = {}
        self._parts: list[bytes] = []
        self._stream: MessageStream | None = None
        self._request_id = ""

    async def __call__(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            self._request_id = headers.get(b"kumiai-call-id", b"").decode("ascii")
            self._start = {**message, "headers": [*message["headers"], (b"request-id", self._request_id.encode())]}
            if headers[b"content-type"].startswith(b"text/event-stream"):
                self._stream = MessageStream(self._request_id)
                await self._send(self._start)
            return
        self._parts.append(message.get("body", b""))
        is_last = not message.get("more_body")
        if self._stream is not None:
            await self._send({"type": "http.response.body", "body": self._told(self._stream), "more_body": not is_last})
        elif is_last:
            await self._send_whole(b"".join(self._parts))

    def _told(self, stream: MessageStream) -> bytes:
        """Whole events out of what came so far; the rest waits for its end."""
        came = b"".join(self._parts)
        told = []
        end = 0
        for found in _EVENT.finditer(came):
            event, end = found.group(), found.end()
            told.append(stream.event(event.removeprefix(_DATA).strip()) if event.startswith(_DATA) else event)
        self._parts = [came[end:]] if end < len(came) else []
        return b"".join(told)

    async def _send_whole(self, body: bytes) -> None:
        status = self._start["status"]
        told = message_of(body) if status == 200 else error_of(orjson.loads(body)["error"], status, self._request_id)
        headers = [(k, v) for k, v in self._start["headers"] if k != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", b"%d" % len(told))]})
        await self._send({"type": "http.response.body", "body": told})
