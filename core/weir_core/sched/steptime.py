"""How long an engine step takes, learned from the step log.

The time of a step is close to linear in what it computes: prompt tokens `p`, decodes `d`, the
attention of prefill chunks `p x context` and the KV cache that decodes read. (On a CPU engine
R² is .998 with the context terms and .53 without.) Recursive least squares follows it with one
5 x 5 update per step, and forgets slowly, so a change of clocks or load is followed.

Predictions are biased high: an estimate 15 % too low costs the whole interactive target, one
30 % too high under 1 % of throughput. The bias follows the spread of the model's own errors.
"""

from __future__ import annotations

from typing import Final

from weir_core.sched.types import StepRecord

_LEAST_S: Final = 1e-9
"""Where steps do not show that a decode takes time."""


class RecursiveLeastSquares:
    """Linear regression, one observation at a time, with coefficients that drift slowly.

    A Kalman filter whose coefficients take a random walk. Dividing by a forgetting factor instead
    lets what is not observed grow without end, and with it rounding errors: after some ten thousand
    observations they are all that is left. Here what is not observed is forgotten just as slowly,
    and the covariance stays symmetric to the bit.

    Args:
        size: Number of features, each scaled to near 1.
        drift: Variance by which a coefficient may change from one observation to the next, where
            that of the observations' noise is 1; 1e-5 remembers about 300 of them.
        trust: Initial variance of the coefficients; large learns fast from the first ones.
    """

    def __init__(self, size: int, drift: float = 1e-5, trust: float = 1e3) -> None:
        self.coefficients = [0.0] * size
        self._drift = drift
        self._covariance = [
            [trust if row == column else 0.0 for column in range(size)] for row in range(size)
        ]

    def predict(self, features: list[float]) -> float:
        """Return the model's value."""
        return _dot(self.coefficients, features)

    def update(self, features: list[float], value: float) -> float:
        """Learn one observation and return the error that the model made on it before."""
        spread = [_dot(row, features) for row in self._covariance]
        norm = 1.0 + _dot(spread, features)
        error = value - self.predict(features)
        for index, row in enumerate(self._covariance):
            share = spread[index]
            self.coefficients[index] += share / norm * error
            for column in range(index + 1):  # the rest is its mirror image
                row[column] -= share * spread[column] / norm
                self._covariance[column][index] = row[column]
            row[index] += self._drift
        return error


def _dot(left: list[float], right: list[float]) -> float:
    total = 0.0
    for index in range(len(left)):
        total += left[index] * right[index]
    return total


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

    def mixed_s(self, prefill: int, decodes: int, context: int) -> float:
        """Return the same for a step that computes the start of a prompt beside decodes."""
        fixed, per_token, per_decode, _, per_context = self._model.coefficients
        plain_s = fixed + per_token * (prefill / 1e3) + per_decode * (decodes / 1e2)
        return self._biased(plain_s + per_context * (context / 1e5))

    def decodes_s(self, decodes: int, context: int) -> float:
        """Return the same for a step without prefill."""
        return self._biased(self.likely_decodes_s(decodes, context))

    def likely_decodes_s(self, decodes: int, context: int) -> float:
        """Return the most likely time of a step without prefill; asked at every decision."""
        fixed, _, per_decode, _, per_context = self._model.coefficients
        return fixed + per_decode * decodes / 1e2 + per_context * context / 1e5

    @property
    def fixed_s(self) -> float:
        """Return the most likely time of a step before anything is computed in it."""
        return max(0.0, self._model.coefficients[0])

    def prompt_token_s(self, prompt_tokens: float) -> float:
        """Return the most likely time per token of a prompt of this length."""
        _, per_token, _, per_prefill_context, _ = self._model.coefficients
        attention_s = per_prefill_context / 1e7 * prompt_tokens / 2.0
        return max(0.0, per_token / 1e3 + attention_s)

    def decode_s(self, context: float) -> float:
        """Return the most likely time that one more decode adds to a step."""
        _, _, per_decode, _, per_context = self._model.coefficients
        return max(_LEAST_S, per_decode / 1e2 + per_context * context / 1e5)

    def _biased(self, plain_s: float) -> float:
        margin_s = max(self._bias * self._mean_error_s, self._floor_bias_ratio * plain_s)
        return max(0.0, plain_s + margin_s)

    def unbiased_s(self, record: StepRecord) -> float:
        """Return the most likely time, for measuring the model itself."""
        return self._model.predict(_features(record))


def _features(record: StepRecord) -> list[float]:
    """Return what a step computes, each scaled to near 1, which keeps the update stable."""
    return [
        1.0,
        record.prefill_tokens / 1e3,
        record.decodes / 1e2,
        record.prefill_context / 1e7,
        record.decode_context / 1e5,
    ]
