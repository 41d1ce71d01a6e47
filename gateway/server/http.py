"""The thin edge under the hot routes: plain ASGI in, OpenAI-shaped bytes out."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final
from uuid import UUID

import orjson

from gateway.contracts import MAX_BODY_BYTES, BadRequest, BodyTooLarge
from gateway.server.edge import Exchange, exchange_of, header_values
from gateway.server.providers.base import Usage
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
    """Whoever waits for an answer. `with client:` ends with `Disconnected` as soon as they leave.

    The work inside is cancelled, as a timeout does it, but without a timer and without a task that watches.
    may_leave: a call whose answer is kept for its caller goes on without them, from the beginning or from `let_go` on.
    """

    def __init__(self, exchange: Exchange, *, may_leave: bool = False, is_resumable: bool = False) -> None:
        self._exchange = exchange
        self.may_leave = may_leave
        # Whether another gateway can pass its answer on.
        self.is_resumable = is_resumable
        self._task: asyncio.Task[Any] | None = None
        self._cancels = 0
        self._was_cut = False
        self._is_watching = False
        self._why: CutOff | None = None
        self._pace: asyncio.TimerHandle | None = None
        # Whether something is being handed over now.
        self.is_taking = False

    def let_go(self) -> None:
        """From now on the call goes on without them."""
        self.may_leave = True
        self._exchange.unwatch(self._left)

    def __enter__(self) -> None:
        if self._why is not None:
            raise self._why
        if not self.may_leave:
            if self._exchange.is_gone:
                raise Disconnected
            if not self._is_watching:
                self._is_watching = True
                self._exchange.watch(self._left)
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancels = self._task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._was_cut:
            self._was_cut = False
            assert task is not None
            if task.uncancel() <= self._cancels and kind is asyncio.CancelledError:
                raise self._why or Disconnected from None

    def forget(self) -> None:
        """Stops watching."""
        self._exchange.unwatch(self._left)
        if self._pace is not None:
            self._pace.cancel()

    def cut(self, why: CutOff) -> None:
        """Ends the work under way, and any that would follow, with `why`."""
        self._why = self._why or why
        self._left()

    def keep_pace(self, within_s: float) -> None:
        """From now on, who does not take a piece within `within_s` (up to twice that) is cut off with `TooSlow`."""
        self._look(within_s, -1)

    def _look(self, within_s: float, taken_before: int) -> None:
        taken = self._exchange.taken
        if self.is_taking and taken == taken_before:
            self.cut(TooSlow("もう一度送ってください。"))
            self.hang_up()
            return
        loop = asyncio.get_running_loop()
        self._pace = loop.call_later(within_s, self._look, within_s, taken if self.is_taking else -1)

    def hang_up(self) -> None:
        """Drops the connection with whatever was not taken, which a close would wait for."""
        self._exchange.hang_up()

    def _left(self) -> None:
        if self._task is not None and not self._was_cut:
            self._was_cut = True
            self._task.cancel()


def content_type_of(scope: AsgiScope) -> bytes:
    """As the caller says it; empty for none."""
    return next(iter(header_values(scope, b"content-type")), b"")


class BodyTooSlow(Problem):
    """Nothing was done yet: clients may send it again."""

    type = "urn:problem:gateway:body-too-slow"
    status = HTTPStatus.REQUEST_TIMEOUT
    title = "リクエストの本文が、時間内に届きませんでした"


async def read_body(
    scope: AsgiScope, receive: AsgiReceive, *, within_s: float, content_type: str = "application/json"
) -> bytes:
    """The whole request body, cut off at the cap before it is buffered.

    Raises `BodyTooLarge`, `BodyTooSlow`, `BadRequest` for another content type, `Disconnected`.
    """
    for value in header_values(scope, b"content-length"):
        if value.isdigit() and int(value) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"{MAX_BODY_BYTES // 1024 // 1024}MBまでにしてください。")
    for value in header_values(scope, b"content-type"):
        if content_type.rpartition("/")[2].encode() not in value.lower():
            raise BadRequest(f"Content-Type は {content_type} にしてください。")
    for value in header_values(scope, b"content-encoding"):
        if value != b"identity":
            raise BadRequest("圧縮した本文は受け付けません。")
    if exchange_of(scope).has_body:
        # As most have it, who pay for no timer.
        return await _read(receive)
    try:
        async with asyncio.timeout(within_s):
            return await _read(receive)
    except TimeoutError:
        raise BodyTooSlow(f"{within_s:g}秒以内に送り終えてください。") from None


async def _read(receive: AsgiReceive) -> bytes:
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
# A whole answer up to this size lies in the connection's buffer at once.
PIECE_BYTES: Final = 64 * 1024
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


def problem_body(problem: Problem, usage: Usage | None = None) -> bytes:
    """OpenAI's error shape: a Japanese message for people, a stable `code` and `param` for programs.

    usage: what had been metered of an answer that broke off. It stands in `error`, the part that clients hand on.
    """
    metrics.PROBLEMS.labels(problem.type).inc()
    message = f"{problem.title}。{problem.detail}" if problem.detail else f"{problem.title}。"
    error: dict[str, Any] = {
        "message": message,
        "type": _ERROR_TYPES.get(problem.status, "api_error"),
        "param": problem.extensions.get("param"),
        "code": problem.extensions.get("code") or problem.code,
    }
    if usage is not None:
        error["usage"] = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
            "counted": "provider" if usage.source == "provider" else "upper_bound",
        }
    return orjson.dumps({"error": error})


def error_event(problem: Problem, usage: Usage | None = None) -> bytes:
    """An SSE event in the shape OpenAI's clients raise as an error in the middle of a stream."""
    return b"data: " + problem_body(problem, usage) + b"\n\n"


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
    if problem.status == HTTPStatus.REQUEST_TIMEOUT:
        # What is still to come of the request would stand before the next one.
        headers.append((b"connection", b"close"))
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


def pieces_of(body: bytes) -> Iterator[AsgiMessage]:
    """The rest of an answer in messages that fit into the connection's buffer, one after another."""
    for at in range(0, max(len(body), 1), PIECE_BYTES):
        end = at + PIECE_BYTES
        yield {"type": "http.response.body", "body": body[at:end], "more_body": end < len(body)}
