"""Every instrument of the sidecar, bound to the registry it is given.

Names have the prefix `weir_` and base units; label sets are closed. docs/metrics.md describes
each one, and a test holds the two equal.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Identity

_LATENCY_BUCKETS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
)  # fmt: skip
_SIZE_BUCKETS_BYTES: Final = tuple(256 * 4**power for power in range(10))


class Metrics:
    """The sidecar's instruments; tests make a fresh one each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        requests = Counter(
            "weir_requests_total",
            "Requests that ended, by how.",
            ["outcome"],
            registry=registry,
        )
        self.requests: dict[Outcome, Counter] = {o: requests.labels(o.value) for o in Outcome}
        self.running = Gauge(
            "weir_requests_running",
            "Requests the sidecar holds now.",
            registry=registry,
        )
        self.ttft = Histogram(
            "weir_time_to_first_token_seconds",
            "Arrival at the sidecar to the first byte sent to the client, of answers that began.",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.duration = Histogram(
            "weir_request_duration_seconds",
            "Arrival at the sidecar to the request's end.",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.body_bytes = Histogram(
            "weir_request_body_bytes",
            "Size of request bodies.",
            buckets=_SIZE_BUCKETS_BYTES,
            registry=registry,
        )
        self.streamed_bytes = Counter(
            "weir_streamed_bytes_total",
            "Bytes of answers received from the engine and relayed.",
            registry=registry,
        )
        self._tokens(registry)
        self._health(registry)

    def _tokens(self, registry: CollectorRegistry) -> None:
        self.prompt_tokens = Counter(
            "weir_prompt_tokens_total",
            "Prompt tokens of answers that reported usage.",
            registry=registry,
        )
        self.output_tokens = Counter(
            "weir_output_tokens_total",
            "Output tokens of answers that reported usage.",
            registry=registry,
        )

    def _health(self, registry: CollectorRegistry) -> None:
        self.engine_up = Gauge(
            "weir_engine_up",
            "1 while the engine is loaded and makes progress.",
            registry=registry,
        )
        self.draining = Gauge(
            "weir_draining",
            "1 from the start of a drain.",
            registry=registry,
        )
        self.engine_retries = Counter(
            "weir_engine_retries_total",
            "Requests sent again because a kept engine connection had died.",
            registry=registry,
        )
        self.client_stalls = Counter(
            "weir_client_stalls_total",
            "Times reading from the engine paused because a client was slow to take its bytes.",
            registry=registry,
        )
        self._build = Gauge(
            "weir_build_info",
            "1, with the version and what this replica serves as labels.",
            ["version", "service", "namespace", "pool", "model"],
            registry=registry,
        )

    def describe(self, identity: Identity) -> None:
        """Say what this replica is."""
        self._build.labels(
            version("weir-serving"),
            identity.service,
            identity.namespace,
            identity.pool,
            identity.model,
        ).set(1)

    def outcomes(self) -> dict[str, int]:
        """Return how many requests ended in each way so far."""
        return {outcome.value: _value(self.requests[outcome]) for outcome in Outcome}

    def render(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)


def _value(counter: Counter) -> int:
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return next(int(sample.value) for sample in samples if sample.name.endswith("_total"))
