"""The one HTTP client model calls leave by, and how its failures are named.

Calls go over connections of our own (`connections.py`); aiohttp takes what goes through a proxy and what is beside the
hot path. See docs/adr/0009-http-client.md for what was measured.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import aiohttp

from gateway.server.providers.base import (
    HEARTBEAT,
    InputRefused,
    UpstreamBroken,
    UpstreamProblem,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamRequest,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.server.providers.connections import ConnectionBroken, Connections, Response, target_of
from tenants.context import Zone

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# One event of a stream; a server that never ends its line is cut off here.
MAX_EVENT_BYTES = 4 * 1024 * 1024
# How long the rest of an answer is waited for when nobody wants it any more.
_REST_S = 0.05
# Nobody is sent away for longer, whatever an upstream says.
_MAX_RETRY_AFTER_S = 3600
_TRY_AGAIN = "少し待ってから、もう一度試してください。"


@dataclass(frozen=True, slots=True)
class Egress:
    """How the gateway reaches the outside: a CONNECT proxy, an internal CA, a client certificate (LGWAN)."""

    proxy: str = ""
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = field(default=None, repr=False)

    def ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        if self.client_cert_file is not None:
            context.load_cert_chain(self.client_cert_file, self.client_key_file)
        return context


class Outbound:
    """Connections to model providers, shared by the providers of one process."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._session: aiohttp.ClientSession | None = None
        self._connections: Connections | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._egress.ssl_context(), keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=True,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_departures()],
            )
        return self._session

    async def post(self, request: UpstreamRequest, url: str, body: bytes, headers: dict[str, str]) -> "Answer":
        """Sends and waits for the status line. Raises the `Upstream…` problems; 200 is all that comes back."""
        now = asyncio.get_running_loop().time()
        first_by, deadline = now + request.first_byte_timeout_s, now + request.total_timeout_s
        if request.attempt_id:
            headers = headers | {"x-client-request-id": request.attempt_id}
        # On-prem servers are reached directly; the proxy leads outside.
        if self._egress.proxy and request.deployment.zone is not Zone.ONPREM:
            response: Response | _Proxied = await self._through_proxy(request, url, body, headers)
        else:
            response = await self._direct(request, url, body, headers, first_by)
        if response.status != 200:
            response.close()
            raise_for(response.status, response.headers.get("retry-after", ""))
        return Answer(response, first_by=first_by, deadline=deadline)

    async def _direct(
        self, request: UpstreamRequest, url: str, body: bytes, headers: dict[str, str], first_by: float
    ) -> Response:
        if self._connections is None:
            self._connections = Connections(self._egress.ssl_context())
        try:
            connection = await self._connections.post(
                target_of(url), headers, body, connect_s=request.connect_timeout_s
            )
        except OSError as error:
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=False) from error
        try:
            return await connection.head(first_by)
        except TimeoutError as error:
            raise UpstreamTimeout(_TRY_AGAIN, dispatched=True) from error
        except ConnectionBroken as error:
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=True) from error

    async def _through_proxy(
        self, request: UpstreamRequest, url: str, body: bytes, headers: dict[str, str]
    ) -> "_Proxied":
        timeout = aiohttp.ClientTimeout(
            total=request.total_timeout_s,
            # The proxy's own word included: until then nothing of the call has left.
            connect=request.connect_timeout_s,
            sock_read=max(request.first_byte_timeout_s, request.between_chunks_timeout_s),
        )
        way = _Way()
        try:
            async with asyncio.timeout(request.first_byte_timeout_s):
                return _Proxied(
                    await self._open().post(
                        url, data=body, headers=headers, timeout=timeout, proxy=self._egress.proxy,
                        allow_redirects=False, trace_request_ctx=way,
                    )
                )  # fmt: skip
        except TimeoutError as error:
            if not way.has_left:
                raise UpstreamUnavailable(_TRY_AGAIN, dispatched=False) from error
            raise UpstreamTimeout(_TRY_AGAIN, dispatched=True) from error
        except aiohttp.ClientError as error:
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=way.has_left) from error

    async def get_json(self, request: UpstreamRequest, url: str, headers: dict[str, str]) -> object:
        """A GET beside the hot path (lists of models)."""
        timeout = aiohttp.ClientTimeout(total=request.total_timeout_s, sock_connect=request.connect_timeout_s)
        proxy = self._egress.proxy if request.deployment.zone is not Zone.ONPREM else None
        try:
            async with self._open().get(
                url, headers=headers, timeout=timeout, allow_redirects=False, proxy=proxy or None
            ) as response:
                if response.status != 200:
                    raise_for(response.status)
                return await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=False) from error
        except ValueError as error:
            raise UpstreamBroken(_TRY_AGAIN, dispatched=True) from error

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._connections is not None:
            self._connections.close()


@dataclass(slots=True)
class _Way:
    """has_left: the call itself, not only the word to the proxy."""

    has_left: bool = False


def _departures() -> aiohttp.TraceConfig:
    """Tells a call's `_Way` when its first byte is about to go to the provider."""

    async def leaves(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        if isinstance(way := context.trace_request_ctx, _Way):
            way.has_left = True

    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(leaves)
    return config


class _Proxied:
    """An answer that came through the proxy."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    def take(self) -> bytes | None:
        return None

    async def readany(self, until: float) -> bytes:
        try:
            async with asyncio.timeout_at(until):
                return await self._response.content.readany()
        except TimeoutError:
            # aiohttp's own are errors of its client, too.
            raise
        except aiohttp.ClientError as error:
            raise ConnectionBroken(type(error).__name__) from error

    def release(self) -> None:
        self._response.release()

    def close(self) -> None:
        self._response.close()


class Answer:
    """A 200 whose body is being read. `first_by` is when a stream must have begun to speak, `deadline` the call's last
    moment; both are of the loop's clock. Whoever reads it says when it has begun (`is_speaking`)."""

    def __init__(self, response: Response | _Proxied, *, first_by: float, deadline: float) -> None:
        self._response = response
        self.first_by = first_by
        self.deadline = deadline
        self.is_speaking = False
        self.headers = response.headers

    async def read(self, until: float) -> bytes:
        """The next piece; empty at the end. Raises `UpstreamTimeout` for silence, `UpstreamBroken` for a broken line.

        until: of the loop's clock; what has come already is told later, too, but not after the call's last moment.
        """
        try:
            # What is there costs no timer; an answer that never ends still meets the call's last moment.
            if asyncio.get_running_loop().time() < self.deadline and (data := self._response.take()) is not None:
                return data
            return await self._response.readany(min(until, self.deadline))
        except TimeoutError as error:
            raise UpstreamTimeout(_TRY_AGAIN, dispatched=True) from error
        except ConnectionBroken as error:
            raise UpstreamBroken(_TRY_AGAIN, dispatched=True) from error

    def release(self) -> None:
        """The answer was read to its end: the connection can carry the next call."""
        self._response.release()

    async def finish(self) -> None:
        """Nothing more is wanted of the answer; once its end has come, the connection can carry the next call."""
        until = asyncio.get_running_loop().time() + _REST_S
        try:
            # A server that goes on talking is not listened to.
            while await self.read(until) and asyncio.get_running_loop().time() < until:
                pass
        except UpstreamProblem:
            self.close()
        else:
            self.release()

    def close(self) -> None:
        """Cuts the answer off, which ends it upstream, too."""
        self._response.close()


def raise_for(status: int, retry_after: str = "") -> NoReturn:
    """Names an upstream's refusal. Its text may quote the prompt, so only the number travels on."""
    if status == 429:
        seconds = min(int(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0, _MAX_RETRY_AFTER_S)
        raise UpstreamRateLimited(_TRY_AGAIN, dispatched=True, upstream_status=status, retry_after_s=seconds or 5)
    if status >= 500 or status == 408:
        raise UpstreamUnavailable(_TRY_AGAIN, dispatched=True, upstream_status=status)
    if status in (400, 413, 422):
        raise InputRefused(
            "入力が長すぎるか、このモデルで使えない指定があります。短くするか、別のモデルを選んでください。",
            dispatched=True,
            upstream_status=status,
        )
    if status >= 400:
        raise UpstreamRefused(
            "共同利用の事務局に、AIのサービスの契約と鍵の確認を依頼してください。",
            dispatched=True,
            upstream_status=status,
        )
    raise UpstreamBroken(_TRY_AGAIN, dispatched=True, upstream_status=status)


async def read_all(answer: Answer) -> bytes:
    """A whole JSON answer, capped. It is made before it is sent, so only the call's last moment bounds it."""
    parts: list[bytes] = []
    size = 0
    while part := await answer.read(answer.deadline):
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamBroken("答えが大きすぎます。", dispatched=True)
        parts.append(part)
    return b"".join(parts)


async def server_sent_events(answer: Answer, request: UpstreamRequest) -> AsyncIterator[bytes]:
    """Whole events that carry data, as bytes, each ending in a blank line, whatever the network cut them into; and
    `HEARTBEAT` whenever none came for `heartbeat_s`.

    Neither comments nor single bytes count as a sign of life: the time between two events is bounded, not that between
    two reads. Until `answer.is_speaking` events do not count either: its first word has one deadline. While an event is
    being taken by whoever asked for it, no time runs.
    """
    buffer = b""
    clock = asyncio.get_running_loop().time
    until = answer.first_by
    beat = clock() + request.heartbeat_s
    while True:
        try:
            part = await answer.read(min(until, beat))
        except UpstreamTimeout:
            now = clock()
            if now >= min(until, answer.deadline):
                raise
            beat = now + request.heartbeat_s
            yield HEARTBEAT
            continue
        if not part:
            break
        buffer += part
        if b"\r" in buffer:
            # In the buffer, not in the part: the network may cut between the two.
            buffer = buffer.replace(b"\r\n", b"\n")
        said = False
        while (end := buffer.find(b"\n\n")) >= 0:
            event, buffer = buffer[: end + 2], buffer[end + 2 :]
            if data_of(event):
                said = True
                yield event
        if said:
            now = clock()
            beat = now + request.heartbeat_s
            if answer.is_speaking:
                until = now + request.between_chunks_timeout_s
        if len(buffer) > MAX_EVENT_BYTES:
            raise UpstreamBroken("答えが大きすぎます。", dispatched=True)
    if data_of(buffer):
        yield buffer.rstrip(b"\n") + b"\n\n"


def data_of(event: bytes) -> bytes:
    """The payload of an event: its `data` lines joined, without the field name."""
    if event.startswith(b"data:") and event.count(b"\n") == 2:
        return event[5:-2].strip()
    lines = (line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)
