"""The shipped 見本 provider: no model, but honest and useful enough to try the whole platform with.

It answers by rules (fills a template from the input, extracts a summary, lays out a table), says so in every answer,
and gives the same answer to the same input. It refuses to exist in production.
"""

import asyncio
import base64
import hashlib
import math
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from gateway.server.providers import ranking, sample_writer
from gateway.server.providers.base import (
    Deployment,
    Operation,
    UpstreamRequest,
    UpstreamResponse,
    Usage,
    Whole,
)

EMBEDDING_DIMENSIONS = 256
_PIECE_CHARACTERS = 3


class Demo:
    """Streams at a human pace: `delay_s` between pieces of a few characters."""

    name = "demo"

    def __init__(self, *, delay_s: float) -> None:
        self._delay_s = delay_s

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """See `Provider.send`; the work is done here, what follows is pacing."""
        if request.operation is Operation.EMBEDDINGS:
            return _embeddings(request)
        if request.operation is Operation.RERANK:
            return _ranking(request)
        made = [_make(request, prompt, i) for prompt in _prompts(request) for i in range(_n(request.body))]
        usage = Usage(
            prompt_tokens=len(orjson.dumps(request.body.get("messages") or request.body.get("prompt"))) // 3,
            completion_tokens=sum(choice.tokens for choice in made),
        )
        if request.stream:
            return _Stream(request, made, usage, self._delay_s)
        await asyncio.sleep(min(self._delay_s * usage.completion_tokens / _PIECE_CHARACTERS / 8, 1.5))
        body = _completion(request, made, usage)
        return Whole(body, usage, made[0].finish_reason, len(body))

    async def list_models(self, deployment: Deployment) -> list[str]:
        return [deployment.upstream_model]

    async def aclose(self) -> None:
        return


class _Choice:
    """One answer: text or tool calls, cut to the caller's limits."""

    def __init__(self, text: str, tool_calls: list[dict[str, Any]], finish_reason: str) -> None:
        self.text = text
        self.tool_calls = tool_calls
        self.finish_reason = finish_reason

    @property
    def tokens(self) -> int:
        return len(self.text) + sum(len(call["function"]["arguments"]) for call in self.tool_calls)


def _n(body: Mapping[str, object]) -> int:
    n = body.get("n", 1)
    return n if isinstance(n, int) else 1


def _prompts(request: UpstreamRequest) -> list[list[dict[str, Any]]]:
    """Conversations to answer: one for chat, one per prompt for completions."""
    if request.operation is Operation.CHAT:
        messages: Any = request.body["messages"]
        return [messages]
    prompt = request.body["prompt"]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    assert isinstance(prompts, list)
    return [[{"role": "user", "content": text}] for text in prompts]


def _make(request: UpstreamRequest, messages: list[dict[str, Any]], index: int) -> _Choice:
    body = request.body
    call = sample_writer.tool_call(messages, body.get("tools"), body.get("tool_choice"))
    if call is not None:
        name, arguments = call
        digest = hashlib.sha256(f"{name}{arguments}{index}".encode()).hexdigest()[:12]
        tool = {"id": f"call_{digest}", "type": "function", "function": {"name": name, "arguments": arguments}}
        return _Choice("", [tool], "tool_calls")
    response_format = body.get("response_format")
    text = sample_writer.answer(messages, response_format if isinstance(response_format, dict) else None)
    finish = "stop"
    stop = body.get("stop")
    for mark in [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []:
        at = text.find(mark)
        if mark and at >= 0:
            text = text[:at]
    limit = body.get("max_tokens") or body.get("max_completion_tokens")
    if isinstance(limit, int) and len(text) > limit:
        text, finish = text[:limit], "length"
    return _Choice(text, [], finish)


def _head(request: UpstreamRequest, *, chunk: bool) -> dict[str, Any]:
    chat = request.operation is Operation.CHAT
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    prefix = "chatcmpl" if chat else "cmpl"
    return {
        "id": f"{prefix}-{request.call_id.replace('-', '')}",
        "object": kind,
        "created": 0,
        "model": request.deployment.upstream_model,
    }


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _completion(request: UpstreamRequest, made: list[_Choice], usage: Usage) -> bytes:
    choices: list[dict[str, Any]] = []
    for i, choice in enumerate(made):
        entry: dict[str, Any] = {"index": i, "finish_reason": choice.finish_reason, "logprobs": None}
        if request.operation is Operation.CHAT:
            entry["message"] = {"role": "assistant", "content": choice.text if not choice.tool_calls else None}
            if choice.tool_calls:
                entry["message"]["tool_calls"] = choice.tool_calls
        else:
            entry["text"] = choice.text
        choices.append(entry)
    return orjson.dumps(_head(request, chunk=False) | {"choices": choices, "usage": _usage(usage)})


class _Stream:
    """Pieces in order; `usage` is complete only when all of them went out, as with a real provider."""

    body = None

    def __init__(self, request: UpstreamRequest, made: list[_Choice], usage: Usage, delay_s: float) -> None:
        self._request = request
        self._made = made
        self._total = usage
        self._delay_s = delay_s
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_text_bytes = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        chat = self._request.operation is Operation.CHAT
        for i, choice in enumerate(self._made):
            if chat:
                yield self._event(i, {"role": "assistant", "content": ""})
            for call in choice.tool_calls:
                self.output_text_bytes += len(call["function"]["arguments"].encode())
                yield self._event(i, {"tool_calls": [{"index": 0, **call}]})
            for at in range(0, len(choice.text), _PIECE_CHARACTERS):
                piece = choice.text[at : at + _PIECE_CHARACTERS]
                self.output_text_bytes += len(piece.encode())
                yield self._event(i, {"content": piece})
                await asyncio.sleep(self._delay_s)
            self.finish_reason = choice.finish_reason
            yield self._event(i, {}, choice.finish_reason)
        self.usage = self._total
        yield self._line({"choices": [], "usage": _usage(self._total)})
        yield b"data: [DONE]\n\n"

    def _event(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason}
        if self._request.operation is Operation.CHAT:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return self._line({"choices": [choice]})

    def _line(self, rest: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(_head(self._request, chunk=True) | rest) + b"\n\n"

    async def aclose(self) -> None:
        return


def _embeddings(request: UpstreamRequest) -> Whole:
    value = request.body["input"]
    texts: list[str] = [value] if isinstance(value, str) else value  # type: ignore[assignment]  # contracts checked it
    as_base64 = request.body.get("encoding_format") == "base64"
    data = []
    for i, text in enumerate(texts):
        vector = embed(text)
        packed: Any = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else vector
        data.append({"object": "embedding", "index": i, "embedding": packed})
    usage = Usage(sum(len(t) for t in texts), 0)
    counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    body = {"object": "list", "model": request.deployment.upstream_model, "data": data, "usage": counts}
    return Whole(orjson.dumps(body), usage, None, 0)


def _ranking(request: UpstreamRequest) -> Whole:
    query: Any = request.body["query"]
    documents: Any = request.body["documents"]
    asked = embed(query)
    usage = Usage(sum(len(query) + len(d) for d in documents), 0)
    scores = [(i, sum(a * b for a, b in zip(asked, embed(d), strict=True))) for i, d in enumerate(documents)]
    return Whole(ranking.written(request, scores, usage), usage, None, 0)


def embed(text: str) -> list[float]:
    """A unit vector of hashed two-character pieces: texts that share wording are near each other."""
    vector = [0.0] * EMBEDDING_DIMENSIONS
    for a, b in zip(" " + text, text + " ", strict=True):
        digest = hashlib.blake2b((a + b).encode(), digest_size=4).digest()
        place = int.from_bytes(digest, "big")
        vector[place % EMBEDDING_DIMENSIONS] += 1.0 if place & 0x10000 else -1.0
    length = math.sqrt(sum(v * v for v in vector)) or 1.0
    return [v / length for v in vector]
