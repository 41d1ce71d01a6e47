"""Providers that do not speak OpenAI's wire, by way of LiteLLM's knowledge and without its machinery.

`LiteLLMTransform` borrows the translation alone (what to send, how to read the answer) and sends with our own client.
`LiteLLMRouter` hands the whole call to `litellm.Router` in a process of its own, for what the translation alone does
not cover. LiteLLM is imported when the first call needs it, in a thread: that takes seconds, and most installations
never do. See docs/adr/0004-litellm-three-ways.md.
"""

import asyncio
import contextlib
import functools
import itertools
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import anyio
import anyio.to_thread
import orjson

from gateway.server.providers.base import (
    HEARTBEAT,
    Deployment,
    InputRefused,
    Operation,
    UpstreamBroken,
    UpstreamRefused,
    UpstreamRequest,
    UpstreamResponse,
    UpstreamTimeout,
    UpstreamUnavailable,
    Usage,
    Whole,
)
from gateway.server.providers.openai_wire import usage_of
from gateway.server.providers.outbound import (
    Answer,
    Egress,
    Outbound,
    data_of,
    raise_for,
    read_all,
    server_sent_events,
)

_BROKEN = "もう一度試してください。続くときは共同利用の事務局に知らせてください。"
_CUT = "答えが途中で切れました。もう一度試してください。"
_TRY_AGAIN = "少し待ってから、もう一度試してください。"
_NOT_POSSIBLE = "このモデルで使えない指定があります。別のモデルを選んでください。"
_NOT_SET_UP = "共同利用の事務局に、AIのサービスの契約と鍵の確認を依頼してください。"

DONE: Final = b"data: [DONE]\n\n"

# What makes LiteLLM quiet. Without the first it fetches its price map over the network when it is imported.
QUIET_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOG": "CRITICAL",
    "LITELLM_TELEMETRY": "False",
    "HF_HUB_OFFLINE": "1",
}

# Fields that change what the caller gets, not how well: dropping one without a word would be a wrong answer.
_NEVER_DROPPED: Final = frozenset(
    {"max_tokens", "max_completion_tokens", "n", "response_format", "stop", "tools", "tool_choice"}
)
_PARAMETERS: Final = (
    *sorted(_NEVER_DROPPED),
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "parallel_tool_calls",
    "presence_penalty",
    "reasoning_effort",
    "seed",
    "temperature",
    "top_logprobs",
    "top_p",
)  # fmt: skip


@functools.cache
def load_litellm() -> Any:
    """Imports LiteLLM and turns off everything but its translation; idempotent, takes seconds, so never on the loop."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ[name] = value  # noqa: TID251  # it reads these itself, at import
    with warnings.catch_warnings():
        # Its models make pydantic warn when they are first built, which is here.
        warnings.simplefilter("ignore")
        import litellm
        import litellm.llms.anthropic.chat.handler
        import litellm.llms.vertex_ai.gemini.transformation
        import litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini
        from litellm.types.utils import Delta, ModelResponse, ModelResponseStream, StreamingChoices

        ModelResponse()
        ModelResponseStream(choices=[StreamingChoices(delta=Delta(content=""))])
    silence(litellm)
    return litellm


def silence(litellm: Any) -> None:
    """No callback, no cache, no retry, no message of its own; also in the worker."""
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.set_verbose = False
    litellm.turn_off_message_logging = True
    litellm.disable_hf_tokenizer_download = True
    litellm.cache = None
    litellm.num_retries = 0
    # With it, a 422 makes LiteLLM send again with less, behind our back; `supported_parameters` drops beforehand.
    litellm.drop_params = False
    litellm.modify_params = False
    for callbacks in (
        "callbacks",
        "input_callback",
        "success_callback",
        "failure_callback",
        "service_callback",
        "_async_success_callback",
        "_async_failure_callback",
        "_async_input_callback",
    ):
        setattr(litellm, callbacks, [])


class _NoLog:
    """Stands where LiteLLM expects its logger, which would copy prompts."""

    def __init__(self, optional_params: Mapping[str, object]) -> None:
        self.optional_params = dict(optional_params)
        self.litellm_params: dict[str, object] = {}
        self.model_call_details: dict[str, object] = {}

    def pre_call(self, *_args: object, **_rest: object) -> None:
        return

    def post_call(self, *_args: object, **_rest: object) -> None:
        return


# ── OpenAI's objects, from LiteLLM's ─────────────────────────────────────────────────────────────────────────────


def usage_object(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
    }


def usage_from(value: Any) -> Usage | None:
    """LiteLLM's usage object; counts of zero on both sides mean that nobody counted."""
    if value is None:
        return None
    usage = usage_of(value.model_dump() if hasattr(value, "model_dump") else value)
    return usage if usage is not None and (usage.prompt_tokens or usage.completion_tokens) else None


def choices_from(made: Any) -> list[dict[str, Any]]:
    """The choices of a LiteLLM answer or chunk in OpenAI's shape: vendors' own fields and thoughts stay behind."""
    kept: list[dict[str, Any]] = []
    for choice in made.choices:
        part = getattr(choice, "message", None) or getattr(choice, "delta", None)
        said: dict[str, Any] = {}
        if part is not None:
            if part.content is not None:
                said["content"] = part.content
            calls = [
                call.model_dump(exclude_none=True) if hasattr(call, "model_dump") else dict(call)
                for call in part.tool_calls or ()
            ]
            if calls:
                said["tool_calls"] = [_call(call, numbered=hasattr(choice, "delta")) for call in calls]
        kept.append(
            {"index": getattr(choice, "index", 0) or 0, "said": said, "finish_reason": choice.finish_reason or None}
        )
    return kept


def _call(call: Mapping[str, Any], *, numbered: bool) -> dict[str, Any]:
    function = call.get("function") or {}
    kept: dict[str, Any] = {"index": call.get("index", 0)} if numbered else {}
    if call.get("id"):
        kept |= {"id": call["id"], "type": "function"}
    kept["function"] = {name: function[name] for name in ("name", "arguments") if function.get(name) is not None}
    return kept


def thought_bytes(made: Any) -> int:
    """Bytes of reasoning that are billed and not passed on."""
    parts = (getattr(c, "message", None) or getattr(c, "delta", None) for c in made.choices)
    return sum(len((getattr(part, "reasoning_content", None) or "").encode()) for part in parts)


class Writer:
    """Writes one answer in OpenAI's shape, counting as it goes: the same for both ways through LiteLLM."""

    def __init__(self, request: UpstreamRequest) -> None:
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{request.call_id.replace('-', '')}",
            "created": int(time.time()),
            "model": request.deployment.upstream_model.partition("/")[2] or request.deployment.upstream_model,
        }
        self._begun: set[int] = set()
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_text_bytes = 0

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Usage | None, *, thought_bytes: int) -> Whole:
        """thought_bytes: what the model wrote and nobody is shown."""
        made = []
        for choice in choices:
            self._note(choice)
            message = {"role": "assistant", "content": None, "refusal": None} | choice["said"]
            if message.get("tool_calls") and not message["content"]:
                message["content"] = None
            made.append(
                {
                    "index": choice["index"],
                    "message": message,
                    "logprobs": None,
                    "finish_reason": choice["finish_reason"] or "stop",
                }
            )
        answer = self._head | {"object": "chat.completion", "choices": made}
        body = orjson.dumps(answer | ({"usage": usage_object(usage)} if usage is not None else {}))
        return Whole(body, usage, self.finish_reason, self.output_text_bytes + thought_bytes)

    def events(self, choices: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Whole events for what one chunk says; none for a chunk that says nothing."""
        written: list[bytes] = []
        for choice in choices:
            said = dict(choice["said"])
            if not said.get("content"):
                said.pop("content", None)
            if not said and choice["finish_reason"] is None:
                continue
            self._note(choice)
            if choice["index"] not in self._begun:
                self._begun.add(choice["index"])
                said = {"role": "assistant", "content": None} | said
            entry = {"index": choice["index"], "delta": said, "logprobs": None}
            written.append(self._event([entry | {"finish_reason": choice["finish_reason"]}]))
        return written

    def end(self) -> list[bytes]:
        """The usage event, when somebody counted, and the end mark."""
        if self.usage is None:
            return [DONE]
        return [self._event([], usage=usage_object(self.usage)), DONE]

    def _event(self, choices: list[dict[str, Any]], **rest: object) -> bytes:
        payload = self._head | {"object": "chat.completion.chunk", "choices": choices} | rest
        return b"data: " + orjson.dumps(payload) + b"\n\n"

    def _note(self, choice: Mapping[str, Any]) -> None:
        said = choice["said"]
        self.finish_reason = choice["finish_reason"] or self.finish_reason
        self.output_text_bytes += len((said.get("content") or "").encode())
        for call in said.get("tool_calls", ()):
            self.output_text_bytes += sum(len(str(v).encode()) for v in call["function"].values())


# ── The translation alone, with our own client ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What is sent, and how its answer is read."""

    url: str
    headers: dict[str, str]
    body: dict[str, Any]
    config: Any
    model: str
    messages: list[dict[str, Any]]
    optional_params: dict[str, Any]
    litellm_params: dict[str, Any]
    json_mode: bool

    def read_whole(self, raw: bytes, wire: "_Wire") -> Any:
        """The answer as LiteLLM's `ModelResponse`. Raises whatever LiteLLM does with nonsense; see `_translating`."""
        import httpx
        from litellm.types.utils import ModelResponse

        payload = orjson.loads(raw)
        if not isinstance(payload, dict) or not wire.is_complete(payload):
            raise UpstreamBroken(_BROKEN, dispatched=True)
        if uncounted := {name: zero for name, zero in wire.no_usage.items() if not payload.get(name)}:
            # An answer without figures is an answer still; LiteLLM would throw it away.
            raw = orjson.dumps(payload | uncounted)
        return self.config.transform_response(
            model=self.model,
            raw_response=httpx.Response(200, content=raw, headers={"content-type": "application/json"}),
            model_response=ModelResponse(),
            logging_obj=_NoLog(self.optional_params),
            request_data=self.body,
            messages=self.messages,
            optional_params=self.optional_params,
            litellm_params=self.litellm_params,
            encoding=None,
            api_key="",
            json_mode=self.json_mode,
        )


class _Wire(ABC):
    """One vendor's wire: addresses, headers and chunk parser. The rest is LiteLLM's."""

    # What stands in an answer when the vendor did not count.
    no_usage: Mapping[str, object] = {}

    @abstractmethod
    def prepare(
        self, request: UpstreamRequest, model: str, config: Any, optional_params: dict[str, Any]
    ) -> _Exchange: ...

    @abstractmethod
    def chunk_parser(self, exchange: _Exchange) -> Any: ...

    def is_complete(self, answer: Mapping[str, Any]) -> bool:
        """Whether a whole answer says why it ended."""
        return self.ends(answer)

    @abstractmethod
    def ends(self, event: Mapping[str, Any]) -> bool:
        """Whether this event says why the answer ended; LiteLLM calls the end of an event that does not a "stop"."""

    def counted_so_far(self, event: dict[str, Any]) -> Usage | None:
        """What an event in the middle of a stream counts, if that covers all output so far; may be taken out of it."""
        return None

    @abstractmethod
    def error_status(self, event: Mapping[str, Any]) -> int | None:
        """The status that an error inside a stream stands for; None for an event that is none."""

    @abstractmethod
    def models_url(self, base_url: str) -> str: ...

    @abstractmethod
    def models_headers(self, api_key: str) -> dict[str, str]: ...


class _Anthropic(_Wire):
    no_usage: Mapping[str, object] = {"usage": {"input_tokens": 0, "output_tokens": 0}}
    # platform.claude.com/docs/en/api/errors
    _STATUSES: Final = {
        "invalid_request_error": 400,
        "authentication_error": 401,
        "permission_error": 403,
        "not_found_error": 404,
        "request_too_large": 413,
        "rate_limit_error": 429,
        "overloaded_error": 529,
    }

    def prepare(self, request: UpstreamRequest, model: str, config: Any, optional_params: dict[str, Any]) -> _Exchange:
        json_mode = bool(optional_params.pop("json_mode", False))
        litellm_params: dict[str, Any] = {"api_base": request.deployment.base_url, "drop_params": True}
        messages = _messages(request)
        headers = config.validate_environment(
            api_key=request.deployment.api_key,
            headers={},
            model=model,
            messages=messages,
            optional_params=optional_params,
            litellm_params=litellm_params,
            api_base=request.deployment.base_url,
        )
        body = config.transform_request(
            model=model,
            messages=messages,
            optional_params=optional_params,
            litellm_params=litellm_params,
            headers=headers,
        )
        if request.stream:
            body["stream"] = True
        return _Exchange(
            f"{request.deployment.base_url}/v1/messages",
            headers,
            body,
            config,
            model,
            messages,
            optional_params,
            litellm_params,
            json_mode,
        )

    def chunk_parser(self, exchange: _Exchange) -> Any:
        from litellm.llms.anthropic.chat.handler import ModelResponseIterator
        from litellm.llms.anthropic.chat.transformation import ANTHROPIC_TOOL_NAME_REVERSE_MAP_KEY, JsonModeRequest

        schema = JsonModeRequest.model_validate(exchange.optional_params).tool_schema() if exchange.json_mode else None
        return ModelResponseIterator(
            streaming_response=None,
            sync_stream=False,
            json_mode=exchange.json_mode,
            tool_name_reverse_map=exchange.litellm_params.get(ANTHROPIC_TOOL_NAME_REVERSE_MAP_KEY),
            response_format_schema=schema,
        )

    def is_complete(self, answer: Mapping[str, Any]) -> bool:
        return bool(answer.get("stop_reason"))

    def ends(self, event: Mapping[str, Any]) -> bool:
        return event.get("type") == "message_delta"

    def error_status(self, event: Mapping[str, Any]) -> int | None:
        if event.get("type") != "error":
            return None
        error = event.get("error")
        return self._STATUSES.get(str(error.get("type")), 500) if isinstance(error, dict) else 500

    def models_url(self, base_url: str) -> str:
        return f"{base_url}/v1/models?limit=1000"

    def models_headers(self, api_key: str) -> dict[str, str]:
        return {"x-api-key": api_key, "anthropic-version": "2023-06-01"}


class _Gemini(_Wire):
    no_usage: Mapping[str, object] = {
        "usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}
    }

    def prepare(self, request: UpstreamRequest, model: str, config: Any, optional_params: dict[str, Any]) -> _Exchange:
        # The function below, not `config.transform_request`: around it LiteLLM keeps a cache of contents at Google.
        from litellm.llms.vertex_ai.gemini.transformation import transform_request_body

        messages = _messages(request)
        body = transform_request_body(
            messages=messages,
            model=model,
            optional_params=dict(optional_params),
            custom_llm_provider="gemini",
            litellm_params={},
            cached_content=None,
        )
        verb = "streamGenerateContent?alt=sse" if request.stream else "generateContent"
        return _Exchange(
            f"{request.deployment.base_url}/v1beta/models/{model}:{verb}",
            self.models_headers(request.deployment.api_key or ""),
            dict(body),
            config,
            model,
            messages,
            optional_params,
            {},
            json_mode=False,
        )

    def chunk_parser(self, exchange: _Exchange) -> Any:
        from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import ModelResponseIterator

        return ModelResponseIterator(
            streaming_response=None, sync_stream=False, logging_obj=_NoLog(exchange.optional_params)
        )

    def ends(self, event: Mapping[str, Any]) -> bool:
        blocked = (event.get("promptFeedback") or {}).get("blockReason")
        return bool(blocked) or any(c.get("finishReason") for c in event.get("candidates") or ())

    def counted_so_far(self, event: dict[str, Any]) -> Usage | None:
        # Taken out, because LiteLLM spends half of its time on it, in every event.
        counts = event.pop("usageMetadata", None) or {}
        prompt, cached = counts.get("promptTokenCount", 0), counts.get("cachedContentTokenCount", 0)
        output = counts.get("candidatesTokenCount", 0) + counts.get("thoughtsTokenCount", 0)
        return usage_from(
            {
                "prompt_tokens": prompt,
                "completion_tokens": output,
                "prompt_tokens_details": {"cached_tokens": cached},
            }
        )

    def error_status(self, event: Mapping[str, Any]) -> int | None:
        error = event.get("error")
        if error is None:
            return None
        code = error.get("code") if isinstance(error, dict) else None
        return code if isinstance(code, int) and 400 <= code <= 599 else 500

    def models_url(self, base_url: str) -> str:
        return f"{base_url}/v1beta/models?pageSize=1000"

    def models_headers(self, api_key: str) -> dict[str, str]:
        # In a header, never in the address, which proxies write down.
        return {"x-goog-api-key": api_key}


# What the contract tests cover; every other vendor goes by `litellm_router`.
_WIRES: Final[Mapping[str, _Wire]] = {"anthropic": _Anthropic(), "gemini": _Gemini()}


def _messages(request: UpstreamRequest) -> list[dict[str, Any]]:
    """A copy of its own: LiteLLM rewrites messages in place."""
    messages: list[dict[str, Any]] = orjson.loads(orjson.dumps(request.body["messages"]))
    return messages


class LiteLLMTransform:
    """Anthropic's and Gemini's wire. `upstream_model` is LiteLLM's name: `anthropic/…` or `gemini/…`."""

    name = "litellm"

    def __init__(self, egress: Egress) -> None:
        self._outbound = Outbound(egress)
        self._loading = asyncio.Lock()
        self._loaded = False

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """See `Provider.send`."""
        wire = _wire_of(request.deployment)
        if request.operation is not Operation.CHAT or not request.deployment.api_key:
            raise UpstreamRefused(_NOT_SET_UP, dispatched=False)
        await self._load()
        exchange = _prepared(wire, request)
        response = await self._outbound.post(
            request, exchange.url, orjson.dumps(exchange.body), exchange.headers | {"content-type": "application/json"}
        )
        try:
            if request.stream:
                return await _Stream.begin(response, request, wire, exchange)
            return await self._whole(response, request, wire, exchange)
        except BaseException:
            response.close()
            raise

    async def _whole(
        self, response: Answer, request: UpstreamRequest, wire: _Wire, exchange: _Exchange
    ) -> UpstreamResponse:
        raw = await read_all(response)
        response.release()
        writer = Writer(request)
        with _translating():
            made = exchange.read_whole(raw, wire)
            choices, usage = choices_from(made), usage_from(getattr(made, "usage", None))
            if not choices:
                raise UpstreamBroken(_BROKEN, dispatched=True)
            return writer.whole(choices, usage, thought_bytes=thought_bytes(made))

    async def list_models(self, deployment: Deployment) -> list[str]:
        """The names the vendor lists, in LiteLLM's spelling with the vendor in front."""
        wire = _wire_of(deployment)
        vendor = deployment.upstream_model.partition("/")[0]
        request = UpstreamRequest(deployment, Operation.CHAT, {}, stream=False, call_id="", total_timeout_s=10.0)
        answer = await self._outbound.get_json(
            request, wire.models_url(deployment.base_url), wire.models_headers(deployment.api_key or "")
        )
        listed = answer.get("data", answer.get("models")) if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            raise UpstreamBroken(_BROKEN, dispatched=True)
        names = [m.get("id") or m.get("name") for m in listed if isinstance(m, dict)]
        return [f"{vendor}/{name.removeprefix('models/')}" for name in names if isinstance(name, str)]

    async def aclose(self) -> None:
        await self._outbound.aclose()

    async def _load(self) -> None:
        if not self._loaded:
            async with self._loading:
                await anyio.to_thread.run_sync(load_litellm)
                self._loaded = True


class UnsupportedError(ValueError):
    """A field that changes what the caller gets, and that this vendor does not know."""


def supported_parameters(body: Mapping[str, object], supported: Iterable[str]) -> dict[str, object]:
    """The fields of `body` beside its input that a vendor knows; hints it does not know are dropped.

    Raises `UnsupportedError` for a field that is no hint.
    """
    known = set(supported)
    given = {name: body[name] for name in _PARAMETERS if body.get(name) is not None}
    if any(name not in known and (name, given[name]) != ("n", 1) for name in _NEVER_DROPPED & given.keys()):
        raise UnsupportedError
    return {name: value for name, value in given.items() if name in known}


def _wire_of(deployment: Deployment) -> _Wire:
    wire = _WIRES.get(deployment.upstream_model.partition("/")[0])
    if wire is None:
        raise UpstreamRefused(_NOT_SET_UP, dispatched=False)
    return wire


def _prepared(wire: _Wire, request: UpstreamRequest) -> _Exchange:
    """Translates the request. Whatever LiteLLM cannot express for this vendor is refused before anything is sent."""
    litellm = load_litellm()
    vendor, _, model = request.deployment.upstream_model.partition("/")
    try:
        config = litellm.ProviderConfigManager.get_provider_chat_config(
            model=model, provider=litellm.LlmProviders(vendor)
        )
        given = supported_parameters(request.body, config.get_supported_openai_params(model=model))
        optional_params = litellm.utils.get_optional_params(
            model=model,
            custom_llm_provider=vendor,
            messages=_messages(request),
            drop_params=True,
            **orjson.loads(orjson.dumps(given)),
        )
        for internal in ("stream", "stream_options", "extra_body"):
            optional_params.pop(internal, None)
        return wire.prepare(request, model, config, optional_params)
    except _library_errors() as error:
        raise InputRefused(_NOT_POSSIBLE, dispatched=False) from error


@functools.cache
def _library_errors() -> tuple[type[Exception], ...]:
    """What LiteLLM raises over a value it cannot translate: its own errors, and those of unguarded Python."""
    from litellm.llms.base_llm.chat.transformation import BaseLLMException
    from openai import OpenAIError

    return (BaseLLMException, OpenAIError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)  # fmt: skip


@contextlib.contextmanager
def _translating() -> Any:
    """Nonsense from upstream surfaces as whatever LiteLLM trips over; its text may quote the answer."""
    try:
        yield
    except _library_errors() as error:
        raise UpstreamBroken(_BROKEN, dispatched=True) from error


class _Stream(Writer):
    """Vendor's events in, OpenAI's events out."""

    body = None

    def __init__(
        self,
        request: UpstreamRequest,
        response: Answer,
        events: AsyncIterator[bytes],
        wire: _Wire,
        parser: Any,
    ) -> None:
        super().__init__(request)
        self._response = response
        self._events = events
        self._wire = wire
        self._parser = parser
        self._heartbeat_s = request.heartbeat_s
        self._first: list[bytes] = []
        self._ended = False

    @classmethod
    async def begin(cls, response: Answer, request: UpstreamRequest, wire: _Wire, exchange: _Exchange) -> "_Stream":
        """Waits for the first event that says something: openings and pings promise nothing yet."""
        if "text/event-stream" not in response.headers.get("content-type", ""):
            raise UpstreamBroken(_BROKEN, dispatched=True)
        events = server_sent_events(response, request)
        with _translating():
            parser = wire.chunk_parser(exchange)
        stream = cls(request, response, events, wire, parser)
        async for event in events:
            stream._first = [] if event is HEARTBEAT else stream._translated(event)
            response.is_speaking = bool(stream._first or stream.output_text_bytes)
            if stream._first:
                return stream
        raise UpstreamBroken(_BROKEN, dispatched=True)

    async def chunks(self) -> AsyncIterator[bytes]:
        for event in self._first:
            yield event
        clock = asyncio.get_running_loop().time
        beat = clock() + self._heartbeat_s
        async for raw in self._events:
            events: Sequence[bytes] = (raw,) if raw is HEARTBEAT else self._translated(raw)
            if not events and clock() >= beat:
                # A model that thinks says much that nobody is told.
                events = (HEARTBEAT,)
            for event in events:
                yield event
                beat = clock() + self._heartbeat_s
        for event in self._held_back():
            yield event
        if self.finish_reason is None:
            raise UpstreamBroken(_CUT, dispatched=True)
        self._ended = True
        for event in self.end():
            yield event

    def _translated(self, event: bytes) -> list[bytes]:
        data = data_of(event)
        if data == b"[DONE]":
            return []
        with _translating():
            payload: Any = orjson.loads(data)
            if not isinstance(payload, dict):
                raise UpstreamBroken(_BROKEN, dispatched=True)
            status = self._wire.error_status(payload)
            if status is not None:
                raise_for(status)
            is_end = self._wire.ends(payload)
            if not is_end:
                self.usage = self._wire.counted_so_far(payload) or self.usage
            chunk = self._parser.chunk_parser(payload)
            if chunk is None:
                return []
            self.output_text_bytes += thought_bytes(chunk)
            choices = choices_from(chunk)
            if is_end:
                # Not before: Anthropic's first event counts one token of output, which is no count of the answer.
                self.usage = usage_from(getattr(chunk, "usage", None)) or self.usage
            else:
                choices = [choice | {"finish_reason": None} for choice in choices]
            return self.events(choices)

    def _held_back(self) -> list[bytes]:
        """What LiteLLM's parser of JSON answers keeps until it knows that no more comes."""
        if self.finish_reason is not None or not hasattr(self._parser, "cut_stream_chunk"):
            return []
        with _translating():
            rest = self._parser.cut_stream_chunk()
            return [] if rest is None else self.events(choices_from(rest))

    async def aclose(self) -> None:
        if self._ended:
            self._response.release()
        else:
            self._response.close()


# ── The whole Router, in a process of its own ────────────────────────────────────────────────────────────────────

WORKER_MODULE: Final = "gateway.server.providers.litellm_worker"
_START_TIMEOUT_S: Final = 120.0
# Where the packages are, for an interpreter that starts without the gateway's path.
_ROOT: Final = Path(__file__).resolve().parents[3]
_LENGTH_BYTES: Final = 4
# Pieces of one stream that the worker has sent and nobody has taken; then it waits, and with it the vendor.
AHEAD: Final = 64


def frame(value: object) -> bytes:
    """One message between gateway and worker: its length, then JSON."""
    raw = orjson.dumps(value)
    return len(raw).to_bytes(_LENGTH_BYTES, "big") + raw


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """The next message; None when the other side is gone."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return orjson.loads(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class _Call:
    """A call under way in the worker, and what it has said."""

    def __init__(self, worker: "_Worker", number: int) -> None:
        self._worker = worker
        self._number = number
        # The worker sends no more pieces than it is asked for, so it is bounded.
        self.said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._taken = 0

    async def next(self, within_s: float) -> dict[str, Any]:
        """The next message. Raises the `Upstream…` problems, and `TimeoutError` when none comes in time."""
        async with asyncio.timeout(within_s):
            message = await self.said.get()
        if message is None:
            # The worker died; whether its call had left, nobody knows.
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=True)
        if message["kind"] == "error":
            _raise_error(message)
        self._taken += 1
        if self._taken == AHEAD // 2:
            self._taken = 0
            self._worker.tell({"id": self._number, "kind": "more"})
        return message

    def end(self, *, finished: bool) -> None:
        """Forgets it; one that is still under way is cancelled, which closes its connection upstream."""
        self._worker.end(self._number, finished=finished)


class _Worker:
    """One running worker process: frames out by its standard input, frames back by its standard output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self.ready = asyncio.Event()
        self.gone = False
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            while (message := await read_frame(self._stdout)) is not None:
                if message["kind"] == "ready":
                    self.ready.set()
                elif call := self._calls.get(message["id"]):
                    call.said.put_nowait(message)
        finally:
            # However it ends, nobody waits for a worker that no longer speaks.
            self.gone = True
            self.ready.set()
            for call in self._calls.values():
                call.said.put_nowait(None)

    def begin(self, order: Mapping[str, object]) -> _Call:
        number = next(self._numbers)
        call = self._calls[number] = _Call(self, number)
        self.tell({"id": number, "kind": "call", **order})
        return call

    def end(self, number: int, *, finished: bool) -> None:
        """See `_Call.end`."""
        if self._calls.pop(number, None) is not None and not finished:
            self.tell({"id": number, "kind": "cancel"})

    def tell(self, message: Mapping[str, object]) -> None:
        if self.gone or self._stdin.is_closing():
            return
        self._stdin.write(frame(message))

    async def stop(self) -> None:
        self._stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 5)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await asyncio.wait((self._reading,), timeout=5)


class LiteLLMRouter:
    """`litellm.Router` for what nothing else covers, at low priority and out of the gateway's way.

    The worker starts with the first call and is started again by the first call after it died. Keys go to it in the
    order of each call, never by environment or command line.
    """

    name = "litellm_router"

    def __init__(self, egress: Egress | None = None) -> None:
        self._egress = egress or Egress()
        self._worker: _Worker | None = None
        self._starting = asyncio.Lock()

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id while it runs."""
        return None if self._worker is None or self._worker.gone else self._worker.process.pid

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """See `Provider.send`."""
        if request.stream and request.operation is not Operation.CHAT:
            raise InputRefused(_NOT_POSSIBLE, dispatched=False)
        worker = await self._running()
        deployment = request.deployment
        body = {name: value for name, value in request.body.items() if name not in ("stream", "stream_options")}
        call = worker.begin(
            {
                "operation": request.operation.value,
                "deployment": {
                    "id": deployment.id,
                    "model": deployment.upstream_model,
                    "api_base": deployment.base_url or None,
                    "api_key": deployment.api_key,
                    "extra": dict(deployment.extra),
                },
                "body": body,
                "headers": {"x-client-request-id": request.attempt_id} if request.attempt_id else {},
                "stream": request.stream,
                "connect_timeout_s": request.connect_timeout_s,
                "read_timeout_s": max(request.first_byte_timeout_s, request.between_chunks_timeout_s),
                "total_timeout_s": request.total_timeout_s,
            }
        )
        finished = False
        clock = asyncio.get_running_loop().time
        until = clock() + request.first_byte_timeout_s
        try:
            first = await _first(call, until)
            finished = first["kind"] in ("whole", "raw")
            if first["kind"] == "whole":
                writer = Writer(request)
                usage = _usage(first["usage"])
                return writer.whole(first["choices"], usage, thought_bytes=first["thought_bytes"])
            if first["kind"] == "raw":
                return _raw(first)
            stream = _RouterStream(request, call)
            while not stream.take(first):
                if first["thought_bytes"]:
                    # It has begun, though nobody is told of it.
                    until = clock() + request.between_chunks_timeout_s
                first = await _first(call, until)
            return stream
        except BaseException:
            call.end(finished=finished)
            raise
        finally:
            if finished:
                call.end(finished=True)

    async def list_models(self, deployment: Deployment) -> list[str]:
        """The one it is set up for: LiteLLM knows no list that is the vendor's own."""
        return [deployment.upstream_model]

    async def aclose(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()

    async def _running(self) -> _Worker:
        async with self._starting:
            if self._worker is None or self._worker.gone:
                if self._worker is not None:
                    await self._worker.stop()
                self._worker = await self._start()
            return self._worker

    async def _start(self) -> _Worker:
        egress = self._egress
        files = (egress.ca_file, egress.client_cert_file, egress.client_key_file)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            WORKER_MODULE,
            *("" if file is None else str(file.absolute()) for file in files),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # LiteLLM writes requests there when it stumbles.
            stderr=asyncio.subprocess.DEVNULL,
            cwd=_ROOT,
            env=self._environment(),
            limit=2**20,
        )
        worker = _Worker(process)
        try:
            await asyncio.wait_for(worker.ready.wait(), _START_TIMEOUT_S)
        except BaseException:
            process.kill()
            await worker.stop()
            raise
        if worker.gone:
            await worker.stop()
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=False)
        return worker

    def _environment(self) -> dict[str, str]:
        """Built, not inherited: the gateway's environment holds keys and perhaps somebody's proxy."""
        made = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **QUIET_ENVIRONMENT}
        if self._egress.ca_file is not None:
            made["SSL_CERT_FILE"] = str(self._egress.ca_file.absolute())
        if self._egress.proxy:
            made |= {"HTTPS_PROXY": self._egress.proxy, "NO_PROXY": "127.0.0.1,localhost"}
        return made


async def _first(call: _Call, until: float) -> dict[str, Any]:
    """until: of the loop's clock."""
    try:
        return await call.next(until - asyncio.get_running_loop().time())
    except TimeoutError as error:
        raise UpstreamTimeout(_TRY_AGAIN, dispatched=True) from error


def _raise_error(message: Mapping[str, Any]) -> NoReturn:
    reason: Literal["status", "connect", "timeout", "unsupported", "broken"] = message["reason"]
    match reason:
        case "status":
            raise_for(int(message["status"]), message["retry_after"])
        case "connect":
            raise UpstreamUnavailable(_TRY_AGAIN, dispatched=False)
        case "timeout":
            raise UpstreamTimeout(_TRY_AGAIN, dispatched=True)
        case "unsupported":
            raise InputRefused(_NOT_POSSIBLE, dispatched=False)
        case "broken":
            raise UpstreamBroken(_BROKEN, dispatched=True)
    raise UpstreamBroken(_BROKEN, dispatched=True)


def _usage(value: Mapping[str, int] | None) -> Usage | None:
    if value is None:
        return None
    return Usage(value["prompt_tokens"], value["completion_tokens"], value["cached_prompt_tokens"])


def _raw(message: Mapping[str, Any]) -> UpstreamResponse:
    """An answer that needs no rewriting (embeddings, plain completions): the worker made OpenAI's object."""
    body = orjson.dumps(message["body"])
    return Whole(body, _usage(message["usage"]), message["finish_reason"], len(body))


class _RouterStream(Writer):
    body = None

    def __init__(self, request: UpstreamRequest, call: _Call) -> None:
        super().__init__(request)
        self._call = call
        self._between_s = request.between_chunks_timeout_s
        self._heartbeat_s = request.heartbeat_s
        self._first: list[bytes] = []
        self._ended = False

    def take(self, message: Mapping[str, Any]) -> bool:
        """Keeps the first message that says something; True when there is one."""
        if message["kind"] == "end":
            raise UpstreamBroken(_BROKEN, dispatched=True)
        self._first = self._written(message)
        return bool(self._first)

    def _written(self, message: Mapping[str, Any]) -> list[bytes]:
        self.output_text_bytes += message["thought_bytes"]
        return self.events(message["choices"])

    async def chunks(self) -> AsyncIterator[bytes]:
        for event in self._first:
            yield event
        clock = asyncio.get_running_loop().time
        until, beat = clock() + self._between_s, clock() + self._heartbeat_s
        while True:
            try:
                message = await self._call.next(max(min(until, beat) - clock(), 0.0))
            except TimeoutError as error:
                now = clock()
                if now >= until:
                    raise UpstreamTimeout(_TRY_AGAIN, dispatched=True) from error
                beat = now + self._heartbeat_s
                yield HEARTBEAT
                continue
            if message["kind"] == "end":
                break
            events = self._written(message)
            if not events and clock() >= beat:
                events = [HEARTBEAT]
            for event in events:
                yield event
                beat = clock() + self._heartbeat_s
            until = clock() + self._between_s
        self._ended = True
        self.usage = _usage(message["usage"])
        if self.finish_reason is None or not message["complete"]:
            raise UpstreamBroken(_CUT, dispatched=True)
        for event in self.end():
            yield event

    async def aclose(self) -> None:
        self._call.end(finished=self._ended)
