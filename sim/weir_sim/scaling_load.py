"""What a service that scales is offered: work per second, by class, over hours or weeks.

A curve says the mean work per second, in replicas that are kept full. Arrivals draw from it for
each second, as so many requests of random cost: a gamma distribution with the mean and the variance
of the sum, bursts included.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from io import StringIO
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weir_core.sched.types import BUILT_IN_CLASSES
from weir_sim.profiles import EngineProfile
from weir_sim.traces import BadTrace
from weir_sim.workload import LengthModel, SimRequest

TARGET_LOAD: Final = 0.78
"""Of the replicas that a static fleet has for the highest rate."""
_SAMPLED: Final = 4000
_OUTPUT_WEIGHT: Final = 6.0
"""Prompt tokens that an output token is about as much work as, in a full batch on an H100."""
_BIN_S: Final = 60.0
_TARGET_PART: Final = 0.85
"""Of a target per output token, what a step may take."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Requests as work sees them.

    Attributes:
        prompt: Mean prompt tokens.
        output: Mean output tokens.
        spread: Variance of a request's work over its mean squared.
    """

    prompt: float
    output: float
    spread: float

    @classmethod
    def of_model(cls, model: LengthModel) -> Lengths:
        """Return the lengths that a model draws."""
        rng = random.Random("lengths")
        return cls.of_pairs([model.draw(rng) for _ in range(_SAMPLED)])

    @classmethod
    def of_requests(cls, requests: Sequence[SimRequest]) -> Lengths:
        """Return the lengths of a trace."""
        return cls.of_pairs([(each.prompt_tokens, each.output_tokens) for each in requests])

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[int, int]]) -> Lengths:
        """Return the lengths of requests, each prompt and output tokens."""
        tokens = np.array(pairs, dtype=float)
        work = tokens[:, 0] + _OUTPUT_WEIGHT * tokens[:, 1]
        prompt, output = tokens.mean(axis=0).tolist()
        return cls(prompt, output, float(work.var() / work.mean() ** 2))


class Engine:
    """What a replica of a profile does with requests of given lengths, by its load."""

    def __init__(self, profile: EngineProfile, lengths: Lengths) -> None:
        targets = [each.tpot_target_s for each in BUILT_IN_CLASSES if each.tpot_target_s]
        context = lengths.prompt + lengths.output / 2
        self._fixed_s = profile.base_s + profile.weights_s
        prompt_s = profile.token_s + profile.prefill_context_s * lengths.prompt / 2
        self._share_s = (
            lengths.prompt / lengths.output * prompt_s
            + profile.token_s
            + profile.sequence_s
            + profile.decode_context_s * context
        )
        self._kv_part = (lengths.prompt + lengths.output) / profile.kv_tokens
        most = min(float(profile.max_num_seqs), 0.95 / self._kv_part)
        step_s = _TARGET_PART * min(targets) - self._fixed_s
        if step_s > self._fixed_s:
            most = min(most, step_s / self._share_s)
        self._most = max(1.0, most)
        self.request_s = lengths.output * (self._fixed_s / self._most + self._share_s)
        """Seconds of a full replica that a request takes."""
        self._output = lengths.output

    def running(self, load: float) -> float:
        """Return the requests in a replica's batch at a load, 0 to 1."""
        per_s = min(load, 1.0) / self.request_s * self._output
        left = 1.0 - per_s * self._share_s
        return min(self._most, per_s * self._fixed_s / left) if left > 0 else self._most

    def kv_ratio(self, load: float) -> float:
        """Return the part of the KV cache that is in use at a load."""
        return self._kv_part * self.running(load)

    @property
    def drain_s(self) -> float:
        """Return how long the requests of a full batch take to end."""
        return self._output * (self._fixed_s + self._most * self._share_s)


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean work that is offered, in replicas kept full.

    Attributes:
        work: One value for each `bin_s`.
    """

    name: str
    bin_s: float
    work: NDArray[np.float64]

    @property
    def duration_s(self) -> float:
        """Return how long it is."""
        return self.bin_s * len(self.work)

    @property
    def static_peak(self) -> int:
        """Return the replicas that have the highest rate at the target load."""
        return math.ceil(float(self.work.max()) / TARGET_LOAD - 1e-9)

    def scaled(self, static_peak: int) -> Curve:
        """Return the same for so large a fleet that it needs `static_peak` replicas."""
        return replace(self, work=self.work * (static_peak * TARGET_LOAD / self.work.max()))

    def arrivals(
        self, shares: Sequence[float], engine: Engine, spread: float, seed: int
    ) -> NDArray[np.float64]:
        """Return the work that arrives in each second of each class.

        Args:
            shares: Of the classes, in sum 1.
            engine: Says the work of a request.
            spread: Variance of the work of the requests of a second over what Poisson arrivals of
                equal ones have.
            seed: The same seed gives the same arrivals.
        """
        rng = np.random.default_rng([seed, len(self.work)])
        mean = np.repeat(self.work, int(self.bin_s))[:, None] * np.array(shares)[None, :]
        scale = engine.request_s * spread
        work: NDArray[np.float64] = rng.gamma(np.maximum(mean / scale, 1e-12), scale)
        return np.where(mean > 0.0, work, 0.0)


def curve_of_rates(text: str, engine: Engine, name: str) -> Curve:
    """Return the curve of a CSV with `second` and `requests_per_second`, one row for each bin.

    Raises:
        BadTrace: It is none.
    """
    rows = list(csv.DictReader(text.splitlines()))
    try:
        seconds = [float(row["second"]) for row in rows]
        rates = np.array([float(row["requests_per_second"]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise BadTrace(f"{name}: needs the columns second, requests_per_second: {error}") from error
    bin_s = seconds[1] - seconds[0] if len(seconds) > 1 else 0.0
    if bin_s < 1.0 or any(abs(b - a - bin_s) > 1e-6 for a, b in pairwise(seconds)):
        raise BadTrace(f"{name}: needs two rows or more, whole seconds apart, all equally far")
    if not np.isfinite(rates).all() or rates.min() < 0.0 or rates.max() <= 0.0:
        raise BadTrace(f"{name}: rates are numbers from 0 up, and not all 0")
    return Curve(name, bin_s, rates * engine.request_s)


def curve_of_requests(
    requests: Sequence[SimRequest], engine: Engine, lengths: Lengths, name: str
) -> Curve:
    """Return the curve of a trace's requests, each with the work that its tokens are."""
    bins = np.zeros(int(requests[-1].arrival_s // _BIN_S) + 1)
    mean = lengths.prompt + _OUTPUT_WEIGHT * lengths.output
    for request in requests:
        tokens = request.prompt_tokens + _OUTPUT_WEIGHT * request.output_tokens
        bins[int(request.arrival_s // _BIN_S)] += tokens / mean
    return Curve(name, _BIN_S, bins * (engine.request_s / _BIN_S))


def _two_weeks() -> NDArray[np.float64]:
    text = files("weir_sim").joinpath("rates/servegen-m-small.csv").read_text()
    rows = csv.DictReader(StringIO(text))
    return np.array([float(row["requests_per_second"]) for row in rows])


def _step() -> NDArray[np.float64]:
    return np.concatenate([np.full(60, 0.25), np.ones(60), np.full(90, 0.25)])


def _ramp() -> NDArray[np.float64]:
    up = np.linspace(0.125, 1.0, 90)
    return np.concatenate([np.full(30, 0.125), up, up[::-1], np.full(30, 0.125)])


def _bursts() -> NDArray[np.float64]:
    work = np.full(360, 1 / 3)
    for start in range(30, 360, 45):
        work[start : start + 5] = 1.0
    return work


def _surge() -> NDArray[np.float64]:
    return np.concatenate([np.full(5, 0.25), np.ones(10), np.full(20, 0.25)])


_SHAPES: Mapping[str, tuple[float, Callable[[], NDArray[np.float64]]]] = {
    "two-weeks": (600.0, _two_weeks),
    "step": (60.0, _step),
    "ramp": (60.0, _ramp),
    "bursts": (60.0, _bursts),
    "surge": (60.0, _surge),
}
CURVES: Sequence[str] = tuple(_SHAPES)
"""`two-weeks` is a real service (`rates/README.md`); the others are made.

`step`: four times as much for an hour; `ramp`: eight times as much within 90 minutes; `bursts`:
three times as much for five minutes, now and then; `surge`: a step of ten minutes, short enough to
be simulated request by request.
"""


def curve_named(name: str, static_peak: int) -> Curve:
    """Return a curve of which a static fleet needs `static_peak` replicas.

    Raises:
        KeyError: There is none of that name.
    """
    bin_s, shape = _SHAPES[name]
    return Curve(name, bin_s, shape()).scaled(static_peak)
