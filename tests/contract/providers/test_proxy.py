"""The way through a CONNECT proxy: what a proxy does wrong costs nothing, for nothing of the call has left."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from gateway.server.providers.base import Operation, UpstreamRequest, UpstreamTimeout, UpstreamUnavailable
from gateway.server.providers.openai_wire import OpenAIWire
from gateway.server.providers.outbound import Egress, Outbound
from tenants.context import Zone
from tests.certificates import certificates
from tests.contract.providers.ways import deployment

ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
Manners = Literal["tunnels", "refuses", "deaf", "hangs_up"]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server on loopback that leaves nothing open behind it."""
    visits: set[asyncio.Task[None]] = set()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.current_task()
        assert visit is not None
        visits.add(visit)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
                await serve(reader, writer)
        finally:
            writer.transport.abort() if visit.cancelling() else writer.close()

    server = await asyncio.start_server(visited, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)


@asynccontextmanager
async def model_server(tls: ssl.SSLContext, *, silent: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its address, and the requests that arrived at it."""
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.readuntil(b"\r\n\r\n"))
        if silent:
            await asyncio.Event().wait()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
        writer.write(head + ANSWER)
        await writer.drain()

    async with serving(serve, tls) as port:
        yield f"https://127.0.0.1:{port}/v1", arrived


@asynccontextmanager
async def proxy(manners: Manners) -> AsyncIterator[str]:
    """Opens tunnels, or does one of the things that proxies do instead."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        match manners:
            case "tunnels":
                host, _, port = head.split()[1].decode().partition(":")
                from_server, to_server = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                try:
                    ways = [
                        asyncio.ensure_future(pass_on(a, b)) for a, b in ((reader, to_server), (from_server, writer))
                    ]
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    to_server.transport.abort()
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            case "refuses":
                writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
            case "deaf":
                await asyncio.Event().wait()

    async with serving(serve) as port:
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def through(
    manners: Manners, folder: Path, *, silent: bool = False
) -> AsyncIterator[tuple[OpenAIWire, UpstreamRequest, list[bytes]]]:
    """A provider behind a proxy, a call of a model outside, and what arrived at its server."""
    authority, valid, _ = certificates(folder)
    async with model_server(valid, silent=silent) as (url, arrived), proxy(manners) as address:
        provider = OpenAIWire(Outbound(Egress(proxy=address, ca_file=authority)))
        outside = replace(deployment("openai_wire", "m", url), zone=Zone.OVERSEAS)
        call = UpstreamRequest(
            outside, Operation.CHAT, {"messages": []}, stream=False, call_id="c",
            connect_timeout_s=0.5, first_byte_timeout_s=20.0, total_timeout_s=20.0,
        )  # fmt: skip
        try:
            yield provider, call, arrived
        finally:
            await provider.aclose()


async def test_a_call_goes_through_the_tunnel(tmp_path: Path) -> None:
    async with through("tunnels", tmp_path) as (provider, call, arrived):
        response = await provider.send(replace(call, connect_timeout_s=10.0))
        assert response.usage is not None and response.usage.prompt_tokens == 1
        await response.aclose()
    assert len(arrived) == 1


@pytest.mark.parametrize("manners", ["refuses", "deaf", "hangs_up"])
async def test_a_proxy_that_opens_no_tunnel_has_let_nothing_out(manners: Manners, tmp_path: Path) -> None:
    """A deaf one is waited for as long as for any connection, not as long as for an answer."""
    async with through(manners, tmp_path) as (provider, call, arrived):
        with pytest.raises(UpstreamUnavailable) as refused:
            await asyncio.wait_for(provider.send(call), 10)
    assert (refused.value.dispatched, arrived) == (False, [])


async def test_a_server_that_stays_silent_behind_the_proxy_may_have_billed(tmp_path: Path) -> None:
    async with through("tunnels", tmp_path, silent=True) as (provider, call, arrived):
        with pytest.raises(UpstreamTimeout) as silent:
            await provider.send(replace(call, connect_timeout_s=10.0, first_byte_timeout_s=2.0))
    assert silent.value.dispatched
    assert len(arrived) == 1
