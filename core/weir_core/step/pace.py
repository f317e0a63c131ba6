"""How close the tightest decode is to its TPOT target.

A decode that got its tokens early has banked slack: the next one may come later without the mean
leaving the target (Andes and Niyama schedule by the same thought). A decode that is late has
less than a target's time left. Both change how long the next step may take.

Every decode gets one token per step, so of two decodes with one target the same one stays closer
to it. That order is kept in a heap when a decode joins; a step costs nothing but a counter. In a
pipeline each step serves a part of the decodes, and counts for that part of a token.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

LEAD_SPENT: float = 0.25
"""Part of its lead that a decode may lose in one step, so that a long prompt does not use it up
at once and leave the next one nothing."""
LONGEST: float = 1.5
"""Longest a step may get by banked slack, in targets: a stream should not visibly stop."""
SHORTEST: float = 0.5
"""Shortest a step is planned for late decodes, in targets: below that prefills starve and the
decodes win little."""

_SPARE = 64
"""Entries of a heap that may be out of date in any case."""


class Pace:
    """The decodes of one engine and their targets.

    Args:
        tpot_s: Rank to target, in seconds; decodes of other ranks bound nothing.
    """

    def __init__(self, tpot_s: Mapping[int, float]) -> None:
        self._tpot_s = dict(tpot_s)
        self._step = 0.0
        self._decodes: dict[str, tuple[int, float, float]] = {}
        self._heaps: dict[int, list[tuple[float, str]]] = {}

    def __len__(self) -> int:
        """Return how many requests decode."""
        return len(self._decodes)

    def retarget(self, tpot_s: Mapping[int, float]) -> None:
        """Change the targets; decodes keep what they banked."""
        self._tpot_s = dict(tpot_s)
        self._heaps = {}
        for request_id in self._decodes:
            self._push(request_id)

    def joined(self, request_id: str, rank: int, now: float) -> None:
        """Note that a request's first token, or its first after a preemption, is out."""
        self._decodes[request_id] = (rank, now, self._step)
        self._push(request_id)

    def gone(self, request_id: str) -> None:
        """Note that a request decodes no more; unknown ones are ignored."""
        self._decodes.pop(request_id, None)

    def stepped(self, part: float = 1.0) -> None:
        """Note that this part of the decodes, 0 to 1, got a token."""
        self._step += part

    def allowance_s(self, now: float) -> float:
        """Return how long the next step may take by its tightest decode; infinity for any time."""
        return min((self._allowance_s(rank, now) for rank in self._heaps), default=float("inf"))

    def _allowance_s(self, rank: int, now: float) -> float:
        heap = self._heaps[rank]
        while heap and not self._is_current(rank, heap[0]):
            heapq.heappop(heap)
        if not heap:
            return float("inf")
        target = self._tpot_s[rank]
        lead_s = heap[0][0] + target * (self._step + 1) - now - target
        return min(max(target + LEAD_SPENT * lead_s, SHORTEST * target), LONGEST * target)

    def _push(self, request_id: str) -> None:
        rank = self._decodes[request_id][0]
        if rank not in self._tpot_s:
            return
        heap = self._heaps.setdefault(rank, [])
        heapq.heappush(heap, (self._origin_s(request_id), request_id))
        # Those that are gone leave when they come to the top, which some modes never look at.
        if len(heap) > 2 * len(self._decodes) + _SPARE:
            heap[:] = sorted(entry for entry in heap if self._is_current(rank, entry))

    def _origin_s(self, request_id: str) -> float:
        """Return when the engine's step 0 would have been, at this decode's target pace."""
        rank, first_s, step = self._decodes[request_id]
        return first_s - self._tpot_s[rank] * step

    def _is_current(self, rank: int, entry: tuple[float, str]) -> bool:
        origin_s, request_id = entry
        decode = self._decodes.get(request_id)
        return decode is not None and decode[0] == rank and self._origin_s(request_id) == origin_s
