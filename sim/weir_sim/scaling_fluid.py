"""A service as a fluid: work flows in by class, waits, and is served or lost, second by second.

Two weeks of single requests would take days to simulate. Work is served by rank, minimum shares
before that for classes that have waited long, as the scheduler does. What cannot be on time is
dropped where its class sheds; where it does not, it is served when nothing else of it waits. What
is not seen is what happens within a second, and how requests share an engine:
`weir_sim.scaling_requests` has that, for scenes of some minutes. Work that is served in the second
in which it came has waited for a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weir_core.sched.types import ClassPolicy

_SHARE_AFTER_S: Final = 5.0
"""Wait after which a class gets its minimum share before higher ranks."""


class ClassFluid:
    """The work of one class.

    Attributes:
        waits: (second of arrival, work) of what may still be on time, the oldest first.
        late: The same of what is late and is served all the same, when nothing else waits.
        met: Work that was served on time.
        missed: Work that was late, or dropped.
    """

    def __init__(self, policy: ClassPolicy) -> None:
        self.policy = policy
        self.waits: deque[tuple[int, float]] = deque()
        self.late: deque[tuple[int, float]] = deque()
        self.met = self.missed = 0.0
        self.target_s = policy.ttft_target_s or policy.max_queue_wait_s
        self._sheds = policy.shed == "predictive"
        self._backlog_s = 0.0

    @property
    def backlog_s(self) -> float:
        """Return the work that waits."""
        return self._backlog_s if self.waits or self.late else 0.0

    @property
    def attainment(self) -> float:
        """Return the part of the work that is over which was served on time."""
        return round(self.met / max(1e-9, self.met + self.missed), 5)

    def add(self, second: int, work: float) -> None:
        """Let work wait."""
        if work > 0.0:
            self._backlog_s = self.backlog_s + work
            self.waits.append((second, work))

    def age(self, second: int) -> None:
        """Move what is late behind the rest, or drop it where the class sheds or its wait is over.

        Late work has missed, whatever becomes of it.
        """
        while self.waits and second + 1 - self.waits[0][0] > self.target_s:
            came, work = self.waits.popleft()
            self.missed += work
            if self._sheds:
                self._backlog_s -= work
            else:
                self.late.append((came, work))
        while self.late and second + 1 - self.late[0][0] > self.policy.max_queue_wait_s:
            self._backlog_s -= self.late.popleft()[1]

    def serve(self, most: float) -> float:
        """Serve up to `most` work, what is on time first; return how much it was."""
        on_time = _take(self.waits, most)
        self.met += on_time
        served = on_time + _take(self.late, most - on_time)
        self._backlog_s -= served
        return served

    def slack_s(self, second: int) -> float:
        """Return the time until what waits is due, the mean over it."""
        backlog_s = self.backlog_s
        if backlog_s <= 0.0:
            return 0.0
        due = sum(work * (came + self.target_s) for came, work in chain(self.waits, self.late))
        return due / backlog_s - second


def _take(waits: deque[tuple[int, float]], most: float) -> float:
    """Take up to `most` work, the oldest first; return how much it was."""
    left = most
    while waits and left > 0.0:
        came, work = waits[0]
        if work > left:
            waits[0] = (came, work - left)
            return most
        left -= work
        waits.popleft()
    return most - left


class Flow(NamedTuple):
    """The work of a period.

    Attributes:
        seconds: By second and class.
        work: By class.
        peak: Of the second with the most.
        told: By class; the older, the less it counts.
    """

    seconds: NDArray[np.float64]
    work: Sequence[float]
    peak: float
    told: Sequence[float]


def flows(arrivals: NDArray[np.float64], period_s: int, half_life_s: float) -> list[Flow]:
    """Return the work of each whole period."""
    count = len(arrivals) // period_s
    steps = arrivals[: count * period_s].reshape(count, period_s, -1)
    weights = np.exp2(-np.arange(period_s - 1, -1, -1) / half_life_s)
    work: list[list[float]] = steps.sum(axis=1).tolist()
    peaks: list[float] = steps.sum(axis=2).max(axis=1).tolist()
    told: list[list[float]] = np.einsum("p,npc->nc", weights, steps).tolist()
    return [Flow(*each) for each in zip(steps, work, peaks, told, strict=True)]


class Fluid:
    """All classes of a service.

    Args:
        policies: The highest rank first.
    """

    def __init__(self, policies: Sequence[ClassPolicy]) -> None:
        self.classes = [ClassFluid(policy) for policy in policies]
        self.served = 0.0

    @property
    def backlog_s(self) -> float:
        """Return the work that waits."""
        return sum(each.backlog_s for each in self.classes)

    def run(self, second: int, arrivals: Flow, capacity: float) -> None:
        """Let a period pass, with the work that arrives in it."""
        if arrivals.peak <= capacity and self.backlog_s <= 0.0:
            for each, work in zip(self.classes, arrivals.work, strict=True):
                each.met += work
                self.served += work
            return
        for offset, row in enumerate(arrivals.seconds.tolist()):
            for each, work in zip(self.classes, row, strict=True):
                each.add(second + offset, work)
                each.age(second + offset)
            self.served += self._serve(second + offset, capacity)

    def _serve(self, second: int, capacity: float) -> float:
        left = capacity
        for each in self.classes:
            share = each.policy.min_share
            if share and each.waits and second - each.waits[0][0] >= _SHARE_AFTER_S:
                left -= each.serve(share * capacity)
        for each in self.classes:
            left -= each.serve(left)
        return capacity - left
