"""Recordings in a request: measured and heard before anything leaves, by one process beside the gateway.

A recording among messages goes on as the words that were heard in it. One to be transcribed goes on as sound, written
anew, and counts as personal data whatever was heard.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import anyio.to_thread

from gateway.contracts import MAX_SOUNDS, BadRequest, ModelRequest, sounds_in
from gateway.reading.aside import Broken, Busy, ReadingProcess
from gateway.reading.speech import MAX_SECONDS, Heard, Recording, is_available, joined_numbers
from observability.problems import Problem, Unavailable

# An eighth of the longest recording, four times over: other work goes first.
_HEAR_S: Final = 600.0
HEARD: Final = "（音声から機械が聞き取った言葉です。聞き違いがあるかもしれません）"
_WITHOUT: Final = "音声は、中を確かめられないので送れません。文字にしてから送ってください。"


class RecordingUnread(Problem):
    """What cannot be decoded is not sent: somebody else might be able to."""

    type = "urn:problem:gateway:recording-unread"
    status = HTTPStatus.BAD_REQUEST
    title = "音声の中を確かめられないので、送りませんでした"


class RecordingsBusy(Unavailable):
    type = "urn:problem:gateway:recordings-busy"
    title = "音声の聞き取りが混み合っています"


class SpeechReader:
    """One per gateway process. can_measure: whether recordings can be taken at all; hears: whether they are listened to."""

    def __init__(self, *, hears: bool) -> None:
        self.can_measure = is_available()
        self.hears = hears and self.can_measure
        self._process = ReadingProcess("gateway.reading.speech", within_s=_HEAR_S, makes=True)

    async def read(self, request: ModelRequest) -> ModelRequest:
        """The request with its recordings heard. Raises `RecordingUnread`, `RecordingsBusy` or `BadRequest`."""
        if request.sound:
            if not self.can_measure:
                raise BadRequest(_WITHOUT, param="file")
            language = str(request.body.get("language", "ja"))
            recording = await self._listen(request.sound, "file", language)
            return replace(
                request,
                sound=b"",
                recording=recording,
                read_texts=(*request.read_texts, recording.text, joined_numbers(recording.text)),
                is_misheard=bool(recording.unsure),
            )
        if not self.hears:
            raise BadRequest(_WITHOUT, param="messages")
        if request.sounds > MAX_SOUNDS:
            raise BadRequest(f"音声は1回に{MAX_SOUNDS}つまでにしてください。", param="messages")
        sounds = await anyio.to_thread.run_sync(lambda: list(sound_data_in(request.body)))
        recordings = [await self._listen(sound, "messages", "ja") for sound in sounds]
        words = [f"{HEARD}\n{recording.text}" for recording in recordings]
        return replace(
            request,
            body=_worded(request.body, iter(words)),
            input_bytes=request.input_bytes + sum(len(w.encode()) for w in words),
            read_texts=(*request.read_texts, *(joined_numbers(r.text) for r in recordings)),
            is_misheard=any(r.unsure for r in recordings),
        )

    async def _listen(self, data: bytes, param: str, language: str) -> Recording:
        order = {"max_seconds": MAX_SECONDS, "language": language, "hears": self.hears}
        try:
            answer = await self._process.ask([json.dumps(order).encode(), data])
        except Busy:
            raise RecordingsBusy("少し待ってから、もう一度送ってください。", retry_after_s=60) from None
        except Broken as error:
            raise RecordingUnread("短く分けて、もう一度送ってください。", param=param) from error
        told: dict[str, Any] = answer.told
        if "problem" in told:
            raise RecordingUnread(told["problem"], param=param)
        pieces = told["pieces"]
        return Recording(
            answer.made,
            told["milliseconds"],
            None if pieces is None else tuple(Heard(*piece) for piece in pieces),
            tuple(told["unsure"]),
        )

    async def aclose(self) -> None:
        await self._process.aclose()


def sound_data_in(body: Mapping[str, object]) -> Iterator[bytes]:
    for part in sounds_in(body):
        sound = part["input_audio"]
        assert isinstance(sound, dict)
        yield base64.b64decode(sound["data"])


def _worded(body: dict[str, object], words: Iterator[str]) -> dict[str, object]:
    """The body with words in the place of each recording; what was checked stays as it was."""
    messages = body["messages"]
    assert isinstance(messages, list)
    return body | {
        "messages": [
            m | {"content": [_part(p, words) for p in m["content"]]} if isinstance(m["content"], list) else m
            for m in messages
        ]
    }


def _part(part: dict[str, object], words: Iterator[str]) -> dict[str, object]:
    return {"type": "text", "text": next(words)} if part["type"] == "input_audio" else part
