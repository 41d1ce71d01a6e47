"""Pictures and recordings of callers go past the virus scanner before anything else, where one is set."""

import base64
import io
import wave
from collections.abc import Iterator

import httpx
import pytest

from loadtests.upstream import RunningUpstream
from tests.clamd import EICAR, Clamd
from tests.contract.api.conftest import ONPREM
from tests.contract.api.test_guard import ask, outcome
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually

# One white dot.
DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEANl9ngAAAAABJRU5ErkJggg==")


@pytest.fixture(scope="module")
def scanning(region: Region, town: Town, clamd: Clamd) -> Iterator[RunningGateway]:
    """Nothing is read or heard in it: what is tried here is what comes before."""
    with region.gateway(
        KUMIAI_UPLOAD_SCANNER=clamd.address, KUMIAI_GATEWAY_PICTURES="off", KUMIAI_GATEWAY_SPEECH="off"
    ) as running:
        eventually(lambda: known(running, town), within_s=60)
        yield running


def _picture(data: bytes) -> dict[str, object]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [{"type": "text", "text": "何ですか"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": ONPREM, "messages": [{"role": "user", "content": parts}]}


def _recording(data: bytes) -> dict[str, object]:
    sound = {"data": base64.b64encode(data).decode(), "format": "wav"}
    parts = [{"type": "text", "text": "何ですか"}, {"type": "input_audio", "input_audio": sound}]
    return {"model": ONPREM, "messages": [{"role": "user", "content": parts}]}


def _sound() -> bytes:
    into = io.BytesIO()
    with wave.open(into, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(1_600))
    return into.getvalue()


def _transcribe(gateway: RunningGateway, town: Town, data: bytes) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/audio/transcriptions",
        headers={"authorization": f"Bearer {town.key}"},
        files={"file": ("a.wav", data, "audio/wav")},
        data={"model": "any"},
        timeout=60,
    )


def test_an_infected_file_goes_nowhere(
    scanning: RunningGateway, town: Town, clamd: Clamd, onprem: RunningUpstream
) -> None:
    clamd.mood = "scans"
    clamd.seen.clear()
    refused = (400, "infected_file")
    assert outcome(ask(scanning, town, _picture(DOT + EICAR))) == refused
    assert outcome(ask(scanning, town, _recording(_sound() + EICAR))) == refused
    assert outcome(_transcribe(scanning, town, _sound() + EICAR)) == refused
    assert onprem.seen()["by_path"] == {}
    # As they are, not as they were wrapped.
    assert clamd.seen == [DOT + EICAR, _sound() + EICAR, _sound() + EICAR]


def test_a_clean_file_goes_on_and_text_is_not_scanned(
    scanning: RunningGateway, town: Town, clamd: Clamd, onprem: RunningUpstream
) -> None:
    clamd.mood = "scans"
    clamd.seen.clear()
    assert ask(scanning, town, {"model": ONPREM, "messages": [{"role": "user", "content": "水"}]}).status_code == 200
    assert clamd.seen == []
    assert ask(scanning, town, _picture(DOT)).status_code == 200
    assert clamd.seen == [DOT]
    assert onprem.seen()["by_path"] == {"/v1/chat/completions": 2}


def test_nothing_goes_while_the_scanner_fails(
    scanning: RunningGateway, town: Town, clamd: Clamd, onprem: RunningUpstream
) -> None:
    clamd.mood = "hangs up"
    answer = ask(scanning, town, _picture(DOT))
    clamd.mood = "scans"
    assert outcome(answer) == (503, "file_not_scanned")
    assert int(answer.headers["retry-after"]) > 0
    assert onprem.seen()["by_path"] == {}
