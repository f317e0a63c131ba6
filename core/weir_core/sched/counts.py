"""What became of every request: the counts behind conservation (docs/invariants.md, INV-1)."""

from __future__ import annotations

from weir_core.sched.types import Reason


class Counts:
    """Counts since the start. arrived = finished + aborted + rejected + waiting + running."""

    def __init__(self) -> None:
        self.arrived = 0
        self.finished = 0
        self.aborted = 0
        self.rejected: dict[Reason, int] = {}
        self.dispatched = 0
        self.dispatched_by_min_share = 0
        self.requeued = 0

    @property
    def rejected_in_all(self) -> int:
        """Return the rejections of every reason."""
        return sum(self.rejected.values())

    @property
    def outcomes(self) -> int:
        """Return how many requests have ended, each in exactly one way."""
        return self.finished + self.aborted + self.rejected_in_all

    def reject(self, reason: Reason) -> None:
        """Count one rejection."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
