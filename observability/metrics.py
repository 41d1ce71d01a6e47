"""Prometheus metrics of the processes. No label ever names a tenant or a person; see `tenants.quota` for town figures."""

from functools import lru_cache
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Labelled = TypeVar("Labelled", Counter, Gauge, Histogram)

REGISTRY = CollectorRegistry()
# Memory, processor time and open files, under the names that every dashboard knows.
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

CALLS = Counter(
    "kumiai_calls",
    "Model calls by how they ended.",
    ("operation", "zone", "outcome"),
    registry=REGISTRY,
)
TOKENS = Counter("kumiai_tokens", "Tokens billed by upstreams.", ("direction",), registry=REGISTRY)
FIRST_BYTE_SECONDS = Histogram(
    "kumiai_first_byte_seconds",
    "From request to the first byte of the answer.",
    ("operation",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
CALL_SECONDS = Histogram(
    "kumiai_call_seconds",
    "From request to the last byte of the answer.",
    ("operation",),
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    registry=REGISTRY,
)
CALLS_IN_FLIGHT = Gauge("kumiai_calls_in_flight", "Model calls being served now.", registry=REGISTRY)
QUEUE_WAITING = Gauge("kumiai_queue_waiting", "Model calls waiting for their turn now.", registry=REGISTRY)
PROBLEMS = Counter("kumiai_problems", "Expected failures by type.", ("type",), registry=REGISTRY)
BREAKER_STATE = Gauge(
    "kumiai_breaker_state",
    "Whether a deployment is asked by this process: 0 yes, 1 one call tries it, 2 no.",
    ("deployment",),
    registry=REGISTRY,
)
PROBES = Counter(
    "kumiai_probes",
    "Probes of deployments whose breaker was open, by how they ended; one gateway makes them for all.",
    ("deployment", "outcome"),
    registry=REGISTRY,
)
RETRIES = Counter(
    "kumiai_retries",
    "Attempts beyond a call's first: made, or refused because their share of all calls was used up.",
    ("outcome",),
    registry=REGISTRY,
)
ABOVE_HOLD = Counter(
    "kumiai_above_hold",
    "Calls whose cost, by the provider's own count, came to more than was held; what is above it no town pays.",
    ("deployment",),
    registry=REGISTRY,
)
HEDGES = Counter(
    "kumiai_hedges",
    "Calls that took longer than usual and may be on two servers: who answered (first, second, neither), left when it "
    "was ended before, held_back when no second copy was sent.",
    ("outcome",),
    registry=REGISTRY,
)
GUARD_FINDINGS = Counter(
    "kumiai_guard_findings",
    "What the guard found in calls, by kind and by what was done.",
    ("kind", "action"),
    registry=REGISTRY,
)
LEDGER_BATCH_ITEMS = Histogram(
    "kumiai_ledger_batch_items",
    "Reserves and settles committed together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=REGISTRY,
)
LEDGER_COMMIT_SECONDS = Histogram(
    "kumiai_ledger_commit_seconds",
    "One ledger transaction, begin to commit.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1),
    registry=REGISTRY,
)
EVENT_LOOP_LAG_SECONDS = Histogram(
    "kumiai_event_loop_lag_seconds",
    "How much later than it asked for the process's event loop came round, asked twice a second.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
PAGES = Counter("kumiai_pages", "Portal requests by status class.", ("app", "status"), registry=REGISTRY)
JOBS = Counter("kumiai_jobs", "Worker jobs by how they ended.", ("kind", "outcome"), registry=REGISTRY)


@lru_cache(maxsize=4_096)
def of(metric: Labelled, *labels: str) -> Labelled:
    """The child of a metric for its labels, remembered: looking it up costs more than counting."""
    return metric.labels(*labels)


def exposition() -> tuple[bytes, str]:
    """The scrape body and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
