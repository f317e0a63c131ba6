"""A sidecar of a later version, as its peers see it: run as a script in place of `weir-sidecar`.

It is this checkout's sidecar with what a later version may add: a field at the end of what
heartbeats and loads say, and one more in what goes with a forwarded request. Its peers do not know
these fields, and it gets none of them from its peers.
"""

from __future__ import annotations

import sys

import msgspec

from weir_core.route import load, types
from weir_core.wire import peers


class LoadVector(types.LoadVector, frozen=True, array_like=True):
    """A load with a field more."""

    power_w: float = 350.0


class Heartbeat(peers.Heartbeat, frozen=True, array_like=True):
    """A heartbeat with a field more."""

    zone: str = "e2e"


class Forwarded(peers.Forwarded, frozen=True, omit_defaults=True):
    """What goes with a forwarded request, and a field more."""

    zone: str = msgspec.field(default_factory=lambda: "e2e")  # a plain default is left out


def main() -> int:
    """Run the sidecar, which finds these types in the place of its own."""
    for module, known in (
        (types, LoadVector),
        (load, LoadVector),
        (peers, LoadVector),
        (peers, Heartbeat),
        (peers, Forwarded),
    ):
        setattr(module, known.__name__, known)
    from weir_sidecar.__main__ import main as run  # only now: it takes the types at its import

    return run([])


if __name__ == "__main__":
    sys.exit(main())
