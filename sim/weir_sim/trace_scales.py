"""What a trace's numbers mean where no line says it: the unit of arrivals, the size of hash blocks.

Both are recognised by what they lead to: a unit by the rate of requests, a block by how many ids a
prompt of a known length has. A guess may be wrong, so whoever reads a trace is told of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from weir_sim.kv import SHARED_TOKENS

UNITS: Final[Mapping[str, float]] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds in one of each unit."""

_EPOCH_S: Final = (946_684_800.0, 4_102_444_800.0)
"""Seconds since 1970 from the year 2000 to 2100."""
_USUAL_RATE: Final = 3.0
"""Requests a second: Azure's trace has 5.5, Mooncake's 3.4."""
_HIGHEST_RATE: Final = 500.0
"""Above this, the likely unit is another one."""
_LOWEST_RATE: Final = 0.005
"""Below this, many numbers are no seconds."""
_MANY: Final = 20

_BLOCKS: Final = tuple(2**power for power in range(13))
_FITTING_SHARE: Final = 0.9
"""Part of the prompts whose number of ids must fit a block size, for it to be taken."""


def unit_of(arrivals: Sequence[float], likely: str | None) -> str:
    """Return the unit of arrivals: of instants since 1970, else what makes a usual rate.

    Args:
        arrivals: Numbers of the unit.
        likely: The unit, unless it makes a rate that is out of the question.
    """
    first, last = min(arrivals), max(arrivals)
    for name, unit_s in UNITS.items():
        if _EPOCH_S[0] <= first * unit_s and last * unit_s < _EPOCH_S[1]:
            return name
    if first == last:
        return likely or "s"
    rates = {name: (len(arrivals) - 1) / ((last - first) * UNITS[name]) for name in UNITS}
    sparse = likely == "s" and len(arrivals) >= _MANY and rates["s"] < _LOWEST_RATE
    if likely and rates[likely] <= _HIGHEST_RATE and not sparse:
        return likely
    return min(rates, key=lambda name: abs(math.log(rates[name] / _USUAL_RATE)))


def block_of(lengths: Sequence[tuple[int, int]]) -> int | None:
    """Return how many tokens an id stands for, or None where no power of two fits.

    Args:
        lengths: Prompt tokens and number of ids of each prompt; a last block may be partial, and
            may have an id or not.
    """
    fitting = {
        block: sum(1 for tokens, ids in lengths if ids in {tokens // block, -(-tokens // block)})
        for block in (SHARED_TOKENS, *_BLOCKS)
    }
    best = max(fitting, key=lambda block: fitting[block])  # of equals the first
    return best if fitting[best] >= _FITTING_SHARE * len(lengths) else None


class Chains:
    """Hash ids for blocks of any size as ids for `SHARED_TOKENS`, which the simulator counts in.

    A new id stands for all old ones of which its tokens are a part, and for what came before: ids
    are equal where prefixes are. What two prompts share beyond whole `SHARED_TOKENS` is lost.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._ids: dict[tuple[int, tuple[int, ...]], int] = {}

    def of(self, hash_ids: Sequence[int], prompt_tokens: int) -> tuple[int, ...]:
        """Return one id for each whole `SHARED_TOKENS` of a prompt."""
        covered = min(prompt_tokens, len(hash_ids) * self._block)
        count = covered // SHARED_TOKENS
        if self._block == SHARED_TOKENS:
            return tuple(hash_ids[:count])
        found: list[int] = []
        before = -1
        for index in range(count):
            first = index * SHARED_TOKENS // self._block
            end = -(-(index + 1) * SHARED_TOKENS // self._block)
            before = self._ids.setdefault((before, tuple(hash_ids[first:end])), len(self._ids))
            found.append(before)
        return tuple(found)
