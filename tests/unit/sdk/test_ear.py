"""The house's model for recordings, as an app asks the gateway for it."""

import json
from typing import Any

import httpx
import pytest

from apps.sdk.context import GatewayClient
from gateway.client import Gateway, GatewayProblem


def model(name: str, zone: str, operation: str = "audio/transcriptions") -> dict[str, Any]:
    return {"id": name, "kumiai": {"operations": [operation], "zones": [zone]}}


@pytest.mark.parametrize(
    ("listed", "asked"),
    [
        ([model("whisper-large", "onprem"), model("transcription", "onprem")], "transcription"),
        ([model("transcription", "domestic"), model("whisper-large", "onprem")], "whisper-large"),
        ([model("transcription", "domestic"), model("standard", "onprem", "chat/completions")], ""),
    ],
)
async def test_only_what_stands_in_the_house_hears(listed: list[dict[str, Any]], asked: str) -> None:
    async def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"object": "list", "data": listed})

    assert await client(answer).ear() == asked


async def test_a_recording_goes_as_personal_data_that_stays_in_the_house() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        assert request.url.path == "/v1/audio/transcriptions"
        assert request.headers["authorization"] == "Bearer for-this-person"
        assert (request.headers["kumiai-data-class"], request.headers["kumiai-sound-zone"]) == ("3C", "onprem")
        assert b'name="model"\r\n\r\ntranscription\r\n' in body
        assert b"\r\n\r\nfLaC sound\r\n" in body
        return httpx.Response(200, json={"text": "はい。", "usage": {"type": "duration", "seconds": 3}})

    assert await client(answer).transcribe(b"fLaC sound", model="transcription") == ("はい。", 3.0)


async def test_a_refusal_is_told_as_the_gateway_says_it() -> None:
    async def answer(_request: httpx.Request) -> httpx.Response:
        error = {"message": "音声に番号があります。文字にして送ってください。", "code": "number_misheard"}
        return httpx.Response(403, content=json.dumps({"error": error}))

    with pytest.raises(GatewayProblem) as refused:
        await client(answer).transcribe(b"fLaC sound", model="transcription")
    assert (refused.value.title, refused.value.type) == ("音声に番号があります", "urn:problem:gateway:number-misheard")


def client(answer: Any) -> GatewayClient:
    return GatewayClient(Gateway("http://gateway", transport=httpx.MockTransport(answer)), lambda: "for-this-person")
