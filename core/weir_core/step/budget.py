"""How many prompt tokens fit into the time a step may take.

The step-time model is learned while the engine runs. What a chunk costs depends on what precedes
it in its prompt: each of its tokens attends to all of them, so that late chunks of a long prompt
take several times as long as early ones. So a budget is seconds, and each chunk takes what it
costs out of them.

Three things keep it steady. Predictions are biased high by the model's own errors. A chunk that
is cut is cut to a size on a coarse ladder and keeps the last one while that is near enough, so
that compiled shapes are met again. And it grows at most twofold over what was tried lately: a
model that never saw a large chunk knows nothing of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from weir_core.sched.steptime import StepTimeModel
from weir_core.sched.types import StepRecord

TARGET_SHARE: float = 0.85
"""Part of the allowed time to plan for; the rest absorbs what the model does not know."""
LEAST_TOKENS: int = 64
"""Prompt tokens that every step may hold, or prefills would starve behind slow decodes."""
FIRST_TOKENS: int = 512
"""Prompt tokens beside decodes before the model is trained."""
KEPT_WITHIN: float = 1.25
"""A cut chunk keeps the last size while the model would allow up to this many times as much."""

_ZERO = StepRecord(0.0, 0, 0)
_THOUSAND_TOKENS = StepRecord(0.0, 1_000, 0)
_MILLION_CONTEXT = StepRecord(0.0, 0, 0, 1_000_000)


@dataclass(slots=True)
class Budget:
    """What one step has left for prefills; chunks take from it in the order they are served.

    Attributes:
        tokens: Prompt tokens.
        seconds: Time; infinity where no decode bounds it.
        token_s: Time of one prompt token.
        context_s: Time for one of them to attend to one before it.
        last_cut: Size of the last chunk that was cut, or 0.
        least: Tokens it gives even where the time is short.
        given: Tokens it gave.
    """

    tokens: int
    seconds: float = math.inf
    token_s: float = 0.0
    context_s: float = 0.0
    last_cut: int = 0
    least: int = 0
    given: int = 0

    def take(self, left: int, done: int) -> int:
        """Return how many of `left` tokens a chunk gets behind `done` others of its prompt.

        When it is cut, nothing is left for prompts behind it, not even what rounding saved.
        """
        chunk = min(left, self.fitting(done))
        cut = chunk < left
        if cut and not math.isinf(self.seconds):
            chunk = self.last_cut = steady(chunk, self.last_cut)
        self.spend(chunk, done)
        if cut:
            self.tokens = 0
        return chunk

    def spend(self, chunk: int, done: int) -> None:
        """Take out what a chunk of this size costs; negative tokens give it back."""
        size = abs(chunk)
        cost_s = size * (self.token_s + self.context_s * (done + size / 2))
        self.tokens -= chunk
        self.given += chunk
        if chunk and not math.isinf(self.seconds):
            self.seconds -= math.copysign(cost_s, chunk)

    def fitting(self, done: int) -> int:
        """Return how many tokens behind `done` others it still has."""
        return min(self.tokens, max(self._affordable(done), self.least - self.given))

    def _affordable(self, done: int) -> int:
        """Solve seconds = n (token_s + context_s (done + n / 2)) for n."""
        if math.isinf(self.seconds):
            return self.tokens
        if self.seconds <= 0:
            return 0
        linear = self.token_s + self.context_s * done
        # The form without a difference of near numbers, which also holds without context.
        root = math.sqrt(linear * linear + 2 * self.context_s * self.seconds)
        return int(min(2 * self.seconds / max(linear + root, 1e-12), self.tokens))


class Budgeter:
    """Makes each step's budget, and learns from the steps that ended.

    Args:
        max_tokens: Most tokens one step may hold, decodes included.
    """

    def __init__(self, max_tokens: int) -> None:
        self.model = StepTimeModel()
        self._max_tokens = max_tokens
        self._tried = FIRST_TOKENS / 2
        self._prefill_steps = 0
        self._last_cut = 0
        self._token_s = self._context_s = 0.0

    def budget(self, allowance_s: float, decode_tokens: int, decode_context: int) -> Budget:
        """Return what a step has for prefills beside these decodes.

        Args:
            allowance_s: How long it may take; infinity where nothing bounds it.
            decode_tokens: Tokens its decodes take.
            decode_context: Tokens they attend to, all together.
        """
        room = max(0, self._max_tokens - decode_tokens)
        if math.isinf(allowance_s):
            return Budget(room)
        least = min(room, LEAST_TOKENS)
        if not self.model.trained or self._prefill_steps < 8:
            return Budget(min(room, FIRST_TOKENS), least=least)
        beside_s = self.model.decodes_s(decode_tokens, decode_context)
        return Budget(
            tokens=min(room, max(least, int(2 * self._tried))),
            seconds=max(0.0, TARGET_SHARE * allowance_s - beside_s),
            token_s=self._token_s,
            context_s=self._context_s,
            last_cut=self._last_cut,
            least=least,
        )

    def learn(self, record: StepRecord) -> None:
        """Take in a step that ended."""
        self.model.update(record)
        # What one token more costs: kept, because it is asked more often than it changes.
        zero_s = self.model.unbiased_s(_ZERO)
        self._token_s = max(1e-9, (self.model.unbiased_s(_THOUSAND_TOKENS) - zero_s) / 1e3)
        self._context_s = max(0.0, (self.model.unbiased_s(_MILLION_CONTEXT) - zero_s) / 1e6)
        if record.prefill_tokens:
            self._prefill_steps += 1
            self._tried = max(float(record.prefill_tokens), self._tried * 0.99, FIRST_TOKENS / 2.0)

    def cut(self, budget: Budget) -> None:
        """Remember at what size a step cut its chunks, for the next one to keep."""
        self._last_cut = budget.last_cut


def steady(chunk: int, last: int) -> int:
    """Return the size to cut to: the last one if it is near below `chunk`, else a round one.

    Round sizes are the multiples of an eighth of the power of two below, and at least of 16.
    """
    if 0 < last <= chunk <= last * KEPT_WITHIN:
        return last
    grain = max(16, 1 << max(0, chunk.bit_length() - 4))
    return chunk // grain * grain if chunk > grain else chunk
