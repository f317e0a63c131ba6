"""Quantiles of a stream of positive integers, in constant memory, with forgetting.

Values fall into logarithmic buckets, each 10 % wider than the one before (as DDSketch does), so a
quantile is right within 5 %. When the counts reach a limit all of them are halved: the sketch
follows a workload that changes, and old values fade.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import Final

_GAMMA: Final = 1.1
_LOG_GAMMA: Final = math.log(_GAMMA)
_BUCKETS: Final = 160
"""Enough for values up to 1.1 ** 159, about 3.8 million."""
_REFRESH: Final = 32
"""Observations after which a cached answer is computed anew."""


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
        self._total = 0.0
        self._since_refresh = 0
        self._cached: int | None = None

    @property
    def observations(self) -> float:
        """Return the number of observations, the old ones counted less."""
        return self._total

    def observe(self, value: int) -> None:
        """Add one value; anything below 1 counts as 1."""
        value = max(1, value)
        bucket = min(_BUCKETS - 1, int(math.log(value) / _LOG_GAMMA + 0.5))
        self._counts[bucket] += 1.0
        self._total += 1.0
        self._since_refresh += 1
        if self._total >= self._memory:
            self._halve()
        if self._since_refresh >= _REFRESH or self._total < _REFRESH:
            self._cached = None

    def value(self) -> int | None:
        """Return the quantile within 5 %, or None before the first value."""
        if not self._total:
            return None
        if self._cached is None:
            self._cached = self._compute()
            self._since_refresh = 0
        return self._cached

    def _compute(self) -> int:
        wanted = max(self._quantile * self._total, 1e-9)  # an empty bucket answers nothing
        bucket = bisect_left(list(accumulate(self._counts)), wanted)
        return max(1, round(_GAMMA ** min(bucket, _BUCKETS - 1)))

    def _halve(self) -> None:
        self._counts = [count / 2 for count in self._counts]
        self._total /= 2
