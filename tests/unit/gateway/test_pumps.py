"""An answer that is read on for nobody: to its end, so many at once, and for so long."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.server.providers.base import UpstreamBroken, Usage
from gateway.server.pumps import AHEAD, Pumped, Pumps


class Answer:
    """Of `events`, each as soon as `more` says so; then counted, or broken."""

    def __init__(self, events: int, *, breaks: bool = False) -> None:
        self.body = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_text_bytes = 0
        self.read = 0
        self.is_closed = False
        self.more = asyncio.Event()
        self._events, self._breaks = events, breaks

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(self._events):
            self.read += 1
            yield b"data: x\n\n"
        await self.more.wait()
        if self._breaks:
            raise UpstreamBroken(dispatched=True)
        self.usage = Usage(1, 2)

    async def aclose(self) -> None:
        self.is_closed = True


async def settled(calls: list[str]) -> None:
    async with asyncio.timeout(20):
        while not calls:
            await asyncio.sleep(0.01)


async def test_whoever_listens_hears_all_of_it() -> None:
    answer = Answer(100)
    answer.more.set()
    pumped = Pumped(answer)
    assert [event async for event in pumped.chunks()] == [b"data: x\n\n"] * 100
    assert answer.usage == Usage(1, 2)
    await pumped.aclose()


async def test_the_provider_waits_for_a_slow_listener() -> None:
    answer = Answer(1000)
    pumped = Pumped(answer)
    events = pumped.chunks()
    await anext(events)
    for _ in range(50):
        await asyncio.sleep(0)
    assert answer.read <= AHEAD + 3
    await pumped.aclose()


async def test_what_breaks_is_told_after_what_came_before() -> None:
    answer = Answer(3, breaks=True)
    answer.more.set()
    heard = []
    with pytest.raises(UpstreamBroken):
        async for event in Pumped(answer).chunks():
            heard.append(event)
    assert len(heard) == 3


@pytest.mark.parametrize("breaks", [False, True])
async def test_it_is_read_on_without_a_listener(*, breaks: bool) -> None:
    answer, said, pumps = Answer(1000, breaks=breaks), [], Pumps(most=1, within_s=60)
    pumped = Pumped(answer)
    await anext(pumped.chunks())
    assert pumps.leave(pumped, lambda: said.append("settled"))
    await asyncio.sleep(0)
    assert said == []
    answer.more.set()
    await settled(said)
    assert (answer.read, answer.usage) == (1000, None if breaks else Usage(1, 2))
    async with asyncio.timeout(20):
        while not answer.is_closed:
            await asyncio.sleep(0.01)


async def test_no_more_than_so_many_are_read_on() -> None:
    said: list[str] = []
    pumps = Pumps(most=1, within_s=60)
    one, other = Pumped(Answer(1)), Pumped(Answer(1))
    assert pumps.leave(one, lambda: said.append("one"))
    assert not pumps.leave(other, lambda: said.append("other"))
    await other.aclose()
    await pumps.aclose()
    assert said == ["one"]


async def test_not_for_longer_than_so_long() -> None:
    said: list[str] = []
    answer = Answer(1)
    assert Pumps(most=1, within_s=0.01).leave(Pumped(answer), lambda: said.append("settled"))
    await settled(said)
    assert answer.usage is None
