"""`/v1/images/generations` with the official client: what is sent, what comes back and what it costs.

The servers are a fake that speaks OpenAI's wire: no real one draws on such a machine.
"""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import OpenAI

from gateway.server.providers.catalogue import load_catalogue
from loadtests.upstream import RunningUpstream
from tenants.db import DatabaseUrls
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.own_region import gateway, town

__all__ = ["gateway", "town"]

ONPREM = "image"
OVERSEAS = "far-image"
LEAKY = "leaky-image"
TWO = "two-images"
# Of a picture; the fake says that each came to 1,000.
TOKENS = {"1024x1024/low": 1_500, "1024x1024/high": 4_000}
UYEN_PER_TOKEN = 7_000
CLASS_1 = {"kumiai-data-class": "1"}
PROMPT = "防災の日のポスター"


@pytest.fixture(scope="module")
def region(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: DatabaseUrls,
    onprem_process: RunningUpstream,
    overseas_process: RunningUpstream,
) -> Region:
    home = tmp_path_factory.mktemp("images")
    [shipped] = [e for e in load_catalogue() if e.id == "sakura/multilingual-e5-large"]
    per_token = UYEN_PER_TOKEN * 1_000_000
    price = {
        "currency": "JPY", "input_u_per_mtok": per_token, "output_u_per_mtok": per_token, "source": "見本の単価",
        "checked": "2026-11-24",
    }  # fmt: skip
    common = shipped.model_dump(mode="json") | {
        "base_url": f"{overseas_process.url}/v1", "key_from": "", "needs": [], "zone": "overseas", "country": "US",
        "operations": ["images/generations"], "image_tokens": TOKENS, "price": price,
    }  # fmt: skip
    far = common | {"id": "far/image", "aliases": [OVERSEAS], "model": "gpt-image-9"}
    leaky = common | {"id": "far/leaky", "aliases": [LEAKY], "model": "draws-to-files"}
    two = [
        common | {"id": "far/two-large", "aliases": [TWO], "model": "gpt-image-9"},
        common
        | {"id": "far/two-small", "aliases": [TWO], "model": "gpt-image-9", "image_tokens": {"512x512/low": 500}},
    ]
    own = home / "own.yaml"
    own.write_text(yaml.safe_dump({"deployments": [far, leaky, *two]}), "utf-8")
    return Region.on_sqlite(
        home,
        sqlite_template,
        KUMIAI_CATALOGUE_FILE=str(own),
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=f"{onprem_process.url}/v1",
        KUMIAI_OPENAI_COMPATIBLE_MODEL="fake-chat",
        KUMIAI_OPENAI_COMPATIBLE_IMAGE_MODEL="fake-image",
    )


@pytest.fixture
def client(gateway: RunningGateway, town: Town) -> Iterator[OpenAI]:
    with town.client(gateway.url, default_headers=CLASS_1) as made:
        yield made


def draw(gateway: RunningGateway, key: str, model: str = ONPREM, **more: Any) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/images/generations", json={"model": model, "prompt": PROMPT} | more,
        headers={"authorization": f"Bearer {key}"} | CLASS_1, trust_env=False, timeout=60,
    )  # fmt: skip


def test_pictures_come_as_data(client: OpenAI, onprem: RunningUpstream) -> None:
    made = client.images.generate(model=ONPREM, prompt=PROMPT, n=2, size="512x512", quality="high", user="山田")
    assert made.data is not None
    assert [base64.b64decode(p.b64_json or "")[:4] for p in made.data] == [b"\x89PNG"] * 2
    # What the server thought that was meant does not come back: nobody here has read it.
    assert [p.revised_prompt for p in made.data] == [None, None]
    assert made.usage is not None and made.usage.output_tokens == 2_000
    [sent] = onprem.seen()["requests"]
    assert sent["path"] == "/v1/images/generations"
    assert sent["body"] == {
        "model": "fake-image", "prompt": PROMPT, "n": 2, "size": "512x512", "quality": "high", "response_format": "b64_json",
    }  # fmt: skip


def test_a_model_that_always_gives_data_is_not_told_to(client: OpenAI, overseas: RunningUpstream) -> None:
    client.images.generate(model=OVERSEAS, prompt=PROMPT, quality="low", response_format="b64_json")
    [sent] = overseas.seen()["requests"]
    assert sent["body"] == {"model": "gpt-image-9", "prompt": PROMPT, "quality": "low"}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"response_format": "url"}, "response_format"),
        ({"n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"size": "huge"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "あ" * 32_001}, "prompt"),
        ({"stream": True}, "stream"),
        ({"model": OVERSEAS, "size": "512x512"}, "size"),
        ({"model": OVERSEAS, "quality": "medium"}, "size"),
    ],
)
def test_what_cannot_be_drawn_or_paid_for_is_refused(
    gateway: RunningGateway,
    town: Town,
    onprem: RunningUpstream,
    overseas: RunningUpstream,
    more: dict[str, Any],
    field: str,
) -> None:
    answer = draw(gateway, town.key, **({"model": ONPREM} | more))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert not onprem.seen()["requests"] and not overseas.seen()["requests"]


def test_an_address_in_place_of_a_picture_does_not_come_back(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.generate(model=LEAKY, prompt=PROMPT)
    assert refused.value.status_code == 502
    assert "files.example" not in refused.value.response.text


def test_a_prompt_is_guarded_as_any_text(client: OpenAI, overseas: RunningUpstream) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        client.images.generate(model=OVERSEAS, prompt="マイナンバー 1234 5678 9018 の人の似顔絵")
    assert not overseas.seen()["requests"]


def test_another_model_draws_nothing(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="standard", prompt=PROMPT)
    assert refused.value.code == "not_supported_by_model"


@pytest.mark.parametrize(
    ("asked", "tokens"), [({"quality": "low"}, 1_500), ({"n": 3, "quality": "high"}, 12_000), ({}, 4_000)]
)
def test_a_picture_is_held_by_its_size_and_paid_for_as_counted(
    gateway: RunningGateway, region: Region, asked: dict[str, Any], tokens: int
) -> None:
    town = region.make_town()
    eventually(lambda: draw(gateway, town.key).status_code != 401)
    answered = draw(gateway, town.key, OVERSEAS, **asked)
    assert answered.status_code == 200, answered.text
    usage = answered.json()["usage"]
    *_, call = region.settled(town, 2)
    assert (call.operation, call.usage_source) == ("images/generations", "provider")
    assert call.cost_uyen == usage["total_tokens"] * UYEN_PER_TOKEN
    assert call.hold_uyen >= (tokens + usage["input_tokens"]) * UYEN_PER_TOKEN
    assert region.budget(town).held_uyen == 0


def test_what_nobody_counted_costs_what_was_held(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream
) -> None:
    town = region.make_town()
    eventually(lambda: draw(gateway, town.key).status_code != 401)
    overseas.control("no_usage")
    assert "usage" not in draw(gateway, town.key, OVERSEAS).json()
    *_, call = region.settled(town, 2)
    assert call.cost_uyen == call.hold_uyen > 4_000 * UYEN_PER_TOKEN


def test_a_picture_is_not_made_smaller_for_want_of_money(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream
) -> None:
    # Enough for one of the low quality and not for one of the high.
    town = region.make_town(month_yen=20)
    eventually(lambda: draw(gateway, town.key).status_code != 401)
    refused = draw(gateway, town.key, OVERSEAS, quality="high")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert overseas.seen()["calls"] == 0
    assert draw(gateway, town.key, OVERSEAS, quality="low").status_code == 200


def test_a_key_needs_its_scope(gateway: RunningGateway, region: Region, town: Town) -> None:
    for scope, status in (("images", 200), ("chat", 403)):
        assert draw(gateway, region.make_key(town, scopes=frozenset({scope}))).status_code == status


def test_a_second_server_that_draws_no_such_size_is_not_asked(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream
) -> None:
    town = region.make_town()
    eventually(lambda: draw(gateway, town.key, TWO, size="1024x1024", quality="low").status_code == 200)
    before = len(region.calls(town))
    overseas.control("error", status=503)
    failed = draw(gateway, town.key, TWO, size="1024x1024", quality="low")
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "upstream_unavailable")
    *_, call = region.settled(town, before + 1)
    assert (call.state, call.cost_uyen) == ("settled", 0)
    assert region.budget(town).held_uyen == 0
