"""What became of every request: the counts behind conservation (docs/invariants.md, INV-1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from weir_core.sched.types import Reason


@dataclass(slots=True)
class Counts:
    """Counts since the start. arrived = finished + aborted + rejected + waiting + running."""

    arrived: int = 0
    finished: int = 0
    aborted: int = 0
    rejected: dict[Reason, int] = field(default_factory=dict)
    dispatched: int = 0
    dispatched_by_min_share: int = 0
    requeued: int = 0

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
