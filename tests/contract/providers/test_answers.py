"""What every provider owes the pipeline when all goes well: OpenAI's objects, whole events, usage, a reason to end."""

import asyncio
import json
import os
from dataclasses import replace
from typing import Any

import orjson
import pytest
from openai.types import Completion, CreateEmbeddingResponse

from gateway.server.providers.base import Operation, UpstreamRefused
from loadtests.upstream import PIECES, RunningUpstream
from tests.contract.providers.ways import API_KEY, JSON_SCHEMA, MESSAGES, SECRET, TOOLS, Way, WayFor, answer, chunks_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_whole_answer_is_openai_s_object(way: Way) -> None:
    got = await answer(way, way.request())
    assert got.text
    assert got.choices[0][2] == got.finish_reason == "stop"


async def test_streamed_answer_says_the_same_as_the_whole_one(way: Way) -> None:
    whole = await answer(way, way.request())
    streamed = await answer(way, way.request(stream=True))
    assert streamed.choices == whole.choices


async def test_stream_is_whole_events_that_end_in_done(way: Way) -> None:
    events = (await answer(way, way.request(stream=True))).events
    assert all(e.startswith(b"data:") and e.endswith(b"\n\n") and e.count(b"\n\n") == 1 for e in events)
    assert events[-1] == b"data: [DONE]\n\n"


async def test_stream_s_first_delta_has_the_role(way: Way) -> None:
    first = chunks_of((await answer(way, way.request(stream=True))).events)[0]
    assert first.choices[0].delta.role == "assistant"


async def test_stream_ends_with_one_usage_event_without_choices(way: Way) -> None:
    chunks = chunks_of((await answer(way, way.request(stream=True))).events)
    counted = [chunk for chunk in chunks if chunk.usage is not None]
    assert counted == [chunks[-1]]
    assert counted[0].choices == []


async def test_usage_is_the_same_streamed_and_whole(way: Way) -> None:
    whole = await answer(way, way.request())
    streamed = await answer(way, way.request(stream=True))
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    assert whole.usage.completion_tokens > 0
    assert streamed.usage == whole.usage


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_on_the_wire_is_the_usage_we_bill(way: Way, *, stream: bool) -> None:
    got = await answer(way, way.request(stream=stream))
    said = orjson.loads(got.events[-2].removeprefix(b"data:") if stream else b"".join(got.events))["usage"]
    assert got.usage is not None
    assert (said["prompt_tokens"], said["completion_tokens"]) == (got.usage.prompt_tokens, got.usage.completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_text_bytes_cover_the_answer(way: Way, *, stream: bool) -> None:
    got = await answer(way, way.request(stream=stream))
    assert got.output_text_bytes >= len(got.text.encode())


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_call_arrives(way: Way, *, stream: bool) -> None:
    got = await answer(way, way.request(stream=stream, tools=TOOLS, tool_choice="required"))
    (_, calls, reason) = got.choices[0]
    assert reason == got.finish_reason == "tool_calls"
    [(name, arguments)] = calls
    assert name == "find_document"
    assert set(json.loads(arguments)) >= {"title", "year"}


@pytest.mark.parametrize("stream", [False, True])
async def test_named_tool_is_called(way: Way, *, stream: bool) -> None:
    other: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    choice = {"type": "function", "function": {"name": "find_document"}}
    got = await answer(way, way.request(stream=stream, tools=[other, *TOOLS], tool_choice=choice))
    assert [name for name, _ in got.choices[0][1]] == ["find_document"]


async def test_tool_result_is_answered_in_text(remote: Way) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "find_document", "arguments": '{"title":"広報"}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3件ありました"},
    ]
    got = await answer(remote, remote.request(messages=messages, tools=TOOLS))
    assert got.text
    assert got.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_json_schema_is_answered_in_its_shape(way: Way, *, stream: bool) -> None:
    got = await answer(way, way.request(stream=stream, response_format=JSON_SCHEMA))
    value = json.loads(got.text)
    assert isinstance(value["title"], str)
    assert isinstance(value["pages"], int)
    assert got.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_output_limit_ends_with_length(remote: Way, *, stream: bool) -> None:
    got = await answer(remote, remote.request(stream=stream, max_tokens=5))
    assert got.choices[0][0] == "".join(PIECES[:5])
    assert got.finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_words_reach_the_upstream(remote: Way, *, stream: bool) -> None:
    got = await answer(remote, remote.request(stream=stream, stop=["です"]))
    assert got.text == "これは見本の答え"


@pytest.mark.parametrize("name", ["openai_wire", "gemini", "router"])
async def test_several_choices_arrive(way_for: WayFor, name: str) -> None:
    way = way_for(name)
    got = await answer(way, way.request(n=2))
    assert [text for text, _, _ in got.choices] == ["".join(PIECES)] * 2


async def test_what_a_vendor_cannot_do_is_refused_before_anything_leaves(
    way_for: WayFor, upstream: RunningUpstream
) -> None:
    way = way_for("anthropic")
    await answer(way, way.request(n=1))
    with pytest.raises(UpstreamRefused) as refused:
        await way.provider.send(way.request(n=2))
    assert not refused.value.dispatched
    assert upstream.seen()["calls"] == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("piece_bytes", [1, 2, 7])
async def test_characters_survive_any_cut_of_the_network(
    remote: Way, upstream: RunningUpstream, piece_bytes: int, *, stream: bool
) -> None:
    upstream.control("split", piece_bytes=piece_bytes)
    got = await answer(remote, remote.request(stream=stream))
    assert got.text == "".join(PIECES)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_that_does_not_count_leaves_usage_open(
    remote: Way, upstream: RunningUpstream, *, stream: bool
) -> None:
    upstream.control("no_usage")
    got = await answer(remote, remote.request(stream=stream))
    assert got.text == "".join(PIECES)
    # LiteLLM's Router counts by itself when nobody else did; its figure must not pass as the provider's.
    assert got.usage is None


async def test_a_stream_that_is_left_never_claims_less_than_it_delivered(way: Way) -> None:
    response = await way.provider.send(way.request(stream=True))
    delivered = 0
    async for event in response.chunks():
        delivered += b'"content":"' in event
        if delivered == 8:
            break
    await response.aclose()
    assert delivered == 8
    assert response.usage is None or response.usage.completion_tokens >= delivered
    assert response.output_text_bytes > 0


async def test_one_call_is_sent_once(remote: Way, upstream: RunningUpstream) -> None:
    await answer(remote, remote.request(stream=True))
    assert upstream.seen()["calls"] == 1


async def test_the_prompt_arrives_and_the_key_is_in_a_header(remote: Way, upstream: RunningUpstream) -> None:
    await answer(remote, remote.request())
    [sent] = upstream.seen()["requests"]
    assert SECRET in json.dumps(sent["body"], ensure_ascii=False)
    assert API_KEY in " ".join(sent["headers"].values())
    assert API_KEY not in sent["path"]


async def test_the_attempts_id_goes_along_for_the_providers_records(remote: Way, upstream: RunningUpstream) -> None:
    await answer(remote, replace(remote.request(), attempt_id="01990000-0000-7000-8000-00000000000a"))
    [sent] = upstream.seen()["requests"]
    headers = {name.lower(): value for name, value in sent["headers"].items()}
    assert headers["x-client-request-id"] == "01990000-0000-7000-8000-00000000000a"


async def test_the_body_is_not_changed_for_the_next_deployment(way: Way) -> None:
    request = way.request(tools=TOOLS, response_format=JSON_SCHEMA)
    before = orjson.dumps(request.body)
    await answer(way, request)
    assert orjson.dumps(request.body) == before


async def test_many_calls_at_once_do_not_mix(remote: Way) -> None:
    async def one(i: int) -> tuple[int, int]:
        got = await answer(remote, remote.request(stream=i % 2 == 0, max_tokens=i + 1))
        assert got.usage is not None
        return i + 1, got.usage.completion_tokens

    pairs = await asyncio.gather(*(one(i) for i in range(12)))
    assert all(asked == counted for asked, counted in pairs)


async def test_closing_twice_is_allowed(way: Way) -> None:
    response = await way.provider.send(way.request(stream=True))
    await anext(response.chunks())
    await response.aclose()
    await response.aclose()


@pytest.mark.parametrize("name", ["openai_wire", "router", "demo"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_are_openai_s_object(way_for: WayFor, name: str, encoding: str) -> None:
    way = way_for(name)
    request = way.request(operation=Operation.EMBEDDINGS, input=["保育園", "ごみ"], encoding_format=encoding)
    response = await way.provider.send(request)
    body = orjson.loads(b"".join([part async for part in response.chunks()]))
    await response.aclose()
    assert len(body["data"]) == 2
    assert isinstance(body["data"][0]["embedding"], str if encoding == "base64" else list)
    if encoding == "float":
        CreateEmbeddingResponse.model_validate(body)
    assert response.usage is not None
    assert response.usage.prompt_tokens > 0


@pytest.mark.parametrize("name", ["openai_wire", "router", "demo"])
async def test_plain_completion_is_openai_s_object(way_for: WayFor, name: str) -> None:
    way = way_for(name)
    response = await way.provider.send(way.request(operation=Operation.COMPLETIONS, prompt="町の花は", max_tokens=9))
    made = Completion.model_validate_json(b"".join([part async for part in response.chunks()]))
    await response.aclose()
    assert made.choices[0].text
    assert response.usage is not None
    assert response.finish_reason == made.choices[0].finish_reason


@pytest.mark.parametrize("name", ["openai_wire", "anthropic", "gemini", "demo"])
async def test_models_are_listed(way_for: WayFor, name: str) -> None:
    way = way_for(name)
    assert await way.provider.list_models(way.deployment)


async def test_the_router_runs_in_another_process(way_for: WayFor) -> None:
    way = way_for("router")
    await answer(way, way.request())
    pid = way.provider.worker_pid  # type: ignore[attr-defined]  # only LiteLLMRouter has one
    assert pid not in (None, os.getpid())
