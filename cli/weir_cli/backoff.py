"""How long to wait before a crashed process is started again.

The same idea as the kubelet's CrashLoopBackOff, at a laptop's pace: the wait doubles with each
crash in a row, so that a process that cannot start does not burn a core, and one that had become
healthy starts over at the shortest wait.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 1.0
LIMIT_S = 30.0


@dataclass
class Backoff:
    """The waits of one process; ask `after_crash` once for each crash."""

    crashes_in_a_row: int = 0

    def after_crash(self, *, was_healthy: bool) -> float:
        """Return the seconds to wait now.

        Args:
            was_healthy: Whether the process that ended had become healthy before.
        """
        if was_healthy:
            self.crashes_in_a_row = 0
        wait_s = min(LIMIT_S, FIRST_S * 2.0 ** min(self.crashes_in_a_row, 16))
        self.crashes_in_a_row += 1
        return wait_s
