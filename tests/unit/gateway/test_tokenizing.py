"""What a prompt is held for, once its texts were counted: never less than it is billed as, never more than its bytes."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import orjson
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gateway.contracts import ModelRequest, check_request, parse_request
from gateway.server import tokenizing
from gateway.server.metering import TOKENS_PER_MESSAGE, TOKENS_PER_REQUEST, prompt_bound, prompt_of
from gateway.server.providers.base import Deployment
from gateway.server.providers.catalogue import load_catalogue
from gateway.server.providers.factory import compile_all
from gateway.server.settings import ProviderSettings
from gateway.server.tokenizing import (
    COUNTED,
    ENCODINGS,
    MAX_COUNTED_BYTES,
    TokenizerError,
    Tokenizers,
    load,
    spared_tokens,
)
from tenants.context import TenantId, new_id

PROSE: Final = (
    "保育園の入園の申込みは、11月30日までに町民課の窓口へお出しください。ご不明な点は、お電話でお尋ねください。"
)
MODEL: Final = "standard"
TOWN: Final = TenantId(new_id())
Message = Mapping[str, Any]


@pytest.fixture(scope="module")
def encodings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tiktoken.Encoding]]:
    """tiktoken's own, made by its own functions from the same files; the network is closed to it."""
    spec = find_spec("litellm")
    assert spec is not None and spec.origin is not None
    cache = tmp_path_factory.mktemp("tiktoken")
    for known in ENCODINGS.values():
        shutil.copy(Path(spec.origin).parent / "litellm_core_utils/tokenizers" / known.file, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        yield tiktoken.get_encoding


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small tokenizer as a model in the house has one: byte-level, with markers of a template, cut at 8 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [PROSE, "Please write to the town office.", "user assistant system \n\n  12345"], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def chat(messages: Sequence[Message], **more: Any) -> ModelRequest:
    body = {"model": MODEL, "messages": list(messages), **more}
    return check_request("chat/completions", json.loads(json.dumps(body)), ignored=set())


def user(text: str) -> Message:
    return {"role": "user", "content": text}


@cache
def counted_by(tokenizer: str) -> Deployment:
    """A model that cuts texts like that, and says of its own what the shipped ones are taken to say at most."""
    [shipped] = [e for e in load_catalogue() if e.id == "openai/gpt-5.6-terra"]
    own_words = shipped.template_tokens if tokenizer in ENCODINGS else 1_024
    [made, *_] = compile_all(
        ProviderSettings.model_construct(openai_api_key=SecretStr("k"), kumiai_catalogue_file=None), production=True
    )
    return replace(made, tokenizer=tokenizer, template_tokens=own_words)


def exact(request: ModelRequest, tokenizer: str) -> int:
    request.spared = {tokenizer: spared_tokens(request, tokenizer)}
    return prompt_of(request, counted_by(tokenizer))


# ── Encodings ────────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS: Final = st.one_of(
    st.text(max_size=200),
    st.text("町役場のごみ、。\n \t12３4aB!?/'sー", max_size=200),
    st.sampled_from(["<|endoftext|>", "<|im_end|>", "👨‍👩‍👧‍👦" * 9, "鬱" * 40, "a" * 99, "\n" * 50, PROSE * 3]),
)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@given(text=TEXTS)
def test_counts_are_tiktokens_own(encodings: Callable[[str], tiktoken.Encoding], name: str, text: str) -> None:
    assert load(name)(text) == len(encodings(name).encode(text, disallowed_special=()))


def test_models_are_counted_by_what_tiktoken_says_of_them() -> None:
    declared = {e.model: e.tokenizer for e in load_catalogue() if e.tokenizer}
    assert len(declared) >= 4
    # The template's markers are all that the newer one has more.
    said = {m: tiktoken.encoding_name_for_model(m).replace("o200k_harmony", "o200k_base") for m in declared}
    assert declared == said


# ── What is billed ───────────────────────────────────────────────────────────────────────────────────────────────

MESSAGES: Final = st.lists(
    st.builds(
        lambda role, text, parts, name: {"role": role, "content": parts or text} | ({"name": name} if name else {}),
        st.sampled_from(["system", "user", "assistant"]),
        TEXTS,
        st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=3),
        st.sampled_from(["", "", "soumu"]),
    ),
    min_size=1,
    max_size=6,
)
TOOL: Final = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "条例をさがす",
        "parameters": {"type": "object", "properties": {"words": {"type": "string", "description": "ことば"}}},
    },
}


def texts_of(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def openai_counts(encoding: tiktoken.Encoding, messages: Sequence[Message]) -> int:
    """As published in OpenAI's cookbook, "How to count tokens with tiktoken": 3 a message, 1 a name, 3 for the answer."""
    return 3 + sum(
        3
        + len(encoding.encode_ordinary(m["role"]))
        + len(encoding.encode_ordinary(texts_of(m)))
        + (1 + len(encoding.encode_ordinary(m["name"])) if m.get("name") else 0)
        for m in messages
    )


HARMONY: Final = (
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2026-11-28\n\n"
    "Reasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
HARMONY_TOOLS: Final = "\nCalls to these tools must go to the commentary channel: 'functions'."
QWEN_TOOLS: Final = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json object "
    "with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
LLAMA_TOOLS: Final = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {{"name": function name, "parameters": dictionary of argument '
    "name and its value}}. Do not use variables.\n\n{}\n\n"
)


def harmony(messages: Sequence[Message], tools: str) -> list[str]:
    """gpt-oss's. Markers are elements of their own."""
    said = ["<|start|>", "system", "<|message|>", HARMONY + (HARMONY_TOOLS if tools else ""), "<|end|>"]
    if tools:
        said += ["<|start|>", "developer", "<|message|>", f"# Tools\n\n## functions\n\n{tools}", "<|end|>"]
    for m in messages:
        text = texts_of(m)
        if m["role"] == "system":
            said += ["<|start|>", "developer", "<|message|>", f"# Instructions\n\n{text}\n\n", "<|end|>"]
        elif m["role"] == "assistant":
            said += ["<|start|>", "assistant", "<|channel|>", "final", "<|message|>", text, "<|end|>"]
        else:
            said += ["<|start|>", m["role"], "<|message|>", text, "<|end|>"]
    return [*said, "<|start|>", "assistant"]


def chatml(messages: Sequence[Message], tools: str) -> list[str]:
    """Qwen's: each turn trimmed or not as its checkpoint has it, here not."""
    said = [
        "<|im_start|>",
        "system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "<|im_end|>",
        "\n",
    ]
    if tools:
        said[1] += "\n\n" + QWEN_TOOLS.format(tools)
    for m in messages:
        said += ["<|im_start|>", f"{m['role']}\n{texts_of(m)}", "<|im_end|>", "\n"]
    return [*said, "<|im_start|>", "assistant\n<think>\n\n</think>\n\n"]


def llama(messages: Sequence[Message], tools: str) -> list[str]:
    """Llama 3.1's, which trims what it is given."""
    start, end = "<|start_header_id|>", "<|end_header_id|>"
    said = ["<|begin_of_text|>", start, "system", end]
    said += ["\n\nCutting Knowledge Date: December 2023\nToday Date: 28 Nov 2026\n\n", "<|eot_id|>"]
    for i, m in enumerate(messages):
        told = LLAMA_TOOLS.format(tools) if tools and not i else ""
        said += [start, m["role"], end, "\n\n" + told + texts_of(m).strip(), "<|eot_id|>"]
    return [*said, start, "assistant", end, "\n\n"]


def mistral(messages: Sequence[Message], tools: str) -> list[str]:
    """Mistral's: no marker stands between its words and the text."""
    said = ["<s>", *(["[AVAILABLE_TOOLS]", f" [{tools}]", "[/AVAILABLE_TOOLS]"] if tools else [])]
    for m in messages:
        said += [f" {texts_of(m)}", "</s>"] if m["role"] == "assistant" else ["[INST]", f" {texts_of(m)}", "[/INST]"]
    return said


def is_marker(part: str) -> bool:
    return (part.startswith(("<|", "<s", "</s")) and part.endswith(">") and " " not in part) or part.endswith("INST]")


def billed(count: Callable[[str], int], said: Sequence[str]) -> int:
    """A marker is one token, and between two of them text is cut as one."""
    total, text = 0, ""
    for part in said:
        if is_marker(part) and len(part) < 24:
            total, text = total + 1 + (count(text) if text else 0), ""
        else:
            text += part
    return total + (count(text) if text else 0)


@given(messages=MESSAGES)
@example(messages=[user(PROSE * 20)])
def test_a_chat_is_never_billed_above_what_was_counted(
    encodings: Callable[[str], tiktoken.Encoding], messages: list[Message]
) -> None:
    request = chat(messages)
    by_bytes = prompt_bound(request)
    counted = exact(request, "o200k_base")
    assert openai_counts(encodings("o200k_base"), messages) <= counted <= by_bytes


@pytest.mark.parametrize("template", [harmony, chatml, llama, mistral])
@pytest.mark.parametrize("with_tools", [False, True])
@settings(max_examples=50)
@given(messages=MESSAGES)
@example(messages=[user("a")])
@example(messages=[user(" \n" * 20 + "a" + "\n\n" * 9)])
def test_no_known_template_adds_more_than_is_reckoned(
    own_file: str, template: Callable[[Sequence[Message], str], list[str]], with_tools: bool, messages: list[Message]
) -> None:
    # Long enough for what is spared to be more than the template.
    messages = [*messages, user(PROSE * 20)]
    request = chat(messages, **({"tools": [TOOL]} if with_tools else {}))
    by_bytes = prompt_bound(request)
    tools = json.dumps(TOOL, ensure_ascii=False) if with_tools else ""
    for tokenizer in ("o200k_base", own_file):
        counted = exact(request, tokenizer)
        assert billed(load(tokenizer), template(messages, tools)) <= counted < by_bytes


def test_japanese_prose_comes_to_less_than_half_of_its_bytes() -> None:
    request = chat([user(PROSE * 20)])
    assert exact(request, "o200k_base") * 2 < prompt_bound(chat([user(PROSE * 20)]))


@given(texts=st.lists(TEXTS.filter(bool), min_size=1, max_size=5))
def test_embeddings_are_counted_to_the_token(encodings: Callable[[str], tiktoken.Encoding], texts: list[str]) -> None:
    request = check_request("embeddings", {"model": "embedding", "input": texts}, ignored=set())
    margin = TOKENS_PER_MESSAGE * len(texts) + TOKENS_PER_REQUEST
    counted = exact(request, "cl100k_base")
    assert counted == sum(len(encodings("cl100k_base").encode_ordinary(text)) for text in texts) + margin


def test_only_the_words_become_fewer() -> None:
    """Tools, a schema, names and pictures are bounded as before, for how they are told to a model is not published."""
    words = [user(PROSE * 20)]
    plain = spared_tokens(chat(words), "o200k_base")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "description": PROSE}}}
    assert spared_tokens(chat(words, tools=[TOOL], response_format=schema), "o200k_base") == plain > 0


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_counts_all_of_a_text_and_its_markers_as_text(own_file: str) -> None:
    """Neither its cut at 8 tokens nor its padding to 16; what a model sees before each text is one more."""
    plain = Tokenizer.from_file(own_file)
    plain.no_truncation()
    plain.no_padding()
    assert load(own_file)(PROSE) == len(plain.encode(PROSE).ids) > 8
    assert load(own_file)("") == 1
    assert load(own_file)("<|im_end|>") > len(plain.encode("<|im_end|>").ids) == 2


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load(str(path))


# ── When it is counted ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_too_long_or_already_counted_or_no_text_is_not_counted() -> None:
    tokenizers = Tokenizers(wait_s=60)
    request = chat([user(PROSE)])
    assert tokenizers.may_count(request, "o200k_base", TOWN)
    assert not tokenizers.may_count(request, "", TOWN)
    assert not tokenizers.may_count(chat([user("a" * (MAX_COUNTED_BYTES + 1))]), "o200k_base", TOWN)
    ranking = {"model": "rerank", "query": "花", "documents": ["町の花"]}
    assert "rerank" not in COUNTED
    assert not tokenizers.may_count(parse_request("rerank", orjson.dumps(ranking)), "o200k_base", TOWN)
    request.spared = {"cl100k_base": 0}
    assert tokenizers.may_count(request, "o200k_base", TOWN)
    assert not tokenizers.may_count(request, "cl100k_base", TOWN)


def test_a_town_for_which_counting_was_in_vain_is_not_counted_for_again_at_once() -> None:
    tokenizers, request = Tokenizers(wait_s=60), chat([user(PROSE)])
    tokenizers.was_in_vain(TOWN)
    assert not tokenizers.may_count(request, "o200k_base", TOWN)
    assert tokenizers.may_count(request, "o200k_base", TenantId(new_id()))


async def test_counted_once_it_is_remembered_and_after_too_long_the_bytes_stand() -> None:
    request = chat([user(PROSE * 20)])
    model, other = counted_by("o200k_base"), counted_by("cl100k_base")
    by_bytes = prompt_of(request, model)
    await Tokenizers(wait_s=0).count(request, "o200k_base")
    assert request.spared is None
    await Tokenizers(wait_s=60).count(request, "o200k_base")
    assert prompt_of(request, model) < by_bytes
    assert prompt_of(request, other) == prompt_bound(request) == by_bytes


async def test_what_waits_for_a_count_goes_on_however_it_ends() -> None:
    tokenizers = Tokenizers(wait_s=60)
    ended: list[str] = []
    request = chat([user(PROSE)])
    assert tokenizers.count_beside(request, "o200k_base", lambda: ended.append("cut off"))
    await tokenizers.aclose()
    assert ended == ["cut off"]
    assert request.spared is None
    assert not tokenizers.count_beside(request, "", lambda: ended.append("never"))
    assert ended == ["cut off"]


@pytest.mark.parametrize("shipped", [None, b"another version's file"])
async def test_where_another_file_comes_with_litellm_the_bytes_stand_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shipped: bytes | None
) -> None:
    folder = tmp_path / "litellm_core_utils" / "tokenizers"
    folder.mkdir(parents=True)
    if shipped is not None:
        (folder / ENCODINGS["o200k_base"].file).write_bytes(shipped)
    monkeypatch.setattr(tokenizing, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    load.cache_clear()
    tokenizers, request = Tokenizers(wait_s=60), chat([user(PROSE * 20)])
    with capture_logs() as lines:
        # Two at once, before it is known.
        await asyncio.gather(*(tokenizers.count(request, "o200k_base") for _ in range(2)))
    assert request.spared is None
    assert [(line["event"], line["tokenizer"]) for line in lines] == [("tokenizer_unusable", "o200k_base")]
    assert not tokenizers.may_count(request, "o200k_base", TOWN)
    assert not tokenizers.count_beside(request, "o200k_base", lambda: None)
    assert tokenizers.may_count(request, "cl100k_base", TOWN)
