"""The one HTTP client model calls leave by, and how its failures are named.

aiohttp: an asyncio client with its own deadlines per phase, whose cancellation closes the socket, which is what ends
a call upstream. See docs/adr/0009-http-client.md for what it was measured against.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp

from gateway.server.providers.base import (
    InputRefused,
    UpstreamBroken,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamRequest,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from tenants.context import Zone

T = TypeVar("T")

MAX_ANSWER_BYTES = 64 * 1024 * 1024
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

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._egress.ssl_context(), keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=True,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def post(
        self, request: UpstreamRequest, url: str, body: bytes, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """Sends and waits for the status line. Raises the `Upstream…` problems; 200 is all that comes back."""
        session = self._open()
        # On-prem servers are reached directly; the proxy leads outside.
        proxy = self._egress.proxy if request.deployment.zone is not Zone.ONPREM else ""
        timeout = aiohttp.ClientTimeout(
            total=request.total_timeout_s,
            sock_connect=request.connect_timeout_s,
            sock_read=max(request.first_byte_timeout_s, request.between_chunks_timeout_s),
        )
        try:
            async with asyncio.timeout(request.first_byte_timeout_s):
                response = await session.post(
                    url, data=body, headers=headers, timeout=timeout, proxy=proxy or None, allow_redirects=False
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=False) from error
        except TimeoutError as error:
            raise UpstreamTimeout(_TRY_AGAIN, dispatched=True) from error
        except aiohttp.ClientError as error:
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=True) from error
        if response.status != 200:
            response.close()
            raise_for(response.status, response.headers.get("retry-after", ""))
        return response

    async def get_json(self, request: UpstreamRequest, url: str, headers: dict[str, str]) -> object:
        """A GET beside the hot path (lists of models)."""
        timeout = aiohttp.ClientTimeout(total=request.total_timeout_s, sock_connect=request.connect_timeout_s)
        try:
            async with self._open().get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
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


def raise_for(status: int, retry_after: str = "") -> None:
    """Names an upstream's refusal. Its text may quote the prompt, so only the number travels on."""
    seconds = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    if status == 429:
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


async def within(work: Awaitable[T], seconds: float) -> T:
    """Awaits one more piece of an answer; silence and a broken line get their problem."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise UpstreamTimeout(_TRY_AGAIN, dispatched=True) from error
    except aiohttp.ClientError as error:
        raise UpstreamBroken(_TRY_AGAIN, dispatched=True) from error


async def read_all(response: aiohttp.ClientResponse, seconds: float) -> bytes:
    """A whole JSON answer, capped."""
    parts: list[bytes] = []
    size = 0
    while part := await within(response.content.readany(), seconds):
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamBroken("答えが大きすぎます。", dispatched=True)
        parts.append(part)
    return b"".join(parts)


async def server_sent_events(
    response: aiohttp.ClientResponse, *, first_s: float, between_s: float
) -> AsyncIterator[bytes]:
    """Whole events as bytes, each ending in a blank line, whatever the network cut them into."""
    buffer = b""
    wait = first_s
    while part := await within(response.content.readany(), wait):
        wait = between_s
        buffer += part
        if b"\r" in buffer:
            # In the buffer, not in the part: the network may cut between the two.
            buffer = buffer.replace(b"\r\n", b"\n")
        if len(buffer) > MAX_ANSWER_BYTES:
            raise UpstreamBroken("答えが大きすぎます。", dispatched=True)
        while (end := buffer.find(b"\n\n")) >= 0:
            event, buffer = buffer[: end + 2], buffer[end + 2 :]
            if event.strip():
                yield event
    if buffer.strip():
        yield buffer.rstrip(b"\n") + b"\n\n"


def data_of(event: bytes) -> bytes:
    """The payload of an event: its `data` lines joined, without the field name."""
    if event.startswith(b"data:") and event.count(b"\n") == 2:
        return event[5:-2].strip()
    lines = (line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)
