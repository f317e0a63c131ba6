"""The few statistics of this benchmark: percentiles, and medians with their range."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return the nearest-rank percentile of an ascending sequence.

    Raises:
        ValueError: There is nothing to take it of.
    """
    if not ordered:
        raise ValueError("no samples")
    rank = -(-len(ordered) * fraction // 1)  # rounded up: p99 of 50 samples is the largest
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """What repetitions of one measurement gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the values that exist; None if none do."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.median(known), min(known), max(known))


def ratio(value: float | None, reference: float | None) -> float | None:
    """Return `value / reference`; None where either is missing or the reference is not positive."""
    if value is None or reference is None or reference <= 0:
        return None
    return value / reference


def best(values: Iterable[float | None]) -> float | None:
    """Return the smallest value that exists."""
    return min((value for value in values if value is not None), default=None)
