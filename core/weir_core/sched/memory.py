"""Who may hold memory for request bodies: part of it is kept for higher ranks and other payers.

Bodies stay in memory from their first byte until their answer begins. Two rules keep one class or
one tenant from taking all of it. A rank may use, together with the ranks below it, only a part of
the memory; the rest is kept for the ranks above. And a payer may hold at most twice what it leaves
free, the dynamic threshold of shared packet buffers (Choudhury and Hahne, 1998): alone it gets two
thirds, and however many share the memory, a newcomer finds some.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_KEPT_SHARE: Final = 0.5
"""Of the memory, what the lowest of many ranks cannot use."""
_FREE_FACTOR: Final = 2.0
"""A payer may hold this many times what is left free."""


class BodyMemory:
    """Counts the bytes of request bodies by rank and payer.

    Args:
        limit_bytes: All bodies together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._caps: dict[int, float] = {}
        self._by_rank: dict[int, int] = {}
        self._by_payer: dict[str, int] = {}
        self._several_payers = False

    def configure(self, ranks: Iterable[int], *, several_payers: bool) -> None:
        """Make these the ranks; `several_payers` says whether more than one can ask at all."""
        ordered = sorted(set(ranks), reverse=True)
        self._several_payers = several_payers
        self._caps = {
            rank: self.limit_bytes * (1.0 - _KEPT_SHARE * above / len(ordered))
            for above, rank in enumerate(ordered)
        }

    def hold(self, payer: str, rank: int, more_bytes: int) -> bool:
        """Count `more_bytes`; false, and nothing is counted, where they may not be held."""
        if not self._admits(payer, rank, more_bytes):
            return False
        self._count(payer, rank, more_bytes)
        return True

    def release(self, payer: str, rank: int, fewer_bytes: int) -> None:
        """Give back what `hold` counted for this payer and rank."""
        self._count(payer, rank, -fewer_bytes)

    def _admits(self, payer: str, rank: int, more_bytes: int) -> bool:
        if self.held_bytes + more_bytes > self.limit_bytes:
            return False
        cap = self._caps.get(rank, float(self.limit_bytes))
        below = sum(held for each, held in self._by_rank.items() if each <= rank)
        free = cap - below - more_bytes
        if free < 0:
            return False
        held = self._by_payer.get(payer, 0)
        # A payer that holds nothing may always hold one body that fits.
        return not self._several_payers or held == 0 or held + more_bytes <= _FREE_FACTOR * free

    def _count(self, payer: str, rank: int, more_bytes: int) -> None:
        self.held_bytes += more_bytes
        self._by_rank[rank] = self._by_rank.get(rank, 0) + more_bytes
        held = self._by_payer.get(payer, 0) + more_bytes
        if held:
            self._by_payer[payer] = held
        else:
            self._by_payer.pop(payer, None)
