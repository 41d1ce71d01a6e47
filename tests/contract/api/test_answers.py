"""The guard on answers, over the wire: a note for staff, a withheld sentence for residents, and what it cost."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.guard.answers import HANDOVER
from tenants.context import DataClass
from tenants.identity.delegation import Delegation, mint
from tenants.keyfiles import read_key
from tenants.policy import GuardAction, GuardPolicy, Policy
from tests.contract.api.conftest import EMBEDDING, ONPREM
from tests.contract.api.test_guard import PHONE, ask, outcome, said
from tests.contract.api.test_masking import echoing
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.usefixtures("onprem", "overseas")

# The fake server says これは|見本|の|答え|です|。|𠮷野|町|…, a word a piece.
SAID = "これは見本の答えです。"
WITHHOLD = {"kumiai-answer-guard": "withhold"}


def asked(**more: object) -> dict[str, Any]:
    return said("お知らせ") | more


def events(gateway: RunningGateway, key: str, body: dict[str, Any], **headers: str) -> Iterator[dict[str, Any] | str]:
    with httpx.stream(
        "POST",
        f"{gateway.url}/v1/chat/completions",
        json=body | {"stream": True},
        headers={"authorization": f"Bearer {key}", "kumiai-data-class": "1", **headers},
        trust_env=False,
        timeout=60,
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                yield data if data == "[DONE]" else json.loads(data)


def heard(gateway: RunningGateway, key: str, body: dict[str, Any], **headers: str) -> tuple[str, str, dict[str, Any]]:
    """Text, finish reason and note of a stream, which ends as it should."""
    text, finish, note = "", "", {}
    *payloads, last = events(gateway, key, body, **headers)
    assert last == "[DONE]"
    for payload in payloads:
        assert isinstance(payload, dict)
        note = payload.get("kumiai") or note
        for choice in payload["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice.get("finish_reason") or finish
    return text, finish, note


@pytest.fixture(scope="module")
def careful(region: Region, gateway: RunningGateway) -> Town:
    """A town with words that the fake server says, over the borders of its pieces."""
    guard = GuardPolicy(ng_words=("𠮷野町",), wordings=("見本の答→例",))
    town = region.make_town(policy=Policy(default_class=DataClass.C1, guard=guard))
    eventually(lambda: known(gateway, town))
    return town


def test_staff_are_told_in_the_last_piece(gateway: RunningGateway, town: Town, careful: Town) -> None:
    plain, _, nothing = heard(gateway, town.key, asked())
    text, finish, note = heard(gateway, careful.key, asked())
    assert plain.startswith(f"{SAID}𠮷野町")
    assert (text, finish) == (plain, "stop")
    assert not nothing
    [told] = note["answer_guard"]
    assert (told["index"], told["action"]) == (0, "warn")
    assert {f["kind"]: f["count"] for f in told["findings"]} == {"ng_word": 1, "wording": 1}
    assert told["reasons"] == ["「見本の答」は「例」と書きます（町が決めた言い換え）。"]


def test_the_official_client_reads_such_a_stream(gateway: RunningGateway, careful: Town) -> None:
    with careful.client(gateway.url) as client:
        chunks = list(
            client.chat.completions.create(
                model=ONPREM,
                messages=[{"role": "user", "content": "お知らせ"}],
                stream=True,
                extra_headers={"kumiai-data-class": "1"},
            )
        )
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["kumiai"]["answer_guard"][0]["action"] == "warn"


def test_an_answer_in_one_piece_says_it_in_header_and_body(gateway: RunningGateway, town: Town) -> None:
    answered = ask(gateway, town, echoing(PHONE, model=ONPREM))
    assert outcome(answered) == (200, "onprem")
    assert answered.headers["kumiai-answer-guard"] == "phone=1"
    assert answered.json()["kumiai"]["answer_guard"][0]["findings"][0]["kind"] == "phone"
    assert "kumiai-answer-guard" not in ask(gateway, town, asked()).headers


def test_residents_get_the_sentences_before_it_and_whom_to_ask(
    gateway: RunningGateway, careful: Town, town: Town, region: Region
) -> None:
    assert heard(gateway, town.key, asked(), **WITHHOLD)[0].startswith(f"{SAID}𠮷野町")
    words_only = GuardPolicy(ng_words=("𠮷野町",))
    strict = region.make_town(policy=Policy(default_class=DataClass.C1, guard=words_only))
    eventually(lambda: known(gateway, strict))
    text, finish, note = heard(gateway, strict.key, asked(), **WITHHOLD)
    assert (text, finish) == (SAID + HANDOVER, "content_filter")
    assert note["answer_guard"][0]["action"] == "withhold"
    whole = ask(gateway, strict, asked(), **WITHHOLD)
    [choice] = whole.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (SAID + HANDOVER, "content_filter")
    # Every hold is settled: nothing stays behind of the answer that was cut.
    assert len(region.settled(strict, 2)) == 2
    metrics = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
    assert 'kumiai_guard_findings_total{action="answer-withheld",kind="ng_word"}' in metrics


def test_an_app_for_residents_cannot_ask_for_less(gateway: RunningGateway, region: Region, careful: Town) -> None:
    def token(*, residents: bool) -> str:
        delegation = Delegation(careful.id, None, None, "chat", faces_residents=residents)
        return mint(read_key(region.settings.key_path("delegation")), delegation)

    warn = {"kumiai-answer-guard": "warn"}
    assert heard(gateway, token(residents=True), asked(), **warn)[0] == HANDOVER
    assert heard(gateway, token(residents=False), asked(), **warn)[0].startswith(f"{SAID}𠮷野町")


def test_what_is_masked_is_no_finding_of_the_answer(gateway: RunningGateway, town: Town) -> None:
    answered = ask(gateway, town, echoing(PHONE, model=ONPREM), **{"kumiai-mask": "1"})
    assert PHONE in answered.json()["choices"][0]["message"]["content"]
    assert "kumiai-answer-guard" not in answered.headers


def test_another_value_is_refused_and_vectors_have_no_words(gateway: RunningGateway, careful: Town) -> None:
    assert outcome(ask(gateway, careful, asked(), **{"kumiai-answer-guard": "no"})) == (400, "invalid_request")
    vectors = {"model": EMBEDDING, "input": "町"}
    assert outcome(ask(gateway, careful, vectors, "embeddings", **WITHHOLD)) == (200, "onprem")


def test_completions_are_read_too(gateway: RunningGateway, careful: Town) -> None:
    answered = ask(gateway, careful, {"model": ONPREM, "prompt": "お知らせ"}, "completions")
    assert answered.headers["kumiai-answer-guard"] == "ng_word=1, wording=1"
    withheld = ask(gateway, careful, {"model": ONPREM, "prompt": "お知らせ"}, "completions", **WITHHOLD)
    assert withheld.json()["choices"][0]["text"] == HANDOVER


def test_a_word_that_only_warns_in_questions_is_told_in_answers(gateway: RunningGateway, region: Region) -> None:
    guard = GuardPolicy(ng_words=("見本",), actions={"ng_word": GuardAction.WARN})
    town = region.make_town(policy=Policy(default_class=DataClass.C1, guard=guard))
    eventually(lambda: known(gateway, town))
    assert ask(gateway, town, asked()).headers["kumiai-answer-guard"] == "ng_word=1"
