"""What remains of a call when it is over: one log event, metrics and a span, with ids and numbers and no content."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.contracts import ModelRequest
from gateway.guard.decision import Verdict
from gateway.server.authentication import Caller
from gateway.server.edge import header_values
from gateway.server.http import AsgiScope
from gateway.server.providers.base import Deployment, Operation, Usage
from gateway.server.rates import NOTHING, Taken
from observability import metrics, semconv
from observability.problems import Problem
from tenants.context import DataClass

log = structlog.get_logger("gateway")

_PROPAGATOR = TraceContextTextMapPropagator()


def parent_of(scope: AsgiScope) -> Context | None:
    """The caller's own trace, when it names one (W3C `traceparent`)."""
    for value in header_values(scope, b"traceparent"):
        return _PROPAGATOR.extract({"traceparent": value.decode("latin-1")})
    return None


@dataclass(slots=True)
class CallRecord:
    """Filled while the call runs; handed to `Recorder.finish` whatever happens."""

    operation: Operation
    call_id: UUID
    call_text: str
    began_at: datetime
    started: float
    tenant_id: str = ""
    app: str = ""
    alias: str = ""
    data_class: str = ""
    streamed: bool = False
    deployment_id: str = ""
    zone: str = ""
    vendor: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    cost_uyen: int = 0
    first_byte_ms: int | None = None
    problem: str = ""
    headers_sent: bool = False
    # The caller follows its place in the queue: the answer has begun, but nobody has answered yet.
    is_queued: bool = False
    rates: Taken = NOTHING
    guard: str = ""
    is_masked: bool = False
    rerouted_from: str = ""
    parent: Context | None = None

    @classmethod
    def begin(cls, operation: Operation, *, call_id: UUID, started: float) -> "CallRecord":
        """A record of a call that starts now; `started` is the monotonic clock."""
        metrics.CALLS_IN_FLIGHT.inc()
        return cls(operation, call_id, str(call_id), datetime.now(UTC), started)

    def caller(self, caller: Caller) -> None:
        self.tenant_id = str(caller.tenant_id)
        self.app = caller.app

    def request(self, request: ModelRequest, data_class: DataClass, *, is_known: bool) -> None:
        # Whatever is no model's name may be anything that somebody typed.
        self.alias = request.model if is_known else "(unknown)"
        self.streamed = request.stream
        self.data_class = data_class.value

    def weighed(self, verdict: Verdict) -> None:
        """What the guard made of it: kinds and numbers, never what they stand for."""
        self.data_class = verdict.data_class.value
        self.guard = verdict.header
        self.is_masked = verdict.is_masked

    def rerouted(self, alias: str) -> None:
        self.rerouted_from, self.alias = self.alias, alias

    def deployment(self, deployment: Deployment) -> None:
        self.deployment_id = deployment.id
        self.zone = deployment.zone.value
        self.vendor = deployment.vendor

    def first_byte(self) -> None:
        self.first_byte_ms = self.elapsed_ms()

    def usage(self, usage: Usage, finish_reason: str | None) -> None:
        self.prompt_tokens = usage.prompt_tokens
        self.completion_tokens = usage.completion_tokens
        self.finish_reason = finish_reason or ""

    def failed(self, problem: Problem) -> None:
        self.problem = problem.code

    def elapsed_ms(self) -> int:
        return int((time.monotonic() - self.started) * 1000)


@dataclass(frozen=True, slots=True)
class Recorder:
    tracer: Tracer
    traces: bool

    def finish(self, record: CallRecord) -> None:
        """Writes the event, the metrics and, when traces are exported, the span."""
        seconds = time.monotonic() - record.started
        operation = record.operation.value
        metrics.CALLS_IN_FLIGHT.dec()
        metrics.of(metrics.CALLS, operation, record.zone or "none", record.problem or "ok").inc()
        metrics.of(metrics.CALL_SECONDS, operation).observe(seconds)
        if record.first_byte_ms is not None:
            metrics.of(metrics.FIRST_BYTE_SECONDS, operation).observe(record.first_byte_ms / 1000)
        if record.prompt_tokens:
            metrics.of(metrics.TOKENS, "in").inc(record.prompt_tokens)
            metrics.of(metrics.TOKENS, "out").inc(record.completion_tokens)
        log.info(
            "call_finished",
            call_id=record.call_text,
            tenant_id=record.tenant_id,
            app=record.app,
            operation=operation,
            alias=record.alias,
            deployment=record.deployment_id,
            zone=record.zone,
            data_class=record.data_class,
            guard=record.guard,
            masked=record.is_masked,
            rerouted_from=record.rerouted_from,
            streamed=record.streamed,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            cost_uyen=record.cost_uyen,
            finish_reason=record.finish_reason,
            problem=record.problem,
            first_byte_ms=record.first_byte_ms,
            total_ms=int(seconds * 1000),
        )
        if self.traces:
            self._span(record, seconds)

    def _span(self, record: CallRecord, seconds: float) -> None:
        """One span a call, made when it is over: a span per streamed chunk would cost more than the call."""
        began_ns = int(record.began_at.timestamp() * 1e9)
        span = self.tracer.start_span(
            record.operation.value, context=record.parent, kind=SpanKind.SERVER, start_time=began_ns
        )
        span.set_attributes(
            {
                semconv.OPERATION_NAME: record.operation.value,
                semconv.PROVIDER_NAME: record.vendor,
                semconv.REQUEST_MODEL: record.alias,
                semconv.USAGE_INPUT_TOKENS: record.prompt_tokens,
                semconv.USAGE_OUTPUT_TOKENS: record.completion_tokens,
                semconv.CALL_ID: record.call_text,
                semconv.ZONE: record.zone,
                semconv.DATA_CLASS: record.data_class,
                semconv.DEPLOYMENT: record.deployment_id,
                semconv.STREAMED: record.streamed,
            }
        )
        if record.finish_reason:
            span.set_attribute(semconv.RESPONSE_FINISH_REASONS, [record.finish_reason])
        if record.first_byte_ms is not None:
            span.set_attribute(semconv.FIRST_BYTE_MS, record.first_byte_ms)
        if record.problem:
            span.set_attribute(semconv.ERROR_TYPE, record.problem)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=began_ns + int(seconds * 1e9))
