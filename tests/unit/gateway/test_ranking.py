"""What a server says of a ranking is believed only as far as it can be one of what was sent."""

import json
from typing import Any

import pytest

from gateway.server.providers.base import Operation, UpstreamRequest, Usage
from gateway.server.providers.catalogue import load_catalogue
from gateway.server.providers.factory import compile_all
from gateway.server.providers.openai_wire import ranked_usage_of
from gateway.server.providers.ranking import scores_in, written
from gateway.server.settings import ProviderSettings

[DEPLOYMENT] = [d for d in compile_all(ProviderSettings(), production=False) if d.alias == "sample-rerank"]


def asked(**more: Any) -> UpstreamRequest:
    body = {"query": "町", "documents": ["一", "二", "三"], **more}
    return UpstreamRequest(DEPLOYMENT, Operation.RERANK, body, stream=False, call_id="")


YES: object = True


def result(index: object, score: object, **more: Any) -> dict[str, Any]:
    return {"index": index, "relevance_score": score, **more}


ALL = [result(2, 0.5), result(0, 2), result(1, -3.5)]


def test_best_first_whatever_the_order_and_nothing_else() -> None:
    said = [one | {"document": {"text": "一"}, "logit": 1} for one in ALL]
    scores = scores_in(said, asked())
    assert scores is not None
    answer = json.loads(written(asked(), scores, Usage(9, 0)))
    assert answer["results"] == [result(0, 2), result(2, 0.5), result(1, -3.5)]
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert json.loads(written(asked(top_n=1), scores, None))["results"] == [result(0, 2)]
    # Documents that are as good as each other stay in the caller's order.
    assert [r["index"] for r in json.loads(written(asked(), [(2, 0.0), (0, 0.0)], None))["results"]] == [0, 2]


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        [],
        ALL[:2],
        [*ALL[:2], result(3, 1)],
        [*ALL[:2], result(-1, 1)],
        [*ALL[:2], result(2, 1)],
        [*ALL[:2], result("1", 1)],
        [*ALL[:2], result(YES, 1)],
        [*ALL[:2], result(1, None)],
        [*ALL[:2], result(1, YES)],
        [*ALL[:2], result(1, float("nan"))],
        [*ALL[:2], "1"],
        [*ALL[:2], {"index": 1, "score": 1}],
    ],
)
def test_what_is_no_ranking_is_not_passed_on(said: object) -> None:
    assert scores_in(ALL, asked()) is not None
    assert scores_in(said, asked()) is None


def test_a_server_that_was_asked_for_the_best_need_not_tell_the_rest() -> None:
    assert scores_in(ALL[:2], asked(top_n=2)) == [(2, 0.5), (0, 2)]
    assert scores_in(ALL[:1], asked(top_n=2)) is None
    assert scores_in([*ALL[:2], result(0, 1)], asked(top_n=2)) is None


def test_a_sum_is_a_count_too() -> None:
    assert ranked_usage_of({"total_tokens": 5}) == Usage(5, 0)
    assert ranked_usage_of({"prompt_tokens": 4, "total_tokens": 4}) == Usage(4, 0)
    for unclear in (None, {}, {"total_tokens": -1}, {"total_tokens": "5"}):
        assert ranked_usage_of(unclear) is None


def test_only_wires_that_can_rank_are_catalogued() -> None:
    [sample] = [e for e in load_catalogue() if e.id == "demo/sample-rerank"]
    with pytest.raises(ValueError, match="openai_wire"):
        type(sample).model_validate(sample.model_dump() | {"wire": "litellm", "base_url": "https://example.jp"})
