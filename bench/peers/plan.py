"""What is sent: loads as multiples of the engine's capacity, seeds, and how long each run is.

The requests of one load and seed are equal for all targets. Lengths and classes are those of the
simulator (log-normal after Azure's 2023 conversation trace, 20/50/30 %), and so is the engine, so
a run here is what `weir simulate compare` predicts. Answers have at most 256 tokens, so that
most of them end within a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from weir_sim.experiments import capacity_per_s
from weir_sim.profiles import PROFILES
from weir_sim.workload import LengthModel, SimRequest, WorkloadSpec, generate

PROFILE = "h100-8b"


@dataclass(frozen=True, slots=True)
class Load:
    """One load.

    Attributes:
        ratio: Offered rate over capacity.
        window_s: Arrivals end then.
        drain_s: A run ends so long after its last arrival, or when all answers have ended.
    """

    ratio: float
    window_s: float
    drain_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the benchmark."""

    loads: tuple[Load, ...]
    seeds: tuple[int, ...]

    def cells(self) -> Iterator[tuple[Load, int]]:
        """Yield every load with every seed."""
        for seed in self.seeds:
            for load in self.loads:
                yield load, seed

    def bound_s(self, targets: int) -> float:
        """Return about how long the measurements take together, at most."""
        once = sum(load.window_s + load.drain_s + 0.5 for load in self.loads)
        return once * len(self.seeds) * targets


FULL = Plan((Load(0.2, 4.0, 8.0), Load(0.9, 6.0, 6.0), Load(2.0, 16.0, 4.0)), (0, 1, 2))
LONG = Plan((Load(2.0, 60.0, 4.0),), (0, 1, 2))
QUICK = Plan((Load(0.2, 3.0, 6.0), Load(2.0, 10.0, 4.0)), (0,))


def capacity() -> float:
    """Return the requests per second that the engine completes when its queue never empties."""
    return capacity_per_s(PROFILES[PROFILE], _SPEC)


def requests(load: Load, seed: int, capacity_per_s: float) -> list[SimRequest]:
    """Return the requests of one load and seed, in order of arrival."""
    spec = replace(_SPEC, rate=load.ratio * capacity_per_s, duration_s=load.window_s)
    return generate(spec, seed)


_SPEC = WorkloadSpec(rate=1.0, duration_s=1.0, lengths=LengthModel(most_output_tokens=256))
