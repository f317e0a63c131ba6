"""Mode `custom`: each class's part of the prefill tokens.

A class that has no prompts lends its part to the others, in proportion to theirs, and is owed
nothing for it. What a class gets too little because chunks are whole tokens, or because a step
ended early, is carried to the next steps, so the parts hold over time and not only on paper.
"""

from __future__ import annotations

from collections.abc import Mapping

CARRIED_STEPS: float = 4.0
"""Most that is carried, in steps' worth of tokens; more would repay an old lack with a flood."""


class Shares:
    """The parts of the ranks, and what each is owed.

    Args:
        shares: Rank to part, 0 to 1. Ranks that are not named divide what is left evenly, at
            least a hundredth each.
    """

    def __init__(self, shares: Mapping[int, float]) -> None:
        self._shares = dict(shares)
        self._owed: dict[int, float] = {}

    def divide(self, tokens: int, left: Mapping[int, int]) -> dict[int, int]:
        """Return the tokens each rank with prompts may have of this step's.

        Args:
            tokens: What the step has.
            left: Rank to the tokens its prompts still need.
        """
        ranks = [rank for rank, need in left.items() if need > 0]
        parts = self._parts(ranks)
        tokens = min(tokens, sum(left[rank] for rank in ranks))
        # Nobody is owed more than it can use, nor more than a few steps hold.
        self._owed = {
            rank: min(
                self._owed.get(rank, 0.0) + parts[rank] * tokens,
                float(left[rank]),
                CARRIED_STEPS * tokens,
            )
            for rank in ranks
        }
        return self._filled(tokens, {rank: left[rank] for rank in ranks}, parts)

    def served(self, rank: int, tokens: int) -> None:
        """Note what a rank got."""
        if rank in self._owed:
            self._owed[rank] -= tokens

    def _filled(
        self, tokens: int, left: Mapping[int, int], parts: Mapping[int, float]
    ) -> dict[int, int]:
        """Give by what is owed; what some cannot use goes to the others by their parts."""
        granted = dict.fromkeys(left, 0)
        by_debt = sorted(left, key=lambda rank: (-self._owed[rank] / parts[rank], -rank))
        wanted = {rank: min(left[rank], max(0, int(self._owed[rank]))) for rank in by_debt}
        for grants in (wanted, left):
            for rank in by_debt:
                granted[rank] += (more := min(grants[rank] - granted[rank], tokens))
                tokens -= more
        return granted

    def _parts(self, ranks: list[int]) -> dict[int, float]:
        unnamed = [rank for rank in ranks if rank not in self._shares]
        rest = max(0.0, 1.0 - sum(self._shares.values()))
        parts = {
            rank: max(self._shares.get(rank, rest / max(1, len(unnamed))), 0.01) for rank in ranks
        }
        total = sum(parts.values())
        return {rank: part / total for rank, part in parts.items()}
