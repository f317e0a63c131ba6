"""What an InferenceService owns and says, concern by concern.

A new concern is a module here with a subclass of `Part`, a place in `PARTS`, and its making in
`__main__`. Watches, the chart's rights and the table of rights in the docs follow from what it
owns.
"""

from __future__ import annotations

from typing import Final

from weir_operator.parts.adapters import AdaptersOf
from weir_operator.parts.network import Network
from weir_operator.parts.part import Owned, Part
from weir_operator.parts.policies import Policies
from weir_operator.parts.prefetch import Prefetch
from weir_operator.parts.scaling import Scaling
from weir_operator.parts.scheduling import Scheduling
from weir_operator.parts.workloads import Workloads

__all__ = [
    "PARTS",
    "AdaptersOf",
    "Network",
    "Owned",
    "Part",
    "Policies",
    "Prefetch",
    "Scaling",
    "Scheduling",
    "Workloads",
    "owned",
]

PARTS: Final[tuple[type[Part], ...]] = (
    Policies,
    Network,
    Workloads,
    Prefetch,
    Scaling,
    Scheduling,
    AdaptersOf,
)
"""In the order in which a pass takes them."""


def owned() -> list[Owned]:
    """Return all that the parts own."""
    return [each for part in PARTS for each in part.owns]
