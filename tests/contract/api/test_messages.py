"""`/v1/messages` with Anthropic's official client, unmodified: on the shipped sample and on a server of OpenAI's wire."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from loadtests.upstream import RunningUpstream
from tests.contract.api.conftest import ONPREM, OVERSEAS, SAMPLE
from tests.contract.api.test_chat import PIXEL
from tests.contract.api.test_masking import MASK, SECRETS, sent
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.usefixtures("onprem", "overseas")

BOTH = pytest.mark.parametrize("model", [SAMPLE, ONPREM])
ASK: Any = [{"role": "user", "content": "防災訓練のお知らせを書いてください"}]
TOOL: Any = {
    "name": "find_document",
    "description": "文書を探す",
    "input_schema": {
        "type": "object",
        "properties": {"title": {"type": "string"}, "year": {"type": "integer"}},
        "required": ["title", "year"],
    },
}


def asked(model: str = ONPREM, **more: Any) -> Any:
    return {"model": model, "max_tokens": 200, "messages": ASK, "system": "町の職員を手伝います。", **more}


@pytest.fixture(autouse=True)
def _no_key_of_the_developer_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def claude(gateway: RunningGateway, town: Town) -> Iterator[Anthropic]:
    """As anybody would make it: the key goes into `x-api-key`."""
    with Anthropic(base_url=gateway.url, api_key=town.key, max_retries=0, timeout=60) as client:
        yield client


@BOTH
def test_answer(claude: Anthropic, model: str) -> None:
    message = claude.messages.create(**asked(model))
    [block] = message.content
    assert block.type == "text" and block.text
    assert (message.role, message.stop_reason) == ("assistant", "end_turn")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


@BOTH
def test_stream_says_the_same_as_the_whole_answer(claude: Anthropic, model: str) -> None:
    whole = claude.messages.create(**asked(model))
    with claude.messages.stream(**asked(model)) as stream:
        pieces = list(stream.text_stream)
        told = stream.get_final_message()
    assert len(pieces) > 3
    assert [(b.type, b.text) for b in told.content if b.type == "text"] == [
        (b.type, b.text) for b in whole.content if b.type == "text"
    ]
    assert (told.stop_reason, told.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert told.usage.input_tokens == whole.usage.input_tokens


@BOTH
@pytest.mark.parametrize("is_streamed", [False, True])
def test_tool_is_called_and_its_result_answered(claude: Anthropic, model: str, is_streamed: bool) -> None:
    ask = asked(model, tools=[TOOL], tool_choice={"type": "any"})
    if is_streamed:
        with claude.messages.stream(**ask) as stream:
            message = stream.get_final_message()
    else:
        message = claude.messages.create(**ask)
    assert message.stop_reason == "tool_use"
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "find_document"
    assert {"title", "year"} <= call.input.keys()
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "1件ありました"}
    turns = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    answer = claude.messages.create(**asked(model, tools=[TOOL], messages=turns))
    assert answer.content


def test_what_the_model_server_is_asked(claude: Anthropic, onprem: RunningUpstream) -> None:
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    turns: Any = [{"role": "user", "content": [{"type": "text", "text": "これは何ですか"}, image]}]
    answer = claude.messages.with_raw_response.create(
        **asked(messages=turns, metadata={"user_id": "x"}, extra_body={"top_k": 5})
    )
    asked_for = onprem.seen(last=1)["requests"][-1]["body"]
    assert asked_for["messages"][0] == {"role": "system", "content": "町の職員を手伝います。"}
    assert [part["type"] for part in asked_for["messages"][1]["content"]] == ["text", "image_url"]
    assert not {"metadata", "user", "top_k"} & asked_for.keys()
    assert answer.headers["kumiai-zone"] == "onprem"
    assert answer.headers["kumiai-ignored-parameters"] == "top_k"
    assert answer.headers["request-id"] == answer.headers["kumiai-call-id"]


def test_an_answer_cut_at_its_limit_says_so(claude: Anthropic) -> None:
    assert claude.messages.create(**asked(max_tokens=3)).stop_reason == "max_tokens"


def test_it_costs_what_the_same_chat_costs(gateway: RunningGateway, region: Region) -> None:
    town = region.make_town()
    eventually(lambda: known(gateway, town))
    with Anthropic(base_url=gateway.url, auth_token=town.key, max_retries=0, timeout=60) as claude:
        claude.messages.create(**asked(OVERSEAS), extra_headers={"kumiai-data-class": "1"})
    chat: Any = [{"role": "system", "content": "町の職員を手伝います。"}, *ASK]
    with town.client(gateway.url) as client:
        client.chat.completions.create(
            model=OVERSEAS, messages=chat, max_tokens=200, extra_headers={"kumiai-data-class": "1"}
        )
    first, second = region.settled(town, 2)
    assert first.cost_uyen == second.cost_uyen > 0


def test_what_was_masked_comes_back_in_the_stream(claude: Anthropic, overseas: RunningUpstream) -> None:
    # The fake server answers with the value of such a schema, four letters at a time.
    echo: Any = {"format": {"type": "json_schema", "schema": {"type": "object", "const": {"said": SECRETS}}}}
    asked_for = asked(OVERSEAS, messages=[{"role": "user", "content": SECRETS}], output_config=echo)
    with claude.messages.stream(**asked_for, extra_headers={"kumiai-data-class": "1", **MASK}) as stream:
        text = stream.get_final_text()
    assert json.loads(text) == {"said": SECRETS}
    assert "山田" not in sent(overseas) and "5678" not in sent(overseas)


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_counting_is_never_less_than_what_is_billed_and_sends_nothing(
    claude: Anthropic, onprem: RunningUpstream
) -> None:
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    request = asked(messages=[{"role": "user", "content": [{"type": "text", "text": "町" * 500}, image]}], tools=[TOOL])
    counted = claude.messages.count_tokens(**{k: v for k, v in request.items() if k != "max_tokens"})
    assert onprem.seen()["calls"] == 0
    assert counted.to_dict()["kumiai"] == {"counted": "upper_bound"}
    assert counted.input_tokens >= claude.messages.create(**request).usage.input_tokens
    less = claude.messages.count_tokens(model=ONPREM, messages=ASK)
    assert len(ASK[0]["content"].encode()) < less.input_tokens < counted.input_tokens


def test_counting_refuses_what_a_message_would_be_refused_for(
    gateway: RunningGateway, region: Region, town: Town, claude: Anthropic
) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.count_tokens(model="claude-none", messages=ASK)
    assert missing.value.body["error"]["code"] == "model_not_found"  # type: ignore[index]  # an object
    with pytest.raises(anthropic.BadRequestError) as wrong:
        claude.messages.count_tokens(model=ONPREM, messages=[])
    assert wrong.value.body["error"]["param"] == "messages"  # type: ignore[index]  # an object
    key = region.make_key(town, scopes=frozenset({"embeddings"}))
    other = Anthropic(base_url=gateway.url, api_key=key, max_retries=0)
    with other, pytest.raises(anthropic.PermissionDeniedError):
        other.messages.count_tokens(model=ONPREM, messages=ASK)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_errors_are_the_client_s_own(gateway: RunningGateway, town: Town, claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(**asked("claude-none"))
    body: Any = missing.value.body
    assert body["type"] == "error"
    assert (body["error"]["type"], body["error"]["code"]) == ("not_found_error", "model_not_found")
    assert body["request_id"] == missing.value.request_id
    with pytest.raises(anthropic.BadRequestError) as wrong:
        claude.messages.create(**asked(tools=[{"type": "web_search_20250305", "name": "web_search"}]))
    body = wrong.value.body
    assert (body["error"]["type"], body["error"]["param"]) == ("invalid_request_error", "tools[0].type")
    assert "ツール" in body["error"]["message"]
    stranger = Anthropic(base_url=gateway.url, api_key=town.key[:-4] + "none", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(**asked())


def test_my_number_goes_nowhere(claude: Anthropic, onprem: RunningUpstream) -> None:
    secret = "マイナンバーは 1234 5678 9018 です"
    places: list[dict[str, Any]] = [
        {"system": secret},
        {"messages": [{"role": "user", "content": secret}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": secret}]}]},
        {"tools": [TOOL | {"description": secret}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": secret}]}]},
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "c", "name": "a", "input": {"x": secret}}],
                },
                *ASK,
            ]
        },
    ]
    for place in places:
        with pytest.raises(anthropic.PermissionDeniedError) as refused:
            claude.messages.create(**asked() | place)
        assert refused.value.body["error"]["code"] == "my_number_found"  # type: ignore[index]  # an object
    assert onprem.seen()["calls"] == 0


def test_a_class_that_may_not_go_there_is_refused(gateway: RunningGateway, claude: Anthropic) -> None:
    with pytest.raises(anthropic.PermissionDeniedError) as refused:
        claude.messages.create(**asked(OVERSEAS), extra_headers={"kumiai-data-class": "3C"})
    assert refused.value.body["error"]["code"] == "zone_refused"  # type: ignore[index]  # an object


def test_without_money_it_is_refused(gateway: RunningGateway, region: Region) -> None:
    town = region.make_town(month_yen=0)
    eventually(lambda: known(gateway, town))
    claude = Anthropic(base_url=gateway.url, api_key=town.key, max_retries=0)
    with claude, pytest.raises(anthropic.RateLimitError) as refused:
        claude.messages.create(**asked(OVERSEAS), extra_headers={"kumiai-data-class": "1"})
    assert refused.value.body["error"]["code"] == "quota_exceeded"  # type: ignore[index]  # an object


@pytest.mark.parametrize("mode", ["drop_mid_stream", "error_mid_stream", "end_early"])
def test_a_stream_that_breaks_ends_with_an_error(claude: Anthropic, onprem: RunningUpstream, mode: str) -> None:
    onprem.control(mode, after=3)
    heard = ""
    with pytest.raises(anthropic.APIStatusError) as broken, claude.messages.stream(**asked()) as stream:
        for text in stream.text_stream:
            heard += text
    assert heard
    error = broken.value.body["error"]  # type: ignore[index]  # an object
    assert error["code"].startswith("upstream_")
    assert error["usage"]["input_tokens"] > 0
    assert error["usage"]["output_tokens"] >= len(heard.encode())
    assert error["usage"]["counted"] == "upper_bound"


def test_the_same_call_is_made_once(claude: Anthropic, onprem: RunningUpstream) -> None:
    for is_streamed in (False, True):
        onprem.reset()
        headers = {"idempotency-key": f"messages-{is_streamed}"}
        answers = []
        for _ in range(2):
            if is_streamed:
                with claude.messages.stream(**asked(), extra_headers=headers) as stream:
                    answers.append(stream.get_final_message())
            else:
                answers.append(claude.messages.create(**asked(), extra_headers=headers))
        assert answers[0] == answers[1]
        assert onprem.seen()["calls"] == 1


def test_a_stream_in_these_words_cannot_be_taken_up_again(gateway: RunningGateway, claude: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(**asked(stream=True), extra_headers={"kumiai-resumable": "1"})
    assert refused.value.body["error"]["param"] == "Kumiai-Resumable"  # type: ignore[index]  # an object
