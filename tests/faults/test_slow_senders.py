"""A caller who sends the body of a request a byte at a time, or not at all."""

import asyncio
import contextlib
import json

import httpx
import pytest

from tests.faults.conftest import Installation

PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/messages/count_tokens", "/v1/guard/inspect"]


def request_of(installation: Installation, path: str, *, is_chunked: bool) -> tuple[bytes, bytes]:
    """Head and body of a request that is answered when it comes whole."""
    said = [{"role": "user", "content": json.dumps({"fault": "nothing", "seed": 1})}]
    asked = {"messages": said, "input": said, "text": "水", "max_tokens": 100}
    fields = {
        "/v1/chat/completions": ("messages", "max_tokens"),
        "/v1/responses": ("input",),
        "/v1/guard/inspect": ("text",),
    }.get(path, ("messages", "max_tokens"))
    body = json.dumps({"model": "faulty"} | {name: asked[name] for name in fields}).encode()
    length = "transfer-encoding: chunked" if is_chunked else f"content-length: {len(body)}"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {installation.town.key}\r\n"
        f"content-type: application/json\r\n{length}\r\n\r\n"
    )
    return head.encode(), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body


async def answered(installation: Installation, head: bytes, body: bytes, *, drips: bool) -> tuple[bytes, bytes]:
    """Head and body of the answer to a caller who sends the body at once, or a byte now and then and never the last."""
    url = httpx.URL(installation.gateway.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    dripping = asyncio.ensure_future(_drip(writer, head, body) if drips else _send(writer, head + body))
    try:
        async with asyncio.timeout(60):
            told = await reader.readuntil(b"\r\n\r\n")
            length = int(told.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            said = await reader.readexactly(length)
            if drips:
                # Whoever goes on has nobody to send to.
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            return told, said
    finally:
        dripping.cancel()
        await asyncio.wait([dripping])
        writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _drip(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    await _send(writer, head)
    for at in range(len(body) - 1):
        await asyncio.sleep(1)
        await _send(writer, body[at : at + 1])


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
async def test_body_that_does_not_come_in_time_is_refused(installation: Installation, *, is_chunked: bool) -> None:
    async def tried(path: str) -> None:
        head, body = request_of(installation, path, is_chunked=is_chunked)
        told, said = await answered(installation, head, body, drips=False)
        assert told.startswith(b"HTTP/1.1 200"), said
        told, said = await answered(installation, head, body, drips=True)
        assert told.startswith(b"HTTP/1.1 408"), said
        assert b"\r\nconnection: close\r\n" in told
        error = json.loads(said)["error"]
        assert (error["code"], "送り終えてください" in error["message"]) == ("body_too_slow", True)

    before = installation.upstream.seen.total()
    await asyncio.gather(*map(tried, PATHS))
    # Only the three calls that came whole were made.
    assert installation.upstream.seen.total() == before + 3
