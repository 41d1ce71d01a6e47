"""The process around `litellm.Router` sends no more of a stream than somebody takes."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson

from gateway.server.providers.litellm import AHEAD, frame
from gateway.server.providers.litellm_worker import Orders

PIECES = 4 * AHEAD
ORDER = {
    "id": 1, "kind": "call", "operation": "chat/completions", "stream": True, "body": {"messages": []}, "headers": {},
    "deployment": {"id": "d", "model": "openai/m", "api_base": None, "api_key": None, "extra": {}},
    "connect_timeout_s": 60, "read_timeout_s": 60, "total_timeout_s": 60,
}  # fmt: skip


class Vendor:
    """In the place of the library: one stream of `PIECES` pieces."""

    def __init__(self) -> None:
        self.read = 0

    def Router(self, **_settings: object) -> "Vendor":  # noqa: N802 - the library's own name
        return self

    def get_supported_openai_params(self, model: str) -> list[str]:
        return [model]

    async def acompletion(self, **_given: object) -> AsyncIterator[Any]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[Any]:
        for _ in range(PIECES):
            self.read += 1
            yield SimpleNamespace(choices=[])


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
