"""A fake model server for tests and load runs: OpenAI's, Anthropic's and Gemini's wire on one loopback port.

No model answers here, and every answer says so: the same request always gets the same bytes, so that what differs
between two runs is what stands in front. It is plain ASGI on uvicorn, because a slow fake would measure itself.

    python -m loadtests.upstream --port 9100 --delay-ms 20 --tokens 64

Tests steer it: `POST /control {"mode": "hold"}` makes every model call wait for `POST /control/release`; see `MODES`.
`GET /control/seen` tells what arrived, how much of it at once, and how many callers left before their answer's end.
"""

import argparse
import asyncio
import base64
import contextlib
import functools
import hashlib
import http.client
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

MODES: Final = {
    "ok": "answers",
    "hold": "waits for /control/release before the status line",
    "error": "answers `status` with an error that quotes the prompt, as real ones do; `retry_after` is optional",
    "garbage": "answers 200 and something that is no answer",
    "garbage_mid_stream": "a stream that turns into nonsense after `after` events",
    "error_mid_stream": "a stream whose event number `after` is the wire's own error event",
    "drop_mid_stream": "a connection cut after `after` events, without an end of the body",
    "end_early": "a body that ends properly after `after` events, without a finish reason",
    "stall_mid_stream": "a stream that falls silent after `after` events until /control/release",
    "slow": "waits `delay_ms` before the first byte and before every further event",
    "split": "cuts the body's bytes into pieces of `piece_bytes`, through characters and through line ends",
    "no_usage": "answers without counting",
    "thoughts": "thinks aloud before it answers, in Anthropic's and Gemini's way",
    "redirect": "answers 302 to another path",
}

# Said over and over until the asked number of tokens is reached; four-byte characters and a combining one are in
# it on purpose: they are what breaks when somebody cuts bytes.
THOUGHT: Final = "まず考えます"
PIECES: Final = (
    "これは",
    "見本",
    "の",
    "答え",
    "です",
    "。",
    "𠮷野",
    "町",
    "🍊",
    "が",
    "ぱ",
    "\n",
    "- ",
    "一",
    "つ",
    "! ",
)
EMBEDDING_DIMENSIONS: Final = 256
CREATED: Final = 1_790_000_000
_REMEMBERED: Final = 256
_CACHED_BODY_BYTES: Final = 16 * 1024


@dataclass(slots=True)
class _Behaviour:
    mode: str = "ok"
    status: int = 500
    after: int = 2
    delay_ms: float = 0.0
    piece_bytes: int = 3
    retry_after: str = ""
    times: int | None = None


@dataclass(slots=True)
class _Seen:
    calls: int = 0
    by_path: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    max_in_flight: int = 0
    waiting: int = 0
    answered: int = 0
    disconnected: int = 0
    requests: deque[tuple[str, list[tuple[bytes, bytes]], bytes]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED)
    )

    def forget(self) -> None:
        """Counters back to zero; what is under way stays counted."""
        self.calls = self.answered = self.disconnected = 0
        self.max_in_flight = self.in_flight
        self.by_path.clear()
        self.requests.clear()

    def as_json(self, last: int) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "by_path": dict(self.by_path),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "waiting": self.waiting,
            "answered": self.answered,
            "disconnected": self.disconnected,
            "requests": [
                {
                    "path": path,
                    "headers": {n.decode("latin-1"): v.decode("latin-1") for n, v in headers},
                    "body": _json_or_form(body),
                }
                for path, headers, body in list(self.requests)[-last:]
            ],
        }


class _Left(Exception):
    """The caller closed its connection."""


def _json_or_form(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("latin-1") if body.startswith(b"--") else None


# ── What is answered ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Answer:
    """One choice, whatever the wire: pieces of text, or one tool call, and why it ended."""

    pieces: tuple[str, ...]
    tool: tuple[str, str] | None
    finish: str

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        return len(self.pieces) if self.tool is None else len(self.tool[1]) // 4 + 4


def minimal_instance(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """The smallest value that a JSON Schema accepts, for the part of the language that model vendors accept."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            target = target[part]
        return minimal_instance(target, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return minimal_instance(schema[several][0], root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match (kind[0] if isinstance(kind, list) else kind).lower():
        case "object":
            properties = schema.get("properties", {})
            return {
                name: minimal_instance(properties.get(name, {}), root) for name in schema.get("required", properties)
            }
        case "array":
            return [minimal_instance(schema.get("items", {}), root) for _ in range(schema.get("minItems", 0))]
        case "integer":
            return math.ceil(schema.get("minimum", 0))
        case "number":
            return schema.get("minimum", 0)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "見本".ljust(schema.get("minLength", 0), "。")


@functools.lru_cache(maxsize=64)
def _pieces(tokens: int) -> tuple[str, ...]:
    return tuple(PIECES[i % len(PIECES)] for i in range(tokens))


@functools.lru_cache(maxsize=256)
def _plain(tokens: int, limit: int | None, stops: tuple[str, ...]) -> _Answer:
    pieces, finish = _pieces(tokens), "stop"
    if limit is not None and len(pieces) > limit:
        pieces, finish = pieces[:limit], "length"
    text = "".join(pieces)
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    if ends:
        kept: list[str] = []
        left = min(ends)
        for piece in pieces:
            if left <= 0:
                break
            kept.append(piece[:left])
            left -= len(piece)
        pieces, finish = tuple(kept), "stop"
    return _Answer(pieces, None, finish)


def _called(name: str, schema: Mapping[str, Any] | None) -> _Answer:
    return _Answer((), (name, orjson.dumps(minimal_instance(schema or {"type": "object"})).decode()), "tool_calls")


def _written(value: Any) -> _Answer:
    text = orjson.dumps(value).decode()
    return _Answer(tuple(text[i : i + 4] for i in range(0, len(text), 4)), None, "stop")


def _stops(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _count(value: Any) -> int:
    """Tokens of an input, by our own rule: three bytes of its JSON each."""
    return len(orjson.dumps(value)) // 3 + 1


# ── OpenAI ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _openai_answer(body: Mapping[str, Any], tokens: int) -> _Answer:
    tools = body.get("tools")
    choice = body.get("tool_choice", "auto")
    if tools and choice != "none" and body["messages"][-1].get("role") != "tool":
        wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["function"]["name"]
        for tool in tools:
            if tool["function"]["name"] == wanted:
                return _called(wanted, tool["function"].get("parameters"))
    shape = body.get("response_format")
    if isinstance(shape, dict) and shape.get("type") == "json_schema":
        return _written(minimal_instance(shape["json_schema"].get("schema", {})))
    if isinstance(shape, dict) and shape.get("type") == "json_object":
        return _written({"見本": True})
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return _plain(tokens, limit, _stops(body.get("stop")))


def _openai_id(prefix: str, body: Mapping[str, Any], raw: bytes) -> str:
    return f"{prefix}-{body.get('seed', 0)}-{hashlib.blake2b(raw, digest_size=9).hexdigest()}"


def _openai_usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _logprobs(pieces: Sequence[str], top: int) -> dict[str, Any]:
    def one(piece: str) -> dict[str, Any]:
        return {"token": piece, "logprob": -0.5, "bytes": list(piece.encode())}

    return {"content": [one(p) | {"top_logprobs": [one(p)] * min(top, 1)} for p in pieces], "refusal": None}


def _openai_chat(body: Mapping[str, Any], raw: bytes, tokens: int, *, count: bool) -> bytes | list[bytes]:
    answer = _openai_answer(body, tokens)
    n = int(body.get("n") or 1)
    usage = _openai_usage(_count(body["messages"]), answer.tokens * n) if count else None
    top = int(body.get("top_logprobs") or 0)
    logprobs = bool(body.get("logprobs"))
    tool: dict[str, Any] | None = None
    if answer.tool is not None:
        function = {"name": answer.tool[0], "arguments": answer.tool[1]}
        tool = {
            "id": "call_" + hashlib.blake2b(raw, digest_size=9).hexdigest(),
            "type": "function",
            "function": function,
        }
    head = {"id": _openai_id("chatcmpl", body, raw), "created": CREATED, "model": body["model"]}
    if not body.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
        if tool is not None:
            message["tool_calls"] = [tool]
        choices = [
            {
                "index": i,
                "message": message,
                "logprobs": _logprobs(answer.pieces, top) if logprobs else None,
                "finish_reason": answer.finish,
            }
            for i in range(n)
        ]
        return orjson.dumps(head | {"object": "chat.completion", "choices": choices, "usage": usage})

    include_usage = (body.get("stream_options") or {}).get("include_usage")
    head["object"] = "chat.completion.chunk"

    def event(index: int, delta: dict[str, Any], finish: str | None = None, said: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if logprobs and said is not None:
            choice["logprobs"] = _logprobs((said,), top)
        return _data(head | {"choices": [choice]} | ({"usage": None} if include_usage else {}))

    events = [event(i, {"role": "assistant", "content": "" if tool is None else None}) for i in range(n)]
    for i in range(n):
        if tool is not None:
            arguments = tool["function"]["arguments"]
            opened = {"index": 0} | tool | {"function": {"name": tool["function"]["name"], "arguments": ""}}
            events.append(event(i, {"tool_calls": [opened]}))
            events += [
                event(i, {"tool_calls": [{"index": 0, "function": {"arguments": arguments[at : at + 5]}}]})
                for at in range(0, len(arguments), 5)
            ]
        events += [event(i, {"content": piece}, None, piece) for piece in answer.pieces]
        events.append(event(i, {}, answer.finish))
    if include_usage:
        events.append(_data(head | {"choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


def _openai_completion(body: Mapping[str, Any], raw: bytes, tokens: int, *, count: bool) -> bytes | list[bytes]:
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else list(body["prompt"])
    answer = _plain(tokens, body.get("max_tokens"), _stops(body.get("stop")))
    n = int(body.get("n") or 1) * len(prompts)
    usage = _openai_usage(_count(prompts), answer.tokens * n) if count else None
    head = {
        "id": _openai_id("cmpl", body, raw),
        "object": "text_completion",
        "created": CREATED,
        "model": body["model"],
    }

    def choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    if not body.get("stream"):
        echo = prompts[0] if body.get("echo") else ""
        choices = [choice(i, echo + answer.text, answer.finish) for i in range(n)]
        return orjson.dumps(head | {"choices": choices, "usage": usage})
    events = [_data(head | {"choices": [choice(i, piece, None)]}) for i in range(n) for piece in answer.pieces]
    events += [_data(head | {"choices": [choice(i, "", answer.finish)]}) for i in range(n)]
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(_data(head | {"choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


def _openai_embeddings(body: Mapping[str, Any], _raw: bytes, _tokens: int, *, count: bool) -> bytes:
    texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
    size = int(body.get("dimensions") or EMBEDDING_DIMENSIONS)
    data = []
    for i, text in enumerate(texts):
        vector = _vector(str(text), size)
        packed: Any = vector
        if body.get("encoding_format") == "base64":
            packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": i, "embedding": packed})
    prompt = _count(texts)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt} if count else None
    return orjson.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage})


# The smallest picture: one grey point.
_POINT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


def _openai_images(body: Mapping[str, Any], *, count: bool) -> bytes:
    """As data, as gpt-image does always and others do where they are told to; else as the address of a file."""
    is_data = body.get("response_format") == "b64_json" or str(body["model"]).startswith("gpt-image")
    one = {"b64_json": _POINT} if is_data else {"url": "https://files.example/picture.png"}
    made: dict[str, Any] = {
        "created": CREATED,
        "data": [one | {"revised_prompt": body["prompt"]}] * int(body.get("n", 1)),
    }
    if count:
        asked, drawn = _count([body["prompt"]]), 1_000 * len(made["data"])
        details = {"text_tokens": asked, "image_tokens": 0}
        usage = {"input_tokens": asked, "output_tokens": drawn, "total_tokens": asked + drawn}
        made["usage"] = usage | {"input_tokens_details": details}
    return orjson.dumps(made)


def _rerank(body: Mapping[str, Any], *, count: bool) -> bytes:
    """Jina's wire, which Cohere, vLLM and llama.cpp speak too. Like vLLM it quotes what it ranked."""
    query = _vector(str(body["query"]), EMBEDDING_DIMENSIONS)
    scores = [
        sum(a * b for a, b in zip(query, _vector(str(d), EMBEDDING_DIMENSIONS), strict=True)) for d in body["documents"]
    ]
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: int(body.get("top_n") or len(scores))]
    results = [{"index": i, "relevance_score": scores[i], "document": {"text": body["documents"][i]}} for i in best]
    total = _count([body["query"], *body["documents"]])
    usage = {"usage": {"total_tokens": total}} if count else {}
    return orjson.dumps({"id": "rerank-1", "model": body["model"], "results": results} | usage)


@functools.lru_cache(maxsize=1024)
def _vector(text: str, size: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    raw = hashlib.shake_256(text.encode()).digest(size)
    values = [byte - 127.5 for byte in raw]
    length = math.sqrt(sum(v * v for v in values))
    return [v / length for v in values]


# ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────────


def _anthropic_answer(body: Mapping[str, Any], tokens: int) -> _Answer:
    tools = [t for t in body.get("tools") or () if "input_schema" in t]
    choice = body.get("tool_choice") or {"type": "auto"}
    last = body["messages"][-1]["content"]
    answered = isinstance(last, list) and any(part.get("type") == "tool_result" for part in last)
    if tools and choice.get("type") != "none" and not answered:
        wanted = choice.get("name", tools[0]["name"])
        for tool in tools:
            if tool["name"] == wanted:
                return _called(wanted, tool["input_schema"])
    shape = body.get("output_format") or (body.get("output_config") or {}).get("format")
    if shape:
        return _written(minimal_instance(shape["schema"]))
    return _plain(tokens, body.get("max_tokens"), _stops(body.get("stop_sequences")))


def _anthropic_messages(
    body: Mapping[str, Any], raw: bytes, tokens: int, *, count: bool, think: bool
) -> bytes | list[bytes]:
    answer = _anthropic_answer(body, tokens)
    reason = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[answer.finish]
    prompt = _count([body["messages"], body.get("system")])
    digest = hashlib.blake2b(raw, digest_size=9).hexdigest()
    usage = {"input_tokens": prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    message: dict[str, Any] = {
        "id": f"msg_{digest}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    block: dict[str, Any] = {"type": "text", "text": answer.text}
    if answer.tool is not None:
        block = {
            "type": "tool_use",
            "id": f"toolu_{digest}",
            "name": answer.tool[0],
            "input": orjson.loads(answer.tool[1]),
        }
    if not body.get("stream"):
        thought = [{"type": "thinking", "thinking": THOUGHT, "signature": "c2ln"}] if think else []
        message |= {"content": [*thought, block], "stop_reason": reason}
        return orjson.dumps(message | ({"usage": usage | {"output_tokens": answer.tokens}} if count else {}))

    def event(kind: str, **rest: Any) -> bytes:
        return f"event: {kind}\n".encode() + _data({"type": kind, **rest})

    begun = usage | {"output_tokens": 1} if count else {"input_tokens": 0, "output_tokens": 0}
    emptied: dict[str, Any] = {"text": ""} if answer.tool is None else {"input": {}}
    opened = block | emptied
    at = int(think)
    events = [event("message_start", message=message | {"usage": begun})]
    if think:
        events += [
            event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
            event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": THOUGHT}),
            event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "c2ln"}),
            event("content_block_stop", index=0),
        ]
    events += [event("content_block_start", index=at, content_block=opened), event("ping")]
    if answer.tool is None:
        deltas = [{"type": "text_delta", "text": piece} for piece in answer.pieces]
    else:
        text = answer.tool[1]
        deltas = [{"type": "input_json_delta", "partial_json": text[i : i + 5]} for i in range(0, len(text), 5)]
    events += [event("content_block_delta", index=at, delta=delta) for delta in deltas]
    return [
        *events,
        event("content_block_stop", index=at),
        event(
            "message_delta",
            delta={"stop_reason": reason, "stop_sequence": None},
            usage={"output_tokens": answer.tokens if count else 0},
        ),
        event("message_stop"),
    ]


# ── Gemini ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _gemini_answer(body: Mapping[str, Any], tokens: int) -> _Answer:
    functions = [f for tool in body.get("tools") or () for f in tool.get("functionDeclarations") or ()]
    functions += [f for tool in body.get("tools") or () for f in tool.get("function_declarations") or ()]
    chosen = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    answered = any(
        "functionResponse" in part or "function_response" in part for part in body["contents"][-1].get("parts", ())
    )
    if functions and chosen.get("mode") != "NONE" and not answered:
        wanted = (chosen.get("allowedFunctionNames") or chosen.get("allowed_function_names") or [functions[0]["name"]])[
            0
        ]
        for function in functions:
            if function["name"] == wanted:
                return _called(wanted, function.get("parametersJsonSchema") or function.get("parameters"))
    config = body.get("generationConfig") or {}
    schema = (
        config.get("responseJsonSchema")
        or config.get("response_json_schema")
        or config.get("responseSchema")
        or config.get("response_schema")
    )
    if schema:
        return _written(minimal_instance(schema))
    limit = config.get("maxOutputTokens") or config.get("max_output_tokens")
    return _plain(tokens, limit, _stops(config.get("stopSequences") or config.get("stop_sequences")))


def _gemini_generate(
    model: str, body: Mapping[str, Any], raw: bytes, tokens: int, *, stream: bool, count: bool, think: bool
) -> bytes | list[bytes]:
    answer = _gemini_answer(body, tokens)
    config = body.get("generationConfig") or {}
    n = int(config.get("candidateCount") or config.get("candidate_count") or 1)
    reason = "MAX_TOKENS" if answer.finish == "length" else "STOP"
    prompt = _count([body["contents"], body.get("systemInstruction") or body.get("system_instruction")])
    head = {"modelVersion": model, "responseId": hashlib.blake2b(raw, digest_size=9).hexdigest()}

    def usage(completion: int) -> dict[str, Any]:
        if not count:
            return {}
        counts = {"promptTokenCount": prompt, "candidatesTokenCount": completion * n}
        return {"usageMetadata": counts | {"totalTokenCount": prompt + completion * n}}

    def candidates(parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
        end: dict[str, Any] = {} if finish is None else {"finishReason": finish}
        return {"candidates": [{"content": {"parts": parts, "role": "model"}, "index": i} | end for i in range(n)]}

    if answer.tool is not None:
        part: dict[str, Any] = {"functionCall": {"name": answer.tool[0], "args": orjson.loads(answer.tool[1])}}
    else:
        part = {"text": answer.text}
    thought: list[dict[str, Any]] = [{"text": THOUGHT, "thought": True}] if think else []
    if not stream:
        return orjson.dumps(candidates([*thought, part], reason) | usage(answer.tokens) | head)
    parts = thought + ([part] if answer.tool is not None else [{"text": piece} for piece in answer.pieces])
    # Google ends its lines with CR LF, and counts in every event.
    return [
        b"data: "
        + orjson.dumps(
            candidates([p], reason if i == len(parts) - 1 else None)
            | usage(answer.tokens if i == len(parts) - 1 else i + 1)
            | head
        )
        + b"\r\n\r\n"
        for i, p in enumerate(parts)
    ]


def _data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _error_of(wire: str, status: int, quoted: str) -> bytes:
    """An error in the wire's own shape; it repeats the prompt, which the gateway must not pass on."""
    message = f"fake upstream error for: {quoted}"
    if wire == "anthropic":
        kind = {429: "rate_limit_error", 529: "overloaded_error", 401: "authentication_error"}.get(status, "api_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    if wire == "gemini":
        return orjson.dumps({"error": {"code": status, "message": message, "status": "INTERNAL"}})
    return orjson.dumps({"error": {"message": message, "type": "fake", "param": None, "code": f"fake_{status}"}})


# ── The server ───────────────────────────────────────────────────────────────────────────────────────────────────


class Upstream:
    """The ASGI application. One process, one event loop: its counters need no lock."""

    def __init__(self, *, delay_ms: float = 0.0, tokens: int = 16) -> None:
        self._tokens = tokens
        self._delay_ms = delay_ms
        self._behaviour = self._usual()
        self._seen = _Seen()
        self._released = asyncio.Event()

    def _usual(self) -> _Behaviour:
        if self._delay_ms:
            return _Behaviour(mode="slow", delay_ms=self._delay_ms)
        return _Behaviour()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        path: str = scope["path"]
        if scope["method"] == "GET":
            await self._get(path, scope, send)
            return
        body = await _read(receive)
        if path.startswith("/control"):
            await self._control(path, body, send)
            return
        await self._call(path, body, scope, receive, send)

    async def _get(self, path: str, scope: Scope, send: Send) -> None:
        match path:
            case "/control/seen":
                query = scope.get("query_string", b"").decode()
                last = int(query.removeprefix("last=")) if query.startswith("last=") else 20
                await _json(send, 200, orjson.dumps(self._seen.as_json(last)))
            case "/v1/models":
                models = [
                    {"id": name, "object": "model", "created": CREATED, "owned_by": "fake"}
                    for name in ("fake-chat", "fake-embedding", "fake-transcription")
                ]
                await _json(send, 200, orjson.dumps({"object": "list", "data": models, "has_more": False}))
            case "/v1beta/models":
                await _json(send, 200, orjson.dumps({"models": [{"name": "models/fake-chat"}]}))
            case "/health":
                await _json(send, 200, b"{}")
            case _:
                await _json(send, 404, _error_of("openai", 404, path))

    async def _control(self, path: str, body: bytes, send: Send) -> None:
        match path:
            case "/control/release":
                self._behaviour = self._usual()
                self._released.set()
                self._released = asyncio.Event()
            case "/control/reset":
                self._behaviour = self._usual()
                self._seen.forget()
            case _:
                wanted = orjson.loads(body)
                if wanted.get("mode", "ok") not in MODES:
                    await _json(send, 400, orjson.dumps({"modes": MODES}))
                    return
                self._behaviour = _Behaviour(**wanted)
        await _json(send, 200, b"{}")

    async def _call(self, path: str, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        seen = self._seen
        seen.calls += 1
        seen.by_path[path] += 1
        seen.in_flight += 1
        seen.max_in_flight = max(seen.max_in_flight, seen.in_flight)
        seen.requests.append((path, scope["headers"], body))
        try:
            await self._answer(path, body, scope, receive, send)
            seen.answered += 1
        except _Left:
            seen.disconnected += 1
        finally:
            seen.in_flight -= 1

    def _next_behaviour(self) -> _Behaviour:
        """The behaviour for this call; one with `times` wears off."""
        behaviour = self._behaviour
        if behaviour.times is not None:
            behaviour.times -= 1
            if behaviour.times <= 0:
                self._behaviour = self._usual()
        return behaviour

    async def _answer(self, path: str, raw: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        behaviour = self._next_behaviour()
        wire = "anthropic" if path.startswith("/v1/messages") else "gemini" if "/models/" in path else "openai"
        match behaviour.mode:
            case "hold":
                await self._wait_for_release(receive)
            case "slow":
                await _pause(receive, behaviour.delay_ms / 1000)
            case "error":
                headers = [(b"retry-after", behaviour.retry_after.encode())] if behaviour.retry_after else []
                await _json(
                    send, behaviour.status, _error_of(wire, behaviour.status, raw.decode("utf-8", "replace")), headers
                )
                return
            case "redirect":
                await _json(send, 302, b"{}", [(b"location", b"/health")])
                return
            case _:
                pass
        try:
            # Load runs send one body over and over: what it is answered is made once.
            make = _make_once if len(raw) <= _CACHED_BODY_BYTES else _make
            sse = b"alt=sse" in scope.get("query_string", b"")
            made = make(
                path, raw, sse, self._tokens, behaviour.mode if behaviour.mode in ("no_usage", "thoughts") else ""
            )
        except (KeyError, TypeError, ValueError, IndexError):
            await _json(send, 400, _error_of(wire, 400, raw.decode("utf-8", "replace")))
            return
        if made is None:
            await _json(send, 404, _error_of(wire, 404, path))
        elif isinstance(made, bytes):
            await self._send_body(made, behaviour, send, receive)
        else:
            await self._send_stream(made, behaviour, wire, send, receive)

    async def _send_body(self, made: bytes, behaviour: _Behaviour, send: Send, receive: Receive) -> None:
        if behaviour.mode in ("garbage", "garbage_mid_stream"):
            await _json(send, 200, b"<html>fake gateway page</html>")
        elif behaviour.mode in ("drop_mid_stream", "end_early", "stall_mid_stream"):
            # A length that is never reached is what a cut looks like from outside.
            await _start(send, 200, b"application/json", [(b"content-length", b"%d" % len(made))])
            await send({"type": "http.response.body", "body": made[: len(made) // 2], "more_body": True})
            if behaviour.mode == "stall_mid_stream":
                await self._wait_for_release(receive)
        elif behaviour.mode == "split":
            await _start(send, 200, b"application/json", [(b"content-length", b"%d" % len(made))])
            await _send_split(made, behaviour.piece_bytes, send)
        else:
            await _json(send, 200, made)

    async def _send_stream(
        self, events: list[bytes], behaviour: _Behaviour, wire: str, send: Send, receive: Receive
    ) -> None:
        if behaviour.mode == "garbage":
            await _json(send, 200, b"<html>fake gateway page</html>")
            return
        await _start(send, 200, b"text/event-stream", [])
        if behaviour.mode == "split":
            await _send_split(b"".join(events), behaviour.piece_bytes, send)
            return
        if behaviour.mode in ("ok", "hold", "no_usage", "thoughts"):
            for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        async for event in self._faulty(events, behaviour, wire, receive):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if behaviour.mode == "drop_mid_stream":
            # Returning without an end of the body makes the server close the connection.
            return
        await send({"type": "http.response.body", "body": b""})

    async def _faulty(
        self, events: list[bytes], behaviour: _Behaviour, wire: str, receive: Receive
    ) -> AsyncIterator[bytes]:
        for i, event in enumerate(events):
            if behaviour.mode == "slow":
                if i:
                    await _pause(receive, behaviour.delay_ms / 1000)
            elif i == behaviour.after:
                match behaviour.mode:
                    case "drop_mid_stream":
                        # What was sent has to arrive first: a client that sees both at once may keep only the cut.
                        await asyncio.sleep(0.1)
                        return
                    case "end_early":
                        return
                    case "garbage_mid_stream":
                        yield b"data: {\xff\xfe not json\n\n"
                    case "error_mid_stream":
                        start = b"event: error\n" if wire == "anthropic" else b""
                        yield start + b"data: " + _error_of(wire, 529, "") + b"\n\n"
                        return
                    case "stall_mid_stream":
                        await self._wait_for_release(receive)
                    case _:
                        pass
            yield event

    async def _wait_for_release(self, receive: Receive) -> None:
        self._seen.waiting += 1
        try:
            released = asyncio.ensure_future(self._released.wait())
            left = asyncio.ensure_future(_disconnect(receive))
            try:
                await asyncio.wait((released, left), return_when=asyncio.FIRST_COMPLETED)
                if not released.done():
                    raise _Left
            finally:
                released.cancel()
                left.cancel()
        finally:
            self._seen.waiting -= 1


def _openai_transcription(raw: bytes) -> bytes:
    """What a recording of this length might say, whatever it says; with pieces when they are asked for."""
    start = raw.index(b"\r\n\r\n", raw.index(b'name="file"')) + 4
    said = "".join(_pieces(8)).replace("\n", "")
    size = raw.rindex(b"\r\n--") - start
    answer: dict[str, Any] = {"text": said, "usage": {"type": "duration", "seconds": 1}}
    if b"verbose_json" in raw[:start]:
        half = len(said) // 2
        pieces = [(0.0, 1.5, said[:half]), (1.5, 3.0, said[half:])]
        segments = [
            {"id": i, "seek": 0, "start": a, "end": b, "text": t, "tokens": [], "temperature": 0.0, "avg_logprob": -0.2,
             "compression_ratio": 1.0, "no_speech_prob": 0.01}
            for i, (a, b, t) in enumerate(pieces)
        ]  # fmt: skip
        answer |= {"task": "transcribe", "language": "japanese", "duration": size / 32_000, "segments": segments}
    return orjson.dumps(answer)


def _make(path: str, raw: bytes, sse: bool, tokens: int, mode: str) -> bytes | list[bytes] | None:
    if path.removeprefix("/openai") == "/v1/audio/transcriptions":
        return _openai_transcription(raw)
    body = orjson.loads(raw)
    count, think = mode != "no_usage", mode == "thoughts"
    # Azure's v1 API is OpenAI's wire below a path of its own.
    match path.removeprefix("/openai"):
        case "/v1/chat/completions":
            return _openai_chat(body, raw, tokens, count=count)
        case "/v1/completions":
            return _openai_completion(body, raw, tokens, count=count)
        case "/v1/embeddings":
            return _openai_embeddings(body, raw, tokens, count=count)
        case "/v1/rerank":
            return _rerank(body, count=count)
        case "/v1/images/generations":
            return _openai_images(body, count=count)
        case "/v1/messages":
            return _anthropic_messages(body, raw, tokens, count=count, think=think)
        case _ if path.startswith(("/v1beta/models/", "/v1/models/", "/v1alpha/models/")):
            model, _, verb = path.rpartition("/")[2].partition(":")
            if verb == "generateContent":
                return _gemini_generate(model, body, raw, tokens, stream=False, count=count, think=think)
            if verb == "streamGenerateContent" and sse:
                return _gemini_generate(model, body, raw, tokens, stream=True, count=count, think=think)
            return None
        case _:
            return None


_make_once = functools.lru_cache(maxsize=512)(_make)


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pause(receive: Receive, seconds: float) -> None:
    """Waits; a caller who leaves meanwhile ends the call."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_disconnect(receive), seconds)
        raise _Left


async def _start(send: Send, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]}
    )


async def _json(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    await _start(send, status, b"application/json", [(b"content-length", b"%d" % len(body)), *headers])
    await send({"type": "http.response.body", "body": body})


async def _send_split(body: bytes, size: int, send: Send) -> None:
    for at in range(0, len(body), size):
        await send({"type": "http.response.body", "body": body[at : at + size], "more_body": True})
        # A turn of the loop in between, or the kernel would join the pieces again.
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


def create_upstream(*, delay_ms: float = 0.0, tokens: int = 16) -> Upstream:
    """The application, for a server of the caller's choice. delay_ms: before the first byte and before each event."""
    return Upstream(delay_ms=delay_ms, tokens=tokens)


def serve(port: int, *, delay_ms: float, tokens: int, end_with_stdin: bool) -> None:
    """Serves on 127.0.0.1 until SIGTERM; says the port (0 means any) in one line on standard output."""
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        create_upstream(delay_ms=delay_ms, tokens=tokens),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=1,
        backlog=4096,
    )
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    if end_with_stdin:
        # A test process that was killed cannot end its children; its pipe closes all the same.
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class RunningUpstream:
    """A fake upstream in a process of its own. `url` has no path: OpenAI's wire starts at `url + "/v1"`."""

    url: str

    def control(self, mode: str = "ok", **rest: Any) -> None:
        """See `MODES`. rest: status, after, delay_ms, piece_bytes, retry_after, times."""
        self._exchange("POST", "/control", {"mode": mode, **rest})

    def release(self) -> None:
        """Lets every held call go on, and answers normally from here on."""
        self._exchange("POST", "/control/release", {})

    def reset(self) -> None:
        """Normal behaviour, counters at zero."""
        self._exchange("POST", "/control/release", {})
        self._exchange("POST", "/control/reset", {})

    def seen(self, *, last: int = 20) -> dict[str, Any]:
        """Counts, and the last requests with their headers and bodies."""
        return self._exchange("GET", f"/control/seen?last={last}", None)

    def _exchange(self, method: str, path: str, body: object) -> dict[str, Any]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request(method, path, None if body is None else orjson.dumps(body))
            response = connection.getresponse()
            raw = response.read()
            if response.status != 200:
                raise RuntimeError(f"{method} {path}: {response.status} {raw[:200]!r}")
            answer: dict[str, Any] = orjson.loads(raw)
            return answer
        finally:
            connection.close()


@contextlib.contextmanager
def running_upstream(*, delay_ms: float = 0.0, tokens: int = 16) -> Iterator[RunningUpstream]:
    """Starts a fake upstream on a free port and ends it on leaving."""
    arguments = ["--port", "0", "--delay-ms", str(delay_ms), "--tokens", str(tokens), "--end-with-stdin"]
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtests.upstream", *arguments],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        url = process.stdout.readline().decode().strip()
        if not url:
            raise RuntimeError(f"the fake upstream did not start (exit {process.wait(5)})")
        upstream = RunningUpstream(url)
        _wait_until_answering(upstream)
        yield upstream
    finally:
        process.stdin.close()
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _wait_until_answering(upstream: RunningUpstream) -> None:
    for _ in range(200):
        try:
            upstream.seen()
        except ConnectionError:
            threading.Event().wait(0.05)
        else:
            return
    raise RuntimeError("the fake upstream does not answer")


def main() -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="loadtests.upstream", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--port", type=int, default=0, help="0: any free port, said on standard output")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before the first byte and before each event")
    parser.add_argument("--tokens", type=int, default=16, help="length of an answer in pieces")
    parser.add_argument("--end-with-stdin", action="store_true", help="ends when standard input is closed")
    given = parser.parse_args()
    serve(given.port, delay_ms=given.delay_ms, tokens=given.tokens, end_with_stdin=given.end_with_stdin)


if __name__ == "__main__":
    main()
