"""What every way of calling a model looks like to the pipeline: one request in, OpenAI-shaped bytes out.

Whatever the upstream speaks, a provider yields the bytes a client of OpenAI's API would have received, so streams
can be relayed without building objects. Usage and finish reason are read off while the bytes pass.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Final, Literal, Protocol

from gateway.reading.speech import Recording
from observability.problems import Problem
from tenants.context import Zone


class Operation(StrEnum):
    """The endpoint of OpenAI's API, and of Jina's for ranking, as the path below `/v1`."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    TRANSCRIPTIONS = "audio/transcriptions"
    IMAGES = "images/generations"


# The same texts give the same answer, and nothing happens by asking.
HEDGED: Final = frozenset({Operation.EMBEDDINGS, Operation.RERANK})
# One token, or one vector, tells that there is somebody.
ANSWER_PROBED: Final = frozenset({Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS})


# Where nobody knows better: about twice the most that a vendor has told of any model (530: Claude 3 Opus,
# docs.anthropic.com/en/docs/tool-use-pricing-and-tokens, a stored copy, read 2026-11-28).
TOOL_TOKENS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-yen or micro-currency-units per million tokens; `currency` JPY needs no exchange rate.

    What transcribes is paid for by the minute: its `input_u_per_mtok` is the price of one.

    A model without a price cannot be registered; an explicit 0 is allowed (on-prem, base URL).
    """

    version: str
    currency: str
    input_u_per_mtok: int
    output_u_per_mtok: int
    cached_input_u_per_mtok: int | None
    source: str
    checked_on: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """One place where one model runs, compiled from the catalogue and the settings."""

    id: str
    alias: str
    provider: Literal["openai_wire", "litellm", "litellm_router", "speech", "demo"]
    vendor: str
    upstream_model: str
    base_url: str
    api_key: str | None = field(repr=False)
    zone: Zone
    isolated: bool
    owner: Literal["town", "shared", "vendor"]
    country: str
    operations: frozenset[Operation]
    capabilities: frozenset[str]
    price: Price | None
    max_input_tokens: int
    max_output_tokens: int
    extra: Mapping[str, str] = field(default_factory=dict)
    # Of one that draws: the most output tokens of a picture, by `size/quality`.
    image_tokens: Mapping[str, int] = field(default_factory=dict)
    # How many calls one gateway process has under way there at once; None: as many as come.
    concurrency: int | None = None
    # How it is found out without a town's call that it is well again: by its list of models, or by one free token.
    probe: Literal["", "models", "answer"] = ""
    # Whether vectors and rankings may be asked of a second server of the same model when this one takes long.
    hedge: bool = False
    # Off but for towns that have a key of their own.
    needs_own_key: bool = False
    # Whether it bills the rest of an answer whose connection was closed in the middle, as far as anybody knows.
    bills_anyway: bool = False
    # By what its prompts are counted when the bound by bytes does not fit; see `gateway.server.tokenizing`.
    tokenizer: str = ""
    # The most that its template adds to messages, beside their markers.
    template_tokens: int = 1_024
    # The most that its vendor says to the model where a request has tools, besides the tools themselves.
    tool_tokens: int = TOOL_TOKENS
    # `api_key` is the calling town's; it pays the provider itself.
    is_own_key: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A call about to leave. `body` is allow-listed and re-serialised by the provider, never the caller's bytes.

    `attempt_id` goes along as `X-Client-Request-Id`: by it a provider's usage file is matched with the ledger.
    """

    deployment: Deployment
    operation: Operation
    body: Mapping[str, object]
    stream: bool
    call_id: str
    attempt_id: str = ""
    connect_timeout_s: float = 3.0
    first_byte_timeout_s: float = 60.0
    between_chunks_timeout_s: float = 30.0
    total_timeout_s: float = 600.0
    heartbeat_s: float = 15.0
    recording: Recording | None = field(default=None, repr=False)


# A comment of a stream, which every client skips: somebody is still there.
HEARTBEAT: Final = b": \n\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as billed. `source` says who counted: the provider, our tokenizer, or nobody (the full hold stands)."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    source: Literal["provider", "tokenizer", "hold"] = "provider"


class UpstreamResponse(Protocol):
    """An answer under way, after the upstream said 200 and its first bytes are here (the first-chunk gate).

    `body` is the whole JSON answer of a request that does not stream, and None for one that does.
    `chunks()` yields whole SSE events (each ending in a blank line, ending with `data: [DONE]`) when the request
    streams, and `HEARTBEAT` in between when none comes for a while; else the JSON body. It may be consumed once.
    `usage`, `finish_reason` and `output_text_bytes` are complete when it is exhausted, and hold what was seen so far
    when it is not.
    Streams always carry a usage event (`choices: []`); the pipeline drops it for callers that did not ask.
    """

    usage: Usage | None
    finish_reason: str | None
    output_text_bytes: int

    @property
    def body(self) -> bytes | None: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Ends the exchange; safe to call twice and after exhaustion."""


@dataclass(slots=True)
class Whole:
    """An `UpstreamResponse` that is here already."""

    body: bytes
    usage: Usage | None
    finish_reason: str | None
    output_text_bytes: int

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body

    async def aclose(self) -> None:
        return


class Provider(Protocol):
    """One way of calling models. Implementations hold connections, never per-tenant state."""

    name: str

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Dispatches and waits for the first real bytes.

        Raises `UpstreamUnavailable` when nothing billable can have happened or a retry elsewhere makes sense,
        `UpstreamRefused` when the upstream understood and said no, `UpstreamBroken` when it answered nonsense.
        """

    async def list_models(self, deployment: Deployment) -> list[str]:
        """The upstream's own model names, for set-up and for health."""

    async def aclose(self) -> None: ...


class UpstreamProblem(Problem):
    """Base of what can go wrong beyond our edge; `dispatched` says whether the request may have been billed."""

    def __init__(
        self, detail: str = "", *, dispatched: bool, **extensions: str | int | float | bool | list[str] | None
    ) -> None:
        super().__init__(detail, **extensions)
        self.dispatched = dispatched

    @property
    def may_be_retried(self) -> bool:
        """A call that was sent and not answered may have been billed: whether to pay for another is a person's choice."""
        return not self.dispatched or "upstream_status" in self.extensions


class UpstreamUnavailable(UpstreamProblem):
    type = "urn:problem:gateway:upstream-unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "AIのサービスにつながりません"


class UpstreamTimeout(UpstreamProblem):
    type = "urn:problem:gateway:upstream-timeout"
    status = HTTPStatus.GATEWAY_TIMEOUT
    title = "AIのサービスからの返事が間に合いませんでした"


class UpstreamRefused(UpstreamProblem):
    """The upstream's 4xx. Its message may quote the prompt, so only status and code travel on."""

    type = "urn:problem:gateway:upstream-refused"
    status = HTTPStatus.BAD_GATEWAY
    title = "AIのサービスが要求を受け付けませんでした"

    @property
    def may_be_retried(self) -> bool:
        return False


class OwnKeyRefused(UpstreamRefused):
    """The provider does not take the town's own key; nothing else is tried in its stead."""

    type = "urn:problem:gateway:own-key-refused"
    title = "町が置いた鍵を、AIのサービスが受け付けませんでした"


class InputRefused(UpstreamRefused):
    """It was the request that the upstream would not have: too long, or a field this model does not know."""

    type = "urn:problem:gateway:upstream-refused-input"
    status = HTTPStatus.BAD_REQUEST
    title = "AIのサービスがこの内容を受け付けませんでした"


class UpstreamRateLimited(UpstreamProblem):
    type = "urn:problem:gateway:upstream-rate-limited"
    status = HTTPStatus.TOO_MANY_REQUESTS
    title = "AIのサービスが混み合っています"


class UpstreamBroken(UpstreamProblem):
    type = "urn:problem:gateway:upstream-broken"
    status = HTTPStatus.BAD_GATEWAY
    title = "AIのサービスの返事が壊れていました"
