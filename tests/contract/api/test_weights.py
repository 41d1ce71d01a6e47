"""What weighs more than personal data: only a model in the town's closed segment may have it, or nobody it tells of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.guard.findings import Kind
from loadtests.upstream import RunningUpstream
from tenants.context import DataClass
from tenants.policy import GuardAction, GuardPolicy, Policy
from tests.contract.api.conftest import ONPREM, OVERSEAS
from tests.contract.api.test_guard import ask, outcome, said
from tests.contract.api.test_models import known
from tests.faults.conftest import deployment
from tests.gateways import Region, RunningGateway, Town, eventually

CLOSED = "closed"
ILLNESS = "山田太郎さんは統合失調症で休んでいます。返事の文を作ってください。"
LIST = "\n".join(["氏名,地区", *(f"見本{n}太,川西" for n in range(101))])


@pytest.fixture(scope="module")
def closed(
    region: Region, onprem_process: RunningUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """A gateway that also has a model inside the town's own segment."""
    catalogue = tmp_path_factory.mktemp("closed") / "catalogue.yaml"
    own = deployment("closed", f"{onprem_process.url}/v1", [CLOSED]) | {"isolated": True, "owner": "town"}
    catalogue.write_text(json.dumps({"deployments": [own]}))
    with region.gateway(KUMIAI_CATALOGUE_FILE=str(catalogue)) as running:
        yield running


@pytest.fixture(scope="module")
def towns(region: Region, closed: RunningGateway) -> dict[str, Town]:
    """A town of the first rules, one that has what was found led to the closed segment, one that is only told."""
    made = {
        "plain": region.make_town(),
        "led": region.make_town(
            policy=Policy(
                default_class=DataClass.C1,
                guard=GuardPolicy(actions={"sensitive": GuardAction.REROUTE}, reroute_to=CLOSED),
            )
        ),
        "told": region.make_town(
            policy=Policy(
                default_class=DataClass.C1, guard=GuardPolicy(actions={kind.value: GuardAction.WARN for kind in Kind})
            )
        ),
    }
    for town in made.values():
        eventually(lambda town=town: known(closed, town))  # type: ignore[misc]  # bound here
    return made


@pytest.mark.parametrize(("text", "guard"), [(ILLNESS, "name=1, sensitive=1"), (LIST, "people_list=1")])
def test_it_goes_to_the_closed_segment_and_nowhere_else(
    closed: RunningGateway,
    towns: dict[str, Town],
    onprem: RunningUpstream,
    overseas: RunningUpstream,
    text: str,
    guard: str,
) -> None:
    town = towns["plain"]
    for model in (ONPREM, OVERSEAS):
        refused = ask(closed, town, said(text, model))
        assert outcome(refused) == (403, "personal_data_found")
        assert "閉じた設備" in refused.json()["error"]["message"]
    assert (onprem.seen()["calls"], overseas.seen()["calls"]) == (0, 0)
    answered = ask(closed, town, said(text, CLOSED))
    assert outcome(answered) == (200, "onprem")
    assert (answered.headers["kumiai-data-class"], answered.headers["kumiai-guard"]) == ("3B", guard)
    # The same words about nobody go where the words alone may go.
    assert outcome(ask(closed, town, said("統合失調症の人の暮らしを支える制度", OVERSEAS))) == (200, "overseas")


def test_declared_it_goes_there_too(closed: RunningGateway, towns: dict[str, Town], onprem: RunningUpstream) -> None:
    heavy = {"kumiai-data-class": "3B"}
    assert outcome(ask(closed, towns["plain"], said("要約"), **heavy)) == (403, "zone_refused")
    assert onprem.seen()["calls"] == 0
    assert outcome(ask(closed, towns["plain"], said("要約", CLOSED), **heavy)) == (200, "onprem")


def test_masked_it_tells_of_nobody(closed: RunningGateway, towns: dict[str, Town], overseas: RunningUpstream) -> None:
    answered = ask(closed, towns["plain"], said(ILLNESS, OVERSEAS), **{"kumiai-mask": "1"})
    assert outcome(answered) == (200, "overseas")
    assert (answered.headers["kumiai-data-class"], answered.headers["kumiai-masked"]) == ("1", "1")
    sent = json.dumps(overseas.seen()["requests"], ensure_ascii=False)
    assert "⟦氏名1⟧さんは統合失調症" in sent
    assert "山田" not in sent


def test_to_be_told_only_sends_it_nowhere_else(
    closed: RunningGateway, towns: dict[str, Town], onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    for model in (ONPREM, OVERSEAS):
        assert outcome(ask(closed, towns["told"], said(ILLNESS, model))) == (403, "personal_data_found")
    assert (onprem.seen()["calls"], overseas.seen()["calls"]) == (0, 0)
    answered = ask(closed, towns["told"], said("山田太郎さんの電話は090-1234-5678です。", OVERSEAS))
    assert (outcome(answered), answered.headers["kumiai-guard"]) == ((200, "overseas"), "phone=1, name=1")


def test_a_town_may_have_it_led_there(closed: RunningGateway, towns: dict[str, Town]) -> None:
    answered = ask(closed, towns["led"], said(ILLNESS, OVERSEAS))
    assert outcome(answered) == (200, "onprem")
    assert answered.headers["kumiai-rerouted-from"] == OVERSEAS


@pytest.mark.parametrize(
    ("town", "model", "then", "can_mask", "reroute_to"),
    [
        ("plain", OVERSEAS, "block", True, None),
        ("plain", CLOSED, "warn", True, None),
        ("led", OVERSEAS, "reroute", True, CLOSED),
        ("told", OVERSEAS, "block", True, None),
    ],
)
def test_inspect_tells_what_raised_it(
    closed: RunningGateway,
    towns: dict[str, Town],
    town: str,
    model: str,
    then: str,
    can_mask: bool,
    reroute_to: str | None,
) -> None:
    told: dict[str, Any] = ask(closed, towns[town], {"text": ILLNESS, "model": model}, "guard/inspect").json()
    assert (told["data_class"], told["zones"]) == ("3B", ["onprem"])
    assert (told["then"], told["can_mask"], told["reroute_to"]) == (then, can_mask, reroute_to)
    assert [(f["kind"], f["label"], f["data_class"]) for f in told["findings"]] == [
        ("name", "氏名", "3C"),
        ("sensitive", "病歴・障害など", "3B"),
    ]
    assert "病歴" in told["findings"][1]["reason"]


def test_models_tell_which_is_closed(closed: RunningGateway, towns: dict[str, Town], tmp_path: Path) -> None:
    with towns["plain"].client(closed.url) as client:
        told = {m.id: m.model_dump()["kumiai"] for m in client.models.list()}
    assert told[CLOSED]["isolated"] is True
    assert told[ONPREM]["isolated"] is False
