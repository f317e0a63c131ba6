"""A profile from a step log: how long this engine's steps take, fitted and tested.

A step log is a file of JSON lines, one object per step, with the fields of `wire.steps.Step`;
`duration_s`, `prefill_tokens`, `decodes`, `prefill_context` and `decode_context` are used.

The model is that of `profiles`: a base, the larger of reading the weights and computing the
tokens, a part per sequence, and attention. It is linear but for that "larger", so the size of
batch from which on compute outweighs the weights is searched for, and the rest is least squares
with no coefficient below zero. The fit weighs relative errors: a short step wrong by 20 % is as
bad as a long one. One step in five is kept out of it, and the errors are those on these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from weir_core.wire.steps import Facts, Step
from weir_sim.profiles import EngineProfile

_HELD_OUT = 5
"""One step in so many is not learned from."""
_LEAST_STEPS = 50
_FLOORS = (0, 8, 16, 32, 64, 128, 192, 256, 384, 512)
"""Batch sizes in tokens below which reading the weights may set the time."""

Floats = npt.NDArray[np.float64]


class BadStepLog(ValueError):
    """A step log cannot be read, or says too little; the message says why."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A profile, and how wrong it is on steps it was not fitted to.

    Attributes:
        steps: Steps in the log that took any time.
        median_error_ratio: Half of the held-out steps are predicted better than this.
        p95_error_ratio: 95 % of them are.
        bias_ratio: Sum of all predictions over the sum of all durations, less 1.
    """

    profile: EngineProfile
    steps: int
    median_error_ratio: float
    p95_error_ratio: float
    bias_ratio: float


def read_steps(path: Path) -> list[Step]:
    """Return the steps of a log.

    Raises:
        BadStepLog: A line is not a step, or there are too few.
    """
    steps: list[Step] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                step = msgspec.json.decode(line, type=Step)
            except ValueError as error:
                raise BadStepLog(f"{path}:{number}: {error}") from error
            if step.duration_s > 0:
                steps.append(step)
    if len(steps) < _LEAST_STEPS:
        raise BadStepLog(f"{path}: {len(steps)} steps with a duration; {_LEAST_STEPS} are needed")
    return steps


def calibrate(steps: Sequence[Step], name: str, facts: Facts, block_tokens: int) -> Calibration:
    """Return the profile that fits `steps` best."""
    held_out = np.arange(len(steps)) % _HELD_OUT == _HELD_OUT - 1
    durations = np.array([step.duration_s for step in steps])
    best: tuple[float, int, Floats] | None = None
    for floor in _FLOORS:
        features = _features(steps, floor)
        weights = _fit(features[~held_out], durations[~held_out])
        error = np.abs(features[~held_out] @ weights / durations[~held_out] - 1)
        score = float(np.mean(error))
        if best is None or score < best[0]:
            best = (score, floor, weights)
    assert best is not None
    _, floor, weights = best
    predicted = _features(steps, floor)[held_out] @ weights
    errors = np.abs(predicted / durations[held_out] - 1)
    return Calibration(
        profile=_profile(name, floor, weights, facts, block_tokens),
        steps=len(steps),
        median_error_ratio=round(float(np.median(errors)), 4),
        p95_error_ratio=round(float(np.quantile(errors, 0.95)), 4),
        bias_ratio=round(float(predicted.sum() / durations[held_out].sum()) - 1, 4),
    )


def write_profile(profile: EngineProfile, path: Path) -> None:
    """Write a profile as JSON."""
    path.write_text(json.dumps(asdict(profile), indent=1) + "\n")


def read_profile(path: Path) -> EngineProfile:
    """Read what `write_profile` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    return msgspec.json.decode(path.read_bytes(), type=EngineProfile)


def _features(steps: Sequence[Step], floor: int) -> Floats:
    return np.array(
        [
            (
                1.0,
                max(floor, step.prefill_tokens + step.decodes),
                step.decodes,
                step.prefill_context,
                step.decode_context,
            )
            for step in steps
        ],
        dtype=np.float64,
    )


def _fit(features: Floats, durations: Floats) -> Floats:
    """Return coefficients; those below zero are left out, the worst first."""
    relative = features / durations[:, None]
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-30)
    scaled = relative / scale
    active = list(range(features.shape[1]))
    coefficients = np.zeros(features.shape[1])
    while active:
        found, *_ = np.linalg.lstsq(scaled[:, active], np.ones(len(durations)), rcond=None)
        if found.min() >= 0:
            coefficients[active] = found
            break
        active.pop(int(found.argmin()))
    fitted: Floats = coefficients / scale
    return fitted


def _profile(
    name: str, floor: int, weights: Floats, facts: Facts, block_tokens: int
) -> EngineProfile:
    base_s, token_s, sequence_s, prefill_context_s, decode_context_s = (float(w) for w in weights)
    return EngineProfile(
        name=name,
        base_s=base_s,
        weights_s=token_s * floor,
        token_s=max(token_s, 1e-9),
        sequence_s=sequence_s,
        prefill_context_s=prefill_context_s,
        decode_context_s=decode_context_s,
        max_num_seqs=facts.max_num_seqs,
        max_num_batched_tokens=facts.max_num_batched_tokens,
        kv_blocks=max(1, facts.kv_capacity_tokens // block_tokens),
        block_tokens=block_tokens,
        source="calibrated from a step log",
    )
