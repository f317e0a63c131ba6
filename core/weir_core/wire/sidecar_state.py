"""What others read of a sidecar's `/state`: the operator and `weir status`.

The page says much more, for people; only this part of it is a contract.
"""

from __future__ import annotations

import msgspec

from weir_core.wire.steps import Facts


class Scheduling(msgspec.Struct, frozen=True):
    """What the sidecar schedules for."""

    engine: Facts


class SidecarState(msgspec.Struct, frozen=True):
    """One sidecar.

    Attributes:
        pod: Whose it is.
        scheduling: What is known of its engine; None before one was there.
    """

    pod: str
    scheduling: Scheduling | None = None

    @classmethod
    def decode(cls, data: bytes) -> SidecarState:
        """Read the page.

        Raises:
            ValueError: It is not one.
        """
        return msgspec.json.decode(data, type=cls)


def shortfall(facts: Facts) -> str:
    """Return why an engine lacks Weir's scheduler; empty where it has it or needs none."""
    if facts.kind == "fcfs" and not facts.fallback:
        return "it says nothing of itself; is its image a Weir engine?"
    return facts.fallback
