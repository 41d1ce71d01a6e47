"""What of a request reaches a vendor that speaks another wire, and what of its answer comes back."""

import base64
import json
from typing import Any

import pytest

from gateway.server.providers.base import Operation, UpstreamRefused
from loadtests.upstream import PIECES, THOUGHT, RunningUpstream
from tests.contract.providers.ways import MESSAGES, TOOLS, Way, WayFor, answer, deployment

pytestmark = pytest.mark.asyncio(loop_scope="session")

PIXEL = base64.b64encode(bytes.fromhex("89504e470d0a1a0a")).decode()
WITH_IMAGE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "何が写っていますか。"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ],
    }
]


async def sent(upstream: RunningUpstream, way: Way, **body: Any) -> dict[str, Any]:
    """The body that arrives for a request."""
    await answer(way, way.request(**body))
    [request] = upstream.seen()["requests"]
    assert isinstance(request["body"], dict)
    return request["body"]


async def test_system_message_becomes_anthropic_s_system(way_for: WayFor, upstream: RunningUpstream) -> None:
    body = await sent(upstream, way_for("anthropic"))
    assert MESSAGES[0]["content"] in json.dumps(body["system"], ensure_ascii=False)
    assert [m["role"] for m in body["messages"]] == ["user"]


async def test_system_message_becomes_gemini_s_instruction(way_for: WayFor, upstream: RunningUpstream) -> None:
    body = await sent(upstream, way_for("gemini"))
    instruction = body.get("systemInstruction") or body["system_instruction"]
    assert MESSAGES[0]["content"] in json.dumps(instruction, ensure_ascii=False)
    assert [c["role"] for c in body["contents"]] == ["user"]


async def test_model_name_loses_the_vendor_s_prefix(way_for: WayFor, upstream: RunningUpstream) -> None:
    assert (await sent(upstream, way_for("anthropic")))["model"] == "claude-haiku-5-5"


async def test_gemini_s_address_names_the_model(way_for: WayFor, upstream: RunningUpstream) -> None:
    way = way_for("gemini")
    await answer(way, way.request(stream=True))
    assert upstream.seen()["by_path"] == {"/v1beta/models/gemini-3.8-flash:streamGenerateContent": 1}


@pytest.mark.parametrize("name", ["anthropic", "gemini"])
async def test_image_data_travels_inside_the_request(way_for: WayFor, upstream: RunningUpstream, name: str) -> None:
    body = json.dumps(await sent(upstream, way_for(name), messages=WITH_IMAGE))
    assert PIXEL in body
    assert "image/png" in body


@pytest.mark.parametrize("name", ["anthropic", "gemini"])
async def test_nothing_of_litellm_travels(way_for: WayFor, upstream: RunningUpstream, name: str) -> None:
    body = await sent(upstream, way_for(name), temperature=0.5, tools=TOOLS)
    known = {
        "anthropic": {"model", "messages", "system", "max_tokens", "temperature", "tools", "tool_choice", "metadata"},
        "gemini": {"contents", "system_instruction", "systemInstruction", "generationConfig", "tools", "toolConfig"},
    }[name]
    assert set(body) <= known


@pytest.mark.parametrize("name", ["anthropic", "gemini"])
async def test_a_hint_that_the_vendor_does_not_know_is_left_out(
    way_for: WayFor, upstream: RunningUpstream, name: str
) -> None:
    body = await sent(upstream, way_for(name), logit_bias={"50256": -100})
    assert "logit_bias" not in json.dumps(body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["anthropic", "gemini"])
async def test_thoughts_are_counted_and_not_shown(
    way_for: WayFor, upstream: RunningUpstream, name: str, *, stream: bool
) -> None:
    way = way_for(name)
    upstream.control("thoughts")
    got = await answer(way, way.request(stream=stream))
    assert got.text == "".join(PIECES)
    assert THOUGHT.encode() not in b"".join(got.events)
    assert got.output_text_bytes == len("".join(PIECES).encode()) + len(THOUGHT.encode())


@pytest.mark.parametrize("operation", [Operation.COMPLETIONS, Operation.EMBEDDINGS])
@pytest.mark.parametrize("name", ["anthropic", "gemini"])
async def test_what_is_no_chat_is_refused_before_anything_leaves(
    way_for: WayFor, upstream: RunningUpstream, name: str, operation: Operation
) -> None:
    way = way_for(name)
    with pytest.raises(UpstreamRefused) as refused:
        await way.provider.send(way.request(operation=operation, prompt="町", input="町"))
    assert not refused.value.dispatched
    assert upstream.seen()["calls"] == 0


async def test_a_vendor_outside_the_contract_is_refused(way_for: WayFor, upstream: RunningUpstream) -> None:
    way = way_for("anthropic")
    other = Way("other", way.provider, deployment("litellm", "cohere/command", upstream.url))
    with pytest.raises(UpstreamRefused) as refused:
        await other.provider.send(other.request())
    assert not refused.value.dispatched
