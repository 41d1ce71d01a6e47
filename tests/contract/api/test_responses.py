"""`/v1/responses` with OpenAI's official client, unmodified: on the shipped sample and on a server of the chat wire."""

import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from loadtests.upstream import RunningUpstream
from tests.contract.api.conftest import ONPREM, OVERSEAS, SAMPLE
from tests.contract.api.test_chat import PIXEL
from tests.contract.api.test_masking import MASK, SECRETS, sent
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.usefixtures("onprem", "overseas")

BOTH = pytest.mark.parametrize("model", [SAMPLE, ONPREM])
STREAMED = pytest.mark.parametrize("is_streamed", [False, True])
TOOL: Any = {
    "type": "function",
    "name": "find_document",
    "description": "文書を探す",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"title": {"type": "string"}, "year": {"type": "integer"}},
        "required": ["title", "year"],
    },
}
CLASS_1 = {"kumiai-data-class": "1"}


class Notice(BaseModel):
    title: str
    pages: int


def asked(model: str = ONPREM, **more: Any) -> Any:
    return {
        "model": model,
        "input": "防災訓練のお知らせを書いてください",
        "instructions": "町の職員を手伝います。",
        "max_output_tokens": 200,
        **more,
    }


def answer_of(client: OpenAI, is_streamed: bool, **request: Any) -> Any:
    if not is_streamed:
        return client.responses.create(**request)
    with client.responses.stream(**request) as stream:
        return stream.get_final_response()


@BOTH
@STREAMED
def test_answer(client: OpenAI, model: str, is_streamed: bool) -> None:
    response = answer_of(client, is_streamed, **asked(model))
    assert response.output_text
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert [item.type for item in response.output] == ["message"]
    assert response.usage.input_tokens > 0 and response.usage.output_tokens > 0
    assert response.instructions == "町の職員を手伝います。"
    assert response.id.startswith("resp_")


@BOTH
def test_stream_says_the_same_as_the_whole_answer(client: OpenAI, model: str) -> None:
    whole = client.responses.create(**asked(model))
    events = list(client.responses.create(**asked(model), stream=True))
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.output_text
    told = events[-1]
    assert told.type == "response.completed"
    assert told.response.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))


@BOTH
@STREAMED
def test_tool_is_called_and_its_result_answered(client: OpenAI, model: str, is_streamed: bool) -> None:
    first = answer_of(client, is_streamed, **asked(model, tools=[TOOL], tool_choice="required"))
    [call] = [item for item in first.output if item.type == "function_call"]
    assert call.name == "find_document"
    assert {"title", "year"} <= json.loads(call.arguments).keys()
    # What came back is sent again as it came, and the result after it.
    turns = [
        {"role": "user", "content": "文書を探してください"},
        *(item.to_dict() for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "1件ありました"},
    ]
    assert answer_of(client, is_streamed, **asked(model, tools=[TOOL], input=turns)).output_text


@BOTH
def test_structured_output_is_parsed(client: OpenAI, model: str) -> None:
    assert isinstance(client.responses.parse(**asked(model), text_format=Notice).output_parsed, Notice)
    with client.responses.stream(**asked(model), text_format=Notice) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Notice)


def test_what_the_model_server_is_asked(client: OpenAI, onprem: RunningUpstream) -> None:
    image: Any = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "low"}
    turns: Any = [{"role": "user", "content": [{"type": "input_text", "text": "これは何ですか"}, image]}]
    answer = client.responses.with_raw_response.create(
        **asked(input=turns, reasoning={"effort": "low"}, metadata={"office": "x"}, truncation="auto")
    )
    body = onprem.seen(last=1)["requests"][-1]["body"]
    assert body["messages"][0] == {"role": "system", "content": "町の職員を手伝います。"}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url"]
    assert (body["reasoning_effort"], body["max_tokens"]) == ("low", 200)
    assert not {"metadata", "user", "truncation", "store"} & body.keys()
    assert answer.headers["kumiai-zone"] == "onprem"
    assert answer.headers["kumiai-ignored-parameters"] == "truncation"
    assert answer.headers["x-request-id"] == answer.headers["kumiai-call-id"]
    response = answer.parse()
    assert response.metadata == {"office": "x"}
    assert response.id == f"resp_{answer.headers['kumiai-call-id'].replace('-', '')}"


def test_it_is_never_said_to_be_stored(client: OpenAI) -> None:
    assert client.responses.create(**asked()).to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


@STREAMED
def test_an_answer_cut_at_its_limit_says_so(client: OpenAI, is_streamed: bool) -> None:
    if is_streamed:
        last = list(client.responses.create(**asked(max_output_tokens=3), stream=True))[-1]
        assert last.type == "response.incomplete"
        response = last.response
    else:
        response = client.responses.create(**asked(max_output_tokens=3))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None and response.usage.output_tokens == 3


def test_it_costs_what_the_same_chat_costs(gateway: RunningGateway, region: Region) -> None:
    town = region.make_town()
    eventually(lambda: known(gateway, town))
    chat: Any = [
        {"role": "system", "content": "町の職員を手伝います。"},
        {"role": "user", "content": "防災訓練のお知らせを書いてください"},
    ]
    with town.client(gateway.url) as client:
        client.responses.create(**asked(OVERSEAS), extra_headers=CLASS_1)
        client.chat.completions.create(model=OVERSEAS, messages=chat, max_tokens=200, extra_headers=CLASS_1)
    first, second = region.settled(town, 2)
    assert first.cost_uyen == second.cost_uyen > 0


def test_who_leaves_in_the_middle_frees_the_server_in_the_house(
    gateway: RunningGateway, region: Region, onprem: RunningUpstream
) -> None:
    town = region.make_town()
    eventually(lambda: known(gateway, town))
    onprem.control("stall_mid_stream", after=4)
    with town.client(gateway.url) as client:
        stream = client.responses.create(**asked(), stream=True)
        next(event for event in stream if event.type == "response.output_text.delta")
        stream.close()
        eventually(lambda: onprem.seen()["disconnected"] == 1)
        [call] = region.settled(town)
    assert call.problem == "client_disconnected"
    assert region.budget(town).held_uyen == 0


def test_who_leaves_in_the_middle_pays_what_the_provider_bills(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream
) -> None:
    town = region.make_town()
    eventually(lambda: known(gateway, town))
    overseas.control("stall_mid_stream", after=4)
    with town.client(gateway.url) as client:
        stream = client.responses.create(**asked(OVERSEAS), stream=True, extra_headers=CLASS_1)
        next(event for event in stream if event.type == "response.output_text.delta")
        stream.close()
        overseas.release()
        [call] = region.settled(town)
    assert 0 < call.cost_uyen <= call.hold_uyen
    assert region.budget(town).held_uyen == 0


@STREAMED
def test_what_was_masked_comes_back(client: OpenAI, overseas: RunningUpstream, is_streamed: bool) -> None:
    # The fake server answers with the value of such a schema, four letters at a time.
    shape: Any = {
        "format": {"type": "json_schema", "name": "echo", "schema": {"type": "object", "const": {"said": SECRETS}}}
    }
    request = asked(OVERSEAS, input=SECRETS, text=shape, extra_headers=CLASS_1 | MASK)
    assert json.loads(answer_of(client, is_streamed, **request).output_text) == {"said": SECRETS}
    assert "山田" not in sent(overseas) and "5678" not in sent(overseas)


def test_a_lost_stream_is_taken_up_again_in_the_same_words(client: OpenAI) -> None:
    heard = client.responses.with_raw_response.create(**asked(), stream=True, extra_headers={"kumiai-resumable": "1"})
    events = [event.to_dict() for event in heard.parse()]
    again = client.with_options(max_retries=0).get(
        f"/streams/{heard.headers['kumiai-call-id']}",
        cast_to=str,
        options={"headers": {"last-event-id": "4"}},
    )
    told = [json.loads(line.removeprefix("data: ")) for line in again.splitlines() if line.startswith("data: ")]
    assert told == events[4:]
    assert told[-1]["type"] == "response.completed"


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
    ],
)
@STREAMED
def test_what_cannot_be_done_is_named(client: OpenAI, wrong: dict[str, Any], param: str, is_streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**asked(**wrong), stream=is_streamed)
    assert (refused.value.code, refused.value.param) == ("invalid_request", param)


def test_a_model_nobody_has_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(**asked("gpt-none"))
    assert refused.value.code == "model_not_found"


def test_my_number_goes_nowhere(client: OpenAI, onprem: RunningUpstream) -> None:
    secret = "マイナンバーは 1234 5678 9018 です"
    user: Any = {"role": "user", "content": "続けて"}
    places: list[dict[str, Any]] = [
        {"instructions": secret},
        {"input": secret},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": secret}]}]},
        {"tools": [TOOL | {"description": secret}]},
        {"input": [user, {"type": "function_call_output", "call_id": "c", "output": secret}]},
        {
            "input": [
                {"type": "function_call", "call_id": "c", "name": "a", "arguments": json.dumps({"x": secret})},
                user,
            ]
        },
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object", "title": secret}}}},
    ]
    for place in places:
        with pytest.raises(openai.PermissionDeniedError) as refused:
            client.responses.create(**asked() | place)
        assert refused.value.code == "my_number_found"
    assert onprem.seen()["calls"] == 0


def test_a_class_that_may_not_go_there_is_refused(client: OpenAI, overseas: RunningUpstream) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        client.responses.create(**asked(OVERSEAS), extra_headers={"kumiai-data-class": "3C"})
    assert refused.value.code == "zone_refused"
    assert overseas.seen()["calls"] == 0


def test_without_money_it_is_refused(gateway: RunningGateway, region: Region) -> None:
    town = region.make_town(month_yen=0)
    eventually(lambda: known(gateway, town))
    with town.client(gateway.url) as client, pytest.raises(openai.RateLimitError) as refused:
        client.responses.create(**asked(OVERSEAS), extra_headers=CLASS_1)
    assert refused.value.code == "quota_exceeded"


def test_a_key_for_other_things_is_refused(gateway: RunningGateway, region: Region, town: Town) -> None:
    key = region.make_key(town, scopes=frozenset({"embeddings"}))
    with town.client(gateway.url, api_key=key) as client, pytest.raises(openai.PermissionDeniedError):
        client.responses.create(**asked())


@pytest.mark.parametrize("mode", ["drop_mid_stream", "error_mid_stream", "end_early"])
def test_a_stream_that_breaks_ends_in_a_failed_response(client: OpenAI, onprem: RunningUpstream, mode: str) -> None:
    onprem.control(mode, after=3)
    events = list(client.responses.create(**asked(), stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None and last.response.error.code.startswith("upstream_")
    assert last.response.output_text == "".join(e.delta for e in events if e.type == "response.output_text.delta") != ""
    usage = last.response.usage
    assert usage is not None and usage.input_tokens > 0
    assert usage.output_tokens >= len(last.response.output_text.encode())
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.to_dict()["counted"] == "upper_bound"


@STREAMED
def test_the_same_call_is_made_once(client: OpenAI, onprem: RunningUpstream, is_streamed: bool) -> None:
    request = asked(extra_headers={"idempotency-key": f"responses-{is_streamed}"})
    assert answer_of(client, is_streamed, **request) == answer_of(client, is_streamed, **request)
    assert onprem.seen()["calls"] == 1
