"""Random numbers that are the same on every machine, Python and numpy: SplitMix64 by hand.

`random` and `numpy.random` promise their sequences only in part, across versions; a model whose
bytes must never differ needs a generator that is written down.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T")
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB
_MASK: Final = (1 << 64) - 1


class Numbers:
    """An endless sequence of random numbers, chosen by `name` alone."""

    def __init__(self, name: str) -> None:
        self._state = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")

    def below(self, bound: int) -> int:
        """Return an integer from 0 to `bound` - 1."""
        # One at a time, Python's integers are faster than arrays of one.
        self._state = (self._state + _GOLDEN) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
        return ((mixed ^ (mixed >> 31)) >> 11) % bound

    def pick(self, options: Sequence[_T]) -> _T:
        """Return one of `options`."""
        return options[self.below(len(options))]

    def uniform(self, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
        """Return numbers spread evenly around 0 with the given standard deviation."""
        size = int(np.prod(shape))
        unit = (self._next(size) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        half_width = np.float32(deviation * 3**0.5)
        return ((unit * 2 - 1) * half_width).reshape(shape)

    def _next(self, count: int) -> NDArray[np.uint64]:
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        mixed = steps + np.uint64(self._state)
        self._state = (self._state + count * _GOLDEN) & _MASK
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
        return mixed ^ (mixed >> np.uint64(31))
