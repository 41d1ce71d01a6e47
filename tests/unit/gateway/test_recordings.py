"""Recordings among messages: each becomes the words that were heard in it, in its own place."""

import base64
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.contracts import ModelRequest, parse_request
from gateway.reading.aside import Answer
from gateway.server.speech import HEARD, SpeechReader


class Ear:
    """Hears what the bytes say; a 9 in them it is not sure of."""

    async def ask(self, question: Sequence[bytes]) -> Answer:
        _order, sound = question
        words = sound.decode()
        return Answer({"milliseconds": 1_000, "pieces": [[0, 1, words]], "unsure": ["9"] if "9" in words else []}, b"")


def asked(*sounds: str) -> ModelRequest:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "何と言っていますか"}]
    for sound in sounds:
        audio = {"data": base64.b64encode(sound.encode()).decode(), "format": "wav"}
        parts += [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "その次は"}]
    messages = [
        {"role": "system", "content": "短く"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "c", "content": "1件"},
        {"role": "user", "content": parts},
    ]  # fmt: skip
    return parse_request("chat/completions", orjson.dumps({"model": "m", "messages": messages}))


def reader() -> SpeechReader:
    made = SpeechReader(hears=False)
    made.hears, made._process = True, Ear()  # type: ignore[assignment]  # as far as it is asked
    return made


async def test_words_stand_where_the_recordings_stood() -> None:
    request = asked("一つ目", "二つ目は1、2、3")
    before = orjson.dumps(request.body)
    read = await reader().read(request)
    first, second = f"{HEARD}\n一つ目", f"{HEARD}\n二つ目は1、2、3"
    assert read.body["messages"][-1]["content"] == [  # type: ignore[index]  # as it was asked
        {"type": "text", "text": words} for words in ("何と言っていますか", first, "その次は", second, "その次は")
    ]
    assert read.body["messages"][:-1] == request.body["messages"][:-1]  # type: ignore[index]
    assert read.input_bytes == request.input_bytes + len((first + second).encode())
    assert read.read_texts == ("", "123")
    assert not read.is_misheard
    # What was checked stays as it was.
    assert orjson.dumps(request.body) == before


async def test_one_doubt_is_enough() -> None:
    assert (await reader().read(asked("9", "一つ目"))).is_misheard
