"""Files from people: read in a process of their own, with limits on time and memory, because the bytes are untrusted."""

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from gateway.reading import CannotReadFile, Kind, Limits, Part, PartState, Reading, Table, TableRow, read_file
from gateway.reading.confinement import confine
from gateway.reading.pictures import is_available
from gateway.reading.problems import FileTooLarge, ReadingTookTooLong
from observability.problems import Unavailable

__all__ = [
    "CannotReadFile",
    "FileBrokeReader",
    "Kind",
    "Limits",
    "Part",
    "PartState",
    "Reading",
    "ReadingIsBusy",
    "ReadingTookTooLong",
    "Table",
    "TableRow",
    "close_intake",
    "read_upload",
]

# How long a file waits for the one before it; a person has given up by then.
MAX_WAIT_S: Final = 60.0
# A new process now and then, so that what a library leaks does not pile up.
FILES_PER_PROCESS: Final = 50


class FileBrokeReader(CannotReadFile):
    type = "urn:problem:reading:broke-reader"
    title = "この資料は読み取れませんでした"


class ReadingIsBusy(Unavailable):
    type = "urn:problem:reading:busy"
    title = "資料の読み取りが混み合っています"


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


async def close_intake() -> None:
    """Ends the reading process; called when the portal stops."""
    await asyncio.to_thread(partial(_reader.end, wait=True))
