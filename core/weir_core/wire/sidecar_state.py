"""What others read of a sidecar's `/state`: the operator and `weir status`.

The page says much more, for people; only this part of it is a contract.
"""

from __future__ import annotations

from typing import Final

import msgspec

from weir_core.wire.steps import Facts

ADAPTER_READY: Final = "ready"
ADAPTER_COMING: Final = "it is being fetched and loaded"
ADAPTER_RENEWED: Final = "its new weights are being loaded"
ADAPTER_HAS_NO_ROOM: Final = "the replica has no room for adapters"
"""What is said of an adapter; all else is why it could not be fetched or loaded."""


class Scheduling(msgspec.Struct, frozen=True):
    """What the sidecar schedules for."""

    engine: Facts


class SidecarState(msgspec.Struct, frozen=True):
    """One sidecar.

    Attributes:
        pod: Whose it is.
        scheduling: What is known of its engine; None before one was there.
        adapters: Each adapter that it is told of with `ADAPTER_READY`, or with why it is not.
        adapter_sources: The uri of each; sidecars of an earlier Weir leave it out.
    """

    pod: str
    scheduling: Scheduling | None = None
    adapters: dict[str, str] = {}
    adapter_sources: dict[str, str] = {}

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
