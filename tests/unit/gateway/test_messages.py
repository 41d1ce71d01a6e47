"""Anthropic's wire, translated: nothing that was written is lost on the way in or out, however it was cut."""

import json
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contracts import BadRequest
from gateway.server.http import AsgiMessage
from gateway.server.wires.messages import MessagesWire, message_of, parse_messages, to_chat
from gateway.server.wires.outlet import WireOutlet

ASKED: dict[str, Any] = {"model": "standard", "max_tokens": 100, "messages": [{"role": "user", "content": "水"}]}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INPUT = st.dictionaries(TEXT, st.one_of(TEXT, st.integers(-(2**53), 2**53), st.booleans(), st.none()), max_size=3)
CALL_ID = "0192-call"


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@settings(max_examples=60)
@given(
    system=st.lists(TEXT, max_size=3),
    asked=st.lists(TEXT, min_size=1, max_size=3),
    said=st.lists(TEXT, max_size=3),
    calls=st.lists(INPUT, max_size=3),
    results=st.lists(TEXT, max_size=3),
)
def test_no_text_of_a_request_is_lost(
    system: list[str], asked: list[str], said: list[str], calls: list[dict[str, Any]], results: list[str]
) -> None:
    answered = [{"type": "tool_use", "id": f"c{i}", "name": "find", "input": c} for i, c in enumerate(calls)]
    returned = [{"type": "tool_result", "tool_use_id": f"c{i}", "content": r} for i, r in enumerate(results)]
    chat, ignored = to_chat(
        ASKED
        | {
            "system": [text_block(t) for t in system],
            "messages": [
                {"role": "user", "content": [text_block(t) for t in asked]},
                {"role": "assistant", "content": [*map(text_block, said), *answered]},
                {"role": "user", "content": [*returned, text_block("続けて")]},
            ],
        }
    )
    messages = chat["messages"]
    if system:
        assert [p["text"] for p in messages.pop(0)["content"]] == system
    assert [p["text"] for p in messages[0]["content"]] == asked
    assert [p["text"] for p in messages[1]["content"] or ()] == said
    assert [json.loads(c["function"]["arguments"]) for c in messages[1].get("tool_calls", ())] == calls
    assert [(m["tool_call_id"], m["content"]) for m in messages[2:-1]] == [(f"c{i}", r) for i, r in enumerate(results)]
    assert messages[-1] == {"role": "user", "content": [text_block("続けて")]}
    assert ignored == set()


def test_what_else_a_request_says() -> None:
    tool = {"name": "find", "description": "探す", "input_schema": {"type": "object"}, "strict": True}
    asked = parse_messages(
        json.dumps(
            ASKED
            | {
                "tools": [tool | {"cache_control": {"type": "ephemeral"}}],
                "tool_choice": {"type": "tool", "name": "find", "disable_parallel_tool_use": True},
                "stop_sequences": ["終"],
                "temperature": 0.5,
                "stream": True,
                "top_k": 3,
                "metadata": {"user_id": "somebody"},
                "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"},
            }
        ).encode()
    )
    function = {"name": "find", "description": "探す", "parameters": {"type": "object"}, "strict": True}
    assert asked.body["tools"] == [{"type": "function", "function": function}]
    assert asked.body["tool_choice"] == {"type": "function", "function": {"name": "find"}}
    assert asked.body["parallel_tool_calls"] is False
    assert (asked.body["stop"], asked.body["temperature"], asked.max_output_tokens) == (["終"], 0.5, 100)
    wanted = {"name": "output", "schema": {"type": "object"}, "strict": True}
    assert asked.body["response_format"] == {"type": "json_schema", "json_schema": wanted}
    assert (asked.stream, asked.include_usage) == (True, True)
    assert asked.ignored == ("output_config.effort", "tools[].cache_control", "top_k")


def test_a_failed_tool_is_not_taken_for_an_outcome_and_its_picture_is_shown() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    failed = {"type": "tool_result", "tool_use_id": "c", "is_error": True, "content": [text_block("無い"), picture]}
    chat, _ = to_chat(ASKED | {"messages": [{"role": "user", "content": [failed]}]})
    result, shown = chat["messages"]
    assert result == {"role": "tool", "tool_call_id": "c", "content": "Error: 無い"}
    assert shown["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


def content(block: object, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": [block]}, {"role": "user", "content": "水"}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"model": ""}, "model"),
    ({"stream": 1}, "stream"),
    ({"temperature": "hot"}, "temperature"),
    ({"stop_sequences": ["a"] * 5}, "stop_sequences"),
    ({"stop_sequences": "a"}, "stop_sequences"),
    ({"mcp_servers": [{"type": "url", "url": "https://example.com"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "a", "input_schema": {"$ref": "https://example.com"}}]}, "tools[0].input_schema"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"system": 1}, "system"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "{"}]}, "messages[1]"),
    (content({"type": "image", "source": {"type": "url", "url": "https://example.com"}}), "messages[0].content[0].source.type"),
    (content({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "あ"}}), "messages[0].content[0].source"),
    (content({"type": "document", "source": {}}), "messages[0].content[0].type"),
    (content({"type": "tool_use"}), "messages[0].content[0].type"),
    (content({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
    (content({"type": "image"}, "assistant"), "messages[0].content[0].type"),
    (content({"type": "tool_use", "id": "c", "name": "a", "input": "{}"}, "assistant"), "messages[0].content[0].input"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), WRONG)
def test_a_wrong_field_is_named_as_it_was_written(change: dict[str, Any], param: str) -> None:
    assert parse_messages(json.dumps(ASKED).encode()).model == "standard"
    with pytest.raises(BadRequest) as refused:
        parse_messages(json.dumps({"system": "町です"} | ASKED | change).encode())
    assert refused.value.extensions["param"] == param


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def told(answer: bytes, kind: bytes, *, cut_at: int = 10**9) -> tuple[AsgiMessage, bytes]:
    sent: list[AsgiMessage] = []

    async def send(message: AsgiMessage) -> None:
        sent.append(message)

    outlet = WireOutlet(MessagesWire(), send)
    headers = [(b"content-type", kind), (b"kumiai-call-id", CALL_ID.encode())]
    await outlet({"type": "http.response.start", "status": 200, "headers": headers})
    for at in range(0, len(answer), cut_at):
        await outlet({"type": "http.response.body", "body": answer[at : at + cut_at], "more_body": True})
    await outlet({"type": "http.response.body", "body": b""})
    return sent[0], b"".join(message["body"] for message in sent[1:])


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None} | more
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
LAST = b"data: " + json.dumps({"id": "c", "choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n"


def call_part(index: int, arguments: str, **more: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments, **more}, "id": f"t{index}"}]}


def read(events: bytes) -> tuple[dict[str, Any], list[str]]:
    """What a reader of the wire puts together, strictly: blocks one after another, each opened and closed."""
    message: dict[str, Any] = {}
    names = []
    for event in events.decode().split("\n\n")[:-1]:
        name, data = event.split("\ndata: ")
        names.append(name.removeprefix("event: "))
        said = json.loads(data)
        assert said["type"] == names[-1]
        match said:
            case {"type": "message_start"}:
                assert not message
                message = said["message"]
            case {"type": "content_block_start"}:
                assert said["index"] == len(message["content"])
                message["content"].append(said["content_block"] | {"partial": "", "open": True})
            case {"type": "content_block_delta", "delta": delta}:
                block = message["content"][-1]
                assert block["open"] and said["index"] == len(message["content"]) - 1
                [written] = [v for k, v in delta.items() if k != "type"]
                block["partial"] += written
            case {"type": "content_block_stop"}:
                block = message["content"][-1]
                block["open"] = False
                partial = block.pop("partial")
                if block["type"] == "tool_use":
                    block["input"] = json.loads(partial)
                else:
                    block[block["type"]] = partial
            case {"type": "message_delta"}:
                assert not any(block.pop("open") for block in message["content"])
                message |= said["delta"] | {"usage": said["usage"]}
    return message, names


@settings(max_examples=60)
@given(pieces=st.lists(TEXT, max_size=6), thoughts=st.lists(TEXT, max_size=3), calls=st.lists(INPUT, max_size=3),
       order=st.randoms(use_true_random=False), cut_at=st.integers(1, 400))  # fmt: skip
async def test_no_text_of_a_stream_is_lost_and_it_says_what_the_whole_answer_says(
    pieces: list[str], thoughts: list[str], calls: list[dict[str, Any]], order: Any, cut_at: int
) -> None:
    arguments = [json.dumps(call, ensure_ascii=False) for call in calls]
    parts = [(i, a[: len(a) // 2], a[len(a) // 2 :]) for i, a in enumerate(arguments)]
    order.shuffle(parts)
    stream = [chunk({"reasoning_content": t}) for t in thoughts] + [chunk({"content": p}) for p in pieces]
    stream += [chunk(call_part(i, first, name="find")) for i, first, _ in parts]
    stream += [chunk(call_part(i, rest)) for i, _, rest in parts]
    stream += [chunk({}, finish_reason="tool_calls" if calls else "stop"), LAST]
    start, events = await told(b"".join(stream), b"text/event-stream", cut_at=cut_at)
    said = {
        "content": "".join(pieces),
        "reasoning_content": "".join(thoughts),
        "tool_calls": [{"id": f"t{i}", "function": {"name": "find", "arguments": a}} for i, a in enumerate(arguments)],
    }
    whole = {
        "id": "c",
        "model": "m",
        "choices": [{"message": said, "finish_reason": "tool_calls" if calls else "stop"}],
    }
    message, names = read(events)
    expected = json.loads(message_of(json.dumps(whole | {"usage": USAGE}).encode()))
    assert message == expected
    assert names[0] == "message_start" and names[-1] == "message_stop"
    assert "".join(b["text"] for b in message["content"] if b["type"] == "text") == "".join(pieces)
    assert "".join(b["thinking"] for b in message["content"] if b["type"] == "thinking") == "".join(thoughts)
    assert [b["input"] for b in message["content"] if b["type"] == "tool_use"] == calls
    assert message["usage"] == {"input_tokens": 7, "output_tokens": 4, "cache_read_input_tokens": 2}
    assert (b"request-id", CALL_ID.encode()) in start["headers"]
    Message.model_validate(message)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
async def test_why_it_ended(finish: str, reason: str) -> None:
    message, _ = read((await told(chunk({"content": "水"}, finish_reason=finish) + LAST, b"text/event-stream"))[1])
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, None)


async def test_the_word_it_stopped_at_is_told_where_the_server_tells_it() -> None:
    stream = chunk({"content": "水"}, finish_reason="stop", stop_reason="終") + LAST
    message, _ = read((await told(stream, b"text/event-stream"))[1])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "終")


async def test_arguments_that_are_no_json_are_kept() -> None:
    stream = chunk(call_part(0, '{"a": ', name="find"), finish_reason="tool_calls") + LAST
    message, _ = read((await told(stream, b"text/event-stream"))[1])
    assert message["content"][0]["input"] == {"unparsed_arguments": '{"a": '}


async def test_what_is_told_of_the_queue_and_that_somebody_is_there_passes() -> None:
    ours = b'event: queue\ndata: {"ahead":1}\n\n: \n\n'
    _, events = await told(ours + chunk({"content": "水"}, finish_reason="stop") + LAST, b"text/event-stream")
    assert events.startswith(ours + b"event: message_start\n")
