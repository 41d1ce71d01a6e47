"""Where data may go: class × zone before every egress, and no way for a call to end up in a heavier place's stead."""

from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import OpenAI

from loadtests.upstream import RunningUpstream
from tenants.context import DataClass
from tenants.policy import Policy
from tests.contract.api.conftest import EITHER, EMBEDDING, ONPREM, OVERSEAS, SAMPLE, UNPRICED
from tests.contract.api.test_chat import ASK, PIXEL
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.usefixtures("onprem", "overseas")


def classed(client: OpenAI, data_class: str, model: str) -> tuple[int, str]:
    """Status and zone (or the error's code)."""
    try:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=ASK, extra_headers={"Kumiai-Data-Class": data_class}
        )
    except openai.APIStatusError as refused:
        return refused.status_code, str(refused.code)
    return raw.status_code, raw.headers["kumiai-zone"]


@pytest.mark.parametrize(
    ("data_class", "model", "outcome"),
    [
        ("1", OVERSEAS, (200, "overseas")),
        ("2", OVERSEAS, (403, "zone_refused")),
        ("3C", OVERSEAS, (403, "zone_refused")),
        ("3A", OVERSEAS, (403, "zone_refused")),
        ("1", ONPREM, (200, "onprem")),
        ("2", ONPREM, (200, "onprem")),
        ("3C", ONPREM, (200, "onprem")),
        # On-prem, but not in the town's own closed segment.
        ("3B", ONPREM, (403, "zone_refused")),
        ("3A", ONPREM, (403, "zone_refused")),
        ("3C", UNPRICED, (403, "zone_refused")),
    ],
)  # fmt: skip
def test_class_decides_the_zone(client: OpenAI, data_class: str, model: str, outcome: tuple[int, str]) -> None:
    assert classed(client, data_class, model) == outcome


@pytest.mark.parametrize("value", ["", "0", "3", "4", "1,3A", "3c", "３C"])
def test_another_class_is_refused(gateway: RunningGateway, town: Town, value: str) -> None:
    def ask(data_class: str) -> httpx.Response:
        return httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"model": ONPREM, "messages": ASK},
            headers={"authorization": f"Bearer {town.key}".encode(), "kumiai-data-class": data_class.encode()},
            trust_env=False,
        )

    assert ask("1").status_code == 200
    assert ask(value).status_code == 400
    assert ask(value).json()["error"]["code"] == "invalid_data_class"


def test_two_classes_are_refused(gateway: RunningGateway, town: Town) -> None:
    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json={"model": ONPREM, "messages": ASK},
        headers=[("authorization", f"Bearer {town.key}"), ("kumiai-data-class", "3A"), ("kumiai-data-class", "1")],
        trust_env=False,
    )
    assert answer.status_code == 400


def test_undeclared_is_the_town_s_default(region: Region, gateway: RunningGateway, overseas: RunningUpstream) -> None:
    careful = region.make_town(policy=Policy())
    eventually(lambda: known(gateway, careful))
    with careful.client(gateway.url) as client:
        assert client.chat.completions.create(model=ONPREM, messages=ASK).choices
        with pytest.raises(openai.PermissionDeniedError) as refused:
            client.chat.completions.create(model=OVERSEAS, messages=ASK)
        assert refused.value.code == "zone_refused"
        assert overseas.seen()["calls"] == 0
        assert classed(client, "1", OVERSEAS) == (200, "overseas")


def test_an_image_weighs_as_much_as_personal_data(client: OpenAI, overseas: RunningUpstream) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    words = {"type": "text", "text": "この写真は"}

    def ask(model: str, *parts: object) -> str:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": list(parts)}]  # type: ignore[list-item,misc]
        )  # fmt: skip
        return str(raw.headers["kumiai-zone"])

    assert ask(OVERSEAS, words) == "overseas"
    with pytest.raises(openai.PermissionDeniedError):
        ask(OVERSEAS, words, image)
    assert ask(EITHER, words, image) == "onprem"
    assert overseas.seen()["calls"] == 1


def test_embeddings_are_guarded_as_chat_is(region: Region, gateway: RunningGateway, onprem: RunningUpstream) -> None:
    nowhere = Policy(default_class=DataClass.C1, zones={DataClass.C1: frozenset()})
    closed = region.make_town(policy=nowhere)
    eventually(lambda: known(gateway, closed))

    def refusal() -> str:
        with closed.client(gateway.url) as client:
            try:
                client.embeddings.create(model=EMBEDDING, input="町")
            except openai.PermissionDeniedError as refused:
                return str(refused.code)
        return ""

    # A gateway learns of keys and of rules half a second apart.
    assert eventually(refusal) == "zone_refused"
    onprem.reset()
    assert refusal() == "zone_refused"
    assert onprem.seen()["calls"] == 0


# ── When the first choice fails ──────────────────────────────────────────────────────────────────────────────────

FAILURES = [
    ("error", {"status": 500}),
    ("error", {"status": 503}),
    ("error", {"status": 429}),
    ("error", {"status": 401}),
    ("error", {"status": 404}),
]


@pytest.mark.parametrize(("mode", "rest"), FAILURES)
def test_light_data_goes_to_the_next_best(
    client: OpenAI, onprem: RunningUpstream, overseas: RunningUpstream, mode: str, rest: dict[str, int]
) -> None:
    assert classed(client, "1", EITHER) == (200, "onprem")
    onprem.control(mode, **rest)
    assert classed(client, "1", EITHER) == (200, "overseas")
    assert overseas.seen()["by_path"] == {"/openai/v1/chat/completions": 1}


def test_a_call_that_was_tried_twice_is_one_call(
    region: Region, gateway: RunningGateway, onprem: RunningUpstream
) -> None:
    alone = region.make_town()
    eventually(lambda: known(gateway, alone))
    onprem.control("error", status=500)
    with alone.client(gateway.url) as client:
        assert classed(client, "1", EITHER) == (200, "overseas")
    [call] = region.settled(alone)
    assert (call.state, call.zone, call.problem) == ("settled", "overseas", "")
    assert 0 < call.cost_uyen == region.budget(alone).posted_uyen
    assert [(a.number, a.zone, a.state, a.problem, a.cost_uyen) for a in region.attempts(alone)] == [
        (1, "onprem", "settled", "upstream_unavailable", 0),
        (2, "overseas", "settled", "", call.cost_uyen),
    ]


@pytest.mark.parametrize(("mode", "rest"), FAILURES)
@pytest.mark.parametrize("data_class", ["2", "3C"])
def test_heavier_data_stays_even_if_nobody_answers(
    client: OpenAI,
    onprem: RunningUpstream,
    overseas: RunningUpstream,
    mode: str,
    rest: dict[str, int],
    data_class: str,
) -> None:
    onprem.control(mode, **rest)
    status, code = classed(client, data_class, EITHER)
    expected = {429: (429, "upstream_rate_limited"), 401: (502, "upstream_refused"), 404: (502, "upstream_refused")}
    assert (status, code) == expected.get(rest["status"], (503, "upstream_unavailable"))
    assert onprem.seen()["calls"] == 1
    assert overseas.seen()["calls"] == 0


def test_what_the_first_refused_is_not_asked_elsewhere(
    client: OpenAI, onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    onprem.control("error", status=400)
    assert classed(client, "1", EITHER)[0] == 400
    assert overseas.seen()["calls"] == 0


def test_a_stream_that_has_begun_is_not_begun_elsewhere(
    client: OpenAI, onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    onprem.control("error_mid_stream", after=4)
    said = ""
    with pytest.raises(openai.APIError) as broken:
        for chunk in client.chat.completions.create(model=EITHER, messages=ASK, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said
    assert broken.value.code == "upstream_unavailable"
    assert overseas.seen()["calls"] == 0


@pytest.fixture
def deaf_region(region: Region, town: Town) -> Iterator[RunningGateway]:
    """The same installation while the house's own server is switched off."""
    with region.gateway(KUMIAI_OPENAI_COMPATIBLE_BASE_URL="http://127.0.0.1:9/v1") as gateway:
        yield gateway


def test_a_server_that_is_off_is_passed_over(
    deaf_region: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    with town.client(deaf_region.url) as client:
        assert classed(client, "1", EITHER) == (200, "overseas")
        assert classed(client, "3C", EITHER) == (503, "upstream_unavailable")
    assert overseas.seen()["calls"] == 1


def test_sample_takes_no_name_of_a_real_model(client: OpenAI) -> None:
    owners = {model.id: model.owned_by for model in client.models.list()}
    assert owners[EITHER] != owners[SAMPLE] == "見本"
