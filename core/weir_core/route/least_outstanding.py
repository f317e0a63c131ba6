"""Routing among the replicas of one machine: the ready one with the fewest requests outstanding.

A request that a replica refused, or did not take, goes to one that was not tried yet. A replica
that is silent gets nothing new while another one is not: its oldest request waits for a first byte
since before the last one that any other replica has begun to answer.
"""

from __future__ import annotations

from collections.abc import Collection

_SILENT_S = 2.0
"""A request waits this long for its first byte before its replica can count as silent."""


class _Replica:
    """One replica as the router knows it."""

    def __init__(self) -> None:
        self.ready = False
        self.outstanding = 0
        # Number of the attempt -> when it was sent; in order, so the oldest is first.
        self.unbegun: dict[int, float] = {}
        self.begun_s = float("-inf")
        """When it last began to answer something."""

    def waits_since(self) -> float | None:
        """Return when the oldest request without a first byte was sent."""
        for sent_s in self.unbegun.values():
            return sent_s
        return None


class LeastOutstanding:
    """Chooses a replica for each attempt and counts what each has."""

    def __init__(self, names: Collection[str]) -> None:
        self._replicas = {name: _Replica() for name in names}
        self._attempts = 0

    @property
    def ready(self) -> list[str]:
        """The replicas that requests may go to."""
        return [name for name, replica in self._replicas.items() if replica.ready]

    def outstanding(self, name: str) -> int:
        """Return how many requests a replica has."""
        return self._replicas[name].outstanding

    def on_probe(self, name: str, ready: bool) -> None:
        """Hear whether a replica is ready."""
        self._replicas[name].ready = ready

    def choose(self, tried: Collection[str], now: float) -> tuple[str, int] | None:
        """Return the replica for the next attempt and the attempt's number, or None.

        Args:
            tried: Replicas that this request was sent to already.
            now: The present.
        """
        left = [name for name in self.ready if name not in tried]
        if not left:
            return None
        lively = [name for name in left if not self._is_silent(name, now)] or left
        first = self._attempts % len(lively)
        order = lively[first:] + lively[:first]
        chosen = min(order, key=lambda name: self._replicas[name].outstanding)
        self._attempts += 1
        replica = self._replicas[chosen]
        replica.outstanding += 1
        replica.unbegun[self._attempts] = now
        return chosen, self._attempts

    def has_others(self, tried: Collection[str]) -> bool:
        """Return whether a ready replica was not tried yet."""
        return any(name not in tried for name in self.ready)

    def on_begun(self, name: str, attempt: int, now: float) -> None:
        """Note the first byte of an answer."""
        replica = self._replicas[name]
        replica.unbegun.pop(attempt, None)
        replica.begun_s = now

    def on_end(self, name: str, attempt: int) -> None:
        """Note the end of an attempt, however it ended."""
        replica = self._replicas[name]
        replica.outstanding -= 1
        replica.unbegun.pop(attempt, None)

    def on_lost(self, name: str) -> None:
        """Note that a replica could not be reached: it is out until its next good probe."""
        self._replicas[name].ready = False

    def _is_silent(self, name: str, now: float) -> bool:
        replica = self._replicas[name]
        since = replica.waits_since()
        if since is None or now - since < _SILENT_S or replica.begun_s >= since:
            return False
        return any(other.begun_s > since for each, other in self._replicas.items() if each != name)
