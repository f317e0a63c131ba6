"""The operator's instruments; all of them are here."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PASS_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Bound to one registry; tests make a fresh one each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.passes = Counter(
            "weir_operator_passes_total",
            "Passes over an InferenceService, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self.pass_seconds = Histogram(
            "weir_operator_pass_seconds",
            "Duration of a pass.",
            buckets=PASS_BUCKETS_S,
            registry=registry,
        )
        self.queue_depth = Gauge(
            "weir_operator_queue_depth",
            "InferenceServices that wait for a pass.",
            registry=registry,
        )
        self.leading = Gauge(
            "weir_operator_leading",
            "1 while this operator holds the lease, else 0.",
            registry=registry,
        )
