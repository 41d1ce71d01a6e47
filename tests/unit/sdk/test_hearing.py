"""Recordings as words: heard by a process of its own, which says how far it is and doubts its own numbers."""

import asyncio
import importlib.util
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from apps.sdk import intake
from apps.sdk.intake import HearingFailed, NobodyHears, Reading, close_intake, hear_upload, is_recording, read_upload
from gateway.reading import CannotReadFile, Kind, PartState
from observability.problems import Unavailable
from tests.servers import not_available
from tests.unit.reading.files import png
from tests.voices import RATE_HZ, recorded, silence, spoken

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


# ── By the house's own model ─────────────────────────────────────────────────────────────────────────────────────


class Model:
    """Hears what it is told to hear, and keeps what it was given. refuses: from which piece on."""

    def __init__(self, *said: str, refuses: int | None = None) -> None:
        self.said = said
        self.given: list[bytes] = []
        self._refuses = refuses

    async def __call__(self, sound: bytes) -> tuple[str, float]:
        if len(self.given) == self._refuses:
            raise Unavailable("あとで試してください。")
        self.given.append(sound)
        return self.said[len(self.given) - 1], await asyncio.to_thread(seconds_of, sound)


def seconds_of(sound: bytes) -> float:
    return len(samples_of(sound)) / RATE_HZ


def samples_of(sound: bytes) -> Any:
    """Decoded at the rate of `spoken`."""
    import av
    import numpy

    with av.open(io.BytesIO(sound)) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
        frames = [f for d in container.decode(audio=0) for f in resampler.resample(d)] + resampler.resample(None)
    return numpy.concatenate([f.to_ndarray().reshape(-1) for f in frames])


async def heard_by(model: Model, data: bytes) -> tuple[list[float], Reading]:
    steps = [step async for step in hear_upload(data, model)]
    assert isinstance(steps[-1], Reading)
    return [step for step in steps[:-1] if isinstance(step, float)], steps[-1]


@pytest.mark.real
@pytest.mark.usefixtures("listener")
async def test_the_houses_model_hears_piece_by_piece_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "PIECE_S", 25)
    monkeypatch.setattr(intake, "_PART_S", 30)
    monkeypatch.setattr(intake, "TELL_EVERY_S", 0.001)
    # A tone with one pause within the last seconds before each cut.
    tone = (b"\x10\x27" * 48 + b"\xf0\xd8" * 48) * (RATE_HZ // 96)
    data = recorded(tone * 15 + bytes(2 * RATE_HZ) + tone * 20 + bytes(2 * RATE_HZ) + tone * 5, RATE_HZ)
    model = Model("はじめます。", "番号は、1、2、3、4、5、6、7、8、9、です。", " ")
    way, reading = await heard_by(model, data)
    first, second, third = [seconds_of(piece) for piece in model.given]
    assert 15 < first < 16
    assert 36 < first + second < 37
    assert first + second + third == pytest.approx(42, abs=0.01)
    assert all(piece.startswith(b"fLaC") for piece in model.given)
    assert way == sorted(way)
    assert reading.summary.startswith("42秒の録音から")
    assert "庁内のAIが聞き取りました" in reading.summary
    assert [p.label for p in reading.parts] == ["0分から", "読み上げられた番号をつなげたもの"]
    # Whoever heard it may have misheard a digit.
    assert reading.has_unread
    assert "組み込みの聞き取り機能" not in reading.all_text + str(reading.warnings)


@pytest.mark.real
@pytest.mark.usefixtures("listener")
async def test_where_the_model_does_not_hear_it_this_machine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "PIECE_S", 21)
    model = Model("これは使いません。", refuses=1)
    data = spoken(PLAIN * 5)
    _, reading = await heard_by(model, data)
    assert len(model.given) == 1
    assert "保育園" in reading.text
    assert "使いません" not in reading.text
    assert "庁内のAIの代わりに、組み込みの聞き取り機能が聞き取りました" in reading.summary
    assert [w.code for w in reading.warnings] == ["heard", "instead"]
    assert f"庁内のAIでは聞き取れませんでした（{Unavailable.title}）" in reading.warnings[1].words


async def test_without_a_listener_the_model_gets_the_recording_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake.speech, "is_available", lambda: False)

    async def ear(sound: bytes) -> tuple[str, float]:
        assert sound == silence(2)
        return "保育園の話です。", 2.0

    [reading] = [step async for step in hear_upload(silence(2), ear) if isinstance(step, Reading)]
    assert (reading.text, reading.summary) == ("保育園の話です。", "2秒の録音から8文字を、庁内のAIが聞き取りました")

    async def none(sound: bytes) -> tuple[str, float]:
        raise Unavailable("あとで試してください。")

    with pytest.raises(HearingFailed) as refused:
        [_ async for _ in hear_upload(silence(2), none)]
    assert refused.value.detail.startswith("庁内のAIが聞き取れませんでした。")


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
