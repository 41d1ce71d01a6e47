"""The process around `litellm.Router` sends no more of a stream than somebody takes, who waits for its first word once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from gateway.server.providers.base import Operation, UpstreamRequest, UpstreamTimeout
from gateway.server.providers.litellm import AHEAD, LiteLLMRouter, _Worker, frame
from gateway.server.providers.litellm_worker import Orders
from tests.deployments import a_deployment

PIECES = 4 * AHEAD
ORDER = {
    "id": 1, "kind": "call", "operation": "chat/completions", "stream": True, "body": {"messages": []}, "headers": {},
    "deployment": {"id": "d", "model": "openai/m", "api_base": None, "api_key": None, "extra": {}},
    "connect_timeout_s": 60, "read_timeout_s": 60, "total_timeout_s": 60,
}  # fmt: skip
# Two seconds of them.
MANY, EVERY_S = 40, 0.05
# Half as long as `MANY` pieces take.
IMPATIENT = UpstreamRequest(
    a_deployment(), Operation.CHAT, {"messages": []}, stream=True, call_id="x", first_byte_timeout_s=1.0
)


def piece(*, said: str = "", thought: str = "") -> Any:
    delta = SimpleNamespace(role="assistant", content=said, reasoning_content=thought, tool_calls=None)
    return SimpleNamespace(choices=[SimpleNamespace(index=0, delta=delta, finish_reason=None)])


class Vendor:
    """In the place of the library: one stream of pieces, one every `every_s`; without others, of `PIECES` empty ones."""

    def __init__(self, pieces: tuple[Any, ...] = (SimpleNamespace(choices=[]),) * PIECES, every_s: float = 0) -> None:
        self.read = 0
        self._all = pieces
        self._every_s = every_s

    def Router(self, **_settings: object) -> "Vendor":  # noqa: N802 - the library's own name
        return self

    def get_supported_openai_params(self, model: str) -> list[str]:
        return [model]

    async def acompletion(self, **_given: object) -> AsyncIterator[Any]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[Any]:
        for one in self._all:
            if self._every_s:
                await asyncio.sleep(self._every_s)
            self.read += 1
            yield one


class Told:
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def write(self, data: bytes) -> None:
        self.kinds.append(orjson.loads(data[4:])["kind"])

    async def drain(self) -> None:
        await asyncio.sleep(0)


async def settled(told: Told, kinds: int) -> None:
    """Returns when so much was said and nothing more comes by itself."""
    async with asyncio.timeout(30):
        while len(told.kinds) < kinds:
            await asyncio.sleep(0.01)
    for _ in range(1000):
        await asyncio.sleep(0)


async def test_a_stream_waits_for_who_takes_it() -> None:
    vendor, told, orders = Vendor(), Told(), asyncio.StreamReader()
    worker = asyncio.ensure_future(Orders(vendor, told).run(orders))  # type: ignore[arg-type]  # all it uses of a writer
    orders.feed_data(frame(ORDER))
    await settled(told, 1 + AHEAD)
    assert told.kinds == ["ready", *["chunk"] * AHEAD]
    assert vendor.read == AHEAD + 1
    orders.feed_data(frame({"id": 1, "kind": "more"}))
    await settled(told, 1 + AHEAD + AHEAD // 2)
    assert told.kinds.count("chunk") == AHEAD + AHEAD // 2
    for _ in range(PIECES // AHEAD * 2):
        orders.feed_data(frame({"id": 1, "kind": "more"}))
    await settled(told, 1 + PIECES + 1)
    assert told.kinds == ["ready", *["chunk"] * PIECES, "end"]
    orders.feed_eof()
    await worker


async def test_a_stream_that_waits_can_be_ended() -> None:
    vendor, told, orders = Vendor(), Told(), asyncio.StreamReader()
    worker = asyncio.ensure_future(Orders(vendor, told).run(orders))  # type: ignore[arg-type]  # all it uses of a writer
    orders.feed_data(frame(ORDER))
    await settled(told, 1 + AHEAD)
    orders.feed_data(frame({"id": 1, "kind": "cancel"}) + frame(ORDER | {"id": 2}))
    await settled(told, 1 + 2 * AHEAD)
    assert told.kinds.count("chunk") == 2 * AHEAD
    orders.feed_eof()
    await worker


class Pipe:
    """What is written there can be read at its other end."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def write(self, data: bytes) -> None:
        self._reader.feed_data(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def is_closing(self) -> bool:
        return False


@contextlib.contextmanager
def router_before(vendor: Vendor) -> Iterator[LiteLLMRouter]:
    """A Router whose worker is in this process, for what no vendor can be made to say in time."""
    orders, answers = asyncio.StreamReader(), asyncio.StreamReader()
    working = asyncio.ensure_future(Orders(vendor, Pipe(answers)).run(orders))  # type: ignore[arg-type]  # all it uses of a writer
    router = LiteLLMRouter()
    router._worker = _Worker(SimpleNamespace(stdin=Pipe(orders), stdout=answers))  # type: ignore[arg-type]  # all it uses of a process
    try:
        yield router
    finally:
        working.cancel()
        answers.feed_eof()


async def test_pieces_that_say_nothing_do_not_put_the_first_word_off() -> None:
    pieces = (piece(),) * MANY + (piece(said="町"),)
    with router_before(Vendor(pieces, EVERY_S)) as router, pytest.raises(UpstreamTimeout):
        await router.send(IMPATIENT)


async def test_a_model_that_thinks_has_begun() -> None:
    with router_before(Vendor((piece(thought="考"),) * MANY + (piece(said="町"),), EVERY_S)) as router:
        response = await router.send(IMPATIENT)
        assert response.output_text_bytes == len(("考" * MANY + "町").encode())
        await response.aclose()
