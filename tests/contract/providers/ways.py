"""What the provider suite asks with, and how it reads answers: the official client's types judge every object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.server.providers.base import Deployment, Operation, Provider, UpstreamRequest, UpstreamResponse, Usage
from tests.deployments import a_deployment

MESSAGES: Final = [
    {"role": "system", "content": "あなたは町の職員を手伝います。"},
    {"role": "user", "content": "秘密のことば🍊について教えてください。"},
]
SECRET: Final = "秘密のことば"
API_KEY: Final = "test-key-of-the-town"
TOOLS: Final = [
    {
        "type": "function",
        "function": {
            "name": "find_document",
            "description": "文書を探す",
            "parameters": {
                "type": "object",
                "properties": {"title": {"type": "string"}, "year": {"type": "integer"}},
                "required": ["title", "year"],
            },
        },
    }
]
JSON_SCHEMA: Final = {
    "type": "json_schema",
    "json_schema": {
        "name": "summary",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"title": {"type": "string"}, "pages": {"type": "integer"}},
            "required": ["title", "pages"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Way:
    """One provider with one deployment."""

    id: str
    provider: Provider
    deployment: Deployment

    def request(self, *, stream: bool = False, operation: Operation = Operation.CHAT, **rest: Any) -> UpstreamRequest:
        """A call; deadlines are given by their field names, everything else goes into the body."""
        deadlines = {name: rest.pop(name) for name in list(rest) if name.endswith("_timeout_s")}
        body: Mapping[str, object] = {"messages": MESSAGES, "max_tokens": 1000, **rest}
        if operation is not Operation.CHAT:
            body = rest
        return UpstreamRequest(
            self.deployment, operation, body, stream=stream, call_id="01990000-0000-7000-8000-000000000000", **deadlines
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, whichever way it came: `choices` as (text, tool calls, finish reason)."""

    events: tuple[bytes, ...]
    usage: Usage | None
    finish_reason: str | None
    output_text_bytes: int
    choices: tuple[tuple[str, tuple[tuple[str, str], ...], str | None], ...]

    @property
    def text(self) -> str:
        return self.choices[0][0]


def deployment(provider: Any, upstream_model: str, base_url: str) -> Deployment:
    return a_deployment(
        id=f"test/{provider}/{upstream_model}",
        provider=provider,
        upstream_model=upstream_model,
        base_url=base_url,
        api_key=API_KEY,
        operations=frozenset(Operation),
        capabilities=frozenset({"tools", "json_schema"}),
        max_input_tokens=100_000,
        max_output_tokens=10_000,
    )


# Models that LiteLLM's price map knows, or it would put a JSON schema into the prompt.
WAYS: Final[Mapping[str, tuple[str, str, str]]] = {
    "openai_wire": ("openai_wire", "fake-chat", "/v1"),
    "anthropic": ("litellm", "anthropic/claude-haiku-5-5", ""),
    "gemini": ("litellm", "gemini/gemini-3.8-flash", ""),
    "router": ("litellm_router", "openai/fake-chat", "/v1"),
    "demo": ("demo", "sample", ""),
}
REMOTE: Final = tuple(name for name in WAYS if name != "demo")
WayFor = Callable[[str], Way]


async def answer(way: Way, request: UpstreamRequest) -> Answer:
    """Sends, reads to the end, closes, and checks every object against the official client's types."""
    response = await way.provider.send(request)
    try:
        return await finish(response, stream=request.stream)
    finally:
        await response.aclose()


async def finish(response: UpstreamResponse, *, stream: bool) -> Answer:
    events = tuple([event async for event in response.chunks()])
    choices = _streamed(events) if stream else _whole(events)
    return Answer(events, response.usage, response.finish_reason, response.output_text_bytes, choices)


def _whole(parts: tuple[bytes, ...]) -> Any:
    made = ChatCompletion.model_validate_json(b"".join(parts))
    return tuple(
        (
            choice.message.content or "",
            tuple(
                (c.function.name, c.function.arguments) for c in choice.message.tool_calls or () if c.type == "function"
            ),
            choice.finish_reason,
        )
        for choice in made.choices
    )


def chunks_of(events: tuple[bytes, ...]) -> list[ChatCompletionChunk]:
    """The events before the end mark, as the official client's objects."""
    return [ChatCompletionChunk.model_validate(orjson.loads(event.removeprefix(b"data:"))) for event in events[:-1]]


def _streamed(events: tuple[bytes, ...]) -> Any:
    texts: dict[int, str] = {}
    calls: dict[int, dict[int, list[str]]] = {}
    reasons: dict[int, str | None] = {}
    for chunk in chunks_of(events):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                kept = calls.setdefault(choice.index, {}).setdefault(call.index, ["", ""])
                kept[0] += call.function.name or ""
                kept[1] += call.function.arguments or ""
    return tuple(
        (texts[i], tuple((n, a) for _, (n, a) in sorted(calls.get(i, {}).items())), reasons[i]) for i in sorted(texts)
    )
