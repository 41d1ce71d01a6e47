"""Requests and tokens a minute, by the official client: what is refused, what the headers say, what comes back."""

import json
import re
from collections.abc import Iterator

import httpx
import openai
import pytest

from tenants.context import DataClass
from tenants.db import DatabaseUrls
from tenants.policy import Policy, Rate
from tests.gateways import Region, Town, eventually

ASK = {"model": "sample", "messages": [{"role": "user", "content": "防災訓練のお知らせ"}], "max_tokens": 300}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls) -> Region:
    return Region.on_sqlite(tmp_path_factory.mktemp("rates"), sqlite_template)


@pytest.fixture(scope="module")
def url(region: Region) -> Iterator[str]:
    with region.gateway() as gateway:
        yield gateway.url


def limited(region: Region, month_yen: int = 10_000, **rates: Rate) -> Town:
    named = {node.replace("_", ":"): rate for node, rate in rates.items()}
    policy = Policy(default_class=DataClass.C1, rates=named)
    return region.make_town(month_yen=month_yen, policy=policy, app="minutes")


def post(url: str, town: Town) -> httpx.Response:
    headers = {"authorization": f"Bearer {town.key}"}
    return httpx.post(f"{url}/v1/chat/completions", json=ASK, headers=headers, timeout=60)


def left(answer: httpx.Response, name: str) -> int:
    found = re.search(rf'"{name}";r=(\d+);t=\d+', answer.headers["ratelimit"])
    assert found, answer.headers["ratelimit"]
    return int(found[1])


def test_requests_beyond_the_rate_are_refused_and_told_when_to_come_back(region: Region, url: str) -> None:
    town = limited(region, town=Rate(requests=2))
    answers = [post(url, town) for _ in range(2)]
    assert [a.status_code for a in answers] == [200] * 2
    assert answers[0].headers["ratelimit-policy"] == '"town-requests";q=2;w=60'
    assert [left(a, "town-requests") for a in answers] == [1, 0]
    with pytest.raises(openai.RateLimitError) as refused, town.client(url) as client:
        client.chat.completions.create(**ASK)  # type: ignore[call-overload]  # a literal dictionary
    assert refused.value.code == "rate_exceeded"
    assert "団体が1分に使える回数" in refused.value.message
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["ratelimit"].startswith('"town-requests";r=0;t=')
    # It cost nothing, and another town is not touched.
    assert len(region.settled(town, 2)) == 2
    answer = post(url, region.make_town())
    assert answer.status_code == 200
    assert "ratelimit" not in answer.headers


def test_tokens_that_were_not_used_come_back(region: Region, url: str) -> None:
    town = limited(region, key=Rate(tokens=50_000))
    first, second = post(url, town), post(url, town)
    used = first.json()["usage"]["total_tokens"]
    # At admission the worst case is taken; the second call finds what the first really used.
    took = 50_000 - left(first, "key-tokens")
    assert took > 2 * used
    assert left(second, "key-tokens") >= 50_000 - took - used


def test_a_call_that_is_refused_for_money_gives_its_tokens_back(region: Region, url: str) -> None:
    region.set_price("demo/sample", input_u=0, output_u=1_000_000_000_000)
    town = limited(region, month_yen=1, town=Rate(tokens=50_000))
    refused = [post(url, town) for _ in range(3)]
    assert {(a.status_code, a.json()["error"]["code"]) for a in refused} == {(429, "quota_exceeded")}
    assert left(refused[2], "town-tokens") >= left(refused[0], "town-tokens")
    region.set_price("demo/sample", input_u=0, output_u=0)


def test_a_call_larger_than_the_rate_takes_all_of_it_and_is_not_shut_out(region: Region, url: str) -> None:
    first = post(url, limited(region, town=Rate(tokens=10)))
    assert first.status_code == 200
    assert left(first, "town-tokens") == 0


def test_an_app_s_rate_is_its_own(region: Region, url: str) -> None:
    town = limited(region, app_minutes=Rate(requests=1), app_other=Rate(requests=7))
    assert [post(url, town).status_code for _ in range(2)] == [200, 429]


def test_rates_are_set_shown_lifted_and_checked(region: Region, url: str) -> None:
    town = region.make_town()
    region.command("rate", "set", town.code, "--requests", "1")
    region.command("rate", "set", town.code, "--each-person", "--requests", "20", "--tokens", "9000")
    assert json.loads(region.command("rate", "show", town.code, "--json").stdout) == {
        "weight": 1,
        "rates": {"town": {"requests": 1, "tokens": None}, "person": {"requests": 20, "tokens": 9000}},
    }
    assert "重みを3" in region.command("rate", "set", town.code, "--weight", "3").stdout
    assert "混んだときの重み：3" in region.command("rate", "show", town.code).stdout
    assert "職員1人の1分あたりの上限：要求20、トークン9,000" in region.command("rate", "show", town.code).stdout
    eventually(lambda: post(url, town).status_code == 429)
    region.command("rate", "set", town.code, "--lift")
    eventually(lambda: post(url, town).status_code == 200)
    wrongs = (
        (), ("--requests", "0"), ("--lift", "--requests", "1"), ("--app", "a", "--model", "b", "--tokens", "1"),
        ("--model", "standard", "--lift"), ("--weight", "101"), ("--weight", "2", "--each-key"),
        ("--weight", "2", "--requests", "9"),
    )  # fmt: skip
    for wrong in wrongs:
        assert region.command("rate", "set", town.code, *wrong, check=False).returncode == 1
