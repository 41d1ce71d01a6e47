"""`/v1/models`: what a town may name, where it would be processed, and nothing of what others may."""

import openai
import pytest
from openai import OpenAI

from tenants.context import DataClass
from tenants.policy import Policy
from tests.contract.api.conftest import EITHER, EMBEDDING, ONPREM, OVERSEAS, SAMPLE
from tests.gateways import Region, RunningGateway, Town, eventually


def test_models_are_listed_with_their_zones(client: OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert {EITHER, EMBEDDING, ONPREM, OVERSEAS, SAMPLE} <= set(found)
    assert all(model.object == "model" for model in found.values())
    extra = found[EITHER].model_extra
    assert extra is not None
    assert extra["kumiai"]["zones"] == ["domestic", "onprem", "overseas"]
    places = extra["kumiai"]["places"]
    assert {p["zone"] for p in places} == set(extra["kumiai"]["zones"])
    assert all(set(p) == {"zone", "isolated", "zone_owner", "vendor_country"} for p in places)
    assert {p["zone_owner"] for p in places if p["zone"] != "onprem"} == {"vendor"}


def test_one_model_is_shown(client: OpenAI) -> None:
    model = client.models.retrieve(OVERSEAS)
    assert (model.id, model.owned_by) == (OVERSEAS, "Microsoft")


def test_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-2")
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"


def test_policy_hides_models(region: Region, gateway: RunningGateway) -> None:
    policy = Policy(default_class=DataClass.C1, models=frozenset({ONPREM}))
    few = region.make_town(policy=policy)
    with few.client(gateway.url) as client:
        eventually(lambda: known(gateway, few))
        assert [m.id for m in client.models.list()] == [ONPREM]
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve(OVERSEAS)
        assert refused.value.code == "model_not_found"


def test_key_s_own_list_narrows_further(region: Region, gateway: RunningGateway, town: Town) -> None:
    key = region.make_key(town, models=(SAMPLE,))
    with town.client(gateway.url, api_key=key) as client:
        assert [m.id for m in client.models.list()] == [SAMPLE]


def known(gateway: RunningGateway, town: Town) -> bool:
    """Whether the gateway has heard of a town that was just made."""
    with town.client(gateway.url) as client:
        try:
            client.models.list()
        except openai.PermissionDeniedError:
            return False
    return True
