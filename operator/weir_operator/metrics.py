"""The operator's instruments; all of them are here."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from weir_core.scale.types import Decision

Series = dict[tuple[Gauge, tuple[str, ...]], float]
"""Values of gauges by their labels' values."""

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
        self.services = Gauge(
            "weir_operator_services",
            "InferenceServices by how their last pass ended.",
            ["outcome"],
            registry=registry,
        )
        self._last: dict[Hashable, str] = {}
        self.conditions = Gauge(
            "weir_service_condition",
            "1, with a condition of an InferenceService as labels.",
            ["namespace", "service", "type", "status", "reason"],
            registry=registry,
        )
        self.replicas = Gauge(
            "weir_service_replicas",
            "Replicas of an InferenceService's pool, by state.",
            ["namespace", "service", "pool", "state"],
            registry=registry,
        )
        self._shown: dict[Hashable, Series] = {}
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
        self.wanted_replicas = Gauge(
            "weir_wanted_replicas",
            "Replicas of all pools of a service that scales, as its work asks for them.",
            ["namespace", "service"],
            registry=registry,
        )
        self.scaling_input = Gauge(
            "weir_scaling_input",
            "What a service's number of replicas was decided from, by input.",
            ["namespace", "service", "input"],
            registry=registry,
        )
        self.definition_lacks = Gauge(
            "weir_operator_definition_lacks",
            "Fields and values that this operator knows and the cluster's definition does not.",
            ["definition"],
            registry=registry,
        )

        self.unwatched = Gauge(
            "weir_operator_unwatched",
            "Watches of a kind of objects that tell nothing now, so that changes are seen later.",
            ["resource"],
            registry=registry,
        )

    def scaled(self, service: tuple[str, str], decision: Decision | None) -> None:
        """Show a decision on a service's replicas in the place of the last one; None shows none."""
        now: Series = {}
        if decision is not None:
            now[self.wanted_replicas, service] = decision.total
            for name, value in decision.inputs.items():
                now[self.scaling_input, (*service, name)] = value
        self._replace(("scaled", *service), now)

    def ended(self, service: Hashable, outcome: str, *, gone: bool = False) -> None:
        """Count a pass, and its service under what it ended as; forget one that is gone."""
        self.passes.labels(outcome).inc()
        before = self._last.pop(service, None)
        if before is not None:
            self.services.labels(before).dec()
        if not gone:
            self._last[service] = outcome
            self.services.labels(outcome).inc()

    def show(
        self, service: tuple[str, str], status: Mapping[str, Any] | None, wanted: Mapping[str, int]
    ) -> None:
        """Show what is known of a service in the place of what was.

        Args:
            service: Its namespace and name.
            status: As it was observed; None for one that is gone.
            wanted: Replicas that each pool is to have, of those of which that is known.
        """
        now = dict(self._series(service, status, wanted)) if status is not None else {}
        self._replace(("status", *service), now)

    def _replace(self, of: Hashable, now: Series) -> None:
        """Show these values in the place of those that are shown of the same."""
        for gauge, labels in self._shown.pop(of, {}).keys() - now.keys():
            gauge.remove(*labels)
        for (gauge, labels), value in now.items():
            gauge.labels(*labels).set(value)
        if now:
            self._shown[of] = now

    def _series(
        self, service: tuple[str, str], status: Mapping[str, Any], wanted: Mapping[str, int]
    ) -> Iterator[tuple[tuple[Gauge, tuple[str, ...]], float]]:
        for each in status["conditions"]:
            condition = (each["type"], each["status"], each["reason"])
            yield (self.conditions, (*service, *condition)), 1
        for pool in status["pools"]:
            name = pool["name"]
            counts = {
                **({"wanted": wanted[name]} if name in wanted else {}),
                "existing": pool["replicas"],
                "updated": pool["updatedReplicas"],
                "ready": pool["readyReplicas"],
            }
            for state, count in counts.items():
                yield (self.replicas, (*service, name, state)), count
