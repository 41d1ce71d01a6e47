"""The gateway's own HTTP/1.1 edge under uvicorn's server: an `asyncio.Protocol` around httptools' parser.

It speaks plain ASGI and leaves out what the gateway has no use for (websockets, access logs, upgrades). What it has
besides is an `Exchange` that a call can watch for its caller's leaving without a task of its own. See
docs/adr/0018-an-edge-of-our-own.md for what that saves.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import structlog
import uvicorn
from uvicorn.server import ServerState

log = structlog.get_logger("gateway")

# All of a request before its body, and whatever stands in or behind it that is none; longer ones come from no client we
# know.
MAX_HEAD_BYTES: Final = 64 * 1024
# What is read ahead of an application that has not asked for it yet.
MAX_READ_AHEAD: Final = 256 * 1024

_STATUS_LINES: Final = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_EXTENSION: Final = "kumiai.exchange"
# In the scope: name of a header → its values.
_INDEX: Final = "kumiai.headers"


class Exchange:
    """One request and its answer. `receive` and `send` are ASGI's."""

    __slots__ = (
        "_edge", "_is_bodiless", "_is_chunked", "_is_told_whole", "_is_whole", "_left", "_parts", "_size", "_waiter",
        "_wants_word", "_watchers", "has_begun", "is_gone", "is_over", "keep_alive", "scope", "taken", "task",
    )  # fmt: skip

    def __init__(self, edge: "Edge", scope: dict[str, Any], *, keep_alive: bool, wants_word: bool) -> None:
        """wants_word: the client sends its body after a `100 Continue` only."""
        self._edge = edge
        self.scope = scope
        self.keep_alive = keep_alive
        self._wants_word = wants_word
        self._parts: list[bytes] = []
        self._size = 0
        self._is_whole = self._is_told_whole = False
        self._waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._watchers: list[Callable[[], None]] = []
        self.has_begun = self.is_over = self.is_gone = False
        self._is_chunked = self._is_bodiless = False
        # Pieces of the answer for which there was room.
        self.taken = 0
        # What is missing of the body; None where only the connection's end tells.
        self._left: int | None = None

    @property
    def has_body(self) -> bool:
        """Whether all of the request's body has come."""
        return self._is_whole

    def watch(self, gone: Callable[[], None]) -> None:
        """`gone` is called when the client leaves before its answer is over."""
        self._watchers.append(gone)

    def unwatch(self, gone: Callable[[], None]) -> None:
        if gone in self._watchers:
            self._watchers.remove(gone)

    def hang_up(self) -> None:
        """Drops the connection with whatever was not taken, which a close would wait for."""
        self._edge.transport.abort()

    # ── the application's side ───────────────────────────────────────────────────────────────────────────────────

    async def run(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            log.error("request_failed", exc_info=True)
        finally:
            self._edge.ended(self)

    async def receive(self) -> dict[str, Any]:
        if self._wants_word and not self.is_gone:
            self._wants_word = False
            self._edge.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.is_gone or self.is_over):
            if self._parts or (self._is_whole and not self._is_told_whole):
                body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                self._is_told_whole = self._is_whole
                self._edge.read_on()
                return {"type": "http.request", "body": body, "more_body": not self._is_whole}
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self._edge.is_paused and not self.is_gone:
            await self._edge.may_write()
        if self.is_gone:
            return
        if message["type"] == "http.response.start":
            if self.has_begun:
                raise RuntimeError("an answer that has begun")
            self._begin(message["status"], message.get("headers", ()))
            return
        if not self.has_begun or self.is_over:
            raise RuntimeError("no answer under way")
        self.taken += 1
        body = message.get("body", b"")
        is_last = not message.get("more_body", False)
        transport = self._edge.transport
        if self._is_bodiless:
            pass
        elif self._is_chunked:
            if body and is_last:
                transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            elif body:
                transport.write(b"%x\r\n%b\r\n" % (len(body), body))
            elif is_last:
                transport.write(b"0\r\n\r\n")
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (is_last and self._left):
                    # What would follow on this connection could not be told from what is missing.
                    transport.abort()
                    raise RuntimeError("a body that is not as long as was said")
            transport.write(body)
        if is_last:
            self._finish()

    def _begin(self, status: int, headers: Any) -> None:
        self.has_begun = True
        if self._wants_word:
            # Its body may come all the same, or the next request in its place: that could not be told apart.
            self._wants_word = self.keep_alive = False
        self._is_bodiless = self.scope["method"] == "HEAD" or status in _BODILESS
        lines = [_STATUS_LINES[status]]
        length: bytes | None = None
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        lines += [b"%b: %b\r\n" % header for header in self._edge.default_headers]
        if length is not None:
            self._left = int(length)
        elif self.scope["http_version"] == "1.1" and not self._is_bodiless:
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise RuntimeError("a header with a line end")
        self._edge.transport.write(head + b"\r\n")

    def _finish(self) -> None:
        self.is_over = True
        self._wake()
        self._edge.finished(self)

    # ── the connection's side ────────────────────────────────────────────────────────────────────────────────────

    def add(self, body: bytes) -> None:
        self._parts.append(body)
        self._size += len(body)
        if self._size > MAX_READ_AHEAD:
            self._edge.hold_back()
        self._wake()

    def whole(self) -> None:
        self._is_whole = True
        self._wake()

    def gone(self) -> None:
        if self.is_over:
            return
        self.is_gone = True
        self._wake()
        for watcher in tuple(self._watchers):
            watcher()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def header_values(scope: Any, name: bytes) -> Sequence[bytes]:
    """Every value of a header, in the order given; a call asks for a dozen of them."""
    index = scope.get(_INDEX)
    if index is None:
        return [value for key, value in scope["headers"] if key == name]
    values: Sequence[bytes] = index.get(name, ())
    return values


def exchange_of(scope: Any) -> Exchange:
    """The exchange that a scope of `Edge` belongs to."""
    return cast("Exchange", scope["extensions"][_EXTENSION])


class Edge(asyncio.Protocol):
    """One client's connection, as uvicorn's server makes them: requests one after another, each answered in turn."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app = config.loaded_app
        self._state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._keep_alive_s = config.timeout_keep_alive
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._reading: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._values: dict[bytes, list[bytes]] = {}
        # What came since the parser last had something to tell.
        self._untold_bytes = 0
        self._wants_word = False
        self._idle_since = self._loop.time()
        self._idle_timer: asyncio.TimerHandle | None = None
        # Bytes of answers that lay there when it was last looked at, and how far the answer under way was.
        self._untaken_bytes = 0
        self._seen_at: tuple[Exchange | None, int] = (None, 0)
        self._writable: asyncio.Future[None] | None = None
        self._about: dict[str, Any] = {}
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.is_paused = False
        self._is_held_back = False

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return self._state.default_headers

    # ── its exchanges ────────────────────────────────────────────────────────────────────────────────────────────

    async def may_write(self) -> None:
        """Returns when the client has taken what was written, or has left."""
        while self.is_paused:
            if self._writable is None or self._writable.done():
                self._writable = self._loop.create_future()
            await asyncio.shield(self._writable)

    def hold_back(self) -> None:
        """Reads no more until `read_on`."""
        self._is_held_back = True
        self.transport.pause_reading()

    def read_on(self) -> None:
        if self._is_held_back and not self._waiting:
            self._is_held_back = False
            self.transport.resume_reading()

    def finished(self, exchange: Exchange) -> None:
        """An answer is over."""
        self._state.total_requests += 1
        self._exchange = None
        if not exchange.keep_alive:
            self.transport.close()
        elif self._waiting:
            self._start(self._waiting.popleft())
        else:
            self._idle_since = self._loop.time()
        # Also what the application did not want of a body: it is read and left.
        self.read_on()

    def ended(self, exchange: Exchange) -> None:
        """The application has returned. One that gave no whole answer has failed."""
        self._state.tasks.discard(cast("asyncio.Task[None]", exchange.task))
        if exchange.is_over or exchange.is_gone:
            return
        if exchange.has_begun:
            self.transport.abort()
        else:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _start(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.task = self._loop.create_task(exchange.run(self._app))
        self._state.tasks.add(exchange.task)

    def _refuse_next(self, status: HTTPStatus) -> None:
        """What came is no request; answers that are still under way are the last."""
        if self._reading is not None and self._reading.has_begun:
            # Nothing can be said in the middle of an answer, and behind it the client would take it for the next one.
            if self._reading.is_over:
                self.transport.close()
            else:
                self.transport.abort()
            return
        if self._exchange is None or self._exchange is self._reading:
            self._refuse(status)
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        self.shutdown()
        self.transport.pause_reading()

    def _refuse(self, status: HTTPStatus) -> None:
        self.transport.write(_STATUS_LINES[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()

    # ── uvicorn's side ───────────────────────────────────────────────────────────────────────────────────────────

    def shutdown(self) -> None:
        """Lets the answers under way be the last."""
        if self._exchange is None:
            self.transport.close()
        else:
            for exchange in (self._exchange, *self._waiting):
                exchange.keep_alive = False

    # ── asyncio's side ───────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own two classes
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._about = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "server": tuple(own[:2]) if isinstance(own, tuple) else None,
            "client": tuple(peer[:2]) if isinstance(peer, tuple) else None,
            "root_path": "",
        }
        self._idle_timer = self._loop.call_later(self._keep_alive_s, self._look)

    def data_received(self, data: bytes) -> None:
        self._untold_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # It is answered as if it had not asked; what it would say in another protocol is not listened to.
            self._hear_no_more()
        except httptools.HttpParserError:
            self._refuse_next(HTTPStatus.BAD_REQUEST)
        else:
            if self._untold_bytes > MAX_HEAD_BYTES:
                self._refuse_next(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def connection_lost(self, error: Exception | None) -> None:
        self._state.connections.discard(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._waiting.clear()
        if self._exchange is not None:
            self._exchange.gone()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _look(self) -> None:
        """Closes a connection that nobody uses, or takes anything from. One timer for its whole life, not one a request."""
        now = self._loop.time()
        left_s = self._keep_alive_s if self._exchange is not None else self._idle_since + self._keep_alive_s - now
        untaken_before, self._untaken_bytes = self._untaken_bytes, self.transport.get_write_buffer_size()
        exchange = self._exchange
        before, self._seen_at = self._seen_at, (exchange, 0 if exchange is None else exchange.taken)
        is_stuck = self.is_paused and exchange is not None and before == self._seen_at
        if is_stuck and self._untaken_bytes == untaken_before:
            # Whoever waits for room there would wait for ever, with all that the call holds.
            self.transport.abort()
        elif left_s > 0:
            self._idle_timer = self._loop.call_later(left_s, self._look)
        elif not self._untaken_bytes:
            self.transport.close()
        elif self._untaken_bytes == untaken_before:
            # Nobody takes what is left of an answer; a close would wait for that.
            self.transport.abort()
        else:
            self._idle_timer = self._loop.call_later(self._keep_alive_s, self._look)

    # ── the parser's side ────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers, self._values = [], {}
        self._wants_word = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is not None:
            # Behind a body (trailers): who reads the scope has read it by then.
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._wants_word = True
        self._headers.append((name, value))
        self._values.setdefault(name, []).append(value)

    def on_headers_complete(self) -> None:
        self._untold_bytes = 0
        parser = self._parser
        raw_path, _, query = self._url.partition(b"?")
        if not raw_path.startswith(b"/"):
            # What a proxy is asked: an absolute address.
            raw_path = httptools.parse_url(self._url).path or b"/"
        path = raw_path.decode("latin-1")
        exchange = Exchange(
            self,
            scope := {
                **self._about,
                "method": parser.get_method().decode("ascii"),
                "path": unquote(path) if "%" in path else path,
                "raw_path": raw_path,
                "query_string": query,
                "headers": self._headers,
                _INDEX: self._values,
                "state": self._app_state.copy(),
                "extensions": {},
            },
            keep_alive=parser.should_keep_alive(),
            wants_word=self._wants_word,
        )
        version = parser.get_http_version()
        if version != "1.1":
            scope["http_version"] = version
            exchange.keep_alive = False
        scope["extensions"][_EXTENSION] = exchange
        self._reading = exchange
        if self._exchange is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self.hold_back()

    def on_body(self, body: bytes) -> None:
        self._untold_bytes = 0
        if self._reading is not None and not self._reading.is_over:
            self._reading.add(body)

    def on_message_complete(self) -> None:
        self._untold_bytes = 0
        if self._reading is not None:
            self._reading.whole()
            self._reading = None
