"""What a request will cost, before it has cost anything. Wrong answers waste, they never break.

Prompt tokens come from the body's size with a ratio learned per tenant, or, for a body too large
for a text, from what the tenant's earlier ones held; output tokens from what the tenant's earlier
answers on the same endpoint needed; the time to the first token from the step-time model (or a
plain rate before it is trained), corrected by how wrong it has been lately.
"""

from __future__ import annotations

import math
from typing import Final

from weir_core.sched.quantiles import StreamingQuantile, bucket_of
from weir_core.sched.steptime import StepTimeModel
from weir_core.sched.types import Request, StepRecord

_BYTES_PER_TOKEN: Final = 4.0
_OUTPUT_TOKENS: Final = 256
_ENOUGH: Final = 20
"""Answers of one tenant after which its own lengths are used."""
_MAX_TENANTS: Final = 1024
_PREFILL_S_PER_TOKEN: Final = 5e-5
_FASTEST_S_PER_TOKEN: Final = 1e-9
"""Where steps do not show that prompt tokens take time; no engine comes near it."""
_SLOWEST_S_PER_TOKEN: Final = 2e-3
"""Of an engine without a step log, about which little is known: 500 prompt tokens a second."""
_SLACK: Final = 2.0
"""Times the expected time to first token that a working engine may take."""
LONGEST_GUESS_TOKENS: Final = 32_768
"""128 KiB of text, twice the size from which the sidecar has the engine count."""
_LIGHT_DECODES: Final = 32
"""Of a light step, at most."""
_LIGHT_CONTEXT: Final = 32 * 1024
_LIGHT_STEP_RATE: Final = 0.002
"""Part by which the time of a light step follows the model, in 500 of its updates: replicas are
compared by it, and equal ones should be equal."""
_MAX_TOKENS: Final = 10_000_000
"""No model has a longer context; larger claims are nonsense."""


class Estimator:
    """Learns from what happened to earlier requests.

    Args:
        output_quantile: Which quantile of earlier answers is expected of the next one. Above the
            median, because KV room planned too small costs recomputation.
        step_tokens: Prompt tokens that the engine computes in one step at most.
        longest_guess_tokens: Most that is guessed by the size of a body. One that would be longer
            as a text is rather images or audio, whose tokens are few and have little to do with
            their bytes. A longer text that nobody counted is given too little KV room, which may
            cost a preemption; an image taken for a text would have to wait for an empty engine,
            and be charged for it.
    """

    def __init__(
        self,
        step_tokens: int,
        output_quantile: float = 0.6,
        longest_guess_tokens: int = LONGEST_GUESS_TOKENS,
    ) -> None:
        self._output_quantile = output_quantile
        self.fit(step_tokens, longest_guess_tokens)
        self._bytes_per_token: dict[str, float] = {}
        # Tenant -> mean tokens of its bodies that are too large for a text.
        self._large_prompts: dict[str, float] = {}
        self._outputs: dict[tuple[str, str], StreamingQuantile] = {}
        self._all_outputs = StreamingQuantile(output_quantile)
        self._correction = 1.0
        self._last_step = StepRecord(0.0, 0, 0)
        self._steps_seen = 0
        self._light_steps = 0
        self._light_steps_seen = 0
        self.light_step_s: float | None = None
        """Time of a step with few decodes and no prefill; None before the model knows one."""
        self.steps = StepTimeModel()

    def fit(self, step_tokens: int, longest_guess_tokens: int) -> None:
        """Reckon with another engine's limits; what was learned stays."""
        self._step_tokens = max(1, step_tokens)
        self._longest_guess_tokens = float(longest_guess_tokens)
        self._largest_text_bytes = self._longest_guess_tokens * _BYTES_PER_TOKEN
        # Of a step beside the present decodes: seconds without prefill, and per prompt token.
        self._fixed_s = self._token_s = 0.0
        self._shape_is_known = False

    def prompt_tokens(self, request: Request) -> int:
        """Return the exact count where it is known, else one from the body's size."""
        if request.prompt_tokens is not None:
            return _sane(request.prompt_tokens)
        body_bytes = request.body_bytes
        if body_bytes > self._largest_text_bytes:
            return _sane(self._large_prompts.get(request.tenant, self._longest_guess_tokens))
        ratio = self._bytes_per_token.get(request.tenant, _BYTES_PER_TOKEN)
        return int(max(1.0, min(body_bytes / ratio, self._longest_guess_tokens)))

    def output_tokens(self, request: Request) -> int:
        """Return the expected length of one sequence, never above the client's bound."""
        own = self._outputs.get((request.tenant, request.endpoint))
        sketch = own if own is not None and own.observations >= _ENOUGH else self._all_outputs
        expected = sketch.value() or _OUTPUT_TOKENS
        bound = request.max_output_tokens
        return expected if bound is None else min(expected, _sane(bound))

    def learn_prompt(self, request: Request, prompt_tokens: int) -> None:
        """Note the exact length of a prompt that was estimated by its size."""
        if prompt_tokens <= 0 or request.body_bytes <= 0:
            return
        if request.body_bytes > self._largest_text_bytes:
            _follow(self._large_prompts, request.tenant, _sane(prompt_tokens))
        else:
            seen = min(100.0, max(0.1, request.body_bytes / prompt_tokens))
            _follow(self._bytes_per_token, request.tenant, seen)

    def learn_output(self, request: Request, output_tokens: int) -> None:
        """Note the length of a finished sequence."""
        if output_tokens <= 0:
            return
        bucket = bucket_of(output_tokens)
        self._all_outputs.count(bucket)
        key = (request.tenant, request.endpoint)
        own = self._outputs.get(key)
        if own is None:
            if len(self._outputs) >= _MAX_TENANTS:
                return
            own = self._outputs[key] = StreamingQuantile(self._output_quantile)
        own.count(bucket)

    def learn_step(self, record: StepRecord) -> None:
        """Note one engine step; once the model is trained, one in four is enough to follow."""
        self._steps_seen += 1
        if not self.steps.trained or self._steps_seen % 4 == 0:
            self.steps.update(record)
            self._follow_light_step()
        if _is_light(record):
            self._note_light_step(record.duration_s)
        self._last_step = record
        self._shape_is_known = False

    def decode_step_s(self, decodes: int, context: int) -> float | None:
        """Return the most likely time of a step without prefill; None before one is known.

        It is compared with a threshold, where a bias would only be a stricter threshold.
        """
        if not self.steps.trained:
            return None
        return self.steps.likely_decodes_s(decodes, context)

    def _note_light_step(self, took_s: float) -> None:
        """Follow a light step that was seen: what the model infers of none is far off at first.

        A replica that seems too slow for a class by it would get no request to learn from.
        """
        self._light_steps_seen += 1
        known_s = took_s if self.light_step_s is None else self.light_step_s
        part = max(_LIGHT_STEP_RATE, 1.0 / self._light_steps_seen)
        self.light_step_s = known_s + part * (took_s - known_s)

    def _follow_light_step(self) -> None:
        if self._light_steps_seen:
            return
        likely_s = self.decode_step_s(_LIGHT_DECODES, _LIGHT_CONTEXT)
        if likely_s is None:
            return
        likely_s = max(0.0, likely_s)  # few steps may say that decodes save time
        if self.light_step_s is None:
            self.light_step_s = likely_s
        self._light_steps += 1
        part = max(_LIGHT_STEP_RATE, 1.0 / self._light_steps)
        self.light_step_s += part * (likely_s - self.light_step_s)

    def first_token_s(self, tokens: int) -> float:
        """Return the time from dispatch to first token, with `tokens` of prefill up to it."""
        if not self.steps.trained:
            return self._correction * (tokens * _PREFILL_S_PER_TOKEN + 0.01)
        if not self._shape_is_known:
            self._learn_shape()
        steps = tokens // self._step_tokens + 1
        return self._correction * (steps * self._fixed_s + tokens * self._token_s)

    @property
    def step_s(self) -> float:
        """Return the likely time of a step without prefill, beside the present decodes.

        The correction of times to the first token is left out: how long prompts wait for each
        other inside the engine says nothing of how long a step takes.
        """
        if not self.steps.trained:
            return self.first_token_s(0)
        last = self._last_step
        return max(0.0, self.steps.likely_decodes_s(last.decodes, last.decode_context))

    @property
    def token_s(self) -> float:
        """Return the time that one more prompt token takes, beside the present decodes."""
        if not self.steps.trained:
            return self._correction * _PREFILL_S_PER_TOKEN
        if not self._shape_is_known:
            self._learn_shape()
        return max(self._correction * self._token_s, _FASTEST_S_PER_TOKEN)

    def longest_first_token_s(self, tokens: int) -> float:
        """Return a time in which any engine that works computes `tokens` of prefill."""
        likely_s = _SLACK * self.first_token_s(tokens)
        return likely_s if self.steps.trained else max(likely_s, tokens * _SLOWEST_S_PER_TOKEN)

    def learn_first_token(self, expected_s: float, took_s: float) -> None:
        """Correct the model by one outcome; too low is corrected faster than too high."""
        if expected_s <= 0 or took_s < 0:
            return
        ratio = min(4.0, max(0.25, took_s / expected_s))
        rate = 0.1 if ratio > 1.0 else 0.02
        self._correction = min(10.0, max(0.2, self._correction * math.pow(ratio, rate)))

    def _learn_shape(self) -> None:
        decodes, context = self._last_step.decodes, self._last_step.decode_context
        self._fixed_s = self.steps.decodes_s(decodes, context)
        full_s = self.steps.mixed_s(self._step_tokens, decodes, context)
        self._token_s = max(0.0, full_s - self._fixed_s) / self._step_tokens
        self._shape_is_known = True


def _follow(means: dict[str, float], tenant: str, seen: float) -> None:
    """Move a tenant's mean towards what was seen."""
    known = means.get(tenant)
    if known is not None:
        means[tenant] = known * 0.9 + seen * 0.1
    elif len(means) < _MAX_TENANTS:
        means[tenant] = seen


def _is_light(record: StepRecord) -> bool:
    """Return whether a step had few decodes, little for them to attend to, and no prefill."""
    if record.prefill_tokens or record.decode_context > _LIGHT_CONTEXT:
        return False
    return 0 < record.decodes <= _LIGHT_DECODES


def _sane(tokens: float) -> int:
    """Return a usable token count, whatever was claimed."""
    if not 1 <= tokens <= _MAX_TOKENS:  # also false for NaN
        return _MAX_TOKENS if tokens > _MAX_TOKENS else 1
    return int(tokens)
