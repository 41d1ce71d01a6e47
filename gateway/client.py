"""The plain client of the gateway's `/v1`: what the portal and the worker use. It never imports the server.

Errors in OpenAI's shape come back as `GatewayProblem` with the Japanese title and detail they were sent with.
"""

import asyncio
import codecs
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, NoReturn

import anyio
import httpx

from observability.problems import Problem, Unavailable

MAX_EVENT_BYTES: Final = 4 * 1024 * 1024
# How long a lost answer is asked for again.
RESUME_FOR_S: Final = 30.0
# How long the end of a call may take to be told.
END_CALL_S: Final = 5.0
# What a gateway says of a stream that it does not have for this caller.
STREAM_NOT_FOUND: Final = "urn:problem:gateway:stream-not-found"


class GatewayProblem(Problem):
    """The gateway said no; `type`, `status` and `title` are the ones it sent."""

    type = "urn:problem:gateway:refused"
    status = HTTPStatus.BAD_GATEWAY
    title = "AIの受付が処理を断りました"


class GatewayUnreachable(Unavailable):
    type = "urn:problem:gateway:unreachable"
    title = "AIの受付につながりません"


class GatewaySilent(Unavailable):
    type = "urn:problem:gateway:silent"
    status = HTTPStatus.GATEWAY_TIMEOUT
    title = "AIからの返事が間に合いませんでした"


class AnswerCutOff(Problem):
    """The stream ended without saying that it was complete."""

    type = "urn:problem:gateway:answer-cut-off"
    status = HTTPStatus.BAD_GATEWAY
    title = "答えが途中で切れました"


class AnswerUnreadable(Problem):
    type = "urn:problem:gateway:answer-unreadable"
    status = HTTPStatus.BAD_GATEWAY
    title = "AIの受付の返事を読めませんでした"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `silence_s` bounds the wait for the first and for every further piece of an answer."""

    connect_s: float = 3.0
    silence_s: float = 90.0
    write_s: float = 30.0
    pool_s: float = 5.0


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What the answer's headers say: under which number, where and by whom it was processed."""

    call_id: str = ""
    zone: str = ""
    zone_owner: str = ""
    vendor_country: str = ""
    data_class: str = ""
    masked: bool = False
    output_capped: int | None = None
    ignored_parameters: tuple[str, ...] = ()

    @classmethod
    def of(cls, headers: httpx.Headers) -> "CallFacts":
        capped = headers.get("kumiai-output-capped", "")
        return cls(
            call_id=headers.get("kumiai-call-id", ""),
            zone=headers.get("kumiai-zone", ""),
            zone_owner=headers.get("kumiai-zone-owner", ""),
            vendor_country=headers.get("kumiai-vendor-country", ""),
            data_class=headers.get("kumiai-data-class", ""),
            masked=headers.get("kumiai-masked") == "1",
            output_capped=int(capped) if capped.isascii() and capped.isdigit() else None,
            ignored_parameters=tuple(
                p.strip() for p in headers.get("kumiai-ignored-parameters", "").split(",") if p.strip()
            ),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer that did not stream."""

    facts: CallFacts
    body: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Queued:
    """The call waits for its turn; `ahead`: how many go first."""

    ahead: int


class EventStream:
    """The JSON payloads of a stream's events, in order; use within `Gateway.stream`.

    `facts` are complete when the first payload comes; a call that had to wait (`Queued`) hears them late.
    """

    def __init__(
        self, response: httpx.Response, resume: Callable[[str, int], Awaitable[httpx.Response]] | None = None
    ) -> None:
        """resume: asks for the answer to a call behind its event of a number; None when it cannot be taken up again."""
        self.facts = CallFacts.of(response.headers)
        self.response = response
        self._resume = resume
        self._last_id = 0
        self._is_over = False

    @property
    def may_go_on(self) -> bool:
        """Whether the call goes on without us: where it is processed is told with its beginning."""
        return bool(self.facts.zone) and not self._is_over

    async def __aiter__(self) -> AsyncGenerator[dict[str, Any] | Queued, None]:
        """Ends at `[DONE]`. Raises `AnswerCutOff` without one, `GatewaySilent`, `GatewayProblem` for an error event.

        An answer that can be taken up again is, for up to `RESUME_FOR_S` without a further event.
        """
        lost_at: float | None = None
        while True:
            try:
                async with aclosing(self._events()) as events:
                    async for event in events:
                        lost_at = None
                        yield event
                return
            except (AnswerCutOff, GatewaySilent, GatewayProblem) as lost:
                if self._resume is None or not self.may_go_on or not _is_passing(lost):
                    raise
                lost_at = lost_at or time.monotonic()
                await self._take_up(self._resume, lost, give_up=lost_at + RESUME_FOR_S)

    async def _events(self) -> AsyncGenerator[dict[str, Any] | Queued, None]:
        """What one connection brings; nothing twice."""
        try:
            async with aclosing(server_sent_events(self.response.aiter_bytes())) as events:
                async for name, data, number in events:
                    if number.isdigit():
                        if int(number) <= self._last_id:
                            continue
                        self._last_id = int(number)
                    if data == "[DONE]":
                        self._is_over = True
                        return
                    payload = _object(data)
                    if name == "queue":
                        yield Queued(int(payload.get("ahead", 0)))
                        continue
                    if name == "answer":
                        self.facts = CallFacts.of(httpx.Headers(payload))
                        continue
                    if "error" in payload:
                        # With a number it is how the answer ended, without one how this connection did.
                        self._is_over = bool(number)
                        _raise(payload["error"], status=HTTPStatus.BAD_GATEWAY, facts=self.facts)
                    yield payload
        except httpx.TimeoutException as error:
            raise GatewaySilent("少し待ってから、もう一度試してください。", call_id=self.facts.call_id) from error
        except httpx.TransportError as error:
            raise AnswerCutOff("もう一度試してください。", call_id=self.facts.call_id) from error
        raise AnswerCutOff("もう一度試してください。", call_id=self.facts.call_id)

    async def _take_up(
        self, resume: Callable[[str, int], Awaitable[httpx.Response]], lost: Problem, *, give_up: float
    ) -> None:
        """Another connection for the rest. Raises `lost` when there is none."""
        await self.response.aclose()
        pause_s = 0.1
        while time.monotonic() < give_up:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
            try:
                response = await resume(self.facts.call_id, self._last_id)
            except (GatewayUnreachable, GatewaySilent):
                continue
            if response.status_code == HTTPStatus.OK:
                self.response = response
                return
            await response.aclose()
            if response.status_code < 500 and response.status_code != HTTPStatus.TOO_MANY_REQUESTS:
                break
        raise lost


def _is_passing(lost: Problem) -> bool:
    """Whether it is the connection that failed, or a gateway that is going away, and not the answer."""
    return not isinstance(lost, GatewayProblem) or lost.type == "urn:problem:gateway:restarting"


class Gateway:
    """Connections to one gateway, shared by a process. `aclose()` before the event loop ends."""

    def __init__(
        self,
        base_url: str,
        *,
        timeouts: Timeouts = Timeouts(),
        verify: ssl.SSLContext | bool = True,
        max_connections: int = 200,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """base_url: without `/v1`. verify: a context with the internal CA and client certificate where needed."""
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            timeout=httpx.Timeout(
                connect=timeouts.connect_s, read=timeouts.silence_s, write=timeouts.write_s, pool=timeouts.pool_s
            ),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            verify=verify,
            transport=transport,
            # The gateway is an inner address: a proxy of the environment is not for it.
            trust_env=False,
            follow_redirects=False,
        )

    async def get(self, path: str, *, token: str) -> Answer:
        return await self._answer(self._http.build_request("GET", path, headers=_headers(token)))

    async def post(
        self, path: str, body: Mapping[str, object], *, token: str, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises `GatewayProblem`, `GatewayUnreachable`, `GatewaySilent`, `AnswerUnreadable`."""
        return await self._answer(self._post_request(path, body, token, headers))

    async def post_file(
        self,
        path: str,
        fields: Mapping[str, str],
        file: bytes,
        *,
        token: str,
        headers: Mapping[str, str] | None = None,
        silence_s: float,
    ) -> Answer:
        """A form with a file called `file`, for what takes longer than words do. Raises as `post` does."""
        was = self._http.timeout
        request = self._http.build_request(
            "POST",
            path,
            data=fields,
            files={"file": ("file", file)},
            headers={**(headers or {}), **_headers(token)},
            timeout=httpx.Timeout(connect=was.connect, read=silence_s, write=was.write, pool=was.pool),
        )
        return await self._answer(request)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Mapping[str, object],
        *,
        token: Callable[[], str],
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[EventStream]:
        """Opens a stream that is taken up again when the connection or the gateway is lost; leaving the block ends the
        call.

        token: a fresh one for each connection.
        """
        request = self._post_request(path, body, token(), {**(headers or {}), "kumiai-resumable": "1"})
        async with self._followed(await self._send(request), token) as events:
            yield events

    @asynccontextmanager
    async def take_up(self, call_id: str, *, token: Callable[[], str]) -> AsyncIterator[EventStream]:
        """A stream that somebody else began for the same person, from its beginning and to its end; kept for some
        minutes. Leaving the block earlier ends the call.

        Raises `GatewayProblem` (`STREAM_NOT_FOUND`) where it is over for too long, or another's.
        """
        async with self._followed(await self._resumed(call_id, 0, token), token) as events:
            yield events

    async def _resumed(self, call_id: str, after: int, token: Callable[[], str]) -> httpx.Response:
        headers = _headers(token()) | {"last-event-id": str(after)}
        return await self._send(self._http.build_request("GET", f"/v1/streams/{call_id}", headers=headers))

    @asynccontextmanager
    async def _followed(self, response: httpx.Response, token: Callable[[], str]) -> AsyncIterator[EventStream]:
        events = EventStream(response, lambda call_id, after: self._resumed(call_id, after, token))
        try:
            if response.status_code != HTTPStatus.OK:
                await _read(response)
                _raise_for(response)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise AnswerUnreadable("管理者に連絡してください。")
            yield events
        finally:
            await events.response.aclose()
            if events.may_go_on:
                with anyio.move_on_after(END_CALL_S, shield=True):
                    await self.end_call(events.facts.call_id, token=token())

    async def aclose(self) -> None:
        await self._http.aclose()

    async def end_call(self, call_id: str, *, token: str) -> None:
        """Nobody wants the rest; a gateway that cannot be told makes it to its end."""
        request = self._http.build_request("DELETE", f"/v1/streams/{call_id}", headers=_headers(token))
        with suppress(GatewayUnreachable, GatewaySilent):
            await (await self._send(request)).aclose()

    def _post_request(
        self, path: str, body: Mapping[str, object], token: str, headers: Mapping[str, str] | None
    ) -> httpx.Request:
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        merged = {**(headers or {}), **_headers(token), "content-type": "application/json"}
        return self._http.build_request("POST", path, content=content, headers=merged)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise GatewayUnreachable("数分たっても同じときは、管理者に連絡してください。") from error
        except httpx.TimeoutException as error:
            raise GatewaySilent("少し待ってから、もう一度試してください。") from error
        except httpx.TransportError as error:
            raise GatewayUnreachable("もう一度試してください。") from error

    async def _answer(self, request: httpx.Request) -> Answer:
        response = await self._send(request)
        try:
            await _read(response)
        finally:
            await response.aclose()
        if response.status_code != HTTPStatus.OK:
            _raise_for(response)
        return Answer(CallFacts.of(response.headers), _object(response.text))


async def server_sent_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[tuple[str, str, str], None]:
    """Name (mostly empty), `data` and `id` (likewise) of each event of a stream, by the rules of the HTML standard.

    Bytes may be cut anywhere; lines end in LF, CR or CRLF; comments, `retry` and events without data are skipped; an
    `id` is told with its own event only; an event that the stream's end cuts off is dropped. Raises `AnswerUnreadable` for bad UTF-8 or an event
    beyond `MAX_EVENT_BYTES`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, event, number = "", "", ""
    data: list[str] = []
    size = 0
    first = True
    async for chunk in chunks:
        try:
            text += decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise AnswerUnreadable("もう一度試してください。") from error
        if first and text:
            text = text.removeprefix("\ufeff")
            first = False
        # A CR at the very end may be half of a CRLF: it waits for the next bytes.
        held = "\r" if text.endswith("\r") else ""
        lines = (text[:-1] if held else text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        text = lines.pop() + held
        if size + len(text) > MAX_EVENT_BYTES:
            raise AnswerUnreadable("答えが大きすぎます。")
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                if name == "data":
                    data.append(value.removeprefix(" "))
                    size += len(value)
                elif name == "event":
                    event = value.removeprefix(" ")
                elif name == "id":
                    number = value.removeprefix(" ")
            else:
                if data:
                    yield event, "\n".join(data), number
                data.clear()
                event, number, size = "", "", 0
    if text == "\r" and data:
        yield event, "\n".join(data), number


async def _read(response: httpx.Response) -> None:
    try:
        await response.aread()
    except httpx.TimeoutException as error:
        raise GatewaySilent("少し待ってから、もう一度試してください。") from error
    except httpx.TransportError as error:
        raise AnswerCutOff("もう一度試してください。") from error


def _headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _object(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise AnswerUnreadable("もう一度試してください。") from error
    if not isinstance(value, dict):
        raise AnswerUnreadable("もう一度試してください。")
    return value


def _raise_for(response: httpx.Response) -> NoReturn:
    facts = CallFacts.of(response.headers)
    try:
        error = _object(response.text).get("error")
    except AnswerUnreadable:
        error = None
    retry = response.headers.get("retry-after", "")
    _raise(
        error,
        status=_status(response.status_code),
        facts=facts,
        retry_after_s=int(retry) if retry.isascii() and retry.isdigit() else None,
    )


def _status(code: int) -> HTTPStatus:
    try:
        return HTTPStatus(code)
    except ValueError:
        return HTTPStatus.BAD_GATEWAY


def _raise(error: object, *, status: HTTPStatus, facts: CallFacts, retry_after_s: int | None = None) -> NoReturn:
    """OpenAI's error object as a problem; its message is `title。detail`."""
    message = error.get("message") if isinstance(error, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    if not isinstance(message, str) or not isinstance(code, str):
        raise GatewayProblem(
            "数分たっても同じときは、管理者に連絡してください。", call_id=facts.call_id, retry_after_s=retry_after_s
        )
    title, _, detail = message.partition("。")
    raise _problem_class(code, status, title)(
        detail, call_id=facts.call_id, retry_after_s=retry_after_s, param=param if isinstance(param, str) else None
    )


@lru_cache(maxsize=256)
def _problem_class(code: str, status: HTTPStatus, title: str) -> type[GatewayProblem]:
    """A class per kind of refusal, so that type, status and title are the class's as with every other problem."""
    urn = f"urn:problem:gateway:{code.replace('_', '-')}"
    return type("GatewayProblem", (GatewayProblem,), {"type": urn, "status": status, "title": title})
