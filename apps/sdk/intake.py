"""Files from people: read in a process of their own, with limits on time and memory, because the bytes are untrusted."""

import asyncio
import contextlib
import json
import multiprocessing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from weakref import WeakKeyDictionary

from gateway.reading import (
    CannotReadFile,
    Kind,
    Limits,
    Part,
    PartState,
    Reading,
    Remark,
    Table,
    TableRow,
    read_file,
    speech,
)
from gateway.reading.aside import Answer, Broken, Busy, ReadingProcess
from gateway.reading.confinement import confine
from gateway.reading.pictures import is_available
from gateway.reading.problems import FileTooLarge, ReadingTookTooLong
from gateway.reading.report import joined
from gateway.reading.speech import is_recording
from observability.problems import Problem, Unavailable

__all__ = [
    "CannotReadFile",
    "Ear",
    "FileBrokeReader",
    "HearingFailed",
    "Kind",
    "Limits",
    "NobodyHears",
    "Part",
    "PartState",
    "Reading",
    "ReadingIsBusy",
    "ReadingTookTooLong",
    "Table",
    "TableRow",
    "check_hearing",
    "close_intake",
    "corrected",
    "hear_upload",
    "is_recording",
    "read_upload",
    "words_of",
]

# How long a file waits for the one before it; a person has given up by then.
MAX_WAIT_S: Final = 60.0
# A new process now and then, so that what a library leaks does not pile up.
FILES_PER_PROCESS: Final = 50
# A meeting. An hour takes a free core eight minutes; a busy one may take the time it lasted.
MAX_RECORDING_S: Final = 60 * 60
MAX_HEARING_S: Final = 60.0 * 60
# How long a recording waits for those before it.
MAX_HEARING_WAIT_S: Final = 30.0 * 60
MAX_CUTTING_S: Final = 5.0 * 60
# What a model is given at once; the gateway listens to it before.
PIECE_S: Final = 2 * 60
# How often it is told how far it is.
TELL_EVERY_S: Final = 2.0
# The text of so many seconds stands under one label.
_PART_S: Final = 5 * 60
# Shorter ones are counts and dates.
_SPOKEN_NUMBER: Final = 7
_JOINED_NUMBERS: Final = "読み上げられた番号をつなげたもの"


class FileBrokeReader(CannotReadFile):
    type = "urn:problem:reading:broke-reader"
    title = "この資料は読み取れませんでした"


class ReadingIsBusy(Unavailable):
    type = "urn:problem:reading:busy"
    title = "資料の読み取りが混み合っています"


class NobodyHears(CannotReadFile):
    type = "urn:problem:reading:nobody-hears"
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    title = "ここでは、録音を文字にできません"


class HearingFailed(CannotReadFile):
    type = "urn:problem:reading:hearing-failed"
    title = "録音を聞き取れませんでした"


@dataclass(slots=True)
class _Reader:
    """The one reading process of this process, whose files take turns: a file that kills it kills no other."""

    pool: ProcessPoolExecutor | None = None
    files: int = 0
    turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = field(default_factory=WeakKeyDictionary)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[ProcessPoolExecutor]:
        lock = self.turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), MAX_WAIT_S)
        except TimeoutError as error:
            raise ReadingIsBusy("少し待ってから、もう一度添付してください。", retry_after_s=60) from error
        try:
            yield self._ready()
        finally:
            lock.release()

    def _ready(self) -> ProcessPoolExecutor:
        if self.files >= FILES_PER_PROCESS:
            self.end()
        if self.pool is None:
            # Spawned, not forked: the child gets none of our connections and nothing of our memory.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=confine)
        self.files += 1
        return self.pool

    def end(self, *, wait: bool = False) -> None:
        pool, self.pool, self.files = self.pool, None, 0
        if pool is None:
            return
        # A pool has no way to stop a running call; its process has.
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=wait, cancel_futures=True)


_reader = _Reader()


async def read_upload(name: str, data: bytes, *, limits: Limits | None = None, timeout_s: float = 30.0) -> Reading:
    """The text of a file and all that is doubtful about it; nothing is kept. Scanned pages are read where that is
    installed.

    timeout_s: from the file's turn on; waiting for earlier files does not count. Raises the kin of `CannotReadFile`
    (`ReadingTookTooLong`, `FileBrokeReader` for one that ended its reader) and `ReadingIsBusy`.
    """
    async with _reader.turn() as pool:
        is_over = False
        try:
            read = partial(read_file, name, data, limits=limits, reads_pictures=is_available())
            work = asyncio.get_running_loop().run_in_executor(pool, read)
            reading = await asyncio.wait_for(work, timeout_s)
        except TimeoutError:
            raise ReadingTookTooLong("小さく分けるか、必要なページだけにして添付してください。", field="file") from None
        except BrokenProcessPool as error:
            raise FileBrokeReader("元のアプリで開き、別の形式で保存し直してください。", field="file") from error
        except MemoryError as error:
            raise FileTooLarge("広げると大きすぎます。分けて添付してください。", field="file") from error
        except CannotReadFile:
            is_over = True
            raise
        else:
            is_over = True
            return reading
        finally:
            # Too slow, broken, or nobody waits for it any more.
            if not is_over:
                _reader.end()


# ── Recordings ───────────────────────────────────────────────────────────────────────────────────────────────────

# Who makes words of a piece of sound: the words, and how many seconds it has. Raises a `Problem`.
Ear = Callable[[bytes], Awaitable[tuple[str, float]]]

_listener = ReadingProcess("gateway.reading.speech", within_s=MAX_HEARING_S, makes=True, wait_s=MAX_HEARING_WAIT_S)
# Apart, for it takes seconds: whom a model hears does not wait for those whom the listener hears.
_cutter = ReadingProcess("gateway.reading.speech", within_s=MAX_CUTTING_S, makes=True)
# An hour of sound is a hundred megabytes while it is heard.
_asking_models = asyncio.Semaphore(2)


def check_hearing() -> None:
    """Raises `NobodyHears` where the listener is not installed."""
    if not speech.is_available():
        raise NobodyHears(
            "録音を聞き取る部品が入っていません。町の管理者を通して、共同利用の事務局に追加を依頼してください。"
            "いまは、話した内容を文字で書いて付けてください。",
            field="file",
        )


async def hear_upload(data: bytes, ear: Ear | None = None) -> AsyncGenerator[float | Reading, None]:
    """How far it is with a recording, from 0 to 1, every few seconds, and in the end what was heard in it.

    ear: the house's own model, which is asked first, piece by piece. Without one, or where it refuses or does not answer,
    the recording is heard on this machine, by a process that has nothing else of ours; who heard it is told. Raises
    `NobodyHears`, `HearingFailed` and `ReadingIsBusy`; who stops iterating ends it.
    """
    refusal: Problem | None = None
    way = _Way()
    if ear is not None:
        try:
            async with contextlib.aclosing(_told(_by_model(ear, data, way), way)) as steps:
                async for step in steps:
                    yield step
            return
        except Problem as problem:
            if not speech.is_available():
                told = f"庁内のAIが聞き取れませんでした。{problem.title}。{problem.detail}"
                raise HearingFailed(told, field="file") from problem
            refusal = problem
    check_hearing()
    way.share = 0.0
    async with contextlib.aclosing(_told(_by_this_machine(data, way, refusal), way)) as steps:
        async for step in steps:
            yield step


@dataclass(slots=True)
class _Way:
    """How far it is with a recording, from 0 to 1."""

    share: float = 0.0

    def go(self, share: float) -> None:
        self.share = share


async def _told(work: Coroutine[Any, Any, Reading], way: _Way) -> AsyncGenerator[float | Reading, None]:
    """What is told while it is worked, and what comes of it; who stops iterating ends the work."""
    working = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({working}, timeout=TELL_EVERY_S))[0]:
            yield way.share
        yield working.result()
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Problem):
            await working


_HEARD_IN_THE_HOUSE: Final = Remark(
    "heard", "聞き違いがないか、録音と聞き比べてください。録音は庁内から出していません。"
)


async def _by_model(ear: Ear, data: bytes, way: _Way) -> Reading:
    """Piece by piece, for a model takes less at once than people record."""
    heard: list[speech.Heard] = []
    end_s = 0.0
    async with _asking_models:
        cuts: list[tuple[float, int]] = [(0.0, len(data))]
        made, seconds = data, 0.0
        if speech.is_available():
            answer = await _asked(_cutter, {"cut_s": PIECE_S}, data)
            cuts, made, seconds = answer.told["cuts"], answer.made, answer.told["milliseconds"] / 1000
        at = 0
        for start, size in cuts:
            words, length_s = await ear(made[at : at + size])
            at += size
            end_s = start + length_s
            if words.strip():
                heard.append(speech.Heard(start, end_s, words.strip()))
            way.go(min(1.0, end_s / seconds) if seconds else 0.0)
    unsure = speech.unsure_numbers("、".join(piece.text for piece in heard))
    return await asyncio.to_thread(_transcript, heard, seconds or end_s, unsure, "庁内のAI", [_HEARD_IN_THE_HOUSE])


async def _by_this_machine(data: bytes, way: _Way, refusal: Problem | None) -> Reading:
    order = {"language": "ja", "hears": True, "tells_way": True}
    told = (await _asked(_listener, order, data, on_way=way.go)).told
    heard = [speech.Heard(*piece) for piece in told["pieces"]]
    who = "組み込みの聞き取り機能"
    remarks = [Remark("heard", "聞き違いがないか、録音と聞き比べてください。AIに渡るのは言葉だけで、音は渡りません。")]
    if refusal is not None:
        why = f"庁内のAIでは聞き取れませんでした（{refusal.title}）。{who}が聞き取ったため、聞き違いが多いことがあります。"
        remarks = [_HEARD_IN_THE_HOUSE, Remark("instead", why)]
        who = f"庁内のAIの代わりに、{who}"
    return await asyncio.to_thread(_transcript, heard, told["milliseconds"] / 1000, tuple(told["unsure"]), who, remarks)


async def _asked(
    process: ReadingProcess,
    order: dict[str, object],
    data: bytes,
    *,
    on_way: Callable[[float], None] | None = None,
) -> Answer:
    order = order | {"max_seconds": MAX_RECORDING_S}
    try:
        answer = await process.ask([json.dumps(order).encode(), data], on_way=on_way)
    except Busy:
        raise ReadingIsBusy(
            "ほかの録音を聞き取っています。あとで、もう一度付けてください。", retry_after_s=600
        ) from None
    except Broken as error:
        raise HearingFailed("短く分けて、もう一度付けてください。", field="file") from error
    if "problem" in answer.told:
        raise HearingFailed(str(answer.told["problem"]), field="file")
    return answer


def _transcript(
    heard: list[speech.Heard], seconds: float, unsure: tuple[str, ...], who: str, remarks: list[Remark]
) -> Reading:
    """What was heard, and by whom, as the reading of a file; `has_unread` where a long number may be another."""
    length = _clock(seconds)
    if not any(piece.text for piece in heard):
        nothing = Remark("no-text", "話している声が見つかりません。")
        part = Part("録音", "", PartState.EMPTY, "話している声が見つかりません")
        return Reading(
            Kind.RECORDING, "", (part,), (nothing,), (), (), f"{length}の録音に、話している声が見つかりません"
        )
    blocks: dict[int, list[str]] = {}
    for piece in heard:
        blocks.setdefault(int(piece.start // _PART_S), []).append(piece.text)
    parts = [
        Part(f"{at * _PART_S // 60}分から", "\n".join(texts))
        if seconds > _PART_S
        else Part("聞き取った言葉", "\n".join(texts))
        for at, texts in blocks.items()
    ]
    parts += _joined_numbers("、".join(piece.text for piece in heard))
    warnings = (*_of_unsure(unsure), *remarks)
    text = joined(tuple(parts))
    count = sum(len("".join(piece.text.split())) for piece in heard)
    summary = f"{length}の録音から{count:,}文字を、{who}が聞き取りました"
    return Reading(Kind.RECORDING, text, tuple(parts), warnings, (), (), summary, has_unread=bool(unsure))


def _joined_numbers(text: str) -> list[Part]:
    """Between the digits of a number that was read aloud stands what no detector sees through."""
    spoken = [number for number in speech.joined_numbers(text).split() if len(number) >= _SPOKEN_NUMBER]
    return [Part(_JOINED_NUMBERS, "\n".join(spoken))] if spoken else []


def _of_unsure(unsure: tuple[str, ...]) -> list[Remark]:
    if not unsure:
        return []
    told = "、".join(f"「{number}」" for number in unsure[:5])
    return [Remark("unsure-number", f"聞き取りが確かでない番号{told}があるため、個人情報として扱います。")]


def words_of(parts: Iterable[tuple[str, str]]) -> str:
    """What somebody may correct of a reading: its parts (label, text) without those that code put together."""
    kept = [(label, text) for label, text in parts if label != _JOINED_NUMBERS]
    return kept[0][1] if len(kept) == 1 else "\n\n".join(f"【{label}】\n{text}" for label, text in kept)


def corrected(kind: Kind, text: str, *, was_unsure: bool) -> Reading:
    """A person's words in the stead of those that were read in a picture or heard in a recording.

    was_unsure: a long number may have been misheard; then a shorter one that is left keeps it so. Of a recording's words
    `has_unread` tells the same as before. The work of seconds for a long text.
    """
    parts = [Part("直した文", text)]
    unsure: tuple[str, ...] = ()
    if kind is Kind.RECORDING:
        parts += _joined_numbers(text)
        unsure = speech.unsure_numbers(text, is_doubted=was_unsure)
    summary = f"人が直した文、{parts[0].characters:,}文字です"
    return Reading(
        kind, joined(tuple(parts)), tuple(parts), tuple(_of_unsure(unsure)), (), (), summary, has_unread=bool(unsure)
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes}分{rest}秒" if minutes else f"{rest}秒"


async def close_intake() -> None:
    """Ends the reading processes; called when the portal stops."""
    await asyncio.to_thread(partial(_reader.end, wait=True))
    await _listener.aclose()
    await _cutter.aclose()
