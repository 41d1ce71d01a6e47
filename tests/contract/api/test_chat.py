"""`/v1/chat/completions` with the official client, unmodified: on the shipped sample and on a server of OpenAI's wire."""

import base64
import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from loadtests.upstream import PIECES, RunningUpstream
from tests.contract.api.conftest import ONPREM, OVERSEAS, SAMPLE

pytestmark = pytest.mark.usefixtures("onprem", "overseas")

BOTH = pytest.mark.parametrize("model", [SAMPLE, ONPREM])
ASK: Any = [
    {"role": "system", "content": "あなたは町の職員を手伝います。"},
    {"role": "user", "content": "防災訓練のお知らせを書いてください"},
]
TOOL: Any = {
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
PIXEL = base64.b64encode(
    bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de")
    + bytes.fromhex("0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082")
).decode()


class Notice(BaseModel):
    title: str
    pages: int


@BOTH
def test_answer(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASK)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@BOTH
def test_stream_says_the_same_as_the_whole_answer(client: OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=ASK)
    chunks = list(client.chat.completions.create(model=model, messages=ASK, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(chunks) > 3


@BOTH
def test_stream_without_usage_has_none(client: OpenAI, model: str) -> None:
    chunks = list(client.chat.completions.create(model=model, messages=ASK, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


@BOTH
def test_stream_with_usage_ends_with_it(client: OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=ASK)
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=model, messages=ASK, stream=True, stream_options=options))
    assert [c for c in chunks if c.usage] == [chunks[-1]]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@BOTH
def test_tool_is_called_and_its_result_answered(client: OpenAI, model: str) -> None:
    asked = client.chat.completions.create(model=model, messages=ASK, tools=[TOOL], tool_choice="required")
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"title", "year"}
    # The message goes back as the client dumps it, fields that OpenAI adds to answers included.
    told: Any = [*ASK, message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "3件ありました"}]
    answer = client.chat.completions.create(model=model, messages=told, tools=[TOOL])
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


@BOTH
def test_tool_call_streams(client: OpenAI, model: str) -> None:
    choice: Any = {"type": "function", "function": {"name": "find_document"}}
    name = arguments = ""
    for chunk in client.chat.completions.create(
        model=model, messages=ASK, tools=[TOOL], tool_choice=choice, stream=True
    ):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert name == "find_document"
    assert set(json.loads(arguments)) == {"title", "year"}


@BOTH
def test_json_schema_by_the_client_s_own_parser(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=ASK, response_format=Notice)
    assert isinstance(answer.choices[0].message.parsed, Notice)


@BOTH
def test_json_schema_streams(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=ASK, response_format=Notice) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Notice)


@BOTH
def test_image_in_a_message(client: OpenAI, model: str) -> None:
    content = [
        {"type": "text", "text": "この写真の説明を書いてください"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
    ]
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])  # type: ignore[list-item,misc]
    assert answer.choices[0].message.content


def test_image_reaches_the_upstream_as_it_was(client: OpenAI, onprem: RunningUpstream) -> None:
    test_image_in_a_message(client, ONPREM)
    [sent] = onprem.seen()["requests"]
    [part] = [p for p in sent["body"]["messages"][0]["content"] if p["type"] == "image_url"]
    assert part["image_url"] == {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}


@BOTH
def test_several_answers(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASK, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    chunks = client.chat.completions.create(model=model, messages=ASK, n=2, stream=True)
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_stop_words(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=ONPREM, messages=ASK, stop=["です"])
    assert answer.choices[0].message.content == "これは見本の答え"
    sample = client.chat.completions.create(model=SAMPLE, messages=ASK, stop="（お知らせ）")
    assert sample.choices[0].message.content is not None
    assert "（お知らせ）" not in sample.choices[0].message.content


def test_seed_gives_the_same_answer_again(client: OpenAI, onprem: RunningUpstream) -> None:
    def ask(seed: int) -> str:
        return client.chat.completions.create(model=ONPREM, messages=ASK, seed=seed).id

    assert ask(7) == ask(7) != ask(8)
    assert [r["body"]["seed"] for r in onprem.seen()["requests"]] == [7, 7, 8]


def test_output_limit_under_both_its_names(client: OpenAI) -> None:
    for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        answer = client.chat.completions.create(model=ONPREM, messages=ASK, **limit)
        assert answer.choices[0].message.content == "".join(PIECES[:5])
        assert answer.choices[0].finish_reason == "length"


def test_logprobs_where_the_model_has_them(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=ONPREM, messages=ASK, logprobs=True, top_logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [token.token for token in logprobs.content] == list(PIECES)


def test_logprobs_where_it_has_none_are_refused(client: OpenAI) -> None:
    assert client.chat.completions.create(model=SAMPLE, messages=ASK, logprobs=False).choices
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=SAMPLE, messages=ASK, logprobs=True)
    assert refused.value.code == "not_supported_by_model"
    assert refused.value.param == "model"


def test_sampling_reaches_the_upstream(client: OpenAI, onprem: RunningUpstream) -> None:
    wanted: Any = {
        "temperature": 0.3, "top_p": 0.9, "presence_penalty": 0.1, "frequency_penalty": -0.1, "seed": 1,
        "stop": ["終"], "logit_bias": {"50256": -100}, "n": 2, "reasoning_effort": "low", "parallel_tool_calls": False,
    }  # fmt: skip
    client.chat.completions.create(model=ONPREM, messages=ASK, **wanted)
    [sent] = onprem.seen()["requests"]
    assert sent["body"] == {"model": "fake-chat", "messages": ASK, "max_tokens": 4096, **wanted}


def test_the_end_user_s_name_stays_here(client: OpenAI, onprem: RunningUpstream) -> None:
    client.chat.completions.create(model=ONPREM, messages=ASK, user="窓口の職員")
    [sent] = onprem.seen()["requests"]
    assert "user" not in sent["body"]


def test_the_town_s_key_stays_here(client: OpenAI, overseas: RunningUpstream) -> None:
    client.chat.completions.create(model=OVERSEAS, messages=ASK, extra_headers={"Cookie": "a=b", "X-Town": "1"})
    [sent] = overseas.seen()["requests"]
    assert sent["headers"]["api-key"] == "azure-test-key"
    assert not {"authorization", "cookie", "x-town"} & set(sent["headers"])


@BOTH
def test_headers_say_where_it_was_processed(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=ASK)
    assert raw.headers["kumiai-zone"] == "onprem"
    assert raw.headers["kumiai-zone-owner"] == "shared"
    assert raw.headers["kumiai-vendor-country"] == "JP"
    assert raw.headers["kumiai-data-class"] == "1"
    assert len(raw.headers["kumiai-call-id"]) == 36
    assert "kumiai-ignored-parameters" not in raw.headers


def test_headers_of_a_vendor_abroad(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(model=OVERSEAS, messages=ASK, stream=True) as raw:
        assert raw.headers["kumiai-zone"] == "overseas"
        assert raw.headers["kumiai-vendor-country"] == "US"
        assert "kumiai-zone-owner" not in raw.headers
