"""OpenAI's responses, translated: nothing that was written is lost on the way in or out, however it was cut."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.contracts import BadRequest
from gateway.server.http import AsgiMessage
from gateway.server.wires.outlet import WireOutlet
from gateway.server.wires.responses import ResponsesWire, to_chat

ASKED: dict[str, Any] = {"model": "standard", "input": "水"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
CALL_ID = "0192-call"
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "find", "description": "探す", "parameters": {"type": "object"}, "strict": True}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def parsed(**more: Any) -> Any:
    return ResponsesWire().parse(json.dumps(ASKED | more).encode())


# ── the request ──────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(
    instructions=TEXT,
    asked=st.lists(TEXT, min_size=2, max_size=3),
    said=st.lists(TEXT, max_size=2),
    calls=st.lists(TEXT, max_size=3),
    results=st.lists(TEXT, min_size=3, max_size=3),
)
def test_no_text_of_a_request_is_lost(
    instructions: str, asked: list[str], said: list[str], calls: list[str], results: list[str]
) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": t} for t in asked]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "考え"}]},
        *({"type": "function_call", "call_id": f"c{i}", "name": "find", "arguments": a} for i, a in enumerate(calls)),
        *(
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": t, "annotations": []}]}
            for t in said
        ),
        *(
            {"type": "function_call_output", "call_id": f"c{i}", "output": r}
            for i, r in enumerate(results[: len(calls)])
        ),
        {"role": "developer", "content": "短く"},
    ]
    chat, ignored = to_chat(ASKED | {"input": items, "instructions": instructions})
    messages = chat["messages"]
    if instructions:
        assert messages.pop(0) == {"role": "system", "content": instructions}
    assert [p["text"] for p in messages[0]["content"]] == asked
    answered = [m for m in messages if m["role"] == "assistant"]
    assert [m["content"] for m in answered if m["content"] is not None] == said
    assert [c["function"]["arguments"] for m in answered for c in m.get("tool_calls", ())] == calls
    assert [m["content"] for m in messages if m["role"] == "tool"] == results[: len(calls)]
    assert messages[-1] == {"role": "system", "content": "短く"}
    assert ignored == {"input[].reasoning"}


def test_a_call_and_what_was_said_with_it_are_one_message_before_the_results() -> None:
    items = [
        {"role": "user", "content": "水"},
        {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
        {"role": "assistant", "content": "探します"},
        {"type": "function_call_output", "call_id": "c1", "output": [
            {"type": "input_text", "text": "1件"}, {"type": "input_image", "image_url": PIXEL, "detail": "low"},
        ]},
        {"role": "user", "content": "続けて"},
    ]  # fmt: skip
    roles = [m["role"] for m in to_chat(ASKED | {"input": items})[0]["messages"]]
    assert roles == ["user", "assistant", "tool", "user", "user"]
    body = parsed(input=items).body["messages"]
    assert body[1]["content"] == "探します" and body[1]["tool_calls"][0]["id"] == "c1"
    assert body[2] == {"role": "tool", "tool_call_id": "c1", "content": "1件"}
    assert body[3]["content"] == [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]


def test_what_else_a_request_says() -> None:
    asked = parsed(
        stream=True,
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        parallel_tool_calls=False,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "find"},
        reasoning={"effort": "low", "summary": "auto"},
        text={
            "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
            "verbosity": "low",
        },
        metadata={"office": "総務課"},
        user="somebody",
        store=False,
        truncation="disabled",
        include=["reasoning.encrypted_content"],
        previous_response_id=None,
    )
    function = {k: v for k, v in TOOL.items() if k != "type"}
    assert asked.body == {
        "messages": [{"role": "user", "content": "水"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "find"}},
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
    }
    assert asked.include_usage
    assert asked.ignored == ("include", "reasoning.summary", "text.verbosity")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": ["水"]}, "input[0]"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "水"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "水"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.jp/a.png"}]}
                ]
            },
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "水"}]}, "input[0].call_id"),
        ({"instructions": ["水"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_url": "https://example.jp"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": "水"}, "text"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"metadata": {"office": 10**30}}, "metadata"),
        ({"temperature": 3}, "temperature"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_is_refused_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed(**given)
    assert refused.value.extensions["param"] == param


# ── the answer ───────────────────────────────────────────────────────────────────────────────────────────────────


async def told(answer: bytes, kind: bytes, *, cut_at: int = 1_000_000, status: int = 200, **asked: Any) -> bytes:
    sent: list[AsgiMessage] = []

    async def send(message: AsgiMessage) -> None:
        sent.append(message)

    wire = ResponsesWire()
    wire.parse(json.dumps(ASKED | asked).encode())
    outlet = WireOutlet(wire, send)
    headers = [(b"content-type", kind), (b"kumiai-call-id", CALL_ID.encode())]
    await outlet({"type": "http.response.start", "status": status, "headers": headers})
    for at in range(0, len(answer), cut_at):
        await outlet({"type": "http.response.body", "body": answer[at : at + cut_at], "more_body": True})
    await outlet({"type": "http.response.body", "body": b""})
    return b"".join(message["body"] for message in sent[1:])


async def streamed(answer: bytes, *, cut_at: int = 1_000_000, **asked: Any) -> list[dict[str, Any]]:
    events = []
    said = await told(answer, b"text/event-stream", cut_at=cut_at, **asked)
    for number, event in enumerate(said.split(b"\n\n")[:-1]):
        name, data = event.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        assert event["sequence_number"] == number
        EVENT.validate_python(event, strict=True)
        events.append(event)
    return events


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None} | more
    return b"data: " + orjson.dumps({"id": "c", "created": 5, "model": "m", "choices": [choice]}) + b"\n\n"


def part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    named = {k: v for k, v in more.items() if k == "id"}
    return {"tool_calls": [{"index": index, **named, "function": {"arguments": arguments} | {
        k: v for k, v in more.items() if k == "name"
    }}]}  # fmt: skip


LAST = b"data: " + orjson.dumps({"id": "c", "choices": [], "usage": USAGE}) + b"\n\ndata: [DONE]\n\n"


@settings(max_examples=60)
@given(pieces=st.lists(TEXT, max_size=6), thoughts=st.lists(TEXT, max_size=3), calls=st.lists(TEXT, max_size=3),
       order=st.randoms(use_true_random=False), cut_at=st.integers(1, 400))  # fmt: skip
async def test_no_text_of_a_stream_is_lost_and_it_says_what_the_whole_answer_says(
    pieces: list[str], thoughts: list[str], calls: list[str], order: Any, cut_at: int
) -> None:
    halves = [(i, a[: len(a) // 2], a[len(a) // 2 :]) for i, a in enumerate(calls)]
    stream = [chunk({"reasoning_content": t}) for t in thoughts] + [chunk({"content": p}) for p in pieces]
    stream += [chunk(part(i, first, name="find", id=f"t{i}")) for i, first, _ in halves]
    order.shuffle(halves)
    stream += [chunk(part(i, rest)) for i, _, rest in halves]
    finish = "tool_calls" if calls else "stop"
    events = await streamed(b"".join([*stream, chunk({}, finish_reason=finish), LAST]), cut_at=cut_at)
    response = events[-1]["response"]
    message = {
        "content": "".join(pieces),
        "reasoning_content": "".join(thoughts),
        "tool_calls": [{"id": f"t{i}", "function": {"name": "find", "arguments": a}} for i, a in enumerate(calls)],
    }
    whole = {"model": "m", "created": 5, "choices": [{"message": message, "finish_reason": finish}], "usage": USAGE}
    assert response == json.loads(await told(orjson.dumps(whole), b"application/json"))
    assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed"
    written = [p for item in response["output"] for p in item.get("content", ())]
    assert "".join(p["text"] for p in written if p["type"] == "output_text") == "".join(pieces)
    assert "".join(p["text"] for p in written if p["type"] == "reasoning_text") == "".join(thoughts)
    called = [item for item in response["output"] if item["type"] == "function_call"]
    assert [(c["call_id"], c["name"], c["arguments"]) for c in called] == [
        (f"t{i}", "find", a) for i, a in enumerate(calls)
    ]
    assert_that_deltas_are_the_whole(events, response)
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 2
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (9, 4)
    Response.model_validate(response, strict=True)


def assert_that_deltas_are_the_whole(events: list[dict[str, Any]], response: dict[str, Any]) -> None:
    """Every item is added once, written piece by piece, and done once, as it stands in the end."""
    for index, item in enumerate(response["output"]):
        own = [e for e in events if e.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added" and own[0]["item"]["id"] == item["id"]
        assert own[-1]["type"] == "response.output_item.done" and own[-1]["item"] == item
        pieces = "".join(e["delta"] for e in own if e["type"].endswith(".delta"))
        assert pieces == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        assert all(e["item_id"] == item["id"] for e in own[1:-1])


async def test_the_events_of_a_text_come_in_openai_s_order() -> None:
    events = await streamed(chunk({"role": "assistant", "content": ""}) + chunk({"content": "水"}) + chunk({"content": "町"})
                            + chunk({}, finish_reason="stop") + LAST)  # fmt: skip
    assert [e["type"].removeprefix("response.") for e in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
async def test_why_it_ended(finish: str, status: str, reason: str | None) -> None:
    events = await streamed(chunk({"content": "水"}, finish_reason=finish) + LAST)
    assert events[-1]["type"] == f"response.{status}"
    response = events[-1]["response"]
    assert response["status"] == response["output"][0]["status"] == status
    assert response["incomplete_details"] == ({"reason": reason} if reason else None)


async def test_a_refusal_is_told_as_one() -> None:
    events = await streamed(chunk({"refusal": "でき"}) + chunk({"refusal": "ません"}, finish_reason="stop") + LAST)
    assert [e["delta"] for e in events if e["type"] == "response.refusal.delta"] == ["でき", "ません"]
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "できません"}]


async def test_a_call_waits_for_its_name() -> None:
    stream = (
        chunk(part(0, '{"a"')) + chunk(part(0, ":1", name="find")) + chunk(part(0, "}"), finish_reason="tool_calls")
    )
    events = await streamed(stream + LAST)
    assert [e["delta"] for e in events if e["type"].endswith("arguments.delta")] == ['{"a":1', "}"]
    [item] = events[-1]["response"]["output"]
    assert (item["name"], item["arguments"]) == ("find", '{"a":1}')


@pytest.mark.parametrize("before", [b"", chunk({"content": "水"}) + chunk(part(0, "{", name="find"))])
async def test_a_stream_that_breaks_ends_in_a_failed_response(before: bytes) -> None:
    error = {"error": {"message": "切れました。", "type": "api_error", "param": None, "code": "upstream_broken"}}
    said = await told(before + b"data: " + orjson.dumps(error) + b"\n\n", b"text/event-stream")
    events = [json.loads(e.split(b"data: ")[1]) for e in said.split(b"\n\n")[:-1]]
    assert events[0]["type"] == "response.created"
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": "upstream_broken", "message": "切れました。"}
    assert [i["status"] for i in response["output"]] == (["completed", "incomplete"] if before else [])


async def test_what_the_guard_found_stands_in_the_response() -> None:
    note = {"answer_guard": [{"index": 0, "action": "warn"}]}
    last = b"data: " + orjson.dumps({"choices": [], "kumiai": note}) + b"\n\n"
    events = await streamed(chunk({"content": "水"}, finish_reason="stop") + last + LAST)
    assert events[-1]["response"]["kumiai"] == note


async def test_a_response_repeats_what_was_read_of_its_request() -> None:
    asked: dict[str, Any] = {
        "instructions": "短く",
        "tools": [TOOL | {"defer": 10**30}],
        "tool_choice": {"type": "function", "name": "find"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "metadata": {"office": "総務課"},
        "max_output_tokens": 9,
    }
    [response] = [json.loads(await told(orjson.dumps({"model": "m", "choices": []}), b"application/json", **asked))]
    assert response["tools"] == [TOOL]
    assert response["text"] == asked["text"]
    for field in ("instructions", "tool_choice", "metadata", "max_output_tokens"):
        assert response[field] == asked[field]
    assert response["store"] is False and response["previous_response_id"] is None
    Response.model_validate(response, strict=True)


async def test_a_refused_call_is_told_as_it_is() -> None:
    refusal = b'{"error":{"message":"x","type":"invalid_request_error","param":null,"code":"model_not_found"}}'
    assert await told(refusal, b"application/json", status=404) == refusal


async def test_what_is_told_of_the_queue_passes_and_servers_may_write_events_as_they_like() -> None:
    ours = b'event: queue\ndata: {"ahead":1}\n\n: \n\n'
    theirs = b"id: 1\nevent: message\ndata:" + chunk({"content": "水"}, finish_reason="stop").removeprefix(b"data: ")
    said = await told(ours + theirs + LAST, b"text/event-stream")
    assert said.startswith(ours + b"event: response.created\n")
    assert "水".encode() in said
