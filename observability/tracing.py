"""OpenTelemetry traces, exported by OTLP over HTTP when an endpoint is set; otherwise nothing is recorded."""

from opentelemetry import trace
from opentelemetry.trace import Tracer


def configure_tracing(*, endpoint: str, service: str) -> Tracer:
    """The process's tracer; without an endpoint the API's no-op tracer, so that callers need no condition."""
    if not endpoint:
        return trace.NoOpTracer()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service, "service.namespace": "kumiai"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return provider.get_tracer("kumiai")
