"""Counters and histograms for the request path, in prometheus-client's registry and format.

The library's own take a lock for each observation, and its histograms walk their buckets; seven of
those cost as much as scheduling a request. The sidecar observes from one thread, so an index and
two additions are enough. What is exported is the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

_MAX_NEW: Final = 256


class Count:
    """What was counted under one set of label values."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count that much more."""
        self.value += amount


class FastCounter(Collector):
    """A counter.

    Args:
        name: Ends in `_total`.
        help_text: What it says.
        labels: Names of its labels.
        registry: Where it is exported.
    """

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._help = help_text
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Count] = {}
        if not labels:
            self._children[()] = Count()
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """Return what is counted for these label values; without labels, for all."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Count()
        return child

    def counts(self) -> dict[tuple[str, ...], float]:
        """Return everything counted, by label values."""
        return {values: child.value for values, child in self._children.items()}

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Return the family without its samples."""
        return [CounterMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return everything counted."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        return [family]


class Observations:
    """What was observed under one set of label values.

    A value is kept as it is and sorted into its bucket with many others, which costs less than
    looking for each one's bucket while it comes.
    """

    __slots__ = ("_bounds", "_counts", "_new", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._new: list[float] = []

    def observe(self, value: float) -> None:
        """Count one value."""
        self._new.append(value)
        if len(self._new) >= _MAX_NEW:
            self._sort()

    @property
    def sum(self) -> float:
        """All values added up."""
        self._sort()
        return self._sum

    def _sort(self) -> None:
        for value in self._new:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value
        self._new.clear()

    def buckets(self) -> list[tuple[str, float]]:
        """Return the counts as Prometheus wants them: each up to its bound."""
        self._sort()
        total, found = 0, []
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for bound, count in zip(bounds, self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class FastHistogram(Collector):
    """A histogram with at most one label.

    Args:
        name: With its unit, for example `weir_queue_wait_seconds`.
        help_text: What it says.
        buckets: Upper bounds, ascending, without infinity.
        registry: Where it is exported.
        label: Name of its label, or None.
    """

    def __init__(
        self,
        name: str,
        help_text: str,
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
        label: str | None = None,
    ) -> None:
        self._name = name
        self._help = help_text
        self._bounds = tuple(float(bound) for bound in buckets)
        self._label = label
        self._children: dict[str, Observations] = {}
        if label is None:
            self._children[""] = Observations(self._bounds)
        registry.register(self)

    def labels(self, value: str = "") -> Observations:
        """Return what is observed for one label value; without a label, for all."""
        child = self._children.get(value)
        if child is None:
            child = self._children[value] = Observations(self._bounds)
        return child

    def observe(self, value: float) -> None:
        """Count one value of a histogram without a label."""
        self._children[""].observe(value)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the family without its samples."""
        return [self._family()]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return everything observed."""
        family = self._family()
        for value, child in self._children.items():
            own = [] if self._label is None else [value]
            family.add_metric(own, buckets=child.buckets(), sum_value=child.sum)
        return [family]

    def _family(self) -> HistogramMetricFamily:
        labels = None if self._label is None else [self._label]
        return HistogramMetricFamily(self._name, self._help, labels=labels)
