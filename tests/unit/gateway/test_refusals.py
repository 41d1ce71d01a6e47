"""What a refused call is told to do instead: only what this town really has."""

import pytest

from gateway.guard.decision import Verdict
from gateway.guard.findings import Kind
from gateway.server.guarding import picture_refusal, recording_refusal, refusal
from gateway.server.providers.base import Deployment, Operation
from gateway.server.routing import ZoneRefused, other_model, route
from tenants.context import DataClass, Zone
from tenants.policy import GuardPolicy, Policy
from tests.deployments import a_deployment

ABROAD = a_deployment(alias="abroad", zone=Zone.OVERSEAS)
IN_THE_COUNTRY = a_deployment(alias="country", zone=Zone.DOMESTIC)
HOUSE = a_deployment(alias="house")
PERSONAL = Verdict(DataClass.C1, DataClass.C3C, ((Kind.PHONE, 1),))


def by_alias(*deployments: Deployment) -> dict[str, tuple[Deployment, ...]]:
    return {d.alias: (d,) for d in deployments}


def other(
    *deployments: Deployment,
    policy: Policy | None = None,
    aliases: tuple[str, ...] = (),
    data_class: DataClass = DataClass.C3C,
    needs: frozenset[str] = frozenset(),
) -> str:
    return other_model(
        by_alias(*deployments),
        policy or Policy(),
        allowed_aliases=aliases,
        operation=Operation.CHAT,
        data_class=data_class,
        needs=needs,
    )


def test_the_house_is_named_only_where_it_may_take_the_call() -> None:
    assert other(ABROAD, HOUSE) == "庁内専用のモデル"
    assert other(ABROAD) == ""
    assert other(ABROAD, HOUSE, policy=Policy(models=frozenset({"abroad"}))) == ""
    assert other(ABROAD, HOUSE, aliases=("abroad",)) == ""
    assert other(ABROAD, HOUSE, data_class=DataClass.C3B) == ""
    assert other(ABROAD, HOUSE, needs=frozenset({"images"})) == ""
    assert other(ABROAD, a_deployment(alias="house", operations=frozenset({Operation.EMBEDDINGS}))) == ""


def test_the_country_is_named_where_there_is_no_house() -> None:
    assert other(ABROAD, IN_THE_COUNTRY, data_class=DataClass.C2) == "国内で処理するモデル"
    assert other(ABROAD, IN_THE_COUNTRY) == ""


@pytest.mark.parametrize(
    ("there", "told"), [((ABROAD, HOUSE), "庁内専用のモデルを選ぶか、"), ((ABROAD,), "この町では送れません。")]
)
def test_a_weight_that_was_declared(there: tuple[Deployment, ...], told: str) -> None:
    with pytest.raises(ZoneRefused) as refused:
        route(
            by_alias(*there), Policy(), alias="abroad", allowed_aliases=(), operation=Operation.CHAT,
            data_class=DataClass.C3C, needs=frozenset(),
        )  # fmt: skip
    assert told in refused.value.detail


def test_what_was_found_may_be_masked_where_the_town_lets_it() -> None:
    never = Policy(guard=GuardPolicy(masking=False))
    assert "消すか、伏せて送るか、庁内専用のモデルを選んで" in refusal(Policy(), PERSONAL, "庁内専用のモデル").detail
    assert "消すか、庁内専用のモデルを選んで" in refusal(never, PERSONAL, "庁内専用のモデル").detail
    assert refusal(Policy(), PERSONAL, "").detail.endswith(
        "この町では、このまま送れません。その部分を消すか、伏せて送ってください。"
    )
    assert refusal(never, PERSONAL, "").detail.endswith("この町では、このまま送れません。その部分を消してください。")


def test_what_is_masked_already_is_not_told_to_mask() -> None:
    left = Verdict(DataClass.C1, DataClass.C3B, ((Kind.PHONE, 1),), is_masked=True)
    assert "伏せ" not in refusal(Policy(), left, "").detail
    heavy = Verdict(DataClass.C1, DataClass.C3B, ((Kind.PHONE, 1),))
    assert "伏せて送って" in refusal(Policy(), heavy, "").detail


def test_pictures_and_recordings_stay_where_no_model_may_have_them() -> None:
    for refused in (picture_refusal, recording_refusal):
        assert "庁内専用のモデルを選んでください" in refused(PERSONAL, "庁内専用のモデル").detail
        assert "この町では送れません" in refused(PERSONAL, "").detail
        assert "庁内専用" not in refused(PERSONAL, "").detail
