"""Who gives up a slot, or KV blocks, for a waiting request of a higher class.

Only a strictly lower class does, the lowest first, and in it whoever loses the least computed
work. Nobody is preempted in vain: if all that may go would not make room enough, none goes.

Recomputing is paid for from a credit that computed tokens earn, so that it stays a bounded part
of all work. While there is credit, whoever is needed may go, also at more than the credit: a
sequence longer than all that can be saved up would otherwise never give way. The debt is earned
back before anybody goes again, so the part holds over time. And nobody is preempted again before
it has computed more than it lost the last time, nor more than `MAX_TIMES`: two requests never
take one place from each other in turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RECOMPUTE_SHARE: float = 0.05
"""Tokens that may be computed twice, as a part of all computed ones."""
MAX_TIMES: int = 3
"""Preemptions of one request for the sake of others."""
PATIENCE_STEPS: int = 8
"""Steps until it is looked again who might go, when nobody could for the same request."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A sequence in the batch.

    Attributes:
        computed: Tokens in its KV cache, which it would have to compute again.
        blocks: KV blocks that would become free.
    """

    request_id: str
    rank: int
    computed: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Need:
    """What a waiting request lacks to be admitted.

    Attributes:
        slots: Slots, 0 or 1.
        blocks: KV blocks beyond the free ones.
    """

    rank: int
    slots: int
    blocks: int


class Preemptions:
    """Chooses victims and keeps account of what they cost.

    Args:
        burst_tokens: Credit at the start, and the most that can be saved up. Debt has no bound
            but what one request needs.
    """

    def __init__(self, burst_tokens: int) -> None:
        self._burst = float(burst_tokens)
        self._credit = self._burst
        self._lost: dict[str, tuple[int, int]] = {}
        self._refused = ""
        self._patience = 0

    def earn(self, computed_tokens: int) -> None:
        """Take in what a step computed."""
        self._credit = min(self._burst, self._credit + RECOMPUTE_SHARE * computed_tokens)

    def forget(self, request_id: str) -> None:
        """Note that a request ended."""
        self._lost.pop(request_id, None)

    def is_worth_a_look(self, request_id: str) -> bool:
        """Return whether to look who might go for a request; not in each step after a no."""
        self._patience -= 1
        if self._credit <= 0:
            return False
        if request_id == self._refused and self._patience > 0:
            return False
        self._patience = PATIENCE_STEPS
        return True

    def looked(self, request_id: str, victims: list[Holder]) -> None:
        """Note whether anybody could go for a request."""
        self._refused = "" if victims else request_id

    def choose(self, need: Need, holders: Iterable[Holder]) -> list[Holder]:
        """Return who goes for `need`, and charge for it; nobody if it would not be enough."""
        if self._credit <= 0 or (need.slots <= 0 and need.blocks <= 0):
            return []
        candidates = [one for one in holders if one.rank < need.rank and self._may_go(one)]
        candidates.sort(key=lambda one: (one.rank, one.computed, one.request_id))
        chosen = _without_spare(_first_enough(candidates, need), need)
        for holder in chosen:
            self._charge(holder)
        return chosen

    def _may_go(self, holder: Holder) -> bool:
        times, lost = self._lost.get(holder.request_id, (0, -1))
        return times < MAX_TIMES and holder.computed > lost

    def _charge(self, holder: Holder) -> None:
        times, _ = self._lost.get(holder.request_id, (0, 0))
        self._lost[holder.request_id] = (times + 1, holder.computed)
        self._credit -= holder.computed


def _first_enough(candidates: list[Holder], need: Need) -> list[Holder]:
    """Return as many of the first ones as make room enough, or nobody."""
    blocks = 0
    for count, holder in enumerate(candidates, start=1):
        blocks += holder.blocks
        if count >= need.slots and blocks >= need.blocks:
            return candidates[:count]
    return []


def _without_spare(chosen: list[Holder], need: Need) -> list[Holder]:
    """Leave out those whose place the others already make, the costliest first."""
    slots, blocks = len(chosen), sum(one.blocks for one in chosen)
    spare = set()
    for holder in sorted(chosen, key=lambda one: -one.computed):
        if slots - 1 >= need.slots and blocks - holder.blocks >= need.blocks:
            spare.add(holder.request_id)
            slots, blocks = slots - 1, blocks - holder.blocks
    return [one for one in chosen if one.request_id not in spare]
