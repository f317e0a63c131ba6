"""How fast work is done: the drain rate, measured while work waits.

Rates are tokens (in VTC's unit: prompt plus twice output) over time, gathered in windows of a
second and smoothed. Prompt tokens count when a step computes them, where the step log tells, and
otherwise at the first token: a long prompt that counted only at its end would look like a pause of
the engine, and then like a burst. Only windows in which the pool held work all along say how fast
the engine *can* be; an idle fleet's low throughput must not look like slowness.
"""

from __future__ import annotations

import math
from typing import Final

_WINDOW_S: Final = 1.0
_SMOOTHING: Final = 0.2


class DrainRate:
    """Tokens per second the engine does while there is always something waiting."""

    def __init__(self) -> None:
        self._rate: float | None = None
        self._tokens = 0.0
        self.since_s: float | None = None
        """When the present window began; None while nothing waits."""
        # Prompt tokens that steps computed of prompts that are not done.
        self._ahead = 0.0

    def served(self, tokens: float) -> None:
        """Count tokens just computed; while nothing waits, this need not be called."""
        self._tokens += tokens

    def prefilled(self, tokens: float) -> None:
        """Count prompt tokens that a step computed."""
        self._tokens += tokens
        self._ahead += tokens

    def prompt_done(self, tokens: float, *, is_last: bool) -> None:
        """Count what no step counted of a prompt that is done; `is_last` of all in the engine."""
        known = min(self._ahead, tokens)
        self._tokens += tokens - known
        # What was computed of prompts that left before their end is not another prompt's.
        self._ahead = 0.0 if is_last else self._ahead - known

    def observe(self, now: float, backlogged: bool) -> None:
        """Note after each event whether requests wait."""
        if not backlogged:
            self.since_s = None
            return
        if self.since_s is None:
            self.since_s, self._tokens = now, 0.0
        elapsed = now - self.since_s
        if elapsed < _WINDOW_S:
            return
        rate = self._tokens / elapsed
        self._rate = rate if self._rate is None else self._rate + _SMOOTHING * (rate - self._rate)
        self.since_s, self._tokens = now, 0.0

    def interrupted(self) -> None:
        """Note that the engine is gone: what it had computed of its prompts is lost."""
        self._ahead = 0.0
        self.since_s = None

    def value(self) -> float | None:
        """Return tokens per second, or None before the first full window."""
        return self._rate


class FadingRate:
    """Events' amounts per second, the older ones counted less.

    Args:
        half_life_s: Age at which an amount counts half.
    """

    def __init__(self, half_life_s: float = 10.0) -> None:
        self._half_life_s = half_life_s
        self._amount = 0.0
        self._at = 0.0
        self._started: float | None = None

    def add(self, amount: float, now: float) -> None:
        """Count `amount` at `now`."""
        if self._started is None:
            self._started = self._at = now
        self._amount = self._amount * self._fade(now) + amount
        self._at = now

    def per_second(self, now: float) -> float:
        """Return the present rate; in the first moments, over the time since the first one."""
        if self._started is None:
            return 0.0
        memory_s = self._half_life_s / 0.6931471805599453
        age_s = max(1.0, now - self._started)
        seen_s = memory_s * (1.0 - math.pow(2.0, -age_s / self._half_life_s))
        return self._amount * self._fade(now) / seen_s

    def _fade(self, now: float) -> float:
        return math.pow(2.0, -max(0.0, now - self._at) / self._half_life_s)
