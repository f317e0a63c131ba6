"""How long an engine step takes, learned from the step log.

The time of a step is close to linear in what it computes: prompt tokens `p`, decodes `d`, the
attention of prefill chunks `p x context` and the KV cache that decodes read. (On a CPU engine
R² is .998 with the context terms and .53 without.) Recursive least squares follows it with one
5 x 5 update per step, and forgets slowly, so a change of clocks or load is followed.

Predictions are biased high: an estimate 15 % too low costs the whole interactive target, one
30 % too high under 1 % of throughput. The bias follows the spread of the model's own errors.
"""

from __future__ import annotations

from collections.abc import Sequence

from weir_core.sched.types import StepRecord


class RecursiveLeastSquares:
    """Linear regression, one observation at a time.

    Args:
        size: Number of features.
        forget: Weight of the past per observation; 0.999 remembers about 1000.
        trust: Initial variance of the coefficients; large learns fast from the first ones.
    """

    def __init__(self, size: int, forget: float = 0.999, trust: float = 1e3) -> None:
        self.coefficients = [0.0] * size
        self._forget = forget
        self._trust_cap = trust
        self._covariance = [
            [trust if row == column else 0.0 for column in range(size)] for row in range(size)
        ]

    def predict(self, features: Sequence[float]) -> float:
        """Return the model's value."""
        return sum(a * x for a, x in zip(self.coefficients, features, strict=True))

    def update(self, features: Sequence[float], value: float) -> float:
        """Learn one observation and return the error that the model made on it before."""
        covariance = self._covariance
        spread = [sum(p * x for p, x in zip(row, features, strict=True)) for row in covariance]
        norm = self._forget + sum(s * x for s, x in zip(spread, features, strict=True))
        error = value - self.predict(features)
        gain = [s / norm for s in spread]
        self.coefficients = [a + g * error for a, g in zip(self.coefficients, gain, strict=True)]
        # Without new directions to learn from, forgetting alone would let the covariance grow.
        growth = 1.0 if max(spread) > self._trust_cap else 1.0 / self._forget
        self._covariance = [
            [(p - g * s) * growth for p, s in zip(row, spread, strict=True)]
            for row, g in zip(covariance, gain, strict=True)
        ]
        return error


class StepTimeModel:
    """Predicts the duration of a step, a little too long rather than too short.

    Args:
        bias: Mean absolute errors to add to every prediction.
        floor_bias_ratio: Least that is added, as a fraction of the prediction.
    """

    TRAINED_STEPS = 32
    """Records before which predictions are not to be used."""

    def __init__(self, bias: float = 2.0, floor_bias_ratio: float = 0.05) -> None:
        self._model = RecursiveLeastSquares(5)
        self._bias = bias
        self._floor_bias_ratio = floor_bias_ratio
        self._mean_error_s = 0.0
        self.steps = 0
        self.trained = False
        """Whether enough steps were seen."""

    def update(self, record: StepRecord) -> None:
        """Learn from one step."""
        if record.duration_s <= 0:
            return
        error = abs(self._model.update(_features(record), record.duration_s))
        self.steps += 1
        self.trained = self.steps >= self.TRAINED_STEPS
        rate = max(0.01, 1.0 / self.steps)
        self._mean_error_s += rate * (error - self._mean_error_s)

    def predict_s(self, record: StepRecord) -> float:
        """Return the time `record`'s work takes, biased high, never below 0."""
        return self._biased(self._model.predict(_features(record)))

    def decodes_s(self, decodes: int, context: int) -> float:
        """Return the same for a step without prefill."""
        return self._biased(self.likely_decodes_s(decodes, context))

    def likely_decodes_s(self, decodes: int, context: int) -> float:
        """Return the most likely time of a step without prefill; asked at every decision."""
        fixed, _, per_decode, _, per_context = self._model.coefficients
        return fixed + per_decode * decodes / 1e2 + per_context * context / 1e5

    def _biased(self, plain_s: float) -> float:
        margin_s = max(self._bias * self._mean_error_s, self._floor_bias_ratio * plain_s)
        return max(0.0, plain_s + margin_s)

    def unbiased_s(self, record: StepRecord) -> float:
        """Return the most likely time, for measuring the model itself."""
        return self._model.predict(_features(record))


def _features(record: StepRecord) -> tuple[float, ...]:
    """Return what a step computes, each scaled to near 1, which keeps the update stable."""
    return (
        1.0,
        record.prefill_tokens / 1e3,
        record.decodes / 1e2,
        record.prefill_context / 1e7,
        record.decode_context / 1e5,
    )
