"""What a text really comes to in tokens, where the model's tokenizer is known and the bound by bytes does not fit.

No text has more tokens than UTF-8 bytes, so bytes bound every call for nothing. Japanese prose has about a fifth as many
tokens as bytes, though: near the end of a budget a call would be refused that would fit. Then, and only then, its
texts are counted, in a thread. What is no text (tools, a schema, pictures) stays bounded as it was. Nothing is ever
fetched: encodings are read from the files that come with LiteLLM, others from a file that the operator names.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import anyio.to_thread
import structlog

from gateway.contracts import ModelRequest
from tenants.context import TenantId

log = structlog.get_logger("gateway.tokenizing")


class _Encoding(NamedTuple):
    file: str
    sha256: str
    pattern: str


# The file is named by the SHA-1 of its address, as tiktoken caches it; checksum and pattern are those of
# tiktoken_ext.openai_public, whose own functions would fetch a file that is not there.
ENCODINGS: Final = {
    "cl100k_base": _Encoding(
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    ),
    "o200k_base": _Encoding(
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
# Where a text stands by itself, or in a template of messages. A ranking repeats its question, a picture has no words.
COUNTED: Final = frozenset({"chat/completions", "completions", "embeddings"})
# Of a text of this size the slowest kinds take a third of a second. Longer ones stay at their bytes.
MAX_COUNTED_BYTES: Final = 512 * 1024
IN_VAIN_S: Final = 5.0
# Where a text meets its template, tokens of both may be cut otherwise than apart.
EDGE_TOKENS: Final = 4


class TokenizerError(ValueError):
    """No such encoding, or a file that is no tokenizer."""


class Tokenizers:
    """Those of this process: one call at a time is counted, and waited for so long at most."""

    def __init__(self, *, wait_s: float) -> None:
        self._wait_s = wait_s
        self._in_vain_until: dict[TenantId, float] = {}
        # Those that cannot be used, however often they are asked.
        self._unusable: set[str] = set()
        self._one = anyio.CapacityLimiter(1)
        self._beside: set[asyncio.Task[None]] = set()

    def may_count(self, request: ModelRequest, tokenizer: str, tenant_id: TenantId) -> bool:
        """Whether `count` could make the bound of `request` smaller, and lately was not in vain; costs nothing."""
        return self._is_countable(request, tokenizer) and time.monotonic() >= self._in_vain_until.get(tenant_id, 0.0)

    def was_in_vain(self, tenant_id: TenantId) -> None:
        """It did not fit all the same: a town that is refused again and again must not keep us counting."""
        self._in_vain_until[tenant_id] = time.monotonic() + IN_VAIN_S

    async def count(self, request: ModelRequest, tokenizer: str) -> None:
        """Notes in `request.spared` what its texts come to by `tokenizer`; nothing where that takes too long or it cannot
        be used, which is said once: then the bytes stand."""
        try:
            async with asyncio.timeout(self._wait_s):
                spared = await anyio.to_thread.run_sync(
                    spared_tokens, request, tokenizer, abandon_on_cancel=True, limiter=self._one
                )
        except TimeoutError:
            log.warning("tokens_not_counted", input_bytes=request.input_bytes)
            return
        except TokenizerError as error:
            if tokenizer not in self._unusable:
                self._unusable.add(tokenizer)
                log.error("tokenizer_unusable", tokenizer=tokenizer, why=str(error))
            return
        request.spared = {**(request.spared or {}), tokenizer: spared}

    def count_beside(self, request: ModelRequest, tokenizer: str, then: Callable[[], None]) -> bool:
        """Counts in a task of its own and calls `then`, however that ends; False, and nothing is done, if it cannot."""
        if not self._is_countable(request, tokenizer):
            return False
        counting = asyncio.create_task(self.count(request, tokenizer))
        self._beside.add(counting)
        counting.add_done_callback(self._beside.discard)
        counting.add_done_callback(lambda _: then())
        return True

    async def aclose(self) -> None:
        beside = tuple(self._beside)
        for counting in beside:
            counting.cancel()
        if beside:
            await asyncio.wait(beside)

    def _is_countable(self, request: ModelRequest, tokenizer: str) -> bool:
        """Whether there are texts of a size that may be counted, by a tokenizer that has not counted them yet."""
        return bool(
            tokenizer
            and tokenizer not in self._unusable
            and request.operation in COUNTED
            and request.recording is None
            and request.input_bytes <= MAX_COUNTED_BYTES
            and (request.spared is None or tokenizer not in request.spared)
        )


def spared_tokens(request: ModelRequest, tokenizer: str) -> int:
    """How many tokens fewer than bytes the texts of `request` are billed as, at least. Takes milliseconds: in a thread.

    In messages each text counts with a margin for its edges, as it is and stripped, for templates do either.
    Raises `TokenizerError`.
    """
    count = load(tokenizer)
    in_template = request.operation == "chat/completions"
    spared = 0
    for text in _texts(request):
        tokens = count(text)
        if in_template:
            if (bare := text.strip()) != text:
                tokens = max(tokens, count(bare))
            tokens += EDGE_TOKENS
        spared += max(len(text.encode()) - tokens, 0)
    return spared


@cache
def load(tokenizer: str) -> Callable[[str], int]:
    """How to count tokens by an encoding's name or the path of a `tokenizer.json`. Text that looks like a marker of a
    template counts as text, which is more. Raises `TokenizerError`."""
    return _encoding(tokenizer, ENCODINGS[tokenizer]) if tokenizer in ENCODINGS else _file(tokenizer)


def _encoding(name: str, known: _Encoding) -> Callable[[str], int]:
    # Neither is imported by a process that never counts; LiteLLM not even here, only found.
    import tiktoken

    spec = find_spec("litellm")
    assert spec is not None and spec.origin is not None, "litellm is a dependency"
    try:
        content = (Path(spec.origin).parent / "litellm_core_utils" / "tokenizers" / known.file).read_bytes()
    except OSError as error:
        raise TokenizerError(f"LiteLLM comes without the file of {name}") from error
    if hashlib.sha256(content).hexdigest() != known.sha256:
        raise TokenizerError(f"the file of {name} that comes with LiteLLM is another")
    pairs = (line.split() for line in content.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    encoding = tiktoken.Encoding(name, pat_str=known.pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


def _file(path: str) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:
        # The library has no error of its own.
        raise TokenizerError(f"{path}: cannot be read as a tokenizer.json") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    # Other than `encode`, this lets other threads run.
    return lambda text: len(tokenizer.encode_batch_fast([text])[0].ids)


def _texts(request: ModelRequest) -> Iterator[str]:
    """What `input_bytes` counts as text, part by part."""
    if request.operation != "chat/completions":
        given = request.body["input" if request.operation == "embeddings" else "prompt"]
        assert isinstance(given, str | list), "checked by gateway.contracts"
        yield from [given] if isinstance(given, str) else given
        return
    messages = request.body["messages"]
    assert isinstance(messages, list), "checked by gateway.contracts"
    for content in (message.get("content") for message in messages):
        if isinstance(content, str):
            yield content
        elif content is not None:
            yield from (part["text"] for part in content if part["type"] == "text")
