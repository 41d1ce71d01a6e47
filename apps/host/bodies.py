"""How long a body may take: a server of ASGI waits for the rest of one for ever."""

import asyncio
from http import HTTPStatus
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from observability.problems import Problem

# The largest form there may be, 64 MB, by a line of 0.9 Mbit/s.
BODY_S: Final = 600.0


class BodyTooSlow(Problem):
    type = "urn:problem:portal:body-too-slow"
    status = HTTPStatus.REQUEST_TIMEOUT
    title = "送信に時間がかかりすぎたため、受け取れませんでした"


class BodyDeadline:
    """Middleware. Whoever reads a body that does not come in time meets `BodyTooSlow`."""

    def __init__(self, app: ASGIApp, *, within_s: float) -> None:
        self._app = app
        self._within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        until = asyncio.get_running_loop().time() + self._within_s
        is_whole = False

        async def in_time() -> Message:
            nonlocal is_whole
            if is_whole:
                # What comes now is that the client leaves, for which an answer may have to wait long.
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(
                    "何も変わっていません。回線を確かめるか、ファイルを小さく分けて、前の画面からもう一度送ってください。"
                ) from None
            is_whole = not message.get("more_body", False)
            return message

        await self._app(scope, in_time, send)
