"""What `/v1` refuses, and how: OpenAI's error shape, a stable code, the field's name, and nothing sent or held."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import OpenAI

from loadtests.upstream import RunningUpstream
from tests.contract.api.conftest import EMBEDDING, ONPREM, SAMPLE
from tests.contract.api.test_chat import ASK, PIXEL, TOOL
from tests.gateways import Region, RunningGateway, Town, eventually

CHAT = "/v1/chat/completions"
HOT = [CHAT, "/v1/completions", "/v1/embeddings"]


def post(gateway: RunningGateway, town: Town, body: bytes | str | dict[str, Any], **headers: str) -> httpx.Response:
    """What no well-behaved client sends."""
    content = json.dumps(body) if isinstance(body, dict) else body
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return httpx.post(
        gateway.url + CHAT,
        content=content,
        headers={"authorization": f"Bearer {town.key}", "content-type": "application/json"} | named,
        timeout=30,
        trust_env=False,
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object, after checking that it has OpenAI's shape and nothing else."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert any(ord(character) > 0x3000 for character in body["error"]["message"])
    error: dict[str, Any] = body["error"]
    return error


# ── Who ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [*HOT, "/v1/models", "/v1/models/standard"])
def test_nobody_is_let_in_without_a_key(gateway: RunningGateway, town: Town, path: str) -> None:
    method = "GET" if "models" in path else "POST"
    answer = httpx.request(method, gateway.url + path, trust_env=False)
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "no_credential"
    assert error_of(answer)["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"
    known = httpx.request(
        method, gateway.url + path, headers={"authorization": f"Bearer {town.key}"}, json={}, trust_env=False
    )
    assert known.status_code in (200, 400)


def test_wrong_key_is_the_client_s_authentication_error(gateway: RunningGateway, town: Town) -> None:
    wrong = town.client(gateway.url, api_key=town.key[:-1] + ("y" if town.key[-1] == "x" else "x"))
    with wrong as client, pytest.raises(openai.AuthenticationError) as refused:
        client.chat.completions.create(model=ONPREM, messages=ASK)
    assert refused.value.code == "invalid_api_key"


def test_two_credentials_are_one_too_many(gateway: RunningGateway, town: Town) -> None:
    assert post(gateway, town, {"model": ONPREM, "messages": ASK}).status_code == 200
    answer = post(gateway, town, {"model": ONPREM, "messages": ASK}, x_api_key=town.key)
    assert answer.status_code == 401


# ── What ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-2", messages=ASK)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_method_is_an_error_of_the_same_shape(gateway: RunningGateway, town: Town, method: str) -> None:
    answer = httpx.request(method, gateway.url + CHAT, headers={"authorization": f"Bearer {town.key}"}, trust_env=False)
    assert answer.status_code in (404, 405)
    error_of(answer)


def test_unknown_address_is_an_error_of_the_same_shape(gateway: RunningGateway) -> None:
    answer = httpx.post(gateway.url + "/v1/nothing", json={}, trust_env=False)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "not_found"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_wrong_method_for_the_list_of_models(gateway: RunningGateway, method: str) -> None:
    answer = httpx.request(method, gateway.url + "/v1/models", trust_env=False)
    assert answer.status_code == 405
    assert error_of(answer)["code"] == "method_not_allowed"


WRONG: list[tuple[str, Any, str]] = [
    ("temperature", 3, "temperature"),
    ("temperature", "warm", "temperature"),
    ("top_p", -1, "top_p"),
    ("n", 0, "n"),
    ("n", 99, "n"),
    ("n", True, "n"),
    ("max_tokens", 0, "max_tokens"),
    ("max_completion_tokens", 1.5, "max_completion_tokens"),
    ("stop", ["a", "b", "c", "d", "e"], "stop"),
    ("seed", 2**64, "seed"),
    ("logit_bias", {"x": 1}, "logit_bias"),
    ("logprobs", 1, "logprobs"),
    ("top_logprobs", 21, "top_logprobs"),
    ("stream", "yes", "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("tool_choice", "sometimes", "tool_choice"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
    ("tools", [{"type": "function", "function": {"name": 1}}], "tools[0].function.name"),
    ("messages", [], "messages"),
    ("messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "user"}], "messages[0].content"),
    ("messages", [{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].input_audio"),
    ("messages", [{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ("model", "", "model"),
    ("model", None, "model"),
]


@pytest.mark.parametrize(("field", "value", "param"), WRONG)
def test_wrong_field_is_named(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, field: str, value: Any, param: str
) -> None:
    body = {"model": ONPREM, "messages": ASK}
    assert post(gateway, town, body).status_code == 200
    answer = post(gateway, town, body | {field: value})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_request"
    assert error_of(answer)["type"] == "invalid_request_error"
    assert error_of(answer)["param"] == param
    assert onprem.seen()["calls"] == 1


REMOTE_IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
LOCAL_FILE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
NOT_AN_IMAGE = {"type": "image_url", "image_url": {"url": "data:text/html;base64,PGI+"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}
NOT_BASE64 = {"type": "image_url", "image_url": {"url": "data:image/png;base64,あ"}}
# Each makes the upstream fetch, keep or run something by itself.
DANGEROUS: list[tuple[dict[str, Any], str]] = [
    ({"store": True}, "store"),
    ({"tools": [{"type": "web_search_preview"}]}, "tools[0].type"),
    ({"tools": [TOOL, {"type": "code_interpreter"}]}, "tools[1].type"),
    ({"tools": [{"type": "mcp", "server_url": "https://example.com"}]}, "tools[0].type"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"data_sources": [{"type": "azure_search"}]}, "data_sources"),
    ({"messages": [{"role": "user", "content": [REMOTE_IMAGE]}]}, "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": [SOUND]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [FILE]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [LOCAL_FILE]}]}, "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": [NOT_AN_IMAGE]}]}, "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": [NOT_BASE64]}]}, "messages[0].content[0].image_url.url"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "https://example.com/s"}}}},
        "response_format.json_schema.schema",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"$ref": "http://example.com/s"}}}]},
        "tools[0].function.parameters",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), DANGEROUS)
def test_what_would_leave_our_hands_is_refused(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, change: dict[str, Any], param: str
) -> None:
    answer = post(gateway, town, {"model": ONPREM, "messages": ASK} | change)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert onprem.seen()["calls"] == 0


def test_an_image_inside_the_request_is_none_of_these(gateway: RunningGateway, town: Town) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    body = {"model": ONPREM, "messages": [{"role": "user", "content": [image]}], "store": False}
    assert post(gateway, town, body).status_code == 200


# ── The body ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"onprem","messages":[{"role":"user","content":"a"}],"model":"standard"}',
        '{"model":"onprem","messages":[{"role":"user","content":"a","content":"b"}]}',
        '{"model":"onprem","messages":[{"role":"user","content":"a"}],"\\u006dodel":"standard"}',
    ],
)
def test_duplicate_keys(gateway: RunningGateway, town: Town, body: str) -> None:
    answer = post(gateway, town, body)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "duplicate_key"
    assert error_of(answer)["param"] in ("model", "content")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe{}", b"{" * 50_000, b'{"a":' * 50_000,
        b'{"model":"onprem","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"onprem","temperature":NaN,"messages":[{"role":"user","content":"a"}]}',
        b'{"model":"onprem","temperature":1e999,"messages":[{"role":"user","content":"a"}]}',
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(gateway: RunningGateway, town: Town, body: bytes) -> None:
    answer = post(gateway, town, body)
    assert answer.status_code == 400
    error_of(answer)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "maximum": 10**30},
        {"type": "number", "maximum": float("inf")},
    ],
)
def test_a_schema_no_wire_can_carry_is_refused(gateway: RunningGateway, town: Town, schema: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "a", "parameters": schema}}
    answer = post(
        gateway, town, json.dumps({"model": ONPREM, "messages": ASK, "tools": [tool]}).replace("Infinity", "1e999")
    )
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "tools[0].function.parameters"


def test_a_schema_may_be_deep_but_not_bottomless(gateway: RunningGateway, town: Town) -> None:
    def nested(depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        for _ in range(depth):
            schema = {"type": "object", "properties": {"a": schema}}
        return schema

    def ask(depth: int) -> httpx.Response:
        shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": nested(depth)}}
        return post(gateway, town, {"model": ONPREM, "messages": ASK, "response_format": shape})

    assert ask(20).status_code == 200
    assert ask(200).status_code == 400
    assert error_of(ask(200))["param"] == "response_format.json_schema.schema"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type(gateway: RunningGateway, town: Town, kind: str) -> None:
    answer = post(gateway, town, {"model": ONPREM, "messages": ASK}, content_type=kind)
    assert answer.status_code == 400
    error_of(answer)
    assert post(
        gateway, town, {"model": ONPREM, "messages": ASK}, content_type="application/json; charset=utf-8"
    ).status_code == 200  # fmt: skip


def test_compressed_body(gateway: RunningGateway, town: Town) -> None:
    assert post(gateway, town, b"\x1f\x8b", content_encoding="gzip").status_code == 400


def test_large_body_is_cut_off_by_its_announced_length(gateway: RunningGateway, town: Town) -> None:
    answer = post(gateway, town, b" " * (16 * 1024 * 1024 + 1))
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"


def test_large_body_is_cut_off_without_one(gateway: RunningGateway, town: Town) -> None:
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    headers = {"authorization": f"Bearer {town.key}", "content-type": "application/json"}
    connection.request("POST", CHAT, body=(b" " * 65_536 for _ in range(257)), headers=headers, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "body_too_large"
    connection.close()


def test_a_large_body_within_the_cap_is_answered(gateway: RunningGateway, town: Town) -> None:
    text = "町" * 1_000_000
    answer = post(gateway, town, {"model": SAMPLE, "messages": [{"role": "user", "content": text}], "max_tokens": 5})
    assert answer.status_code == 200


# ── Left out and named ───────────────────────────────────────────────────────────────────────────────────────────


def test_unknown_fields_are_dropped_and_named(client: OpenAI, onprem: RunningUpstream) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=ONPREM,
        messages=[{"role": "user", "content": "a", "cache_control": {"type": "ephemeral"}}],  # type: ignore[typeddict-unknown-key]
        metadata={"ticket": "12"},
        extra_body={"service_tier": "flex", "Größe": 1},
    )
    named = raw.headers["kumiai-ignored-parameters"].split(", ")
    assert set(named) == {"metadata", "service_tier", "messages[].cache_control", "Gr??e"}
    [sent] = onprem.seen()["requests"]
    assert set(sent["body"]) == {"model", "messages", "max_tokens"}
    assert sent["body"]["messages"] == [{"role": "user", "content": "a"}]


def test_a_field_s_name_cannot_write_headers(gateway: RunningGateway, town: Town) -> None:
    field = "x\r\nset-cookie: kumiai_session=stolen\r\nx"
    answer = post(gateway, town, {"model": ONPREM, "messages": ASK, field: 1})
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert "\r" not in answer.headers["kumiai-ignored-parameters"]


def test_a_thousand_unknown_fields_do_not_flood_the_header(gateway: RunningGateway, town: Town) -> None:
    answer = post(gateway, town, {"model": ONPREM, "messages": ASK, **{f"field_{i}": 1 for i in range(1000)}})
    assert answer.status_code == 200
    assert len(answer.headers["kumiai-ignored-parameters"]) < 2_000


def test_null_means_not_given(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    nothing = dict.fromkeys(["temperature", "n", "stop", "tools", "stream", "stream_options", "store", "seed", "user"])
    assert post(gateway, town, {"model": ONPREM, "messages": ASK, **nothing}).status_code == 200
    [sent] = onprem.seen()["requests"]
    assert set(sent["body"]) == {"model", "messages", "max_tokens"}


# ── What a refusal costs ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_request_holds_nothing(region: Region, gateway: RunningGateway, town: Town) -> None:
    before = len(region.calls(town))
    assert post(gateway, town, {"model": ONPREM, "messages": ASK, "temperature": 9}).status_code == 400
    assert post(gateway, town, {"model": EMBEDDING, "messages": ASK}).status_code == 400
    assert len(region.calls(town)) == before


def test_every_refusal_has_a_number_to_ask_about(gateway: RunningGateway, town: Town) -> None:
    answer = post(gateway, town, {"model": ONPREM})
    assert len(answer.headers["kumiai-call-id"]) == 36
    eventually(lambda: any(line.get("call_id") == answer.headers["kumiai-call-id"] for line in gateway.log()))
