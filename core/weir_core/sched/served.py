"""What replicas tell each other of the tokens that tenants were served, for shares of the fleet.

A replica tells running sums, so a heartbeat that is lost or comes twice changes nothing: what is
new is the difference from the sum that was heard last. A sum begins at 0 with the pair of class
and tenant, and the pair is forgotten once it is told no longer.
"""

from __future__ import annotations

from typing import Final

from weir_core.sched.types import Served, ServedLately

MOST_TOLD: Final = 16
"""Pairs of class and tenant that a replica tells of: half a kilobyte to each of the others."""
MOST_HEARD: Final = 256
"""The same that are listened to, should a later version tell of more."""
_MOST_NOTED: Final = 1024
"""Pairs that are kept between two looks; what further ones are served is not told."""
_LATELY_S: Final = 5.0
"""A pair is told for so long after its last charge, so that a lost heartbeat costs nothing."""
_MOST_TOKENS: Final = float(1 << 53)
"""Of a sum, as `Served` allows; an engine may report any usage."""
_FADING: Final = 0.9
"""Part of a pair's activity that is left at the next look."""
_UNHEARD: Final = -1
"""Number of what was heard of a replica that has said nothing yet."""

_Pair = tuple[str, str]


class _Sum:
    """What one tenant was served in one class, since it was told of."""

    __slots__ = ("activity", "charged_s", "tokens")

    def __init__(self) -> None:
        self.tokens = self.activity = self.charged_s = 0.0

    def add(self, tokens: float, now: float) -> None:
        """Count tokens; returned ones are taken back."""
        self.tokens = min(max(0.0, self.tokens + tokens), _MOST_TOKENS)
        self.activity += abs(tokens)
        self.charged_s = now


class ServedHere:
    """What this replica tells the others."""

    def __init__(self) -> None:
        self._noted: dict[_Pair, float] = {}
        self._sums: dict[_Pair, _Sum] = {}
        self._told = ServedLately(0)

    def note(self, class_name: str, tenant: str, tokens: float) -> None:
        """Count tokens that were charged (or, negative, returned)."""
        noted, pair = self._noted, (class_name, tenant)
        before = noted.get(pair)
        if before is not None:
            noted[pair] = before + tokens
        elif len(noted) < _MOST_NOTED:
            noted[pair] = tokens

    def lately(self, now: float) -> ServedLately:
        """Return what to tell from now on; costs nothing where nothing was served."""
        if not self._noted and not self._sums:
            return self._told
        for pair, tokens in self._noted.items():
            found = self._sums.get(pair)
            if found is None:
                found = self._sums[pair] = _Sum()
            found.add(tokens, now)
        self._noted = {}
        self._keep_most_active(now)
        told = tuple(
            Served(class_name, tenant, int(found.tokens))
            for (class_name, tenant), found in self._sums.items()
        )
        if told != self._told.sums:
            self._told = ServedLately(self._told.number + 1, told)
        return self._told

    def _keep_most_active(self, now: float) -> None:
        kept: list[tuple[float, _Pair]] = []
        for pair, found in self._sums.items():
            if now - found.charged_s < _LATELY_S:
                kept.append((-found.activity, pair))
                found.activity *= _FADING
        if len(kept) > MOST_TOLD:
            kept.sort()
        self._sums = {pair: self._sums[pair] for _, pair in kept[:MOST_TOLD]}


class ServedThere:
    """What was heard of one other replica."""

    def __init__(self) -> None:
        self._number = _UNHEARD
        self._heard: dict[_Pair, int] = {}

    def news(self, said: ServedLately) -> list[Served]:
        """Return what was served since the replica was heard last; nothing the first time.

        What is older than was heard before is ignored. A sum that has sunk, because a charge was
        returned, counts again from where it had been.
        """
        if said.number <= self._number:
            return []
        is_first, self._number = self._number == _UNHEARD, said.number
        before, self._heard = self._heard, {}
        found: list[Served] = []
        for each in said.sums[:MOST_HEARD]:
            pair = (each.class_name, each.tenant)
            known = each.tokens if is_first else before.get(pair, 0)
            if each.tokens > known:
                found.append(Served(each.class_name, each.tenant, each.tokens - known))
            self._heard[pair] = max(each.tokens, known)
        return found

    def restarted(self) -> None:
        """Note that another process speaks: its sums begin at 0."""
        self._number, self._heard = 0, {}

    def lost(self) -> None:
        """Note that the replica is silent: what it serves meanwhile is not counted."""
        self._number, self._heard = _UNHEARD, {}
