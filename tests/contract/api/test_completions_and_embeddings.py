"""`/v1/completions` and `/v1/embeddings` with the official client."""

import math
from typing import Any

import openai
import pytest
from openai import OpenAI

from loadtests.upstream import PIECES, RunningUpstream
from tests.contract.api.conftest import EMBEDDING, ONPREM, OVERSEAS, SAMPLE, SAMPLE_EMBEDDING

pytestmark = pytest.mark.usefixtures("onprem")

BOTH = pytest.mark.parametrize("model", [SAMPLE, ONPREM])
VECTORS = pytest.mark.parametrize("model", [SAMPLE_EMBEDDING, EMBEDDING])
PROMPT = "町の花は"


@BOTH
def test_completion(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens > 0


@BOTH
def test_completion_streams_the_same(client: OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt=PROMPT)
    chunks = list(client.completions.create(model=model, prompt=PROMPT, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"


@BOTH
def test_completion_s_stream_can_end_with_usage(client: OpenAI, model: str) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.completions.create(model=model, prompt=PROMPT, stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


@BOTH
def test_several_prompts(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=[PROMPT, "町の木は"])
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_completion_s_limits(client: OpenAI) -> None:
    answer = client.completions.create(model=ONPREM, prompt=PROMPT, max_tokens=3, stop=["。"], seed=1, temperature=0)
    assert answer.choices[0].text == "".join(PIECES[:3])
    assert answer.choices[0].finish_reason == "length"


def test_a_chat_model_is_no_completion_model(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=OVERSEAS, prompt=PROMPT)
    assert refused.value.code == "not_supported_by_model"


@VECTORS
def test_embedding(client: OpenAI, model: str) -> None:
    answer = client.embeddings.create(model=model, input="保育園の申込期限")
    [one] = answer.data
    assert math.isclose(sum(x * x for x in one.embedding), 1, rel_tol=1e-3)
    assert answer.usage.prompt_tokens > 0


@VECTORS
def test_embedding_is_the_same_in_both_encodings(client: OpenAI, model: str) -> None:
    # The client asks for base64 by itself, and decodes it.
    packed = client.embeddings.create(model=model, input="ごみの日").data[0].embedding
    plain = client.embeddings.create(model=model, input="ごみの日", encoding_format="float").data[0].embedding
    assert packed == pytest.approx(plain, abs=1e-6)


@VECTORS
def test_several_texts_keep_their_order(client: OpenAI, model: str) -> None:
    texts = ["一", "二", "三"]
    together = client.embeddings.create(model=model, input=texts).data
    assert [one.index for one in together] == [0, 1, 2]
    alone = client.embeddings.create(model=model, input="二").data[0].embedding
    assert together[1].embedding == pytest.approx(alone, abs=1e-6)


def test_dimensions_reach_the_upstream(client: OpenAI, onprem: RunningUpstream) -> None:
    assert len(client.embeddings.create(model=EMBEDDING, input="町", dimensions=64).data[0].embedding) == 64
    [sent] = onprem.seen()["requests"]
    assert sent["body"]["dimensions"] == 64


@pytest.mark.parametrize("value", ["", [], ["町", ""], [1, 2, 3], [["町"]]])
def test_input_must_be_text(client: OpenAI, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=EMBEDDING, input=value)
    assert refused.value.param == "input"


def test_a_chat_model_has_no_embeddings(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=SAMPLE, input="町")
    assert refused.value.code == "not_supported_by_model"
