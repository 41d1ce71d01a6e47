"""What a ranking says, whoever made it: places in the caller's list with their scores, best first, and no text."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from gateway.server.providers.base import UpstreamRequest, Usage


def written(request: UpstreamRequest, scores: Iterable[tuple[int, float]], usage: Usage | None) -> bytes:
    """The answer to `request`. scores: place and score of documents, in any order."""
    best = sorted(scores, key=lambda one: (-one[1], one[0]))[: _top(request.body)]
    answer: dict[str, Any] = {
        "object": "list",
        "model": request.deployment.upstream_model,
        "results": [{"index": index, "relevance_score": score} for index, score in best],
    }
    if usage is not None:
        answer["usage"] = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return orjson.dumps(answer)


def scores_in(results: object, request: UpstreamRequest) -> list[tuple[int, float]] | None:
    """Places and scores as Jina, Cohere, vLLM and llama.cpp tell them; None when they are no ranking of what was sent."""
    documents = request.body["documents"]
    if not isinstance(results, list) or not isinstance(documents, list):
        return None
    found: dict[int, float] = {}
    for result in results:
        index = result.get("index") if isinstance(result, dict) else None
        score = result.get("relevance_score") if isinstance(result, dict) else None
        if type(index) is not int or not 0 <= index < len(documents) or index in found:
            return None
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            return None
        found[index] = score
    return list(found.items()) if len(found) >= _top(request.body) else None


def _top(body: Mapping[str, object]) -> int:
    top, documents = body.get("top_n"), body["documents"]
    assert isinstance(documents, list)
    return min(top, len(documents)) if isinstance(top, int) else len(documents)
