"""Plain HTTP/1.1 connections to model servers: what a call needs and no more, around httptools' parser.

A connection carries one call at a time and is kept for the next one when its answer was read to the end. A call that is
cut off closes it, which is what ends generation upstream. See docs/adr/0009-http-client.md.
"""

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

import httptools
from yarl import URL

from tenants.alarms import Alarms

# A server forgets an idle connection sooner or later; one that is older is not asked again.
IDLE_S: Final = 30.0
# What is read ahead of a slow reader.
MAX_READ_AHEAD: Final = 256 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024


class ConnectionBroken(Exception):
    """The connection ended, or what came over it is no HTTP."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads. `authority` is what the server is called in its own `Host` header."""

    host: str
    port: int
    is_secure: bool
    authority: str
    path: str


@lru_cache(maxsize=1024)
def target_of(url: str) -> Target:
    """Raises `ValueError` for what is no absolute http(s) URL."""
    parsed = URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.raw_host or not parsed.port:
        raise ValueError("not an absolute http(s) URL")
    return Target(
        parsed.raw_host, parsed.port, parsed.scheme == "https", parsed.host_port_subcomponent or "", parsed.raw_path_qs
    )


class Response:
    """An answer whose head has come. `headers` by lower-case name, the last of several.

    It may be ended more than once: its connection is the next call's from the first time on.
    """

    def __init__(self, connection: "Connection", status: int, headers: dict[str, str]) -> None:
        self._connection = connection
        self._is_over = False
        self.status = status
        self.headers = headers

    async def readany(self, until: float) -> bytes:
        """What has come since the last time, waiting for something; empty at the end.

        until: of the loop's clock. Raises `ConnectionBroken`, `TimeoutError`.
        """
        return await self._connection.read(until)

    def take(self) -> bytes | None:
        """What has come already, without waiting: None for nothing yet, empty at the end. Raises `ConnectionBroken`."""
        return self._connection.take()

    def release(self) -> None:
        """Gives the connection back for the next call, if this answer was read to its end; else closes it."""
        if not self._is_over:
            self._is_over = True
            self._connection.release()

    def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._connection.abort()


class Connections:
    """Open connections of one process, by server."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._idle: dict[tuple[str, int, bool], list[Connection]] = {}
        self._alarms = Alarms()

    async def post(self, target: Target, headers: dict[str, str], body: bytes, *, connect_s: float) -> "Connection":
        """Sends a request. Raises `OSError` (a time-out included) when no connection could be made: nothing was sent."""
        lines = [f"POST {target.path} HTTP/1.1\r\nhost: {target.authority}\r\ncontent-length: {len(body)}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        head = "".join(lines)
        if head.count("\r") != len(headers) + 3 or head.count("\n") != len(headers) + 3:
            raise ValueError("a header with a line end")
        request = head.encode("latin-1") + b"accept-encoding: identity\r\nuser-agent: kumiai\r\n\r\n" + body
        connection = self._reused(target) or await self._opened(target, connect_s)
        connection.send(request)
        return connection

    def _reused(self, target: Target) -> "Connection | None":
        idle = self._idle.get((target.host, target.port, target.is_secure), [])
        oldest = asyncio.get_running_loop().time() - IDLE_S
        while idle and idle[0].idle_since < oldest:
            idle.pop(0).abort()
        while idle:
            connection = idle.pop()
            if not connection.is_closing:
                return connection
        return None

    async def _opened(self, target: Target, connect_s: float) -> "Connection":
        idle = self._idle.setdefault((target.host, target.port, target.is_secure), [])
        async with asyncio.timeout(connect_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(idle, self._alarms),
                target.host,
                target.port,
                ssl=self._tls if target.is_secure else None,
                server_hostname=target.host if target.is_secure else None,
            )
        return connection

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()


class Connection(asyncio.Protocol):
    """One exchange at a time: `send`, then `head`, then what the `Response` offers."""

    def __init__(self, idle: "list[Connection]", alarms: Alarms) -> None:
        self._idle = idle
        self._alarms = alarms
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._head: asyncio.Future[Response] | None = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._more: asyncio.Future[None] | None = None
        self._is_complete = False
        self._has_end = False
        self._may_be_kept = False
        self._error: Exception | None = None
        self._is_paused = False
        self.idle_since = 0.0

    @property
    def is_closing(self) -> bool:
        """Also when the end has been seen but is not told yet: what is sent then goes nowhere."""
        return self._transport is None or self._transport.is_closing()

    def send(self, request: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head = asyncio.get_running_loop().create_future()
        self._headers, self._head_bytes = {}, 0
        self._is_complete = self._has_end = self._may_be_kept = False
        assert self._transport is not None
        self._transport.write(request)

    async def head(self, until: float) -> Response:
        """The answer's head; whoever stops waiting for it hangs up.

        until: of the loop's clock. Raises `ConnectionBroken`, `TimeoutError`.
        """
        assert self._head is not None
        self._alarms.set(self._head, until)
        try:
            return await self._head
        except BaseException:
            self.abort()
            raise
        finally:
            self._alarms.drop(self._head)

    async def read(self, until: float) -> bytes:
        while (data := self.take()) is None:
            more = self._more = asyncio.get_running_loop().create_future()
            self._alarms.set(more, until)
            try:
                await more
            finally:
                self._alarms.drop(more)
        return data

    def take(self) -> bytes | None:
        if not self._chunks:
            if self._is_complete:
                return b""
            if self._error is not None:
                raise self._error
            return None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting_bytes = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def release(self) -> None:
        if self._is_complete and self._may_be_kept and not self.is_closing:
            self._parser = None
            self._chunks.clear()
            self.idle_since = asyncio.get_running_loop().time()
            self._idle.append(self)
            return
        self.abort()

    def abort(self) -> None:
        self._parser = None
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if not self._is_complete:
            self._error = self._error or ConnectionBroken(type(error).__name__)
            if self._head is not None and not self._head.done():
                self._head.set_exception(self._error)
            self._wake()
        self.abort()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    # ── asyncio's side ───────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            # Nothing was asked, or nobody waits for it any more.
            self.abort()
            return
        if self._head is not None and not self._head.done():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES + MAX_READ_AHEAD:
                self._fail(ConnectionBroken("head"))
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        head_came = self._head is not None and self._head.done() and not self._head.cancelled()
        if head_came and not self._has_end and error is None and not self._is_complete:
            # A body without a length ends with its connection.
            self._is_complete = True
            self._wake()
        else:
            self._fail(error or ConnectionBroken("closed"))

    # ── the parser's side ────────────────────────────────────────────────────────────────────────────────────────

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None and self._head is not None
        status = self._parser.get_status_code()
        if status < 200:
            # 100 Continue and the like come before the answer.
            self._headers = {}
            return
        headers = self._headers
        self._has_end = "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower()
        self._may_be_kept = self._has_end and self._parser.should_keep_alive()
        if headers.get("content-encoding", "identity").lower() != "identity":
            # It was asked not to.
            self._fail(ConnectionBroken("content-encoding"))
        elif not self._head.done():
            self._head.set_result(Response(self, status, headers))

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._waiting_bytes += len(body)
        if self._waiting_bytes > MAX_READ_AHEAD and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._parser is not None and self._parser.get_status_code() >= 200:
            self._is_complete = True
            self._wake()
