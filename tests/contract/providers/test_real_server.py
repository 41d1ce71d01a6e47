"""The same promises against servers we did not write: llama.cpp with 270 M parameters, vLLM with random ones.

They continue text rather than answer, so what is asked of them is the wire, not sense.
"""

import asyncio
import json

import orjson
import pytest
import pytest_asyncio
from openai.types import Completion

from gateway.server.providers.base import Operation, Provider, UpstreamProblem
from tests.contract.providers.ways import JSON_SCHEMA, Way, answer, chunks_of, deployment
from tests.models import ModelServer

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session", params=["openai_wire", "litellm_router"])
async def real(request: pytest.FixtureRequest, chat_server: ModelServer, providers: dict[str, Provider]) -> Way:
    # The loop stands still between tests and llama.cpp hangs up after 5 s: let the loop see that first.
    await asyncio.sleep(0.05)
    name = request.param
    model = f"openai/{chat_server.model}" if name == "litellm_router" else chat_server.model
    return Way(name, providers[name], deployment(name, model, chat_server.url))


@pytest_asyncio.fixture(loop_scope="session")
async def wire(chat_server: ModelServer, providers: dict[str, Provider]) -> Way:
    await asyncio.sleep(0.05)
    return Way("openai_wire", providers["openai_wire"], deployment("openai_wire", chat_server.model, chat_server.url))


async def test_answer_is_openai_s_object_with_usage(real: Way) -> None:
    got = await answer(real, real.request(max_tokens=16, temperature=0, seed=1))
    assert got.usage is not None
    assert got.usage.prompt_tokens > 0
    assert 0 < got.usage.completion_tokens <= 16
    assert got.finish_reason in ("stop", "length")


async def test_stream_is_whole_events_with_usage(real: Way) -> None:
    got = await answer(real, real.request(stream=True, max_tokens=16, temperature=0, seed=1))
    assert all(e.startswith(b"data:") and e.endswith(b"\n\n") and e.count(b"\n\n") == 1 for e in got.events)
    assert got.events[-1] == b"data: [DONE]\n\n"
    last = chunks_of(got.events)[-1]
    assert last.choices == []
    assert last.usage is not None
    assert got.usage is not None
    assert got.usage.completion_tokens == last.usage.completion_tokens


async def test_prompt_costs_the_same_streamed_and_whole(real: Way) -> None:
    whole = await answer(real, real.request(max_tokens=8, temperature=0, seed=1))
    streamed = await answer(real, real.request(stream=True, max_tokens=8, temperature=0, seed=1))
    assert whole.usage is not None
    assert streamed.usage is not None
    assert streamed.usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_output_limit_is_kept(real: Way, *, stream: bool) -> None:
    messages = [{"role": "user", "content": "1から100まで数えてください。"}]
    got = await answer(real, real.request(stream=stream, messages=messages, max_tokens=4, temperature=0))
    assert got.usage is not None
    assert got.usage.completion_tokens <= 4


@pytest.mark.parametrize("stream", [False, True])
async def test_json_schema_is_obeyed(real: Way, *, stream: bool) -> None:
    got = await answer(
        real, real.request(stream=stream, response_format=JSON_SCHEMA, max_tokens=80, temperature=0, seed=1)
    )
    if got.finish_reason == "stop":
        assert set(json.loads(got.text)) == {"title", "pages"}
    else:
        assert got.text.lstrip().startswith("{")


async def test_plain_completion_is_openai_s_object(real: Way) -> None:
    response = await real.provider.send(real.request(operation=Operation.COMPLETIONS, prompt="町の花は", max_tokens=8))
    made = Completion.model_validate_json(b"".join([part async for part in response.chunks()]))
    await response.aclose()
    assert made.choices[0].text
    assert response.usage is not None


async def test_what_the_server_cannot_do_is_a_problem(real: Way) -> None:
    with pytest.raises(UpstreamProblem) as raised:
        await real.provider.send(real.request(operation=Operation.EMBEDDINGS, input="町"))
    assert raised.value.dispatched


async def test_closing_a_stream_frees_the_server(real: Way) -> None:
    messages = [{"role": "user", "content": "長い物語を書いてください。"}]
    for _ in range(3):
        # Two slots: a third long answer would wait for ever behind two that nobody reads.
        response = await real.provider.send(real.request(stream=True, messages=messages, max_tokens=1500))
        await anext(response.chunks())
        await response.aclose()
    got = await answer(real, real.request(max_tokens=2, first_byte_timeout_s=20.0))
    assert got.usage is not None


async def test_models_are_listed(wire: Way) -> None:
    names = await wire.provider.list_models(wire.deployment)
    assert names


async def test_bytes_are_relayed_untouched(wire: Way) -> None:
    """What a server says beyond OpenAI's fields reaches the caller: the bytes are its own."""
    got = await answer(wire, wire.request(max_tokens=2))
    assert {"timings", "kv_transfer_params"} & set(orjson.loads(b"".join(got.events)))
