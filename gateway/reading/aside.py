"""A process beside ours that reads what people send: untrusted bytes, large models, seconds of work."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.reading.pictures import HEAD
from gateway.reading.speech import ON_WAY

# How long and how many may wait for those before, and how long a process stays without work: a town that sends a
# picture a day does not pay for half a gigabyte of models all day.
_WAIT_S: Final = 60.0
_MAX_WAITING: Final = 32
_IDLE_S: Final = 300.0


class Busy(Exception):
    """Too many wait already, or the turn never came."""


class Broken(Exception):
    """No answer in time, or none at all."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the process says: `told`, then what it made, if it makes anything."""

    told: dict[str, Any]
    made: bytes = b""


class ReadingProcess:
    """`python -m module`, started with the first question, one question at a time, ended when none comes for a while.

    It has none of our environment. makes: whether each answer is followed by bytes. wait_s: for the questions before.
    """

    def __init__(self, module: str, *, within_s: float, makes: bool = False, wait_s: float = _WAIT_S) -> None:
        self._module = module
        self._within_s = within_s
        self._makes = makes
        self._wait_s = wait_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, question: Sequence[bytes], *, on_way: Callable[[float], None] | None = None) -> Answer:
        """Raises `Busy` or `Broken`.

        on_way: told how far it is, from 0 to 1, by a process that was asked to say so.
        """
        if self._waiting >= _MAX_WAITING:
            raise Busy
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turn.acquire(), self._wait_s)
        except TimeoutError:
            raise Busy from None
        finally:
            self._waiting -= 1
        is_over = False
        try:
            async with asyncio.timeout(self._within_s):
                answer = await self._asked(question, on_way)
            is_over = True
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            raise Broken from error
        finally:
            # Too slow, broken, or nobody waits for it: the next question gets a new process.
            if not is_over:
                self._end()
            self._turn.release()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._end_if_idle)
        return answer

    async def _asked(self, question: Sequence[bytes], on_way: Callable[[float], None] | None) -> Answer:
        if self._idle is not None:
            self._idle.cancel()
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                self._module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            )
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        into.writelines([part for piece in question for part in (HEAD.pack(len(piece)), piece)])
        await into.drain()
        told: dict[str, Any] = json.loads(await _piece(out))
        while on_way is not None and ON_WAY in told:
            on_way(float(told[ON_WAY]))
            told = json.loads(await _piece(out))
        return Answer(told, await _piece(out) if self._makes else b"")

    def _end_if_idle(self) -> None:
        if not self._turn.locked():
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def aclose(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        process = self._process
        self._end()
        if process is not None:
            await process.wait()


async def _piece(out: asyncio.StreamReader) -> bytes:
    [size] = HEAD.unpack(await out.readexactly(HEAD.size))
    return await out.readexactly(size)
