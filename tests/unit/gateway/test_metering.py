"""The bound before a call holds what a vendor adds of its own."""

from typing import Any

import orjson

from gateway.contracts import ModelRequest, parse_request
from gateway.server.metering import prompt_bound, prompt_of
from gateway.server.providers.base import TOOL_TOKENS
from tests.deployments import a_deployment

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def asked(**more: Any) -> ModelRequest:
    return parse_request(
        "chat/completions", orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "水"}], **more})
    )


def test_a_vendor_s_words_on_tools_are_bounded_where_there_are_tools() -> None:
    none, known = a_deployment(tool_tokens=0), a_deployment(tool_tokens=346)
    assert prompt_of(asked(tools=[TOOL]), known) - prompt_of(asked(tools=[TOOL]), none) == 346
    assert prompt_of(asked(tools=[TOOL]), a_deployment()) - prompt_of(asked(tools=[TOOL]), none) == TOOL_TOKENS
    assert prompt_of(asked(), known) == prompt_of(asked(), none)
    assert prompt_of(asked(tools=[]), known) == prompt_of(asked(tools=[]), none)


def test_they_are_bounded_beside_texts_that_were_counted() -> None:
    request = asked(tools=[TOOL])
    request.spared = {"counted": 10}
    none, known = (a_deployment(tokenizer="counted", template_tokens=0, tool_tokens=n) for n in (0, 346))
    assert prompt_of(request, known) - prompt_of(request, none) == 346


def test_without_a_deployment_the_most_is_presumed() -> None:
    request = asked(tools=[TOOL])
    assert prompt_bound(request) == prompt_bound(request, tool_tokens=0) + TOOL_TOKENS
