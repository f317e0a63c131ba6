"""The conditions of an InferenceService: their names, and what a pass says of each."""

from __future__ import annotations

from typing import Final, NamedTuple

READY: Final = "Ready"
SPEC: Final = "SpecValid"
NETWORK: Final = "NetworkReady"
WORKLOADS: Final = "WorkloadsReady"
MODEL: Final = "ModelReady"
PREFETCH: Final = "PrefetchReady"
ROUTER: Final = "RouterReady"
SCALING: Final = "ScalingReady"
POLICIES: Final = "PoliciesReady"
SCHEDULING: Final = "SchedulingReady"
ADAPTERS: Final = "AdaptersReady"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"

UNDER_WAY: Final = frozenset(
    {
        "Fetching",
        "Loading",
        "NoReadyGateway",
        "NoReadyReplica",
        "NoRoom",
        "OneByOne",
        "Progressing",
        "ScaledToZero",
        "Waiting",
        "WaitingForPredecessor",
    }
)
"""Reasons that time alone will cure; all others of a False condition are for a person."""

LONGEST_MESSAGE: Final = 1000


class Verdict(NamedTuple):
    """A condition without its times."""

    status: str
    reason: str
    message: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is true."""
        return self.status == "True"

    @property
    def is_trouble(self) -> bool:
        """Whether it says that something is wrong, not merely under way."""
        return self.status == "False" and self.reason not in UNDER_WAY


def wrong(reason: str, where: str, words: str) -> Verdict:
    """Return a verdict that something is wrong, in the words of what knows it best."""
    return Verdict("False", reason, f"{where}: {words.strip()}"[:LONGEST_MESSAGE])
