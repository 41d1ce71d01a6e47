"""`/v1/rerank`: what is sent, what comes back and what it costs, before a server in the house and a priced one abroad."""

from typing import Any

import cohere
import httpx
import pytest
import yaml

from gateway.server.providers.catalogue import load_catalogue
from loadtests.upstream import RunningUpstream
from tenants.db import DatabaseUrls
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.own_region import gateway, town

__all__ = ["gateway", "town"]

ONPREM = "rerank"
OVERSEAS = "far-rerank"
SAMPLE = "sample-rerank"
UYEN_PER_TOKEN = 7_000
DOCUMENTS = ["ごみは火曜日と金曜日に出してください。", "保育所の申込期限は11月30日です。", "図書館は月曜日に休みます。"]
CLASS_1 = {"kumiai-data-class": "1"}


@pytest.fixture(scope="module")
def region(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: DatabaseUrls,
    onprem_process: RunningUpstream,
    overseas_process: RunningUpstream,
) -> Region:
    home = tmp_path_factory.mktemp("rerank")
    [shipped] = [e for e in load_catalogue() if e.id == "sakura/multilingual-e5-large"]
    price = {
        "currency": "JPY", "input_u_per_mtok": UYEN_PER_TOKEN * 1_000_000, "output_u_per_mtok": 0,
        "source": "見本の単価", "checked": "2026-11-24",
    }  # fmt: skip
    far = shipped.model_dump(mode="json") | {
        "id": "far/rerank", "aliases": [OVERSEAS], "base_url": f"{overseas_process.url}/v1", "key_from": "", "needs": [],
        "zone": "overseas", "country": "US", "operations": ["rerank"], "price": price,
    }  # fmt: skip
    own = home / "own.yaml"
    own.write_text(yaml.safe_dump({"deployments": [far]}), "utf-8")
    return Region.on_sqlite(
        home,
        sqlite_template,
        KUMIAI_CATALOGUE_FILE=str(own),
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=f"{onprem_process.url}/v1",
        KUMIAI_OPENAI_COMPATIBLE_MODEL="fake-chat",
        KUMIAI_OPENAI_COMPATIBLE_RERANK_MODEL="fake-rerank",
    )


def rank(
    gateway: RunningGateway,
    key: str,
    model: str = ONPREM,
    headers: Any = None,
    path: str = "/v1/rerank",
    **more: Any,
) -> httpx.Response:
    body = {"model": model, "query": "保育園の申込期限", "documents": DOCUMENTS} | more
    return httpx.post(
        f"{gateway.url}{path}",
        json=body,
        headers={"authorization": f"Bearer {key}"} | (headers or {}),
        trust_env=False,
        timeout=60,
    )


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def arrived(gateway: RunningGateway, town: Town) -> Town:
    """The town, once the gateway knows it."""
    eventually(lambda: rank(gateway, town.key, SAMPLE).status_code != 401)
    return town


def test_documents_are_told_by_their_places_best_first(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream
) -> None:
    answered = rank(gateway, town.key)
    assert answered.status_code == 200, answered.text
    answer = answered.json()
    # The server there quotes what it ranked; nothing of it comes back.
    assert [set(one) for one in answer["results"]] == [{"index", "relevance_score"}] * 3
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert {one["index"] for one in answer["results"]} == {0, 1, 2}
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    assert (answered.headers["kumiai-zone"], answered.headers["kumiai-data-class"]) == ("onprem", "1")
    [sent] = onprem.seen()["requests"]
    assert sent["path"] == "/v1/rerank"
    assert sent["body"] == {"model": "fake-rerank", "query": "保育園の申込期限", "documents": DOCUMENTS}


def test_cohere_s_client_works_unmodified(
    gateway: RunningGateway, region: Region, town: Town, onprem: RunningUpstream
) -> None:
    bare = rank(gateway, town.key, top_n=2).json()["results"]
    with httpx.Client(trust_env=False) as http:
        client = cohere.ClientV2(api_key=town.key, base_url=gateway.url, httpx_client=http, max_retries=0)
        ranked = client.rerank(
            model=ONPREM, query="保育園の申込期限", documents=DOCUMENTS, top_n=2, max_tokens_per_doc=512
        )
        assert [{"index": r.index, "relevance_score": r.relevance_score} for r in ranked.results] == bare
        assert onprem.seen()["requests"][-1]["body"].keys() == {"model", "query", "documents", "top_n"}
        with pytest.raises(cohere.BadRequestError) as wrong:
            client.rerank(model=ONPREM, query="", documents=DOCUMENTS)
        assert wrong.value.body["error"]["param"] == "query"
        with pytest.raises(cohere.NotFoundError):
            client.rerank(model="rerank-none", query="町", documents=DOCUMENTS)
        poor = region.make_town(month_yen=0)
        eventually(lambda: rank(gateway, poor.key, SAMPLE).status_code != 401)
        with pytest.raises(cohere.TooManyRequestsError):
            cohere.ClientV2(api_key=poor.key, base_url=gateway.url, httpx_client=http, max_retries=0).rerank(
                model=OVERSEAS, query="町", documents=DOCUMENTS
            )
        with pytest.raises(cohere.UnauthorizedError):
            cohere.ClientV2(api_key="kmi_x", base_url=gateway.url, httpx_client=http, max_retries=0).rerank(
                model=ONPREM, query="町", documents=DOCUMENTS
            )


def test_the_sample_finds_what_shares_its_words(gateway: RunningGateway, town: Town) -> None:
    best, *_ = rank(gateway, town.key, SAMPLE).json()["results"]
    assert best["index"] == 1


@pytest.mark.parametrize("model", [SAMPLE, ONPREM])
def test_the_best_alone(gateway: RunningGateway, town: Town, onprem: RunningUpstream, model: str) -> None:
    every = rank(gateway, town.key, model).json()["results"]
    assert rank(gateway, town.key, model, top_n=2).json()["results"] == every[:2]
    assert rank(gateway, town.key, model, top_n=99).json()["results"] == every


def test_documents_may_be_objects_with_a_text(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    answered = rank(gateway, town.key, documents=[{"text": "町", "page": 1}, "村"], return_documents=True, user="x")
    assert onprem.seen()["requests"][-1]["body"]["documents"] == ["町", "村"]
    assert not {"user", "return_documents"} & onprem.seen()["requests"][-1]["body"].keys()
    assert answered.headers["kumiai-ignored-parameters"] == "documents[].page, return_documents"


def test_it_is_paid_for_by_what_the_server_counted(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream
) -> None:
    town = arrived(gateway, region.make_town())
    answer = rank(gateway, town.key, OVERSEAS, CLASS_1).json()
    *_, call = region.settled(town, 2)
    assert (call.operation, call.usage_source) == ("rerank", "provider")
    assert call.cost_uyen == answer["usage"]["total_tokens"] * UYEN_PER_TOKEN
    # The question is read beside every document, so it is held for as often.
    read = sum(len(d.encode()) for d in DOCUMENTS) + 3 * len("保育園の申込期限".encode())
    assert call.hold_uyen >= read * UYEN_PER_TOKEN
    assert region.budget(town).held_uyen == 0


def test_what_nobody_counted_costs_its_bound(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream
) -> None:
    town = arrived(gateway, region.make_town())
    overseas.control("no_usage")
    answered = rank(gateway, town.key, OVERSEAS, CLASS_1)
    assert "usage" not in answered.json()
    *_, call = region.settled(town, 2)
    assert call.cost_uyen == call.hold_uyen > 0


def test_without_money_it_is_refused(gateway: RunningGateway, region: Region, overseas: RunningUpstream) -> None:
    town = region.make_town(month_yen=0)
    eventually(lambda: rank(gateway, town.key, OVERSEAS, CLASS_1).status_code != 401)
    assert code_of(rank(gateway, town.key, OVERSEAS, CLASS_1)) == (429, "quota_exceeded")
    assert overseas.seen()["calls"] == 0


def test_a_class_that_may_not_go_there_is_refused(
    gateway: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    assert code_of(rank(gateway, town.key, OVERSEAS, {"kumiai-data-class": "3C"})) == (403, "zone_refused")
    assert overseas.seen()["calls"] == 0


def test_every_document_and_the_question_are_looked_at(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    phone, secret = "電話は 090-1234-5678 です", "マイナンバーは 1234 5678 9018 です"
    for more in ({"query": phone}, {"documents": [*DOCUMENTS, phone]}, {"documents": [{"text": phone}]}):
        assert code_of(rank(gateway, town.key, OVERSEAS, CLASS_1, **more)) == (403, "personal_data_found")
    for more in ({"query": secret}, {"documents": [*DOCUMENTS, secret]}, {"documents": [{"text": secret}]}):
        assert code_of(rank(gateway, town.key, **more)) == (403, "my_number_found")
    assert onprem.seen()["calls"] == overseas.seen()["calls"] == 0


def test_what_is_masked_is_ranked_without_being_seen(
    gateway: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    documents = ["山田太郎様 090-1234-5678", "図書館"]
    answered = rank(gateway, town.key, OVERSEAS, CLASS_1 | {"kumiai-mask": "1"}, documents=documents)
    assert answered.status_code == 200, answered.text
    assert answered.headers["kumiai-masked"] == "1"
    assert overseas.seen()["requests"][-1]["body"]["documents"] == ["⟦氏名1⟧様 ⟦電話1⟧", "図書館"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": ["町"]}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "町"}, "documents"),
        ({"documents": ["町"] * 1_001}, "documents"),
        ({"documents": ["町", ""]}, "documents[1]"),
        ({"documents": [{"image": "https://example.jp/a.png"}]}, "documents[0]"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
    ],
)
def test_what_is_wrong_is_named(gateway: RunningGateway, town: Town, more: dict[str, Any], param: str) -> None:
    answered = rank(gateway, town.key, **more)
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, param)


def test_a_model_for_other_things_does_not_rank(gateway: RunningGateway, town: Town) -> None:
    assert code_of(rank(gateway, town.key, "fake-chat")) == (400, "not_supported_by_model")
    assert code_of(rank(gateway, town.key, "rerank-none")) == (404, "model_not_found")


def test_a_key_needs_its_scope(gateway: RunningGateway, region: Region, town: Town) -> None:
    for scope, status in (("rerank", 200), ("embeddings", 403), ("chat", 403)):
        key = region.make_key(town, scopes=frozenset({scope}))
        assert rank(gateway, key, SAMPLE).status_code == status
        assert rank(gateway, key, SAMPLE, path="/v2/rerank").status_code == status


@pytest.mark.parametrize("mode", ["garbage", "end_early", "error"])
def test_a_server_that_fails_is_told(
    gateway: RunningGateway, region: Region, overseas: RunningUpstream, mode: str
) -> None:
    town = arrived(gateway, region.make_town())
    overseas.control(mode)
    status, code = code_of(rank(gateway, town.key, OVERSEAS, CLASS_1))
    assert status in (502, 503) and code.startswith("upstream_")
    region.settled(town, 2)
    assert region.budget(town).held_uyen == 0


def test_the_same_call_is_made_once(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    first, second = (rank(gateway, town.key, headers={"idempotency-key": "rank-1"}) for _ in range(2))
    assert first.json() == second.json()
    assert onprem.seen()["calls"] == 1
