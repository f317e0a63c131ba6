"""Fairness between tenants: the Virtual Token Counter (arXiv 2401.00588).

Each tenant has a counter of the tokens it was served (prompt tokens + 2 x output tokens), divided
by its weight; the waiting tenant with the smallest counter is served next. Counters follow the
tokens that were really computed, so nothing depends on an estimate.

A tenant that returns after a pause is lifted to the smallest counter among those who waited
meanwhile: time without requests earns nothing. Between two tenants that both always have
requests waiting, the counters therefore never drift apart by more than what one tenant has in
the engine at once (the bound; docs/invariants.md, INV-6).

What other replicas served to a tenant is charged, too, while anybody waits here. A tenant that
does not wait here is lifted first, as at its return. By such charges it gets ahead of the smallest
waiting counter by no more than the caller allows, however much it was served elsewhere and
whatever a replica says.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

MOST_IDLE: Final = 1024
"""Counters of names that do not wait which outlast a trim."""


_SLACK: Final = 64
"""Dead entries tolerated in a small heap, in addition to as many as there are living ones."""


class Fairness(ABC):
    """Chooses whose turn it is among the tenants (or classes) that wait."""

    @abstractmethod
    def key(self, tenant: str) -> str:
        """Return the name under which `tenant` queues."""

    @abstractmethod
    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Replace all weights; who is not named weighs 1."""

    @abstractmethod
    def enter(self, name: str) -> None:
        """Note that `name` has requests waiting, having had none."""

    @abstractmethod
    def leave(self, name: str) -> None:
        """Note that `name` has no more requests waiting."""

    @abstractmethod
    def pass_by(self, name: str) -> None:
        """Do what `enter` and `leave` do where nobody waits."""

    @abstractmethod
    def charge(self, name: str, tokens: float) -> None:
        """Note tokens served to `name`; a negative amount returns a charge."""

    @abstractmethod
    def charge_elsewhere(self, name: str, tokens: float, most: float) -> None:
        """Note tokens that another replica served to `name`.

        Args:
            name: Whose they are.
            tokens: At least 0.
            most: Tokens by which it may come to be ahead of the one whose turn it is.
        """

    @abstractmethod
    def next(self) -> str | None:
        """Return whose turn it is, or None when nobody waits."""

    @abstractmethod
    def counter(self, name: str) -> float:
        """Return the tokens over weight that `name` was served, or lifted to."""

    @abstractmethod
    def share_of(self, name: str) -> float:
        """Return the fraction of the service `name` gets while all present ones wait."""


class VirtualTokenCounter(Fairness):
    """The smallest counter goes first; ties by name, so that replays agree."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        # Who waits -> serial of its one valid heap entry.
        self._valid: dict[str, int] = {}
        self._weight_waiting = 0.0
        self._heap: list[tuple[float, str, int]] = []
        self._serial = 0
        self._floor = 0.0
        self.trims = 0
        """How often counters were dropped; each time, all of them are looked at."""

    def key(self, tenant: str) -> str:
        """Return `tenant`: each one queues alone."""
        return tenant

    def counter(self, name: str) -> float:
        """Return the tokens over weight that `name` was served, or lifted to."""
        return self._counters.get(name, 0.0)

    def remembered(self) -> int:
        """Return how many counters are kept."""
        return len(self._counters)

    def entries(self) -> int:
        """Return how many heap entries are kept, dead ones included."""
        return len(self._heap)

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Replace all weights; what was served stays served."""
        self._weights = dict(weights)
        self._weight_waiting = sum(self._weight(name) for name in self._valid)

    def enter(self, name: str) -> None:
        """Lift `name` to the smallest waiting counter, or to where the last one left."""
        if name in self._valid:
            return
        top = self._top()
        floor = top[0] if top else self._floor
        self._counters[name] = max(self._counters.get(name, 0.0), floor)
        self._valid[name] = 0
        self._weight_waiting += self._weight(name)
        self._push(name)

    def leave(self, name: str) -> None:
        """Keep the counter: tokens of running requests still count, and a return is lifted."""
        if name not in self._valid:
            return
        top = self._top()
        self._floor = max(self._floor, top[0] if top else 0.0)
        del self._valid[name]
        self._weight_waiting -= self._weight(name)
        if not self._valid:
            self._weight_waiting = 0.0
        self._forget_idle()

    def pass_by(self, name: str) -> None:
        """Lift `name` to where the last one left; it is the last one now."""
        counter = self._counters.get(name)
        if counter is not None and counter > self._floor:
            self._floor = counter
        else:
            self._counters[name] = self._floor
        if len(self._counters) > 2 * MOST_IDLE:
            self._forget_idle()

    def charge(self, name: str, tokens: float) -> None:
        """Raise the counter; its heap entry is corrected when it reaches the top."""
        counter = self._counters.get(name)
        weight = self._weights.get(name) if self._weights else None
        served = tokens if weight is None else tokens / weight
        self._counters[name] = served + (self._floor if counter is None else counter)
        # A stale entry may only be too small: a counter that sinks needs a new one.
        if tokens < 0 and name in self._valid:
            self._push(name)

    def charge_elsewhere(self, name: str, tokens: float, most: float) -> None:
        """Raise the counter within bounds; without anybody who waits there is no turn to lose."""
        top = self._top()
        if top is None:
            return
        floor, weight = top[0], self._weight(name)
        counter = max(self._counters.get(name, 0.0), floor)
        raised = min(counter + tokens / weight, floor + most / weight)
        self._counters[name] = max(counter, raised)
        if len(self._counters) > 2 * (len(self._valid) + MOST_IDLE):
            self._forget_idle()

    def next(self) -> str | None:
        """Return the waiting name with the smallest counter."""
        top = self._top()
        return top[1] if top else None

    def share_of(self, name: str) -> float:
        """Return weight over the sum of the weights that wait, `name` included."""
        weight = self._weight(name)
        others = self._weight_waiting - (weight if name in self._valid else 0.0)
        return weight / (weight + max(0.0, others))

    def _weight(self, name: str) -> float:
        return self._weights.get(name, 1.0)

    def _push(self, name: str) -> None:
        self._serial += 1
        self._valid[name] = self._serial
        heapq.heappush(self._heap, (self._counters[name], name, self._serial))
        if len(self._heap) > 2 * len(self._valid) + _SLACK:
            self._drop_dead_entries()

    def _drop_dead_entries(self) -> None:
        """Keep the one valid entry of each name that waits; paid for by the pushes since."""
        self._heap = [entry for entry in self._heap if self._valid.get(entry[1]) == entry[2]]
        heapq.heapify(self._heap)

    def _top(self) -> tuple[float, str, int] | None:
        heap = self._heap
        while heap:
            counter, name, serial = heap[0]
            if self._valid.get(name) != serial:
                heapq.heappop(heap)
            elif counter < self._counters[name]:
                heapq.heapreplace(heap, (self._counters[name], name, serial))
            else:
                return heap[0]
        return None

    def _forget_idle(self) -> None:
        """Drop counters of those who do not wait, once there are twice as many as may stay.

        Those below the floor go: a return would be lifted above them anyway. Of the others those
        nearest to it go first, who gain least by starting from it again. At least half go, so
        that however many names come, a trim is paid for by the leaves since the last one.
        """
        if len(self._counters) <= 2 * (len(self._valid) + MOST_IDLE):
            return
        self.trims += 1
        idle = [
            (counter, name)
            for name, counter in self._counters.items()
            if name not in self._valid and counter > self._floor
        ]
        largest = {name: counter for counter, name in sorted(idle)[-MOST_IDLE:]}
        self._counters = {name: self._counters[name] for name in self._valid} | largest


class OneQueue(VirtualTokenCounter):
    """No fairness: all tenants share one queue. For comparison."""

    def key(self, tenant: str) -> str:  # noqa: ARG002 - all tenants are one
        """Return the same name for everybody."""
        return ""
