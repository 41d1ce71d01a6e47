"""`/v1/audio/transcriptions` and recordings among messages: measured and heard before anything leaves.

Speech is synthesised (Open JTalk) and heard by the listener that is installed (Whisper base), so what is asserted is
what it really hears. The model servers are the exact-wire fake.
"""

import base64
import io
import random
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from gateway.reading.speech import is_available
from loadtests.upstream import RunningUpstream
from tenants.context import DataClass, Zone
from tenants.policy import GuardPolicy, Policy
from tests.contract.api.conftest import ONPREM
from tests.contract.api.test_guard import outcome
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.servers import not_available
from tests.voices import recorded, silence, spoken

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("onprem", "overseas")]

# In the gateway itself, on a server of the house, and abroad.
LOCAL, HOUSE, ABROAD = "whisper-base", "fake-transcription", "whisper-1"
PLAIN = "保育園の申し込みの期限は、来月の十五日です。"
# Its check digit is right; nobody has it.
ONE_BY_ONE = "私のマイナンバーは、1、2、3、4、5、6、7、8、9、0、1、8、です。"
IN_FOURS = "マイナンバーは、1234、5678、9018です。"


# Hearing is work for nobody who waits: on a busy machine other processes go first.
PATIENT_S = 300


@pytest.fixture(scope="module")
def servers(overseas_process: RunningUpstream) -> dict[str, str]:
    if not is_available():
        not_available("faster-whisper not installed: requirements/install.sh speech")
    return {
        "KUMIAI_OPENAI_COMPATIBLE_TRANSCRIPTION_MODEL": HOUSE,
        "OPENAI_API_KEY": "openai-test-key",
        "OPENAI_BASE_URL": f"{overseas_process.url}/v1",
    }


@pytest.fixture(scope="module")
def ears(region: Region, town: Town, servers: dict[str, str]) -> Iterator[RunningGateway]:
    """Listens before anything leaves, and offers what it heard as a model of its own."""
    with region.gateway(KUMIAI_SPEECH="on", **servers) as running:
        eventually(lambda: known(running, town))
        yield running


@pytest.fixture(scope="module")
def deaf(region: Region, town: Town, servers: dict[str, str]) -> Iterator[RunningGateway]:
    """Only measures."""
    with region.gateway(KUMIAI_GATEWAY_SPEECH="off", **servers) as running:
        eventually(lambda: known(running, town))
        yield running


def post(gateway: RunningGateway, town: Town, sound: bytes, model: str = HOUSE, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {town.key}"} | more.pop("headers", {})
    return httpx.post(
        f"{gateway.url}/v1/audio/transcriptions",
        headers=headers,
        files={"file": (more.pop("name", "a.wav"), sound, "audio/wav")},
        data={"model": model} | more,
        timeout=PATIENT_S,
    )


# ── The house's own ear ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_gateways_own_ear_writes_down_what_is_said(ears: RunningGateway, town: Town) -> None:
    with town.client(ears.url, timeout=PATIENT_S) as client:
        told = client.audio.transcriptions.create(
            model=LOCAL, file=("kaigi.wav", spoken(PLAIN)), response_format="verbose_json", language="ja"
        )
    assert "保育園" in told.text and "15日" in told.text
    assert told.duration == pytest.approx(4.43, abs=0.01)
    assert told.segments is not None and "".join(s.text for s in told.segments) == told.text


def test_where_nobody_speaks_nothing_is_written_down(ears: RunningGateway, town: Town) -> None:
    """Whisper says something all the same, on one kind of processor another thing than on the next."""
    hiss = recorded(random.Random(1).randbytes(96_000 * 2), 48_000)
    for sound in (silence(2), silence(10), hiss):
        told = post(ears, town, sound, LOCAL)
        assert (told.status_code, told.json().get("text")) == (200, ""), told.text


def test_every_shape_that_openais_client_knows(deaf: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    create = town.client(deaf.url).audio.transcriptions.create
    sound = ("kaigi.wav", silence(4))
    shapes = {
        form: str(create(model=HOUSE, file=sound, response_format=form))  # type: ignore[call-overload]
        for form in ("text", "srt", "vtt")
    }
    assert shapes["text"] == "これは見本の答えです。𠮷野町\n"
    assert shapes["srt"].startswith("1\n00:00:00,000 --> 00:00:01,500\nこれは見本の答")
    assert shapes["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nこれは")
    assert create(model=HOUSE, file=sound).text in shapes["text"]
    assert onprem.seen()["by_path"] == {"/v1/audio/transcriptions": 4}


# ── What leaves ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_spoken_my_number_goes_nowhere(ears: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    for model in (HOUSE, LOCAL):
        assert outcome(post(ears, town, spoken(ONE_BY_ONE), model)) == (403, "my_number_found")
    # The listener drops a digit of it: what is left may be anybody's number.
    assert outcome(post(ears, town, spoken(IN_FOURS))) == (403, "number_misheard")
    assert onprem.seen()["calls"] == 0
    allowed = post(ears, town, spoken(PLAIN))
    assert outcome(allowed) == (200, "onprem") and allowed.headers["kumiai-data-class"] == "3C"


def test_a_recording_is_personal_data(deaf: RunningGateway, town: Town, overseas: RunningUpstream) -> None:
    refused = post(deaf, town, silence(1), ABROAD)
    assert outcome(refused) == (403, "zone_refused")
    assert "音声" in refused.json()["error"]["message"]
    assert overseas.seen()["calls"] == 0


def test_what_is_to_stay_in_the_house_goes_nowhere_else(
    region: Region, servers: dict[str, str], deaf: RunningGateway, onprem: RunningUpstream
) -> None:
    zones = {DataClass.C3C: frozenset({Zone.ONPREM, Zone.DOMESTIC})}
    town = region.make_town(policy=Policy(zones=zones, personal_data_contract="契約 令和8年4月1日"))
    kept = {"headers": {"kumiai-sound-zone": "onprem"}}
    eventually(lambda: known(deaf, town))
    assert outcome(post(deaf, town, silence(1), **kept)) == (200, "onprem")
    assert onprem.seen()["calls"] == 1
    with region.gateway(
        KUMIAI_GATEWAY_SPEECH="off", KUMIAI_OPENAI_COMPATIBLE_ZONE="domestic", **servers
    ) as in_the_country:
        eventually(lambda: known(in_the_country, town))
        # The town allows it, the caller does not.
        assert outcome(post(in_the_country, town, silence(1))) == (200, "domestic")
        assert outcome(post(in_the_country, town, silence(1), **kept)) == (403, "zone_refused")
    assert onprem.seen()["calls"] == 2
    wrong = post(deaf, town, silence(1), headers={"kumiai-sound-zone": "domestic"})
    assert (outcome(wrong), wrong.json()["error"]["param"]) == ((400, "invalid_request"), "Kumiai-Sound-Zone")


def test_the_callers_own_file_stays_here(deaf: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    named = bytearray(silence(1))
    named += b"LIST" + (28).to_bytes(4, "little") + b"INFOIART" + (16).to_bytes(4, "little") + b"0790-00-0000 abc"
    assert post(deaf, town, bytes(named), name="山田.wav", prompt="保育園").status_code == 200
    [seen] = onprem.seen()["requests"]
    form = seen["body"].encode("latin-1")
    assert b"fLaC" in form and 'name="prompt"\r\n\r\n保育園'.encode() in form
    assert b"0790" not in form and "山田".encode() not in form and b"RIFF" not in form
    assert ask_hint(deaf, town, "連絡先は 090-1234-5678").headers["kumiai-guard"] == "phone=1"


def ask_hint(gateway: RunningGateway, town: Town, hint: str) -> httpx.Response:
    return post(gateway, town, silence(1), prompt=hint)


def test_what_is_found_in_a_transcript_is_told(deaf: RunningGateway, region: Region, onprem: RunningUpstream) -> None:
    strict = region.make_town(policy=Policy(default_class=DataClass.C1, guard=GuardPolicy(ng_words=("見本",))))
    eventually(lambda: known(deaf, strict))
    warned = post(deaf, strict, silence(1))
    assert warned.headers["kumiai-answer-guard"] == "ng_word=1"
    assert "見本" in warned.json()["text"] and warned.json()["kumiai"]["answer_guard"]
    held = post(deaf, strict, silence(1), response_format="srt", headers={"kumiai-answer-guard": "withhold"})
    assert "見本" not in held.text and "担当の窓口" in held.text


# ── Money ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recording_costs_its_begun_seconds(deaf: RunningGateway, region: Region, onprem: RunningUpstream) -> None:
    # A yen a second: 60 yen a minute.
    region.set_price(f"compatible/{HOUSE}", input_u=60_000_000, output_u=0)
    rich, poor = region.make_town(month_yen=5), region.make_town(month_yen=4)
    eventually(lambda: known(deaf, rich) and known(deaf, poor))
    try:
        assert outcome(post(deaf, poor, silence(4.3))) == (429, "quota_exceeded")
        assert onprem.seen()["calls"] == 0
        assert post(deaf, rich, silence(4.3)).status_code == 200
        [call] = region.settled(rich)
        assert (call.cost_uyen, call.operation) == (5_000_000, "audio/transcriptions")
    finally:
        region.set_price(f"compatible/{HOUSE}", input_u=0, output_u=0)


def test_a_header_that_lies_about_the_length_is_not_believed(deaf: RunningGateway, region: Region) -> None:
    samples = recorded(bytes(48_000 * 2 * 3), 48_000)
    lying = bytearray(samples)
    # A second, says the head; three follow.
    lying[40:44] = (48_000 * 2).to_bytes(4, "little")
    with wave.open(io.BytesIO(bytes(lying))) as file:
        assert file.getnframes() == 48_000
    told = post(deaf, region.make_town(), bytes(lying), response_format="verbose_json")
    # Whatever of it is decoded goes on and is paid for; nobody further on gets more.
    assert told.status_code == 200 and told.json()["duration"] == 1.0


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────


def two_tracks() -> bytes:
    import av
    import numpy

    into = io.BytesIO()
    with av.open(into, mode="w", format="matroska") as container:
        streams = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 4_096), dtype="int16"), format="s16", layout="mono")
            frame.sample_rate = 16_000
            container.mux([*stream.encode(frame), *stream.encode(None)])
    return into.getvalue()


def test_what_is_no_recording_is_refused(deaf: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    assert outcome(post(deaf, town, b"RIFF....WAVE junk")) == (400, "recording_unread")
    assert outcome(post(deaf, town, recorded(b"", 48_000))) == (400, "recording_unread")
    assert outcome(post(deaf, town, recorded(bytes(8_000 * 2 * 60 * 21), 8_000))) in (
        (400, "recording_unread"),
        (413, "body_too_large"),
    )
    assert outcome(post(deaf, town, recorded(bytes(1_000 * 2 * 60 * 21), 1_000))) == (400, "recording_unread")
    # What is heard in one track says nothing of the other.
    assert outcome(post(deaf, town, two_tracks())) == (400, "recording_unread")
    for wrong in ({"response_format": "pdf"}, {"stream": "true"}, {"temperature": "warm"}, {"language": "日本語"}):
        refused = post(deaf, town, silence(1), **wrong)
        assert outcome(refused) == (400, "invalid_request"), wrong
        assert refused.json()["error"]["param"] == next(iter(wrong))
    headers = {"authorization": f"Bearer {town.key}"}
    address = f"{deaf.url}/v1/audio/transcriptions"
    assert outcome(httpx.post(address, headers=headers, json={"model": HOUSE})) == (400, "invalid_request")
    missing = httpx.post(address, headers=headers, files={"model": (None, HOUSE)})
    assert (outcome(missing), missing.json()["error"]["param"]) == ((400, "invalid_request"), "file")
    twice = [("file", ("a.wav", silence(1))), ("model", (None, HOUSE)), ("model", (None, ABROAD))]
    assert outcome(httpx.post(address, headers=headers, files=twice)) == (400, "duplicate_key")
    masked = post(deaf, town, silence(1), headers={"kumiai-mask": "1"})
    assert (outcome(masked), masked.json()["error"]["param"]) == ((400, "invalid_request"), "Kumiai-Mask")
    assert outcome(post(deaf, town, silence(1), ONPREM)) == (400, "not_supported_by_model")
    assert onprem.seen()["calls"] == 0


def test_a_key_without_leave_for_sound_is_refused(deaf: RunningGateway, region: Region, town: Town) -> None:
    key = region.make_key(town, scopes=frozenset({"chat"}))
    refused = post(deaf, town, silence(1), headers={"authorization": f"Bearer {key}"})
    assert refused.status_code == 403


def test_the_same_key_gives_the_same_transcript_once(deaf: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    once, again = (post(deaf, town, silence(1), headers={"idempotency-key": "kaigi-1"}) for _ in range(2))
    assert once.text == again.text and again.headers["idempotency-replayed"] == "true"
    assert onprem.seen()["calls"] == 1


def test_a_listener_that_dies_takes_no_call_along(ears: RunningGateway, town: Town) -> None:
    assert outcome(post(ears, town, silence(1))) == (200, "onprem")
    [process] = [
        p for p in psutil.Process(ears.process.pid).children(recursive=True) if "gateway.reading.speech" in p.cmdline()
    ]
    assert set(process.environ()) == {"PATH", "LANG", "OMP_NUM_THREADS"}
    assert process.nice() == 10
    process.kill()
    process.wait(20)
    assert outcome(post(ears, town, spoken(ONE_BY_ONE))) == (403, "my_number_found")


# ── Among messages ───────────────────────────────────────────────────────────────────────────────────────────────


def ask(gateway: RunningGateway, town: Town, sound: bytes) -> httpx.Response:
    audio = {"data": base64.b64encode(sound).decode(), "format": "wav"}
    parts = [{"type": "text", "text": "何と言っていますか"}, {"type": "input_audio", "input_audio": audio}]
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {town.key}"},
        json={"model": ONPREM, "messages": [{"role": "user", "content": parts}]},
        timeout=PATIENT_S,
    )


def test_the_words_of_a_recording_go_in_its_stead(ears: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    assert outcome(ask(ears, town, spoken(PLAIN))) == (200, "onprem")
    [seen] = onprem.seen()["requests"]
    _, words = seen["body"]["messages"][0]["content"]
    assert words["type"] == "text" and "保育園" in words["text"] and "機械が聞き取った" in words["text"]


def test_a_number_in_a_recording_among_messages_goes_nowhere(
    ears: RunningGateway, town: Town, onprem: RunningUpstream
) -> None:
    assert outcome(ask(ears, town, spoken(ONE_BY_ONE))) == (403, "my_number_found")
    assert outcome(ask(ears, town, spoken(IN_FOURS))) == (403, "number_misheard")
    phone = ask(ears, town, spoken("電話番号は、090、1234、5678です。"))
    assert phone.headers["kumiai-guard"] == "phone=1"
    assert onprem.seen()["calls"] == 1


def test_without_a_listener_a_recording_counts_as_unreadable(deaf: RunningGateway, town: Town) -> None:
    assert outcome(ask(deaf, town, silence(1))) == (400, "invalid_request")
    # To be transcribed it still goes where personal data may.
    assert outcome(post(deaf, town, spoken(ONE_BY_ONE))) == (200, "onprem")
