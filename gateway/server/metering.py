"""Upper bounds before a call and counts after it, in tokens; money is computed from them in `tenants.quota.pricing`."""

from gateway.contracts import WORDLESS, ModelRequest
from gateway.reading.speech import Recording
from gateway.server.pixels import image_tokens
from gateway.server.providers.base import TOOL_TOKENS, Deployment, Usage
from gateway.server.providers.drawing import tokens_of

# A tokenizer never makes more tokens than the text has UTF-8 bytes. Chat templates add role markers per message.
TOKENS_PER_MESSAGE = 16
TOKENS_PER_REQUEST = 64
# As OpenAI counts sound; it weighs in limits of tokens a minute, for it is paid for by the second.
MILLISECONDS_PER_TOKEN = 100
# Injected when the caller sets no cap, so that every call has a worst case.
DEFAULT_OUTPUT_TOKENS = 4_096
# A hold may be shrunk to what is affordable, but not below an answer of this length.
FLOOR_OUTPUT_TOKENS = 256


def prompt_bound(request: ModelRequest, model: str = "", *, tool_tokens: int = TOOL_TOKENS) -> int:
    """The most prompt tokens this request can be billed for. Two characters a token would under-count Japanese.

    model: the upstream's own name, by which it is known how it counts pictures; without it the dearest way counts.
    tool_tokens: what it says to a model of its own where there are tools, besides the tools.
    """
    return (
        request.input_bytes
        + TOKENS_PER_MESSAGE * request.input_items
        + TOKENS_PER_REQUEST
        + (tool_tokens if request.body.get("tools") else 0)
        + (_images_bound(request, model) if request.images else 0)
        + (0 if request.recording is None else request.recording.milliseconds // MILLISECONDS_PER_TOKEN)
    )


def prompt_of(request: ModelRequest, deployment: Deployment) -> int:
    """`prompt_bound` where it is known who answers; less where `gateway.server.tokenizing` has counted its texts."""
    bound = prompt_bound(request, deployment.upstream_model, tool_tokens=deployment.tool_tokens)
    if request.spared is None:
        return bound
    spared = request.spared.get(deployment.tokenizer, 0)
    if request.operation == "chat/completions":
        # By bytes, what a template says of its own is hidden in what the texts have too many.
        spared -= deployment.template_tokens
    return bound - max(spared, 0)


def begun_seconds(recording: Recording) -> int:
    """By which a recording is paid for."""
    return -(-recording.milliseconds // 1000)


def output_cap(request: ModelRequest, deployment: Deployment) -> int:
    """Output tokens per choice that will be asked for: the caller's, ours or the model's limit, whichever is least.

    Of a picture: what its size and quality come to. Raises `BadRequest`.
    """
    if deployment.image_tokens:
        return tokens_of(request.body, deployment.image_tokens)
    if request.operation in WORDLESS or request.recording is not None:
        return 0
    return min(request.max_output_tokens or DEFAULT_OUTPUT_TOKENS, deployment.max_output_tokens)


def choices(request: ModelRequest) -> int:
    """How many answers one request produces: `n`, times the prompts of a completion."""
    return request.choices * (request.input_items if request.operation == "completions" else 1)


def tokens_bound(request: ModelRequest, deployment: Deployment) -> int:
    """The most tokens a call can come to, in and out."""
    return prompt_of(request, deployment) + choices(request) * output_cap(request, deployment)


def _images_bound(request: ModelRequest, model: str) -> int:
    messages = request.body.get("messages")
    assert isinstance(messages, list), "pictures stand in messages"
    contents = [m["content"] for m in messages if isinstance(m.get("content"), list)]
    urls = [p["image_url"]["url"] for parts in contents for p in parts if p["type"] == "image_url"]
    return sum(image_tokens(url, model) for url in urls)


def counted_usage(request: ModelRequest, output_text_bytes: int, deployment: Deployment) -> Usage:
    """What an answer is billed as when the provider said nothing: the same bound as before the call, and bytes."""
    return Usage(prompt_of(request, deployment), completion_tokens=output_text_bytes, source="tokenizer")
