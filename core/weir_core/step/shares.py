"""Mode `custom`: each class's part of the prefill tokens.

A class that has no prompts lends its part to the others and is owed nothing for it. What a class
gets too little because chunks are whole tokens, or because a step was cut short, is carried to
the next steps, so the parts hold over time and not only on paper.
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
        self._divided: dict[int, float] = {}
        self._served: dict[int, int] = {}

    def divide(self, tokens: int, left: Mapping[int, int]) -> dict[int, int]:
        """Return the tokens each rank with prompts may have of this step's.

        Args:
            tokens: What the step has.
            left: Rank to the tokens its prompts still need.
        """
        self._settle()
        ranks = [rank for rank, need in left.items() if need > 0]
        tokens = min(tokens, sum(left[rank] for rank in ranks))
        self._divided = self._parts(ranks)
        most = CARRIED_STEPS * tokens
        self._owed = {rank: min(max(self._owed.get(rank, 0.0), -most), most) for rank in ranks}
        due = {rank: self._owed[rank] + part * tokens for rank, part in self._divided.items()}
        return self._filled(tokens, {rank: left[rank] for rank in ranks}, due)

    def served(self, rank: int, tokens: int) -> None:
        """Note what a rank got of the step that was divided last."""
        self._served[rank] = self._served.get(rank, 0) + tokens

    def _settle(self) -> None:
        """Owe each rank its part of what the last step served, not of what it was meant to."""
        total = sum(self._served.get(rank, 0) for rank in self._divided)
        for rank, part in self._divided.items():
            self._owed[rank] += part * total - self._served.get(rank, 0)
        self._served = {}

    def _filled(
        self, tokens: int, left: Mapping[int, int], due: Mapping[int, float]
    ) -> dict[int, int]:
        """Give what is due, the most owed first; what some cannot use goes to the others."""
        granted = dict.fromkeys(left, 0)
        by_debt = sorted(left, key=lambda rank: (-self._owed[rank], -rank))
        wanted = {rank: min(left[rank], max(0, int(due[rank]))) for rank in by_debt}
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
