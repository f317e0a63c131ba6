"""A bound on requests that are not scheduled: so many of one payer, so many in all, at once."""

from __future__ import annotations


class ConcurrencyLimit:
    """Counts what runs.

    Args:
        per_payer: Requests of one payer at once.
        in_all: Requests of all payers at once.
    """

    def __init__(self, per_payer: int, in_all: int) -> None:
        self._per_payer = per_payer
        self._in_all = in_all
        self._running = 0
        self._by_payer: dict[str, int] = {}

    def enter(self, payer: str) -> bool:
        """Count one more; false, and nothing is counted, where that is too many."""
        running = self._by_payer.get(payer, 0)
        if self._running >= self._in_all or running >= self._per_payer:
            return False
        self._running += 1
        self._by_payer[payer] = running + 1
        return True

    def leave(self, payer: str) -> None:
        """Count one less."""
        self._running -= 1
        left = self._by_payer[payer] - 1
        if left:
            self._by_payer[payer] = left
        else:
            del self._by_payer[payer]
