"""A model server that wants to see a certificate of its callers is shown the gateway's, whichever way a call takes."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from gateway.server.providers.base import Provider, UpstreamProblem
from gateway.server.providers.litellm import LiteLLMRouter, LiteLLMTransform
from gateway.server.providers.openai_wire import OpenAIWire
from gateway.server.providers.outbound import Egress, Outbound
from tests.certificates import certificates
from tests.contract.providers.test_proxy import serving
from tests.contract.providers.ways import WAYS, Way, answer, deployment

OPENAI = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "水"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip
ANTHROPIC = {
    "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "水"}],
    "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
}  # fmt: skip
MAKE: dict[str, Callable[[Egress], Provider]] = {
    "openai_wire": lambda egress: OpenAIWire(Outbound(egress)),
    "anthropic": LiteLLMTransform,
    "router": LiteLLMRouter,
}


@asynccontextmanager
async def choosy_server(tls: ssl.SSLContext, authority: Path) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its address, and the requests that arrived from callers whose certificate is good."""
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(authority)
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        arrived.append(head)
        body = orjson.dumps(ANTHROPIC if b"/messages" in head.split(b"\r\n")[0] else OPENAI)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()

    async with serving(serve, tls) as port:
        yield f"https://127.0.0.1:{port}", arrived


def split(chain: Path) -> tuple[Path, Path]:
    """The certificate and the key, each in a file of its own."""
    mark = "-----BEGIN PRIVATE KEY-----"
    certificate, key = chain.read_text().split(mark)
    files = chain.with_name("client.pem"), chain.with_name("client.key")
    files[0].write_text(certificate)
    files[1].write_text(mark + key)
    return files


@pytest.mark.parametrize("name", MAKE)
async def test_a_server_that_asks_for_a_certificate_is_shown_ours(name: str, tmp_path: Path) -> None:
    authority, valid, _ = certificates(tmp_path)
    certificate, key = split(tmp_path / "valid.pem")
    _, model, path = WAYS[name]
    async with choosy_server(valid, authority) as (url, arrived):
        for egress, is_let_in in ((Egress(ca_file=authority), False), (Egress("", authority, certificate, key), True)):
            provider = MAKE[name](egress)
            way = Way(name, provider, deployment(WAYS[name][0], model, url + path))
            try:
                if is_let_in:
                    assert (await answer(way, way.request())).text == "水"
                else:
                    with pytest.raises(UpstreamProblem):
                        await answer(way, way.request())
            finally:
                await provider.aclose()
            assert len(arrived) == is_let_in
