"""Providers that speak OpenAI's wire: the answer's bytes are relayed, usage and finish reason read off in passing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeGuard

import orjson

from gateway.server.providers import drawing, ranking
from gateway.server.providers.base import (
    HEARTBEAT,
    Deployment,
    Operation,
    UpstreamBroken,
    UpstreamRequest,
    UpstreamResponse,
    UpstreamUnavailable,
    Usage,
    Whole,
)
from gateway.server.providers.outbound import Answer, Outbound, data_of, raise_for, read_all, server_sent_events
from gateway.server.wires.transcriptions import form_of

_BROKEN = "もう一度試してください。続くときは共同利用の事務局に知らせてください。"
_CUT = "答えが途中で切れました。もう一度試してください。"
# More than any call uses, and what a column of the ledger takes.
_MAX_TOKENS = 2**31 - 1
# A stream that has said nothing after as many events is passed on as it is.
_MAX_SILENT_EVENTS = 64


class OpenAIWire:
    """OpenAI, Azure OpenAI (v1 API), vLLM, llama.cpp and the OpenAI-compatible domestic services."""

    name = "openai_wire"

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """See `Provider.send`."""
        body = dict(request.body)
        body["model"] = request.deployment.upstream_model
        if request.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        if request.operation is Operation.IMAGES and "told_data" in request.deployment.extra:
            body["response_format"] = "b64_json"
        content, content_type = orjson.dumps(body), "application/json"
        if request.recording is not None:
            # The one shape that tells everything, or the one that every model knows.
            body["response_format"] = "verbose_json" if "timestamps" in request.deployment.capabilities else "json"
            content, content_type = form_of(request.recording, body)
        response = await self._outbound.post(
            request,
            f"{request.deployment.base_url}/{request.operation.value}",
            content,
            _headers(request.deployment) | {"content-type": content_type},
        )
        try:
            if request.stream:
                return await _Stream.begin(response, request)
            return await _whole(response, request)
        except BaseException:
            response.close()
            raise

    async def list_models(self, deployment: Deployment) -> list[str]:
        """The names at `/models`."""
        request = UpstreamRequest(deployment, Operation.CHAT, {}, stream=False, call_id="", total_timeout_s=10.0)
        answer = await self._outbound.get_json(request, f"{deployment.base_url}/models", _headers(deployment))
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list):
            raise UpstreamBroken(_BROKEN, dispatched=True)
        return [m["id"] for m in data if isinstance(m, dict) and isinstance(m.get("id"), str)]

    async def aclose(self) -> None:
        await self._outbound.aclose()


def _headers(deployment: Deployment) -> dict[str, str]:
    if not deployment.api_key:
        return {}
    if deployment.extra.get("auth") == "api-key":
        return {"api-key": deployment.api_key}
    return {"authorization": f"Bearer {deployment.api_key}"}


def usage_of(value: object) -> Usage | None:
    """OpenAI's usage object; None when it is missing or not counts."""
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens", 0)
    if not is_count(prompt) or not is_count(completion):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(prompt, completion, cached if is_count(cached) and cached <= prompt else 0)


def ranked_usage_of(value: object) -> Usage | None:
    """The same of a ranking, for which some count one sum only."""
    total = value.get("total_tokens") if isinstance(value, dict) else None
    return usage_of(value) or (Usage(total, 0) if is_count(total) else None)


def drawn_usage_of(value: object) -> Usage | None:
    """The same of pictures, in the words of that address."""
    if not isinstance(value, dict):
        return None
    return usage_of({"prompt_tokens": value.get("input_tokens"), "completion_tokens": value.get("output_tokens")})


def is_count(value: object) -> TypeGuard[int]:
    """Whether that can be a number of tokens. What an upstream says may be anything; it never credits money."""
    return type(value) is int and 0 <= value <= _MAX_TOKENS


def raise_said(error: object) -> NoReturn:
    """Names the error that a 200 carries in place of an answer, as if it had been the status."""
    code = error.get("code") if isinstance(error, dict) else None
    status = int(code) if isinstance(code, int | str) and str(code).isascii() and str(code).isdigit() else 500
    raise_for(status if 400 <= status <= 599 else 500)


# What stands beside the words in a message or a delta.
_NOT_WRITTEN = frozenset({"role", "id", "type", "index"})


def text_bytes(value: object) -> int:
    """UTF-8 bytes of all a model wrote in a message or a delta, whatever the field is called: thoughts, tool calls.

    No tokenizer makes more tokens of a text than it has bytes, so this bounds what may be billed.
    """
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, dict):
        return sum(text_bytes(part) for name, part in value.items() if name not in _NOT_WRITTEN)
    if isinstance(value, list):
        return sum(map(text_bytes, value))
    return 0


def _finish_of(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None


async def _whole(response: Answer, request: UpstreamRequest) -> Whole:
    body = await read_all(response)
    response.release()
    try:
        answer: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UpstreamBroken(_BROKEN, dispatched=True) from error
    if not isinstance(answer, dict):
        raise UpstreamBroken(_BROKEN, dispatched=True)
    if answer.get("error"):
        raise_said(answer["error"])
    if request.operation is Operation.RERANK:
        scores, usage = ranking.scores_in(answer.get("results"), request), ranked_usage_of(answer.get("usage"))
        if scores is None:
            raise UpstreamBroken(_BROKEN, dispatched=True)
        return Whole(ranking.written(request, scores, usage), usage, None, 0)
    if request.operation is Operation.IMAGES:
        usage = drawn_usage_of(answer.get("usage"))
        pictures = drawing.drawn(answer, request, usage)
        if pictures is None:
            raise UpstreamBroken(_BROKEN, dispatched=True)
        return Whole(pictures, usage, None, 0)
    if request.operation is Operation.TRANSCRIPTIONS:
        if not isinstance(answer.get("text"), str):
            raise UpstreamBroken(_BROKEN, dispatched=True)
        return Whole(body, None, "stop", 0)
    items = answer.get("data" if request.operation is Operation.EMBEDDINGS else "choices")
    if not isinstance(items, list) or not items:
        raise UpstreamBroken(_BROKEN, dispatched=True)
    if not all(isinstance(item, dict) for item in items):
        raise UpstreamBroken(_BROKEN, dispatched=True)
    written = sum(text_bytes(item.get("message") or item.get("text")) for item in items)
    return Whole(body, usage_of(answer.get("usage")), _finish_of(items[0]), written)


class _Stream:
    body = None

    def __init__(self, response: Answer, events: AsyncIterator[bytes]) -> None:
        self._response = response
        self._events = events
        self._first: list[bytes] = []
        self._complete = False
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_text_bytes = 0

    @classmethod
    async def begin(cls, response: Answer, request: UpstreamRequest) -> "_Stream":
        """Waits for the first word, thought or tool call: until then nothing has been promised to the caller."""
        if "text/event-stream" not in response.headers.get("content-type", ""):
            raise UpstreamBroken(_BROKEN, dispatched=True)
        stream = cls(response, server_sent_events(response, request))
        async for event in stream._events:
            if event is HEARTBEAT:
                continue
            if stream._note(event):
                break
            stream._first.append(event)
            if stream.output_text_bytes or stream.finish_reason or len(stream._first) == _MAX_SILENT_EVENTS:
                response.is_speaking = True
                return stream
        raise UpstreamBroken(_BROKEN, dispatched=True)

    async def chunks(self) -> AsyncIterator[bytes]:
        for event in self._first:
            yield event
        # The loop writes when it comes round: the first words do not wait for what came in the same packet.
        await asyncio.sleep(0)
        async for event in self._events:
            if event is not HEARTBEAT and self._note(event):
                break
            yield event
        if self.finish_reason is None:
            # Also when it says that it is done: nobody knows what is missing.
            raise UpstreamBroken(_CUT, dispatched=True)
        self._complete = True
        yield b"data: [DONE]\n\n"

    def _note(self, event: bytes) -> bool:
        """Reads usage, finish reason and size off an event; True for the last one, which says nothing else."""
        data = data_of(event)
        if data == b"[DONE]":
            return True
        try:
            payload: Any = orjson.loads(data)
            choices = payload.get("choices") or []
            for choice in choices:
                self.finish_reason = _finish_of(choice) or self.finish_reason
                self.output_text_bytes += text_bytes(choice.get("delta") or choice.get("text"))
        except (orjson.JSONDecodeError, AttributeError, TypeError) as error:
            raise UpstreamBroken(_BROKEN, dispatched=True) from error
        if payload.get("error"):
            if not self.output_text_bytes:
                raise_said(payload["error"])
            # What was written until here may be billed, whatever number the error carries.
            raise UpstreamUnavailable("もう一度試してください。", dispatched=True)
        self.usage = usage_of(payload.get("usage")) or self.usage
        return False

    async def aclose(self) -> None:
        if self._complete:
            await self._response.finish()
        else:
            self._response.close()
