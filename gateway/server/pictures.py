"""Pictures in a request: what is written in them is read before anything leaves, by one process beside the gateway."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import anyio.to_thread

from gateway.contracts import BadRequest, ModelRequest
from gateway.guard.texts import DATA
from gateway.reading.aside import Broken, Busy, ReadingProcess
from gateway.reading.pictures import is_available
from observability.problems import Problem, Unavailable

MAX_PICTURES: Final = 8
# A picture takes a second or two.
_READ_S: Final = 60.0


class PictureUnread(Problem):
    """What cannot be read is not sent: it may be anybody's number."""

    type = "urn:problem:gateway:picture-unread"
    status = HTTPStatus.BAD_REQUEST
    title = "画像の中を確かめられないので、送りませんでした"


class PicturesBusy(Unavailable):
    type = "urn:problem:gateway:pictures-busy"
    title = "画像の読み取りが混み合っています"


class PictureReader:
    """One per gateway process."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on and is_available()
        self._process = ReadingProcess("gateway.reading.pictures", within_s=_READ_S)

    async def read(self, request: ModelRequest) -> ModelRequest:
        """The request with what stands in its pictures. Raises `PictureUnread`, `PicturesBusy` or `BadRequest`.

        Without a reader it comes back as it is.
        """
        if not self.is_on or not request.images:
            return request
        if request.images > MAX_PICTURES:
            raise BadRequest(f"画像は1回に{MAX_PICTURES}枚までにしてください。", param="messages")
        pictures = await anyio.to_thread.run_sync(lambda: list(pictures_in(request.body)))
        return replace(request, read_texts=(*request.read_texts, *[await self._read_one(p) for p in pictures]))

    async def _read_one(self, picture: bytes) -> str:
        try:
            answer = await self._process.ask([picture])
        except Busy:
            raise PicturesBusy("少し待ってから、もう一度送ってください。", retry_after_s=30) from None
        except Broken as error:
            raise PictureUnread("小さくするか、必要なところだけにしてください。", param="messages") from error
        if "problem" in answer.told:
            raise PictureUnread(answer.told["problem"], param="messages")
        return str(answer.told["text"])

    async def aclose(self) -> None:
        await self._process.aclose()


def pictures_in(body: dict[str, object]) -> Iterator[bytes]:
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
