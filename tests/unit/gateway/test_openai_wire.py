"""A streamed answer on its way through: what came together does not leave together."""

import asyncio

import orjson

from gateway.server.providers.base import Operation, UpstreamRequest
from gateway.server.providers.openai_wire import _Stream
from gateway.server.providers.outbound import Answer
from tests.deployments import a_deployment

ONPREM = a_deployment()


class OnePacket:
    """A body that is here as a whole already."""

    def __init__(self, body: bytes) -> None:
        self.headers = {"content-type": "text/event-stream"}
        self._parts = [body, b""]

    def take(self) -> bytes:
        return self._parts.pop(0)


def event(**choice: object) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]}) + b"\n\n"


async def test_the_first_words_leave_before_the_rest_of_their_packet_is_read() -> None:
    words = [event(delta={"role": "assistant", "content": ""}), *(event(delta={"content": w}) for w in "一二三")]
    packet = b"".join((*words, event(delta={}, finish_reason="stop"), b"data: [DONE]\n\n"))
    now = asyncio.get_running_loop().time()
    answer = Answer(OnePacket(packet), first_by=now + 60, deadline=now + 60)  # type: ignore[arg-type]  # of a connection it has what is asked here
    request = UpstreamRequest(ONPREM, Operation.CHAT, {}, stream=True, call_id="1")
    stream = await _Stream.begin(answer, request)
    came_round: list[int] = []
    heard: list[bytes] = []
    async for said in stream.chunks():
        heard.append(said)
        if len(heard) == 2:
            # The loop writes what it was given before it does this.
            asyncio.get_running_loop().call_soon(lambda: came_round.append(len(heard)))
    assert came_round == [2]
    assert heard == [*words, event(delta={}, finish_reason="stop"), b"data: [DONE]\n\n"]
