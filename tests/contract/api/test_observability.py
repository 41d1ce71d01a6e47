"""What an operator sees of a call, in logs, metrics and traces, and that none of it is what somebody wrote."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from loadtests.upstream import PIECES, RunningUpstream
from tenants.db import DatabaseUrls
from tests.contract.api.conftest import ONPREM, SAMPLE
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.own_region import gateway, town

__all__ = ["gateway", "town"]

CANARY = "柘榴カナリアQ7"
# What the fake upstream writes; it must not be found either.
ANSWER = "".join(PIECES)


class Receiver:
    """An OTLP endpoint that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    receiver.bodies.append(body)
                    sent = ExportTraceServiceRequest.FromString(body)
                    receiver.spans += [s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def of(self, call_id: str) -> Span:
        def found() -> Span | None:
            return next((s for s in self.spans if attributes(s).get("kumiai.call.id") == call_id), None)

        span = eventually(found)
        assert span is not None
        return span


def attributes(span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        told[pair.key] = getattr(pair.value, kind)
    return told


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def region(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: DatabaseUrls,
    onprem_process: RunningUpstream,
    receiver: Receiver,
) -> Region:
    return Region.on_sqlite(
        tmp_path_factory.mktemp("observed"),
        sqlite_template,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=f"{onprem_process.url}/v1",
        KUMIAI_OPENAI_COMPATIBLE_MODEL="fake-chat",
        KUMIAI_OTLP_ENDPOINT=receiver.url,
        KUMIAI_LOG_LEVEL="DEBUG",
        OTEL_BSP_SCHEDULE_DELAY="100",
    )


def ask(
    gateway: RunningGateway, town: Town, *, model: str = ONPREM, headers: Any = None, **rest: Any
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": f"{CANARY}について"}], **rest}
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {town.key}", **(headers or {})},
        timeout=30,
        trust_env=False,
    )


# ── Logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_one_event_with_numbers(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    call_id = ask(gateway, town, stream=True).headers["kumiai-call-id"]
    [event] = eventually(lambda: [line for line in gateway.log() if line.get("call_id") == call_id])
    assert event["event"] == "call_finished"
    assert (event["level"], event["process"]) == ("info", "gateway")
    assert event["tenant_id"] == str(town.id)
    assert (event["operation"], event["alias"], event["zone"]) == ("chat/completions", ONPREM, "onprem")
    assert (event["data_class"], event["streamed"], event["finish_reason"]) == ("1", True, "stop")
    assert event["completion_tokens"] == len(PIECES)
    assert event["first_byte_ms"] <= event["total_ms"]
    assert event["problem"] == ""


def test_every_line_is_an_event_in_json(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    ask(gateway, town)
    lines = gateway.log()
    assert lines
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)


@pytest.fixture
def own_gateway(region: Region, town: Town) -> Iterator[RunningGateway]:
    with region.gateway() as running:
        yield running


def test_nothing_that_somebody_wrote_is_left_anywhere(
    region: Region, own_gateway: RunningGateway, town: Town, onprem: RunningUpstream, receiver: Receiver
) -> None:
    """Every way a call can go, with the canary wherever a caller can put it; the upstream's errors repeat it, too."""
    gateway = own_gateway
    schema = {"type": "object", "properties": {CANARY: {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "a", "description": CANARY, "parameters": schema}}
    called = 0

    def call(**rest: Any) -> None:
        nonlocal called
        called += ask(gateway, town, **rest).status_code > 0

    call()
    call(stream=True)
    call(model=SAMPLE)
    call(model=SAMPLE, stream=True)
    call(tools=[tool], tool_choice="required")
    call(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    call(model=CANARY)
    call(user=CANARY, metadata={CANARY: CANARY}, **{CANARY: CANARY})
    call(temperature=CANARY)
    call(headers={"kumiai-data-class": CANARY.encode()})
    call(headers={"traceparent": CANARY.encode()})
    call(headers={"content-type": "text/plain"})
    call(messages=[{"role": "user", "content": CANARY}, {"role": CANARY, "content": CANARY}])
    call(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"https://{CANARY}/"}}]}])
    for mode, rest in (
        ("error", {"status": 500}),
        ("error", {"status": 400}),
        ("error", {"status": 429}),
        ("garbage", {}),
        ("drop_mid_stream", {"after": 4}),
        ("error_mid_stream", {"after": 4}),
        ("garbage_mid_stream", {"after": 4}),
    ):
        onprem.control(mode, **rest)
        call(stream=True)
        call()
    onprem.control("ok")
    with town.client(gateway.url) as client:
        client.completions.create(model=ONPREM, prompt=CANARY)
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model=ONPREM, input=CANARY)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(CANARY)
    for path in (f"/v1/models/{CANARY}", f"/v1/{CANARY}", f"/{CANARY}?{CANARY}"):
        httpx.get(gateway.url + path, headers={"x-canary": CANARY.encode()}, trust_env=False)
    httpx.post(
        f"{gateway.url}/v1/chat/completions",
        content=f'{{"model": "{CANARY}", "messages": [{CANARY}'.encode(),
        headers={"authorization": f"Bearer {town.key}", "content-type": "application/json"},
        trust_env=False,
    )
    httpx.get(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {CANARY}".encode()}, trust_env=False)
    assert called == 28

    region.settled(town)
    eventually(lambda: len(receiver.spans) >= called)
    metrics = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
    gateway.stop()
    kept = {path.name: path.read_bytes() for path in region.home.rglob("*") if path.is_file()}
    kept |= {"metrics": metrics.encode(), "traces": b"".join(receiver.bodies)}
    assert gateway.log_file.name in kept and region.urls.sqlite_path.name in kept
    assert len(kept[gateway.log_file.name]) > 1_000
    assert len(kept["traces"]) > 1_000
    for forbidden in (CANARY, json.dumps(CANARY)[1:-1], ANSWER[:8], "fake upstream error", town.key.split("_")[3]):
        found = [name for name, content in kept.items() if forbidden.encode() in content]
        assert found == [], forbidden
    # The same search does find what is allowed to be there.
    assert str(town.id).encode() in kept[gateway.log_file.name]


# ── Metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────


def samples(gateway: RunningGateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_calls_are_counted_by_how_they_ended(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    before = samples(gateway)
    ask(gateway, town)
    ask(gateway, town, model="unheard-of")
    onprem.control("error", status=500)
    ask(gateway, town)
    after = samples(gateway)

    def grew(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    chat = "chat/completions"
    assert grew("kumiai_calls_total", operation=chat, zone="onprem", outcome="ok") == 1
    assert grew("kumiai_calls_total", operation=chat, zone="none", outcome="model_not_found") == 1
    assert grew("kumiai_calls_total", operation=chat, zone="onprem", outcome="upstream_unavailable") == 1
    assert grew("kumiai_problems_total", type="urn:problem:gateway:model-not-found") == 1
    assert grew("kumiai_tokens_total", direction="out") == len(PIECES)
    assert grew("kumiai_call_seconds_count", operation=chat) == 3
    assert grew("kumiai_first_byte_seconds_count", operation=chat) == 1
    assert after[("kumiai_calls_in_flight", frozenset())] == 0
    assert grew("kumiai_ledger_commit_seconds_count") > 0


def test_the_process_itself_is_measured(gateway: RunningGateway) -> None:
    found = samples(gateway)
    assert found[("process_resident_memory_bytes", frozenset())] > 10_000_000
    assert found[("process_open_fds", frozenset())] > 3


def test_no_label_names_a_town_or_a_person(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    ask(gateway, town)
    text = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
    assert "kumiai_calls_total{" in text
    for forbidden in (str(town.id), town.code, town.name, town.key.split("_")[2]):
        assert forbidden not in text
    labels = {name for _, pairs in samples(gateway) for name, _ in pairs}
    assert labels <= {"operation", "zone", "outcome", "direction", "type", "deployment", "le", "generation", "implementation", "major",
                      "minor", "patchlevel", "version", "app", "status", "kind"}  # fmt: skip


# ── Traces ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_one_span(gateway: RunningGateway, town: Town, onprem: RunningUpstream, receiver: Receiver) -> None:
    call_id = ask(gateway, town, stream=True).headers["kumiai-call-id"]
    span = receiver.of(call_id)
    told = attributes(span)
    assert span.name == told["gen_ai.operation.name"] == "chat/completions"
    assert told["gen_ai.request.model"] == ONPREM
    assert told["gen_ai.usage.output_tokens"] == len(PIECES)
    assert (told["kumiai.zone"], told["kumiai.data_class"], told["kumiai.streamed"]) == ("onprem", "1", True)
    assert span.end_time_unix_nano >= span.start_time_unix_nano
    assert sum(attributes(s).get("kumiai.call.id") == call_id for s in receiver.spans) == 1


def test_a_failed_call_is_an_error(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, receiver: Receiver
) -> None:
    onprem.control("error", status=500)
    span = receiver.of(ask(gateway, town).headers["kumiai-call-id"])
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "upstream_unavailable"


def test_a_call_joins_the_caller_s_trace(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream, receiver: Receiver
) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = ask(gateway, town, headers={"traceparent": f"00-{trace}-{parent}-01"})
    span = receiver.of(answer.headers["kumiai-call-id"])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)


def test_spans_are_sent_before_the_process_ends(region: Region, receiver: Receiver, onprem: RunningUpstream) -> None:
    town = region.make_town()
    with region.gateway(OTEL_BSP_SCHEDULE_DELAY="60000") as gateway:
        call_id = ask(gateway, town).headers["kumiai-call-id"]
        assert not any(attributes(s).get("kumiai.call.id") == call_id for s in receiver.spans)
    assert receiver.of(call_id)


# ── Health ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_health_shows_nothing_of_a_town(gateway: RunningGateway, town: Town) -> None:
    live = httpx.get(f"{gateway.url}/health/live", trust_env=False)
    ready = httpx.get(f"{gateway.url}/health/ready", trust_env=False)
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert ready.status_code == 200
    assert set(ready.json()) == {"status", "generation"}
