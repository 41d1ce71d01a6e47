"""Files from people: read in a process of their own, with limits on time and memory, because the bytes are untrusted."""

import asyncio
import contextlib
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Final

from gateway.reading import CannotReadFile, Kind, Limits, Part, PartState, Reading, Table, TableRow, read_file
from observability.problems import InvalidInput

__all__ = [
    "CannotReadFile",
    "Kind",
    "Limits",
    "Part",
    "PartState",
    "Reading",
    "Table",
    "TableRow",
    "close_intake",
    "read_upload",
]

MAX_MEMORY_BYTES: Final = 2 * 1024 * 1024 * 1024


class FileTooSlow(InvalidInput):
    type = "urn:problem:intake:too-slow"
    title = "この資料は、時間内に読み取れませんでした"


class FileBrokeReader(InvalidInput):
    type = "urn:problem:intake:unreadable"
    title = "この資料は読み取れませんでした"


_pool: ProcessPoolExecutor | None = None


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _open() -> ProcessPoolExecutor:
    global _pool
    if _pool is None:
        # Spawned, not forked: the child gets none of our connections and keys.
        context = multiprocessing.get_context("spawn")
        _pool = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_limit, max_tasks_per_child=50)
    return _pool


def _kill() -> None:
    global _pool
    if _pool is not None:
        for process in list((_pool._processes or {}).values()):
            process.kill()
        _pool.shutdown(wait=False, cancel_futures=True)
        _pool = None


async def read_upload(name: str, data: bytes, *, limits: Limits | None = None, timeout_s: float = 30.0) -> Reading:
    """The text of a file and all that is doubtful about it.

    Raises `CannotReadFile` and its kin, `FileTooSlow`, `FileBrokeReader`; nothing is kept.
    """
    work = asyncio.get_running_loop().run_in_executor(_open(), partial(read_file, name, data, limits=limits))
    try:
        return await asyncio.wait_for(work, timeout_s)
    except TimeoutError:
        _kill()
        raise FileTooSlow(f"「{name}」を小さく分けるか、必要なページだけにしてください。", field="file") from None
    except (BrokenProcessPool, MemoryError):
        _kill()
        raise FileBrokeReader(f"「{name}」を別の形式で保存し直してください。", field="file") from None


async def close_intake() -> None:
    """Ends the reading process; called when the portal stops."""
    with contextlib.suppress(BrokenProcessPool):
        await asyncio.to_thread(_kill)
