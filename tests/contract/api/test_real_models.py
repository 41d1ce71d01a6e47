"""The whole gateway before models that really run, asked by the official client: what a town's own server would be.

The chat models continue text rather than answer, so what is asked of them is the contract, not sense. The embedding
model is a real one, and what it says about Japanese is checked.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tenants.db import DatabaseUrls
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.models import ModelServer
from tests.own_region import client, gateway, town

__all__ = ["client", "gateway", "town"]

pytestmark = pytest.mark.real

ASK: Any = [{"role": "user", "content": "町の花は何ですか"}]
# Only what is finite: a model without sense writes a string or a number for ever.
SHAPE: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "judgement",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "department": {"type": "string", "enum": ["総務課", "福祉課", "税務課"]},
                "urgent": {"type": "boolean"},
            },
            "required": ["department", "urgent"],
            "additionalProperties": False,
        },
    },
}
YEN = 1_000_000


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls, chat_server: ModelServer) -> Region:
    region = Region.on_sqlite(
        tmp_path_factory.mktemp("real"),
        sqlite_template,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=chat_server.url,
        KUMIAI_OPENAI_COMPATIBLE_MODEL=chat_server.model,
        # Two small slots; a larger cap than the context would be refused by vLLM.
        KUMIAI_OPENAI_COMPATIBLE_MAX_OUTPUT_TOKENS="512",
    )
    # One yen a token, so that usage and money can be compared.
    region.set_price(f"compatible/{chat_server.model}", input_u=YEN * YEN, output_u=YEN * YEN)
    return region


def test_models_are_offered_by_the_staff_s_names(client: OpenAI, chat_server: ModelServer) -> None:
    assert {"fast", "standard", "onprem", chat_server.model} <= {model.id for model in client.models.list()}


def test_chat(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="onprem", messages=ASK, max_tokens=16, seed=1)
    answer = raw.parse()
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert raw.headers["kumiai-zone"] == "onprem"


def test_chat_streams_with_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="onprem", messages=ASK, max_tokens=16, seed=1, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 16


def test_chat_streams_without_usage(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="onprem", messages=ASK, max_tokens=16, seed=1, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_the_same_seed_says_the_same(client: OpenAI) -> None:
    def say(seed: int) -> str | None:
        answer = client.chat.completions.create(model="onprem", messages=ASK, max_tokens=12, temperature=1, seed=seed)
        return answer.choices[0].message.content

    assert say(7) == say(7)


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema_is_obeyed(client: OpenAI, *, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "onprem", "messages": ASK, "response_format": SHAPE, "max_tokens": 200}
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True))
    else:
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
    told = json.loads(text)
    assert told["department"] in ("総務課", "福祉課", "税務課")
    assert isinstance(told["urgent"], bool)


def test_response(client: OpenAI) -> None:
    response = client.responses.create(model="onprem", input=ASK, max_output_tokens=16)
    assert response.status in ("completed", "incomplete")
    assert response.usage is not None and 0 < response.usage.output_tokens <= 16


def test_response_streams(client: OpenAI) -> None:
    events = list(client.responses.create(model="onprem", input=ASK, max_output_tokens=16, stream=True))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete"), last
    assert last.response.output_text == "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert last.response.usage is not None and 0 < last.response.usage.output_tokens <= 16


def test_completion(client: OpenAI) -> None:
    answer = client.completions.create(model="onprem", prompt="町の花は", max_tokens=8, seed=1)
    assert answer.choices[0].text
    assert answer.usage is not None and 0 < answer.usage.completion_tokens <= 8


def test_completion_streams(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="onprem", prompt="町の花は", max_tokens=8, seed=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="onprem", messages=ASK, max_tokens=4, logprobs=True, top_logprobs=2, seed=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content
    assert all(token.logprob <= 0 for token in logprobs.content)


def test_stop_word(client: OpenAI) -> None:
    free = (
        client.completions.create(model="onprem", prompt="一、二、三、", max_tokens=24, temperature=0).choices[0].text
    )
    mark = free[len(free) // 2]
    cut = client.completions.create(model="onprem", prompt="一、二、三、", max_tokens=24, temperature=0, stop=[mark])
    assert mark not in cut.choices[0].text


def test_what_was_counted_is_what_was_billed(region: Region, gateway: RunningGateway) -> None:
    own = region.make_town()
    eventually(lambda: reached(gateway, own), within_s=5)
    with own.client(gateway.url) as client:
        answer = client.chat.completions.create(model="onprem", messages=ASK, max_tokens=16)
    assert answer.usage is not None
    [call] = region.settled(own)
    assert call.cost_uyen == answer.usage.total_tokens * YEN
    assert call.usage_source == "provider"


def test_who_leaves_in_the_middle_frees_the_server(region: Region, gateway: RunningGateway) -> None:
    own = region.make_town()
    eventually(lambda: reached(gateway, own), within_s=5)
    with own.client(gateway.url) as client:
        for _ in range(3):
            stream = client.chat.completions.create(model="onprem", messages=ASK, max_tokens=500, stream=True)
            next(iter(stream))
            stream.close()
        assert client.chat.completions.create(model="onprem", messages=ASK, max_tokens=2, timeout=30).choices
    calls = region.settled(own, 4)
    assert region.budget(own).held_uyen == 0
    assert all(0 < call.cost_uyen <= call.hold_uyen for call in calls)


def reached(gateway: RunningGateway, town: Town) -> bool:
    with town.client(gateway.url) as client:
        try:
            return bool(client.models.list().data)
        except openai.PermissionDeniedError:
            return False


# ── Embeddings ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def embedder(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls, embedding_server: ModelServer
) -> Iterator[OpenAI]:
    region = Region.on_sqlite(
        tmp_path_factory.mktemp("embeddings"),
        sqlite_template,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=embedding_server.url,
        KUMIAI_OPENAI_COMPATIBLE_EMBEDDING_MODEL=embedding_server.model,
    )
    town = region.make_town()
    with region.gateway() as gateway, town.client(gateway.url) as client:
        yield client


def test_embeddings_tell_what_is_near(embedder: OpenAI) -> None:
    texts = [
        "query: 保育園の申込期限",
        "passage: 保育所の入所申請は11月30日までです。",
        "passage: 燃えるごみは火曜日と金曜日に出してください。",
    ]
    answer = embedder.embeddings.create(model="embedding", input=texts)
    asked, near, far = (one.embedding for one in answer.data)
    assert len(asked) == 384

    def likeness(other: list[float]) -> float:
        return sum(a * b for a, b in zip(asked, other, strict=True))

    assert likeness(near) > likeness(far) + 0.03
    assert answer.usage.prompt_tokens > 0


def test_embeddings_are_the_same_in_both_encodings(embedder: OpenAI) -> None:
    packed = embedder.embeddings.create(model="embedding", input="query: ごみの日").data[0].embedding
    plain = embedder.embeddings.create(model="embedding", input="query: ごみの日", encoding_format="float")
    assert packed == pytest.approx(plain.data[0].embedding, abs=1e-6)


# ── Ranking ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ranking(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls, rerank_server: ModelServer
) -> None:
    region = Region.on_sqlite(
        tmp_path_factory.mktemp("ranking"),
        sqlite_template,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=rerank_server.url,
        KUMIAI_OPENAI_COMPATIBLE_RERANK_MODEL=rerank_server.model,
    )
    region.set_price(f"compatible/{rerank_server.model}", input_u=YEN * YEN, output_u=0)
    own = region.make_town()
    asked = {"model": "rerank", "query": "保育園の申込", "documents": ["保育所の入所申請", "ごみの日"], "top_n": 2}
    with region.gateway() as gateway:
        headers = {"authorization": f"Bearer {own.key}"}
        answer = httpx.post(f"{gateway.url}/v1/rerank", json=asked, headers=headers, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    assert sorted(one["index"] for one in answer.json()["results"]) == [0, 1]
    [call] = region.settled(own)
    assert call.cost_uyen == answer.json()["usage"]["prompt_tokens"] * YEN
    assert 0 < call.cost_uyen <= call.hold_uyen
