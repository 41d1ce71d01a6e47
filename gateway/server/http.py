"""The thin edge under the hot routes: plain ASGI in, OpenAI-shaped bytes out."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final
from uuid import UUID

import orjson

from gateway.contracts import MAX_BODY_BYTES, BadRequest, BodyTooLarge
from observability import metrics
from observability.problems import Problem

AsgiScope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
AsgiReceive = Callable[[], Awaitable[AsgiMessage]]
AsgiSend = Callable[[AsgiMessage], Awaitable[None]]


class MethodNotAllowed(Problem):
    type = "urn:problem:gateway:method-not-allowed"
    status = HTTPStatus.METHOD_NOT_ALLOWED
    title = "その呼び方はできません"


class Disconnected(Exception):
    """The client left; there is nobody to answer."""


class CutOff(Problem):
    """The gateway itself ends a call: neither the caller nor the model did."""

    @property
    def may_be_retried(self) -> bool:
        # What was written until then is paid for.
        return False


class Restarting(CutOff):
    type = "urn:problem:gateway:restarting"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "AIの受付が入れ替わるため、答えを途中で終わりにしました"


class TooSlow(CutOff):
    type = "urn:problem:gateway:reader-too-slow"
    status = HTTPStatus.REQUEST_TIMEOUT
    title = "答えが受け取られないため、途中で終わりにしました"


class Client:
    """Whoever waits for an answer. `async with client:` ends with `Disconnected` as soon as they leave.

    One task watches for a whole call; a timeout without a time cuts the work off, which costs no task of its own.
    may_leave: a call whose answer is kept for its caller goes on without them, from the beginning or from `let_go` on.
    """

    def __init__(
        self, receive: AsgiReceive, send: AsgiSend, *, may_leave: bool = False, is_resumable: bool = False
    ) -> None:
        """send: the server's own, by which the connection can be found."""
        self._receive = receive
        self._send = send
        self._may_leave = may_leave
        # Whether another gateway can pass its answer on.
        self.is_resumable = is_resumable
        self._gone: asyncio.Task[None] | None = None
        self._work = asyncio.timeout(None)
        self._is_working = False
        self._why: CutOff | None = None
        self._pace: asyncio.TimerHandle | None = None
        # Pieces that were handed over, and whether one is being handed over now.
        self.taken = 0
        self.is_taking = False

    def let_go(self) -> None:
        """From now on the call goes on without them."""
        self._may_leave = True
        if self._gone is not None:
            self._gone.cancel()

    async def __aenter__(self) -> None:
        if self._why is not None:
            raise self._why
        self._work = asyncio.timeout(None)
        await self._work.__aenter__()
        self._is_working = True
        if self._may_leave:
            return
        if self._gone is None:
            self._gone = asyncio.ensure_future(_wait_for_disconnect(self._receive))
        self._gone.add_done_callback(self._cut_off)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_working = False
        if self._gone is not None:
            self._gone.remove_done_callback(self._cut_off)
        try:
            await self._work.__aexit__(kind, error, trace)
        except TimeoutError:
            raise self._why or Disconnected from None

    def forget(self) -> None:
        """Stops watching."""
        if self._gone is not None:
            self._gone.cancel()
        if self._pace is not None:
            self._pace.cancel()

    def cut(self, why: CutOff) -> None:
        """Ends the work under way, and any that would follow, with `why`."""
        self._why = self._why or why
        self._cut_off(None)

    def keep_pace(self, within_s: float) -> None:
        """From now on, who does not take a piece within `within_s` (up to twice that) is cut off with `TooSlow`."""
        self._look(within_s, -1)

    def _look(self, within_s: float, taken_before: int) -> None:
        if self.is_taking and self.taken == taken_before:
            self.cut(TooSlow("もう一度送ってください。"))
            self.hang_up()
            return
        loop = asyncio.get_running_loop()
        self._pace = loop.call_later(within_s, self._look, within_s, self.taken if self.is_taking else -1)

    def hang_up(self) -> None:
        """Drops the connection with whatever was not taken, which a close would wait for. ASGI has no message for it."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()

    def _cut_off(self, _gone: object) -> None:
        if self._is_working:
            self._is_working = False
            self._work.reschedule(asyncio.get_running_loop().time())


async def _wait_for_disconnect(receive: AsgiReceive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def content_type_of(scope: AsgiScope) -> bytes:
    """As the caller says it; empty for none."""
    return next((bytes(value) for name, value in scope["headers"] if name == b"content-type"), b"")


async def read_body(scope: AsgiScope, receive: AsgiReceive, *, content_type: str = "application/json") -> bytes:
    """The whole request body, cut off at the cap before it is buffered.

    Raises `BodyTooLarge`, `BadRequest` for another content type, `Disconnected`.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"{MAX_BODY_BYTES // 1024 // 1024}MBまでにしてください。")
        if name == b"content-type" and content_type.rpartition("/")[2].encode() not in value.lower():
            raise BadRequest(f"Content-Type は {content_type} にしてください。")
        if name == b"content-encoding" and value != b"identity":
            raise BadRequest("圧縮した本文は受け付けません。")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(f"{MAX_BODY_BYTES // 1024 // 1024}MBまでにしてください。")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


# How long the last event of a broken stream waits for somebody to take it.
LAST_WORD_S: Final = 1.0
EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"

# What OpenAI's clients switch on, by status; anything else is an API error to them.
_ERROR_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNPROCESSABLE_ENTITY: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.NOT_FOUND: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def problem_body(problem: Problem) -> bytes:
    """OpenAI's error shape: a Japanese message for people, a stable `code` and `param` for programs."""
    metrics.PROBLEMS.labels(problem.type).inc()
    message = f"{problem.title}。{problem.detail}" if problem.detail else f"{problem.title}。"
    return orjson.dumps(
        {
            "error": {
                "message": message,
                "type": _ERROR_TYPES.get(problem.status, "api_error"),
                "param": problem.extensions.get("param"),
                "code": problem.extensions.get("code") or problem.code,
            }
        }
    )


def error_event(problem: Problem) -> bytes:
    """An SSE event in the shape OpenAI's clients raise as an error in the middle of a stream."""
    return b"data: " + problem_body(problem) + b"\n\n"


def status_of(problem: Problem) -> int:
    """Malformed input is 400 on `/v1`, as OpenAI's clients expect, where pages say 422."""
    return 400 if problem.status == HTTPStatus.UNPROCESSABLE_ENTITY else int(problem.status)


def problem_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """What goes with a problem's body: when to come back, whether to, and how to sign in."""
    headers = [(b"cache-control", b"no-store")]
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after_s))
    if not problem.may_be_retried:
        # OpenAI's clients try 429 and 5xx twice more by themselves, unless told otherwise.
        headers.append((b"x-should-retry", b"false"))
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


async def send_problem(
    send: AsgiSend, problem: Problem, *, call_id: UUID, more: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answers with a problem as JSON; `more`: headers beside its own."""
    body = problem_body(problem)
    headers = [
        (b"content-length", b"%d" % len(body)),
        (b"kumiai-call-id", str(call_id).encode()),
        *problem_headers(problem),
        *more,
    ]
    await send_start(send, status_of(problem), b"application/json", headers)
    await send({"type": "http.response.body", "body": body})


async def send_start(send: AsgiSend, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]}
    )
