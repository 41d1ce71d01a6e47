"""Recordings as words: heard by a process of its own, which says how far it is and doubts its own numbers."""

import importlib.util
import io
from collections.abc import AsyncIterator

import pytest

from apps.sdk import intake
from apps.sdk.intake import HearingFailed, NobodyHears, Reading, close_intake, hear_upload, is_recording, read_upload
from gateway.reading import CannotReadFile, Kind, PartState
from tests.servers import not_available
from tests.unit.reading.files import png
from tests.voices import RATE_HZ, silence, spoken

PLAIN = "保育園の申し込みの期限は、来月の十五日です。"
ONE_BY_ONE = "番号は、1、2、3、4、5、6、7、8、9、0、1、2、です。"


@pytest.fixture
async def listener() -> AsyncIterator[None]:
    if importlib.util.find_spec("faster_whisper") is None:
        not_available("faster-whisper not installed: requirements/install.sh speech")
    yield
    await close_intake()


async def heard(data: bytes) -> tuple[list[float], Reading]:
    steps = [step async for step in hear_upload(data)]
    assert isinstance(steps[-1], Reading)
    return [step for step in steps[:-1] if isinstance(step, float)], steps[-1]


def kept_as(kind: str, codec: str, data: bytes) -> bytes:
    """A recording as another program keeps it."""
    import av

    into = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(into, mode="w", format=kind) as container:
        stream = container.add_stream(codec, rate=RATE_HZ, layout="mono")
        for frame in source.decode(audio=0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return into.getvalue()


@pytest.mark.real
@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("mp3", "libmp3lame"),
        ("ipod", "aac"),
        ("adts", "aac"),
        ("ogg", "libopus"),
        ("flac", "flac"),
        ("webm", "libopus"),
    ],
)
async def test_a_recording_is_known_by_its_beginning_and_heard(kind: str, codec: str) -> None:
    data = kept_as(kind, codec, spoken(PLAIN))
    assert is_recording(data)
    _, reading = await heard(data)
    assert "保育園" in reading.text
    assert reading.kind is Kind.RECORDING
    assert [w.code for w in reading.warnings] == ["heard"]
    assert not reading.has_unread


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        png(3, 2),
        b"%PDF-1.7",
        "\ufeff地区,数\n北,1\n".encode("utf-16-le"),
        b"\xff\xd8\xff\xe0",
        b"RIFF\0\0\0\0WEBP",
    ],
)
def test_other_files_are_no_recordings(data: bytes) -> None:
    assert not is_recording(data)


@pytest.mark.real
@pytest.mark.usefixtures("listener")
async def test_a_number_that_was_read_aloud_is_put_together_and_doubted() -> None:
    _, reading = await heard(spoken(ONE_BY_ONE))
    assert reading.has_unread
    assert "unsure-number" in [w.code for w in reading.warnings]
    # What stands between the spoken digits hides them from every detector.
    assert any(line.isdigit() and len(line) >= 9 for line in reading.text.splitlines())


@pytest.mark.real
@pytest.mark.usefixtures("listener")
async def test_it_is_told_how_far_the_listener_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "TELL_EVERY_S", 0.01)
    way, _ = await heard(spoken(PLAIN * 8))
    assert way == sorted(way)
    assert 0 < way[-1] <= 1


@pytest.mark.real
@pytest.mark.usefixtures("listener")
async def test_silence_and_what_is_no_sound_say_so() -> None:
    _, reading = await heard(silence(2))
    assert (reading.text, reading.parts[0].state) == ("", PartState.EMPTY)
    with pytest.raises(HearingFailed) as refused:
        await heard(b"RIFF\0\0\0\0WAVE junk")
    assert "WAV・MP3・M4A" in refused.value.detail


@pytest.mark.real
@pytest.mark.usefixtures("listener")
async def test_who_stops_listening_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "TELL_EVERY_S", 0.01)
    steps = hear_upload(spoken(PLAIN * 8))
    assert await anext(steps) == 0
    await steps.aclose()
    # The next one does not wait for it.
    _, reading = await heard(spoken(PLAIN))
    assert "保育園" in reading.text


async def test_where_nobody_hears_it_is_said_whom_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake.speech, "is_available", lambda: False)
    with pytest.raises(NobodyHears) as refused:
        await heard(silence(1))
    assert "町の管理者を通して、共同利用の事務局に" in refused.value.detail


async def test_a_recording_is_no_file_to_read() -> None:
    try:
        with pytest.raises(CannotReadFile) as refused:
            await read_upload("会議.wav", silence(1))
        assert "チャットに付けると" in refused.value.detail
    finally:
        await close_intake()


# ── Corrected by a person ────────────────────────────────────────────────────────────────────────────────────────


def test_a_corrected_number_that_may_be_anybodys_is_doubted_still() -> None:
    words = "番号は、1、2、3、4、5、6、7、8、9、0、1、2、です。"
    reading = intake.corrected(Kind.RECORDING, words, was_unsure=False)
    assert reading.has_unread
    assert reading.text.endswith("123456789012")
    assert intake.words_of((p.label, p.text) for p in reading.parts) == words
    gone = intake.corrected(Kind.RECORDING, "番号は消しました。", was_unsure=True)
    assert (gone.has_unread, gone.text, gone.warnings) == (False, "番号は消しました。", ())


def test_what_is_left_of_a_doubted_number_keeps_it_so() -> None:
    assert not intake.corrected(Kind.RECORDING, "受付は 345678 です。", was_unsure=False).has_unread
    assert intake.corrected(Kind.RECORDING, "受付は 345678 です。", was_unsure=True).has_unread


def test_words_that_stand_under_labels_are_corrected_together() -> None:
    parts = [("0分から", "はじめます。"), ("5分から", "おわります。"), ("読み上げられた番号をつなげたもの", "1234567")]
    assert intake.words_of(parts) == "【0分から】\nはじめます。\n\n【5分から】\nおわります。"
