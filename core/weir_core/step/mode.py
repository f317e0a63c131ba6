"""How an engine divides its steps; the engine's `Mode` is made of `wire.policies.EngineMode`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from weir_core.sched.types import BUILT_IN_CLASSES

BUILT_IN_TPOT_S: Mapping[int, float] = MappingProxyType(
    {one.rank: one.tpot_target_s for one in BUILT_IN_CLASSES if one.tpot_target_s is not None}
)
"""Rank to TPOT target of the built-in classes, in seconds."""


@dataclass(frozen=True)
class Mode:
    """What a step is divided by.

    Attributes:
        kind: `latency` leaves prefills what the tightest decode's target allows; `throughput`
            gives them every token a step may hold; `custom` is `latency` with each class's part
            of the prefill tokens fixed.
        tpot_s: Rank to target, in seconds; ranks without one bound no step.
        shares: With `custom`: rank to its part of the prefill tokens, 0 to 1.
        tpot_floor_s: Steps may always take this long, in seconds.
    """

    kind: Literal["latency", "throughput", "custom"] = "latency"
    tpot_s: Mapping[int, float] = field(default_factory=lambda: BUILT_IN_TPOT_S)
    shares: Mapping[int, float] = field(default_factory=dict)
    tpot_floor_s: float = 0.0
