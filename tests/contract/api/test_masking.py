"""伏せて送る and the page before it: what reaches the model, what comes back, and what `/v1/guard/inspect` tells."""

import json
from typing import Any

import httpx
import pytest

from loadtests.upstream import RunningUpstream
from tenants.context import DataClass
from tenants.policy import GuardAction, GuardPolicy, Policy
from tests.contract.api.conftest import EMBEDDING, ONPREM, OVERSEAS
from tests.contract.api.test_guard import NUMBER, PHONE, ask, outcome, said
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.usefixtures("onprem", "overseas")

SECRETS = "山田太郎様 090-1234-5678"
MASK = {"kumiai-mask": "1"}


def echoing(text: str, **more: object) -> dict[str, Any]:
    """A request that the fake upstream answers with `text` as it received it, four letters at a time."""
    schema = {"type": "object", "const": {"said": text}}
    shape = {"type": "json_schema", "json_schema": {"name": "echo", "schema": schema}}
    return said(text, OVERSEAS) | {"response_format": shape} | more


def sent(upstream: RunningUpstream) -> str:
    """All that the upstream was sent."""
    return json.dumps(upstream.seen()["requests"], ensure_ascii=False)


def test_the_model_sees_placeholders_and_the_caller_does_not(
    gateway: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    assert outcome(ask(gateway, town, echoing(SECRETS))) == (403, "personal_data_found")
    assert overseas.seen()["calls"] == 0
    answered = ask(gateway, town, echoing(SECRETS), **MASK)
    assert outcome(answered) == (200, "overseas")
    assert json.loads(answered.json()["choices"][0]["message"]["content"]) == {"said": SECRETS}
    assert (answered.headers["kumiai-masked"], answered.headers["kumiai-data-class"]) == ("1", "1")
    assert answered.headers["kumiai-guard"] == "phone=2, name=2"
    assert "⟦氏名1⟧様 ⟦電話1⟧" in sent(overseas)
    assert "山田" not in sent(overseas)
    assert "5678" not in sent(overseas)


def test_a_stream_is_restored_though_placeholders_come_in_pieces(
    gateway: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    text = ""
    with httpx.stream(
        "POST",
        f"{gateway.url}/v1/chat/completions",
        json=echoing(SECRETS, stream=True),
        headers={"authorization": f"Bearer {town.key}", "kumiai-data-class": "1", **MASK},
        trust_env=False,
        timeout=60,
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    text += choice["delta"].get("content") or ""
    assert json.loads(text) == {"said": SECRETS}
    assert "山田" not in sent(overseas)


def test_embeddings_are_masked_too(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    asked = {"model": EMBEDDING, "input": [SECRETS, "町"]}
    assert outcome(ask(gateway, town, asked, "embeddings", **MASK)) == (200, "onprem")
    assert "⟦氏名1⟧" in sent(onprem)
    assert "山田" not in sent(onprem)


def test_what_cannot_be_masked_stops_the_call(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    assert outcome(ask(gateway, town, said(NUMBER), **MASK)) == (403, "my_number_found")
    # %XX is read by models and by no detector.
    both = f"{PHONE}。控え：%30%39%30-1234-5678"
    assert outcome(ask(gateway, town, said(both, OVERSEAS), **MASK)) == (403, "masking_failed")
    assert outcome(ask(gateway, town, said(f"【極秘】{PHONE}", OVERSEAS), **MASK)) == (403, "personal_data_found")
    assert outcome(ask(gateway, town, said("要約"), **{"kumiai-mask": "yes"})) == (400, "invalid_request")
    assert onprem.seen()["calls"] == overseas.seen()["calls"] == 0


def test_masking_does_not_lower_what_was_declared(gateway: RunningGateway, town: Town) -> None:
    answered = ask(gateway, town, said(PHONE, OVERSEAS), **MASK, **{"kumiai-data-class": "3C"})
    assert outcome(answered) == (403, "zone_refused")


@pytest.fixture(scope="module")
def masking_town(region: Region, gateway: RunningGateway) -> Town:
    guard = GuardPolicy(actions={"phone": GuardAction.MASK, "email": GuardAction.REROUTE}, masking=False)
    town = region.make_town(policy=Policy(default_class=DataClass.C1, guard=guard))
    eventually(lambda: known(gateway, town))
    return town


def test_a_town_may_mask_by_itself_and_only_where_it_has_to(
    gateway: RunningGateway, masking_town: Town, onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    assert outcome(ask(gateway, masking_town, said(PHONE, OVERSEAS))) == (200, "overseas")
    assert "⟦電話1⟧" in sent(overseas)
    assert outcome(ask(gateway, masking_town, said(PHONE))) == (200, "onprem")
    assert PHONE in sent(onprem)
    # What may only go to the house takes the rest along.
    assert outcome(ask(gateway, masking_town, said(f"{PHONE} taro@example.com", OVERSEAS))) == (200, "onprem")
    assert overseas.seen()["calls"] == 1


def test_a_town_may_forbid_masking_on_demand(gateway: RunningGateway, masking_town: Town) -> None:
    assert outcome(ask(gateway, masking_town, said("要約"), **MASK)) == (403, "masking_not_allowed")


# ── the look before ──────────────────────────────────────────────────────────────────────────────────────────────


def inspected(gateway: RunningGateway, town: Town, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = ask(gateway, town, body, "guard/inspect", **headers)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_inspect_shows_places_class_zones_and_what_will_be_done(
    gateway: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    text = f"𠮷野町です。{SECRETS}"
    told = inspected(gateway, town, {"text": text, "model": OVERSEAS})
    assert [(f["kind"], text[f["start"] : f["end"]]) for f in told["findings"]] == [
        ("name", "山田太郎"),
        ("phone", "090-1234-5678"),
    ]
    assert told["findings"][1] | {"start": 0, "end": 0} == {
        "text": 0, "kind": "phone", "label": "電話番号", "start": 0, "end": 0, "data_class": "3C",
        "reason": "電話番号の形をした番号です。", "action": "block",
    }  # fmt: skip
    assert (told["data_class"], told["zones"]) == ("3C", ["onprem"])
    assert (told["then"], told["can_mask"], told["reroute_to"]) == ("block", True, ONPREM)
    assert overseas.seen()["calls"] == 0


@pytest.mark.parametrize(
    ("text", "model", "then"),
    [
        ("図書館のお知らせ", OVERSEAS, "send"),
        ("山田太郎様", OVERSEAS, "warn"),
        (PHONE, ONPREM, "warn"),
        (PHONE, OVERSEAS, "block"),
        (NUMBER, ONPREM, "block"),
    ],
)
def test_inspect_tells_what_the_call_then_does(
    gateway: RunningGateway, town: Town, text: str, model: str, then: str
) -> None:
    assert inspected(gateway, town, {"text": text, "model": model})["then"] == then
    assert (ask(gateway, town, said(text, model)).status_code == 403) == (then == "block")


def test_inspect_knows_the_town_s_rules(gateway: RunningGateway, masking_town: Town) -> None:
    assert inspected(gateway, masking_town, {"text": PHONE, "model": OVERSEAS})["then"] == "block"
    mail = inspected(gateway, masking_town, {"text": ["町", "taro@example.com"], "model": OVERSEAS})
    assert (mail["then"], mail["reroute_to"], mail["findings"][0]["text"]) == ("reroute", ONPREM, 1)


def test_inspect_of_a_my_number_leaves_no_way(gateway: RunningGateway, town: Town) -> None:
    told = inspected(gateway, town, {"text": NUMBER, "model": ONPREM})
    assert (told["blocked_by"], told["can_mask"], told["reroute_to"]) == ("my_number", False, None)


@pytest.mark.parametrize("body", [{}, {"text": 1}, {"text": []}, {"text": [1]}, {"text": "a", "model": 3}])
def test_inspect_refuses_what_it_cannot_read(gateway: RunningGateway, town: Town, body: dict[str, Any]) -> None:
    assert outcome(ask(gateway, town, body, "guard/inspect")) == (400, "invalid_request")


def test_inspect_asks_for_a_key_that_may_chat(gateway: RunningGateway, region: Region, town: Town) -> None:
    url = f"{gateway.url}/v1/guard/inspect"
    assert httpx.post(url, json={"text": "a"}, trust_env=False).status_code == 401
    for scope, status in (("chat", 200), ("embeddings", 403)):
        key = region.make_key(town, scopes=frozenset({scope}))
        answer = httpx.post(url, json={"text": "a"}, headers={"authorization": f"Bearer {key}"}, trust_env=False)
        assert answer.status_code == status
    assert httpx.get(url, headers={"authorization": f"Bearer {town.key}"}, trust_env=False).status_code == 405
