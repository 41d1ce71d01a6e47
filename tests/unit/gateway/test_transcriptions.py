"""Forms in, subtitles out: what of it needs no server."""

import json

import pytest

from gateway.contracts import BadRequest
from gateway.guard.answers import AnswerRules, AnswerWatch
from gateway.guard.findings import Kind
from gateway.reading.speech import Recording
from gateway.server import metering
from gateway.server.wires.transcriptions import form_of, identity, parse_transcription, transcript_of
from tenants.quota.pricing import minutes_uyen
from tenants.quota.terms import FrozenPrice

TYPE = b"multipart/form-data; boundary=b"


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    made = [b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (h.encode(), d) for h, d in parts]
    return b"".join(made) + end


FILE = ('name="file"; filename="a.wav"', b"RIFF")
MODEL = ('name="model"', b"transcription")


def test_a_form_is_read_once_and_checked() -> None:
    request = parse_transcription(
        TYPE, form(FILE, MODEL, ('name="response_format"', b"srt"), ('name="chunking_strategy"', b"auto"))
    )
    assert (request.model, request.sound, request.answer_form) == ("transcription", b"RIFF", "srt")
    assert request.ignored == ("chunking_strategy",) and request.body == {}


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (form(MODEL), "file"),
        (form(FILE), "model"),
        (form(FILE, FILE, MODEL), "file"),
        (form(('name="file"', b"text"), MODEL), "file"),
        (form(FILE, MODEL, MODEL), "model"),
        (form(FILE, MODEL, ('name="stream"', b"true")), "stream"),
        (form(FILE, MODEL, ('name="prompt"', b"a" * 1_001)), "prompt"),
        (form(FILE, MODEL, ('name="prompt"', b"a" * 100_000)), None),
        (form(FILE, MODEL, ('name="prompt"', b"\xff")), None),
        (form(FILE, MODEL, ('name="timestamp_granularities[]"', b"word")), "timestamp_granularities[]"),
        (form(FILE, MODEL, end=b""), None),
        (b"junk", None),
    ],
)
def test_a_wrong_form_is_refused_by_its_field(raw: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_transcription(TYPE, raw)
    assert refused.value.extensions.get("param") == param


def test_another_try_by_a_client_is_the_same_request() -> None:
    raw = form(FILE, MODEL)
    again = raw.replace(b"--b", b"--other")
    assert identity(TYPE, raw) == identity(b"multipart/form-data; boundary=other", again)
    assert identity(TYPE, raw) != identity(TYPE, form(FILE, ('name="model"', b"x")))


def test_what_goes_on_is_a_form_again() -> None:
    body, kind = form_of(Recording(b"fLaC", 1_000), {"model": "m"})
    sent = parse_transcription(kind.encode(), body)
    assert (sent.sound, sent.model) == (b"fLaC", "m")


def test_subtitles_survive_what_a_server_says() -> None:
    request = parse_transcription(TYPE, form(FILE, MODEL, ('name="response_format"', b"srt")))
    request.recording = Recording(b"", 3_723_004)
    said = {"text": "こんにちは", "segments": [{"start": "x", "end": 3_723.004, "text": "こん\n\nにちは"}, 7]}
    body, kind = transcript_of(request, json.dumps(said).encode(), None)
    assert body.decode() == "1\n00:00:00,000 --> 01:02:03,004\nこん にちは\n"
    assert kind == b"text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("text", "segment"),
    [("禁句です。", "よい言葉です。"), ("よい言葉です。", "禁句です。"), ("禁句です。", "禁句 です。")],
)
@pytest.mark.parametrize("shape", [b"json", b"verbose_json", b"vtt"])
def test_whatever_is_told_of_a_transcript_was_read(text: str, segment: str, shape: bytes) -> None:
    request = parse_transcription(TYPE, form(FILE, MODEL, ('name="response_format"', shape)))
    request.recording = Recording(b"", 1_000)
    said = {"text": text, "segments": [{"start": 0, "end": 1, "text": segment}]}
    watch = AnswerWatch(AnswerRules("withhold", ng_words=("禁句",)), choices=1)
    body, _ = transcript_of(request, json.dumps(said).encode(), watch)
    assert "禁句" not in body.decode()
    assert watch.counts == {Kind.NG_WORD: 1}


def test_a_recording_costs_by_begun_seconds_to_the_micro_yen() -> None:
    price = FrozenPrice("v", "", 150_000_000, 6_000, 0)
    assert metering.begun_seconds(Recording(b"", 4_001)) == 5
    # 0.006 dollars a minute at 150 yen: 0.9 yen.
    assert minutes_uyen(price, seconds=60) == 900_000
    assert minutes_uyen(price, seconds=1) == 15_000
    assert minutes_uyen(FrozenPrice("v", "", 1_000_000, 10, 0), seconds=1) == 1
