"""`Kumiai-Resumable: 1`: a streamed answer that its caller may lose and take up again at `/v1/streams/<call id>`.

Its events carry numbers (`id:`). The call goes on when the caller left and is paid for as if they had stayed;
`GET` with `Last-Event-ID` gives what came after that number and goes on, from any gateway; `DELETE` ends the call.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Final
from uuid import UUID

from gateway.contracts import BadRequest
from gateway.server.authentication import Authenticator, Caller
from gateway.server.edge import Exchange, exchange_of, header_values
from gateway.server.http import (
    EVENT_STREAM,
    LAST_WORD_S,
    AsgiMessage,
    AsgiScope,
    AsgiSend,
    Client,
    Disconnected,
    MethodNotAllowed,
    Restarting,
    TooSlow,
    error_event,
    send_problem,
    send_start,
)
from gateway.server.journal import Headers, Journal, Said, StreamLost, StreamNotFound
from gateway.server.providers.base import HEARTBEAT
from gateway.server.wires.messages import PATH as MESSAGES_PATH
from observability.problems import Problem
from tenants.context import new_id

PATH: Final = "/v1/streams/"
# An event and the blank line that ends it.
_EVENT: Final = re.compile(rb".+?(?:\r?\n\r?\n|\Z)", re.DOTALL)


def is_resumable(scope: AsgiScope) -> bool:
    """Whether the caller asked for an answer that it may take up again. Raises `BadRequest` where it is kept in other
    words than it is told in."""
    if b"1" not in header_values(scope, b"kumiai-resumable"):
        return False
    if scope["path"] == MESSAGES_PATH:
        raise BadRequest(
            "Kumiai-Resumable は /v1/messages では使えません。/v1/chat/completions で呼ぶか、付けずに送ってください。",
            param="Kumiai-Resumable",
        )
    return True


class Outlet:
    """Where such an answer goes: into the journal, and to whoever asked for as long as they listen.

    Until `begin` it passes everything on as it comes; from then on it never waits for the listener, except for an
    answer of which no more is kept.
    """

    def __init__(self, streams: "Streams", caller: Caller, call_id: UUID, exchange: Exchange, send: AsgiSend) -> None:
        self._streams = streams
        self._caller = caller
        self._call_id = call_id
        self._listener = Client(exchange)
        self._send = send
        self._said: Said | None = None
        self._telling: asyncio.Task[None] | None = None
        self._unsent: list[bytes] = []
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._has_started = self._has_ended = False

    def begin(self, headers: Headers, call: Client) -> None:
        """The first word is here: from now on `call` goes on without its caller."""
        call.let_go()
        self._said = self._streams.journal.begin(self._caller, self._call_id, headers, call.cut)

    async def __call__(self, message: AsgiMessage) -> None:
        if self._said is None or message["type"] == "http.response.start":
            self._has_started = True
            await self._send(message)
            return
        if self._telling is None:
            self._telling = asyncio.ensure_future(
                self._streams.tell(self._listener, self._call_id, self._send, self._parts())
            )
        body: bytes = message.get("body", b"")
        if body and body != HEARTBEAT:
            # What the guard gives may be several events, and a connection may be lost between any two.
            body = b"".join([self._said.add(event) for event in _EVENT.findall(body)])
            self._streams.journal.changed()
        self._has_ended = not message.get("more_body")
        if body and not self._telling.done():
            self._unsent.append(body)
        self._news.set()
        if not self._said.is_kept:
            await self._wait_for_listener()

    async def end(self) -> None:
        """The call is over; waits until the listener has the rest."""
        if self._said is None:
            return
        if self._has_started and not self._has_ended:
            lost = error_event(
                StreamLost("ここまでの答えは、そのまま使えます。続きが要るときは、もう一度送ってください。")
            )
            await self({"type": "http.response.body", "body": lost, "more_body": False})
        self._said.is_over = True
        self._streams.journal.changed()
        if self._telling is not None:
            try:
                await self._telling
            finally:
                self._telling.cancel()

    async def _parts(self) -> AsyncGenerator[bytes]:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._unsent:
                part = b"".join(self._unsent)
                self._unsent.clear()
                yield part
                self._taken.set()
            if self._has_ended and not self._unsent:
                return

    async def _wait_for_listener(self) -> None:
        assert self._telling is not None
        while self._unsent and not self._telling.done():
            self._taken.clear()
            taken = asyncio.ensure_future(self._taken.wait())
            try:
                await asyncio.wait((taken, self._telling), return_when=asyncio.FIRST_COMPLETED)
            finally:
                taken.cancel()
        if self._telling.done() and not self._has_ended:
            raise Disconnected


class Streams:
    """One per gateway process."""

    def __init__(self, journal: Journal, authenticator: Authenticator, *, heartbeat_s: float, pace_s: float) -> None:
        """pace_s: who does not take a piece within that time, or twice of it, is cut off."""
        self.journal = journal
        self._authenticator = authenticator
        self._heartbeat_s = heartbeat_s
        self._pace_s = pace_s
        self._readers: dict[Client, UUID] = {}
        self._is_leaving = False

    def outlet(self, caller: Caller, call_id: UUID, exchange: Exchange, send: AsgiSend) -> Outlet:
        return Outlet(self, caller, call_id, exchange, send)

    def leave(self) -> None:
        """Sends everybody who listens here, now and from now on, to another gateway."""
        self._is_leaving = True
        for reader, call_id in self._readers.items():
            reader.cut(_moved(call_id))

    async def serve(self, scope: AsgiScope, send: AsgiSend) -> None:
        """`GET` and `DELETE` on `/v1/streams/<call id>`, for the caller of that call alone."""
        request_id = new_id()
        try:
            caller = await self._authenticator.authenticate(scope)
            call_id = _call_id(scope["path"])
            if scope["method"] == "DELETE":
                await self.journal.stop(caller, call_id)
                await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            if scope["method"] != "GET":
                raise MethodNotAllowed("続きを受け取るときはGET、やめるときはDELETEで呼んでください。")
            after = _last_event_id(scope)
            headers = await self.journal.find(caller, call_id)
        except Problem as problem:
            await send_problem(send, problem, call_id=request_id)
            return
        await send_start(send, 200, EVENT_STREAM, [*headers, (b"x-accel-buffering", b"no")])
        parts = self.journal.follow(caller.tenant_id, call_id, after=after, heartbeat_s=self._heartbeat_s)
        await self.tell(Client(exchange_of(scope)), call_id, send, parts)

    async def tell(self, reader: Client, call_id: UUID, send: AsgiSend, parts: AsyncGenerator[bytes]) -> None:
        """Passes on what comes for as long as somebody takes it; who is cut off is told why."""
        self._readers[reader] = call_id
        if self._is_leaving:
            reader.cut(_moved(call_id))
        last = b""
        try:
            with reader:
                async with aclosing(parts):
                    reader.keep_pace(self._pace_s)
                    async for part in parts:
                        reader.is_taking = True
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                        reader.is_taking = False
        except (Disconnected, TooSlow):
            return
        except Problem as problem:
            last = error_event(problem)
        finally:
            del self._readers[reader]
            reader.forget()
        try:
            async with asyncio.timeout(LAST_WORD_S if last else None):
                await send({"type": "http.response.body", "body": last, "more_body": False})
        except TimeoutError:
            reader.hang_up()


def _moved(call_id: UUID) -> Restarting:
    return Restarting(
        f"GET {PATH}{call_id} を、最後に届いた id を Last-Event-ID に入れて呼ぶと、新しい受付が続きを返します。"
    )


def _call_id(path: str) -> UUID:
    with contextlib.suppress(ValueError):
        return UUID(path.removeprefix(PATH))
    raise StreamNotFound("番号を確かめてください。")


def _last_event_id(scope: AsgiScope) -> int:
    """0 for the whole answer. Raises `BadRequest`."""
    given = header_values(scope, b"last-event-id")
    if not given:
        return 0
    if len(given) > 1 or not given[0].isdigit() or len(given[0]) > 9:
        raise BadRequest("Last-Event-ID には、最後に届いた id の数字を1つ入れてください。", param="Last-Event-ID")
    return int(given[0])
