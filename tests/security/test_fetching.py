"""A listener that must never be asked: neither the running gateway nor its client of model servers goes where it is sent."""

import socketserver
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from gateway.server.providers.base import UpstreamProblem
from gateway.server.providers.openai_wire import OpenAIWire
from gateway.server.providers.outbound import Egress, Outbound
from kumiai.isolation.stage import Stage
from kumiai.isolation.surface import BODIES, UNSAFE, Address
from tests.contract.providers.ways import Way, answer, deployment

# Those that lead to the listener from anywhere on this machine; `test_corpora.py` has the others refused one by one.
URLS = ("http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://2130706433:{port}/")


class Listener:
    """Counts who comes, and answers with `reply`."""

    def __init__(self, reply: str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") -> None:
        self.came = 0
        outer = self

        class Talk(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer.came += 1
                size = 0
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                self.rfile.read(size)
                self.wfile.write(reply.encode())

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    there = Listener()
    yield there
    there.stop()


def _sent_there(body: Mapping[str, Any], url: str) -> Iterator[dict[str, Any]]:
    """A body with the address in the fields that are known to make a server fetch something, and as plain text."""
    named = (
        "url",
        "image_url",
        "file_url",
        "server_url",
        "webhook",
        "callback_url",
        "base_url",
        "api_base",
        "endpoint",
    )
    yield dict(body) | dict.fromkeys(named, url)
    yield dict(body) | {"tools": [{"type": "mcp", "server_url": url, "server_label": "x"}]}
    for name in ("messages", "input", "prompt", "text"):
        if name in body:
            yield dict(body) | {name: [{"role": "user", "content": url}] if name == "messages" else url}
    if "messages" in body:
        for part in (
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "image", "source": {"type": "url", "url": url}},
            {"type": "file", "file": {"file_url": url}},
        ):
            yield dict(body) | {"messages": [{"role": "user", "content": [part]}]}
    for part in ({"type": "input_image", "image_url": url}, {"type": "input_file", "file_url": url}):
        if "input" in body:
            yield dict(body) | {"input": [{"role": "user", "content": [part]}]}
    if "documents" in body:
        yield dict(body) | {"documents": [url, {"text": url, "url": url}, {"image": url}]}


@pytest.mark.real
def test_no_address_of_the_api_fetches_what_it_is_told(
    stage: Stage, all_addresses: list[Address], listener: Listener
) -> None:
    asked = 0
    key = {"authorization": f"Bearer {stage.demo.api_key(2)}"}
    with httpx.Client(base_url=stage.demo.base_url, headers=key, timeout=60, trust_env=False) as client:
        for address in (a for a in all_addresses if a.server == "gateway" and a.method in UNSAFE):
            for url in URLS:
                for body in _sent_there(BODIES[address.path], url.replace("{port}", str(listener.port))):
                    status = client.request(address.method, address.url(), json=body).status_code
                    assert status < 500 or status == 503, (address, body, status)
                    asked += 1
    assert asked > 50
    assert listener.came == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_model_server_that_leads_elsewhere_is_not_followed(status: int, listener: Listener) -> None:
    leading = Listener(
        f"HTTP/1.1 {status} Found\r\nLocation: http://127.0.0.1:{listener.port}/v1/\r\nContent-Length: 0\r\n\r\n"
    )
    provider = OpenAIWire(Outbound(Egress()))
    way = Way("openai_wire", provider, deployment("openai_wire", "m", f"http://127.0.0.1:{leading.port}/v1"))
    try:
        for stream in (False, True):
            with pytest.raises(UpstreamProblem):
                await answer(way, way.request(stream=stream))
        with pytest.raises(UpstreamProblem):
            await provider.list_models(way.deployment)
    finally:
        await provider.aclose()
        leading.stop()
    assert leading.came == 3
    assert listener.came == 0
