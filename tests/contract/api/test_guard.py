"""What the guard lets through, stops and leads elsewhere; and that nothing it stopped reached anybody."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from loadtests.upstream import RunningUpstream
from tenants.context import DataClass
from tenants.policy import GuardAction, GuardPolicy, Policy
from tests.contract.api.conftest import EITHER, EMBEDDING, ONPREM, OVERSEAS
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.usefixtures("onprem", "overseas")

NUMBER = "マイナンバーは１２３４ー５６７８ー９０１８です"
PHONE = "090-1234-5678に電話してください"

Body = dict[str, Any]


def ask(
    gateway: RunningGateway, town: Town, body: Body, path: str = "chat/completions", **headers: str
) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/{path}",
        json=body,
        headers={"authorization": f"Bearer {town.key}", "kumiai-data-class": "1", **headers},
        trust_env=False,
        timeout=60,
    )


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and zone, or the error's code."""
    zone_or_code = answer.headers.get("kumiai-zone") or answer.json()["error"]["code"]
    return answer.status_code, zone_or_code


def said(text: str, model: str = ONPREM) -> Body:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def in_system(text: str) -> Body:
    return {"model": ONPREM, "messages": [{"role": "system", "content": text}, {"role": "user", "content": "要約"}]}


def in_part(text: str) -> Body:
    return {"model": ONPREM, "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}


def in_name(text: str) -> Body:
    return {"model": ONPREM, "messages": [{"role": "user", "name": text, "content": "要約"}]}


def in_arguments(text: str) -> Body:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"q": text})}}
    return {
        "model": ONPREM,
        "messages": [
            {"role": "user", "content": "調べて"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "なし"},
        ],
    }


def in_description(text: str) -> Body:
    return said("調べて") | {"tools": [{"type": "function", "function": {"name": "find", "description": text}}]}


def in_schema(text: str) -> Body:
    schema = {"type": "object", "properties": {"q": {"type": "string", "enum": ["a", text]}}}
    return said("調べて") | {"tools": [{"type": "function", "function": {"name": "find", "parameters": schema}}]}


def in_field_name(text: str) -> Body:
    schema = {"type": "object", "properties": {text: {"type": "string"}}}
    return said("調べて") | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def in_stop(text: str) -> Body:
    return said("調べて") | {"stop": [text]}


@pytest.mark.parametrize(
    "place",
    [said, in_system, in_part, in_name, in_arguments, in_description, in_schema, in_field_name, in_stop],
)
def test_a_my_number_goes_nowhere_wherever_it_stands(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, place: Callable[[str], Body]
) -> None:
    refused = ask(gateway, town, place(NUMBER))
    assert outcome(refused) == (403, "my_number_found")
    assert "消して" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert onprem.seen()["calls"] == 0
    # The same call without it is not refused by the guard.
    assert "my_number" not in ask(gateway, town, place("町の番号札")).text


def in_parameters(schema: Body) -> Body:
    return said("調べて") | {"tools": [{"type": "function", "function": {"name": "find", "parameters": schema}}]}


HIDDEN: dict[str, Callable[[str], Body]] = {
    "a field's name": lambda number: in_parameters({"type": "object", "properties": {number: {"type": "string"}}}),
    "a number to choose": lambda number: in_parameters({"type": "object", "enum": [int(number)]}),
    "a number with a point": lambda number: in_parameters({"type": "object", "default": float(number)}),
    "no picture": lambda number: in_parameters(
        {"type": "object", "default": {"url": f"x;base64,マイナンバー{number} 山田太郎"}}
    ),
    "a picture's look": lambda number: in_parameters(
        {"default": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{number}"}}}
    ),
    "the seed": lambda number: said("調べて") | {"seed": int(number)},
}


@pytest.mark.parametrize("place", HIDDEN.values(), ids=HIDDEN)
def test_nor_where_no_text_is_expected(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, place: Callable[[str], Body]
) -> None:
    assert outcome(ask(gateway, town, place("123456789018"))) == (403, "my_number_found")
    assert onprem.seen()["calls"] == 0
    # Ten digits are nobody's My Number.
    assert "my_number" not in ask(gateway, town, place("1234567890")).text


def test_personal_data_in_the_name_of_a_field_raises_the_class(
    gateway: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    def named(name: str) -> Body:
        schema = {"type": "object", "properties": {name: {"type": "string"}}}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        return said("調べて", OVERSEAS) | {"response_format": form}

    refused = ask(gateway, town, named("090-1234-5678 tanaka@example.com"))
    assert outcome(refused) == (403, "personal_data_found")
    assert "電話番号1か所、メールアドレス1か所" in refused.json()["error"]["message"]
    assert overseas.seen()["calls"] == 0
    assert "personal_data" not in ask(gateway, town, named("address_2")).text


def test_neither_as_an_embedding_nor_as_a_completion(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream
) -> None:
    texts = {"model": EMBEDDING, "input": ["町", NUMBER]}
    assert outcome(ask(gateway, town, texts, "embeddings")) == (403, "my_number_found")
    assert outcome(ask(gateway, town, {"model": ONPREM, "prompt": NUMBER}, "completions")) == (403, "my_number_found")
    assert onprem.seen()["calls"] == 0
    assert outcome(ask(gateway, town, texts | {"input": ["町", "番号札"]}, "embeddings")) == (200, "onprem")


def test_personal_data_raises_the_class(gateway: RunningGateway, town: Town, overseas: RunningUpstream) -> None:
    refused = ask(gateway, town, said(PHONE, OVERSEAS))
    assert outcome(refused) == (403, "personal_data_found")
    assert "電話番号1か所" in refused.json()["error"]["message"]
    assert "1234" not in refused.text
    assert overseas.seen()["calls"] == 0
    answered = ask(gateway, town, said(PHONE))
    assert outcome(answered) == (200, "onprem")
    assert answered.headers["kumiai-data-class"] == "3C"
    assert answered.headers["kumiai-guard"] == "phone=1"
    plain = ask(gateway, town, said("図書館のお知らせ", OVERSEAS))
    assert outcome(plain) == (200, "overseas")
    assert "kumiai-guard" not in plain.headers


def test_a_town_without_a_house_is_not_sent_there(gateway: RunningGateway, region: Region, town: Town) -> None:
    policy = Policy(default_class=DataClass.C1, models=frozenset({OVERSEAS}))
    bare = region.make_town(policy=policy)
    eventually(lambda: known(gateway, bare))

    def told(of: Town, body: Body, **headers: str) -> str:
        refused = ask(gateway, of, body, **headers)
        assert refused.status_code == 403, refused.text
        return str(refused.json()["error"]["message"])

    for body, headers in ((said(PHONE, OVERSEAS), {}), (said("要約", OVERSEAS), {"kumiai-data-class": "3C"})):
        assert "庁内専用のモデル" in told(town, body, **headers)
        assert "庁内専用のモデル" not in (words := told(bare, body, **headers))
        assert "この町では" in words


def test_detectors_never_lower_a_class(gateway: RunningGateway, town: Town) -> None:
    assert outcome(ask(gateway, town, said(PHONE), **{"kumiai-data-class": "3B"})) == (403, "zone_refused")


def test_what_was_found_stays_in_the_house_when_the_house_fails(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    onprem.control("error", status=503)
    assert outcome(ask(gateway, town, said(PHONE, EITHER)))[0] == 503
    assert overseas.seen()["calls"] == 0
    assert outcome(ask(gateway, town, said("お知らせ", EITHER))) == (200, "overseas")


def test_a_secret_document_goes_nowhere(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    assert outcome(ask(gateway, town, said("【極秘】統合計画"))) == (403, "personal_data_found")
    assert outcome(ask(gateway, town, said("要約"), **{"kumiai-data-class": "3A"})) == (403, "zone_refused")
    assert onprem.seen()["calls"] == 0
    assert outcome(ask(gateway, town, said("極秘という言葉の意味"))) == (200, "onprem")


@pytest.fixture(scope="module")
def rule(region: Region, gateway: RunningGateway) -> Callable[[GuardPolicy], Town]:
    """A town of its own with these rules."""

    def make(guard: GuardPolicy) -> Town:
        town = region.make_town(policy=Policy(default_class=DataClass.C1, guard=guard))
        eventually(lambda: known(gateway, town))
        return town

    return make


def test_a_town_may_lead_it_to_its_own_model(
    gateway: RunningGateway, rule: Callable[[GuardPolicy], Town], overseas: RunningUpstream
) -> None:
    town = rule(GuardPolicy(actions={"phone": GuardAction.REROUTE}))
    answered = ask(gateway, town, said(PHONE, OVERSEAS))
    assert outcome(answered) == (200, "onprem")
    assert answered.headers["kumiai-rerouted-from"] == OVERSEAS
    # One finding that is to be blocked decides for all.
    assert outcome(ask(gateway, town, said(f"{PHONE} taro@example.com", OVERSEAS))) == (403, "personal_data_found")
    assert overseas.seen()["calls"] == 0
    assert "kumiai-rerouted-from" not in ask(gateway, town, said(PHONE)).headers


def test_a_key_that_may_not_use_the_towns_own_model_is_told_what_to_do(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream
) -> None:
    """Not that a model does not exist for which it never asked."""
    policy = Policy(default_class=DataClass.C1, guard=GuardPolicy(actions={"phone": GuardAction.REROUTE}))
    town = region.make_town(policy=policy, models=frozenset({OVERSEAS}))
    eventually(lambda: known(gateway, town))
    refused = ask(gateway, town, said(PHONE, OVERSEAS))
    assert outcome(refused) == (403, "personal_data_found")
    told = refused.json()["error"]["message"]
    assert "電話番号1か所があります。" in told
    assert "モデル「onprem」に回しますが、使うことが許されていません。" in told
    assert "町の管理者に、使えるモデルに加えるよう依頼してください。" in told
    assert overseas.seen()["calls"] == 0


def test_a_town_may_only_be_told(gateway: RunningGateway, rule: Callable[[GuardPolicy], Town]) -> None:
    town = rule(GuardPolicy(actions={"phone": GuardAction.WARN, "my_number": GuardAction.WARN}))
    answered = ask(gateway, town, said(PHONE, OVERSEAS))
    assert outcome(answered) == (200, "overseas")
    assert (answered.headers["kumiai-data-class"], answered.headers["kumiai-guard"]) == ("1", "phone=1")
    # マイナンバー is not up to a town.
    assert outcome(ask(gateway, town, said(NUMBER))) == (403, "my_number_found")


def test_names_count_where_a_town_says_so(
    gateway: RunningGateway, town: Town, rule: Callable[[GuardPolicy], Town]
) -> None:
    letter = said("山田太郎様への礼状", OVERSEAS)
    assert outcome(ask(gateway, town, letter)) == (200, "overseas")
    careful = rule(GuardPolicy(actions={"name": GuardAction.BLOCK}))
    assert outcome(ask(gateway, careful, letter)) == (403, "personal_data_found")


def test_names_are_told_of_what_is_not_public_or_leaves_the_house(
    gateway: RunningGateway, town: Town, rule: Callable[[GuardPolicy], Town]
) -> None:
    """A name by itself changes nothing else; what is public and stays in the house does not wait for the dictionary."""

    def told(asked: Town, model: str, data_class: str) -> tuple[str, str]:
        answered = ask(gateway, asked, said("山田太郎様への礼状", model), **{"kumiai-data-class": data_class})
        assert answered.status_code == 200
        return answered.headers["kumiai-data-class"], answered.headers.get("kumiai-guard", "")

    assert told(town, ONPREM, "2") == ("2", "name=1")
    assert told(town, OVERSEAS, "1") == ("1", "name=1")
    assert told(town, EITHER, "1") == ("1", "name=1")
    assert told(town, ONPREM, "1") == ("1", "")
    untold = rule(GuardPolicy(names=False))
    assert told(untold, ONPREM, "2") == ("2", "")
    assert told(untold, OVERSEAS, "1") == ("1", "")


def test_words_a_town_does_not_send(
    gateway: RunningGateway, town: Town, rule: Callable[[GuardPolicy], Town], onprem: RunningUpstream
) -> None:
    text = said("ｱｻｶﾞｵ計画の進捗")
    assert outcome(ask(gateway, town, text)) == (200, "onprem")
    strict = rule(GuardPolicy(ng_words=("アサガオ計画",)))
    refused = ask(gateway, strict, text)
    assert outcome(refused) == (403, "ng_word_found")
    assert "アサガオ" not in refused.text
    told = rule(GuardPolicy(ng_words=("アサガオ計画",), actions={"ng_word": GuardAction.WARN}))
    assert ask(gateway, told, text).headers["kumiai-guard"] == "ng_word=1"


def test_the_town_s_own_number_is_no_secret(gateway: RunningGateway, rule: Callable[[GuardPolicy], Town]) -> None:
    town = rule(GuardPolicy(public=frozenset({"０４６（８２２）４０００"})))
    assert outcome(ask(gateway, town, said("代表 046-822-4000", OVERSEAS))) == (200, "overseas")
    assert outcome(ask(gateway, town, said("自宅 046-822-4001", OVERSEAS))) == (403, "personal_data_found")


def test_a_long_text_is_read_to_its_end(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    long = "会議の議事録を要点だけにまとめる。" * 6_000
    assert outcome(ask(gateway, town, said(long + NUMBER))) == (403, "my_number_found")
    assert outcome(ask(gateway, town, said(long + PHONE, OVERSEAS))) == (403, "personal_data_found")
    assert onprem.seen()["calls"] == 0


def test_counts_are_kept_and_content_is_not(gateway: RunningGateway, town: Town) -> None:
    call = ask(gateway, town, said(PHONE)).headers["kumiai-call-id"]
    event = eventually(lambda: next((e for e in gateway.log() if e.get("call_id") == call), None))
    assert event["guard"] == "phone=1"
    assert "1234-5678" not in gateway.log_file.read_text()
    metrics = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
    assert 'kumiai_guard_findings_total{action="pass",kind="phone"}' in metrics
