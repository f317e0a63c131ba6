"""What sizes a service: Weir's autoscaler, and what others use, each with one knob.

All see the same service every `PERIOD_S`. The others are models of what their documents say:

- `static`: one number.
- `hpa-queue`: an HPA on waiting requests per replica.
- `keda-running`: KEDA's HPA on requests per replica, running and waiting.
- `wva-p90`: replicas for the 90th percentile of the served rate of the last ten minutes, at the
  load at which a latency model meets the targets: how we read llm-d's WVA with its latency model.
- `wva-saturation`: WVA's saturation rule: one replica more where the replicas have little of their
  KV cache or queue to spare and none is starting, one less where the rest would have enough.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from weir_core.scale.autoscaler import Autoscaler
from weir_core.scale.types import (
    ClassTarget,
    Decision,
    Phase,
    PoolFacts,
    ReplicaLoad,
    ScalingPolicy,
    ServiceLoad,
)
from weir_core.sched.types import BUILT_IN_CLASSES

PERIOD_S: Final = 15
"""Of an HPA, and of everything else here."""
POOL: Final = "gpu"
FLAPPING_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class View:
    """A service as a scaler sees it.

    Attributes:
        wanted: Replicas that it was told to have.
        ready: Replicas that serve.
        starting: Replicas that do not yet.
        served: Work done per second in the last period, in replicas kept full.
        waiting: Requests that wait.
        running: Requests in the engines.
        kv_ratio: Part of the KV caches in use.
        replicas: All of them, as the operator reports them.
    """

    now: float
    wanted: int
    ready: int
    starting: int
    served: float
    waiting: float
    running: float
    kv_ratio: float
    replicas: Callable[[], Sequence[ReplicaLoad]]


class Scaler(ABC):
    """Says how many replicas there shall be."""

    @abstractmethod
    def wanted(self, view: View) -> int:
        """Return the number, at least 1."""

    def victims(self, view: View) -> Sequence[str]:
        """Return which replicas go first: as a ReplicaSet does it: the unready, the new."""
        order = sorted(view.replicas(), key=lambda one: (one.phase is Phase.READY, one.since_s))
        return [one.name for one in order if one.phase is not Phase.DRAINING]


class Static(Scaler):
    """One number for ever."""

    def __init__(self, knob: float) -> None:
        self._replicas = round(knob)

    def wanted(self, view: View) -> int:  # noqa: ARG002
        """Return the number."""
        return self._replicas


class WeirScaler(Scaler):
    """Weir's autoscaler, as the operator runs it.

    Attributes:
        decision: The last one.
    """

    decision: Decision

    def __init__(self, policy: ScalingPolicy, classes: Sequence[ClassTarget]) -> None:
        self._policy = policy
        self._classes = tuple(classes)
        self._autoscaler = Autoscaler()
        self._asked = 0

    def wanted(self, view: View) -> int:
        """Return what the autoscaler decides; every second time, as that takes long to simulate."""
        self._asked += 1
        if self._asked % 2 == 0:
            return view.wanted
        pools = (PoolFacts(POOL, view.wanted),)
        load = ServiceLoad(self._classes, pools, tuple(view.replicas()))
        self.decision = self._autoscaler.decide(load, self._policy, view.now)
        return self.decision.total

    def victims(self, view: View) -> Sequence[str]:  # noqa: ARG002
        """Return the decision's order."""
        return self.decision.victims[POOL]


class _Hpa(Scaler):
    """The rules of a HorizontalPodAutoscaler with its defaults, around one wish.

    Tolerance 0.1; up at once, by at most 4 replicas or 100 % in a period; down to the highest wish
    of 300 s.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._wishes: deque[tuple[float, int]] = deque()

    @abstractmethod
    def ratio(self, view: View) -> float:
        """Return the metric over its target."""

    def wanted(self, view: View) -> int:
        """Return what the HPA sets."""
        ratio = self.ratio(view)
        wish = view.wanted
        if abs(ratio - 1.0) > 0.1:
            wish = math.ceil(ratio * view.ready)
            wish = max(wish, view.wanted) if ratio > 1.0 else min(wish, view.wanted)
        wish = max(1, min(self._most, wish))
        self._wishes.append((view.now, wish))
        while self._wishes[0][0] < view.now - 300.0:
            self._wishes.popleft()
        if wish >= view.wanted:
            return min(wish, max(view.wanted + 4, 2 * view.wanted))
        return min(view.wanted, max(each for _, each in self._wishes))


class HpaOnQueue(_Hpa):
    """An HPA on the requests that wait."""

    def __init__(self, knob: float, most: int) -> None:
        super().__init__(most)
        self._target = knob

    def ratio(self, view: View) -> float:
        """Return waiting requests per replica over the target."""
        return view.waiting / max(1, view.ready) / self._target


class KedaOnRunning(_Hpa):
    """KEDA on the requests that run or wait."""

    def __init__(self, knob: float, most: int) -> None:
        super().__init__(most)
        self._target = knob

    def ratio(self, view: View) -> float:
        """Return requests per replica over the target."""
        return (view.running + view.waiting) / max(1, view.ready) / self._target


class WvaP90(_Hpa):
    """Replicas for the 90th percentile of the served rate, at a load that meets the targets."""

    def __init__(self, knob: float, most: int) -> None:
        super().__init__(most)
        self._load = knob
        self._served: deque[float] = deque(maxlen=600 // PERIOD_S)

    def ratio(self, view: View) -> float:
        """Return the replicas for that rate over those that there are."""
        self._served.append(view.served)
        rate = sorted(self._served)[9 * (len(self._served) - 1) // 10]
        return math.ceil(rate / self._load) / max(1, view.ready)


class WvaSaturation(Scaler):
    """WVA's saturation rule, on the peaks of the last minute.

    Args:
        knob: `kvCacheThreshold`: from there on a replica is saturated.
    """

    def __init__(self, knob: float, most: int) -> None:
        self._kv_threshold = knob
        self._most = most
        self._seen: deque[tuple[float, float]] = deque(maxlen=60 // PERIOD_S)

    def wanted(self, view: View) -> int:
        """Return one more, one less, or the same."""
        ready = max(1, view.ready)
        self._seen.append((view.kv_ratio, view.waiting / ready))
        kv_ratio = max(kv for kv, _ in self._seen)
        queue = max(waiting for _, waiting in self._seen)
        if self._is_short(kv_ratio, queue):
            return view.wanted if view.starting else min(self._most, view.wanted + 1)
        rest = ready / max(1, ready - 1)
        if view.wanted > 1 and not self._is_short(kv_ratio * rest, queue * rest):
            return view.wanted - 1
        return view.wanted

    def _is_short(self, kv_ratio: float, queue: float) -> bool:
        return self._kv_threshold - kv_ratio < 0.1 or 5.0 - queue < 3.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the others: how it is made of its knob, and what that may be.

    Attributes:
        knob: What it is.
        least: The knob at which it has the most replicas.
        most: The knob at which it has the fewest.
    """

    make: Callable[[float, int], Scaler]
    knob: str
    least: float
    most: float


OTHERS: Mapping[str, Kind] = {
    "hpa-queue": Kind(HpaOnQueue, "waiting requests per replica", 0.01, 200.0),
    "keda-running": Kind(KedaOnRunning, "requests per replica", 4.0, 60.0),
    "wva-p90": Kind(WvaP90, "load at which the latency model meets the targets", 0.2, 1.2),
    "wva-saturation": Kind(WvaSaturation, "kvCacheThreshold", 0.101, 1.0),
}


SCALERS: Sequence[str] = ("weir", "static", *OTHERS)


def make_scaler(
    name: str, policy: ScalingPolicy, static_peak: int, knob: float | None = None
) -> Scaler:
    """Return a scaler by its name; none has more than half as much again as the static peak.

    Raises:
        KeyError: There is none of that name.
    """
    most = static_peak * 3 // 2
    if name == "weir":
        targets = [
            ClassTarget(each.name, each.rank, each.ttft_target_s or each.max_queue_wait_s)
            for each in BUILT_IN_CLASSES
        ]
        return WeirScaler(replace(policy, max_replicas=most), targets)
    if name == "static":
        return Static(static_peak if knob is None else knob)
    kind = OTHERS[name]
    return kind.make((kind.least * kind.most) ** 0.5 if knob is None else knob, most)


def reversals(changes: Iterable[tuple[float, int]], within_s: float) -> int:
    """Return the most changes of direction within so long a time.

    Args:
        changes: When, and by how much.
        within_s: Length of the time.
    """
    turns: list[float] = []
    last = 0
    for at, by in changes:
        way = 1 if by > 0 else -1
        if last and way != last:
            turns.append(at)
        last = way
    worst = 0
    for index, at in enumerate(turns):
        worst = max(worst, sum(other < at + within_s for other in turns[index:]))
    return worst
