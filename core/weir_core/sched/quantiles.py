"""Quantiles of a stream of positive integers, in constant memory, with forgetting.

Values fall into logarithmic buckets, each 10 % wider than the one before (as DDSketch does), so a
quantile is right within 5 %. When the counts reach a limit all of them are halved: the sketch
follows a workload that changes, and old values fade.
"""

from __future__ import annotations

import math
from typing import Final

_GAMMA: Final = 1.1
_LOG_GAMMA: Final = math.log(_GAMMA)
_BUCKETS: Final = 160
"""Enough for values up to 1.1 ** 159, about 3.8 million."""
_LARGEST: Final = 1 << 40
"""Larger values than the last bucket's are all alike, and some have no logarithm as a float."""
_REFRESH: Final = 32
"""Observations after which a cached answer is computed anew."""


def bucket_of(value: int) -> int:
    """Return the bucket into which a value falls; anything below 1 counts as 1."""
    within = float(min(_LARGEST, max(1, value)))
    return min(_BUCKETS - 1, int(math.log(within) / _LOG_GAMMA + 0.5))


class StreamingQuantile:
    """One quantile of a stream, asked for often and updated often: both are O(1), amortised.

    Args:
        quantile: Which, 0 to 1.
        memory: Observations after which the weight of the old ones is halved.
    """

    def __init__(self, quantile: float, memory: int = 2048) -> None:
        self._quantile = quantile
        self._memory = memory
        self._counts = [0.0] * _BUCKETS
        self.observations = 0.0
        """Values seen, the old ones counted less."""
        self._since_refresh = 0
        self._cached: int | None = None

    def observe(self, value: int) -> None:
        """Add one value; anything below 1 counts as 1."""
        self.count(bucket_of(value))

    def count(self, bucket: int) -> None:
        """Add one value, given as its bucket."""
        self._counts[bucket] += 1.0
        self.observations += 1.0
        self._since_refresh += 1
        if self.observations >= self._memory:
            self._halve()
        if self._since_refresh >= _REFRESH or self.observations < _REFRESH:
            self._cached = None

    def value(self) -> int | None:
        """Return the quantile within 5 %, or None before the first value."""
        if not self.observations:
            return None
        if self._cached is None:
            self._cached = self._compute()
            self._since_refresh = 0
        return self._cached

    def _compute(self) -> int:
        wanted = max(self._quantile * self.observations, 1e-9)  # an empty bucket answers nothing
        bucket, below = -1, 0.0
        while below < wanted and bucket < _BUCKETS - 1:
            bucket += 1
            below += self._counts[bucket]
        return max(1, round(math.pow(_GAMMA, bucket)))

    def _halve(self) -> None:
        self._counts = [count / 2 for count in self._counts]
        self.observations /= 2
