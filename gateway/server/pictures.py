"""Pictures in a request: what is written in them is read before anything leaves, by one process beside the gateway."""

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import anyio.to_thread

from gateway.contracts import BadRequest, ModelRequest
from gateway.guard.texts import DATA
from gateway.reading.pictures import HEAD, is_available
from observability.problems import Problem, Unavailable

MAX_PICTURES: Final = 8
# A picture takes a second or two; how long one may, and how long and how many may wait for those before.
_READ_S: Final = 60.0
_WAIT_S: Final = 60.0
_MAX_WAITING: Final = 32
# The models are half a gigabyte: a town that sends a picture a day does not pay for them all day.
_IDLE_S: Final = 300.0


class PictureUnread(Problem):
    """What cannot be read is not sent: it may be anybody's number."""

    type = "urn:problem:gateway:picture-unread"
    status = HTTPStatus.BAD_REQUEST
    title = "画像の中を確かめられないので、送りませんでした"


class PicturesBusy(Unavailable):
    type = "urn:problem:gateway:pictures-busy"
    title = "画像の読み取りが混み合っています"


class PictureReader:
    """One per gateway process; its own process starts with the first picture and ends when none came for a while."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on and is_available()
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._idle: asyncio.TimerHandle | None = None

    async def read(self, request: ModelRequest) -> ModelRequest:
        """The request with what stands in its pictures. Raises `PictureUnread`, `PicturesBusy` or `BadRequest`.

        Without a reader it comes back as it is.
        """
        if not self.is_on or not request.images:
            return request
        if request.images > MAX_PICTURES:
            raise BadRequest(f"画像は1回に{MAX_PICTURES}枚までにしてください。", param="messages")
        pictures = await anyio.to_thread.run_sync(lambda: list(_pictures_in(request.body)))
        return replace(request, picture_texts=tuple([await self._read_one(p) for p in pictures]))

    async def _read_one(self, picture: bytes) -> str:
        if self._waiting >= _MAX_WAITING:
            raise PicturesBusy("少し待ってから、もう一度送ってください。", retry_after_s=30)
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turn.acquire(), _WAIT_S)
        except TimeoutError:
            raise PicturesBusy("少し待ってから、もう一度送ってください。", retry_after_s=30) from None
        finally:
            self._waiting -= 1
        is_over = False
        try:
            async with asyncio.timeout(_READ_S):
                answer = await self._asked(picture)
            is_over = True
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            raise PictureUnread("小さくするか、必要なところだけにしてください。", param="messages") from error
        finally:
            # Too slow, broken, or nobody waits for it: the next picture gets a new process.
            if not is_over:
                self._end()
            self._turn.release()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._end_if_idle)
        if "problem" in answer:
            raise PictureUnread(answer["problem"], param="messages")
        return str(answer["text"])

    async def _asked(self, picture: bytes) -> dict[str, Any]:
        if self._idle is not None:
            self._idle.cancel()
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                "gateway.reading.pictures",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            )
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        into.write(HEAD.pack(len(picture)) + picture)
        await into.drain()
        [size] = HEAD.unpack(await out.readexactly(HEAD.size))
        answer: dict[str, Any] = json.loads(await out.readexactly(size))
        return answer

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


def _pictures_in(body: dict[str, object]) -> Iterator[bytes]:
    """The data of every picture of a checked body."""
    pending: list[object] = [body.get("messages")]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            url = value.get(DATA)
            if isinstance(url, str) and ";base64," in url[:64]:
                yield base64.b64decode(url.partition(";base64,")[2])
            else:
                pending += value.values()
