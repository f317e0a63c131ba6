"""What a sidecar says of its service's replicas to the autoscaler, on its page `/fleet`.

It knows the load vectors of all other replicas, so one or two sidecars tell of a whole fleet. The
page is JSON; a load in it is an array, as it is in a heartbeat (`weir_core.wire.peers`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from weir_core.route.types import LoadVector
from weir_core.scale.types import ClassWork, Phase, ReplicaLoad

FLEET_PATH: Final = "/fleet"
WAIT: Final = "wait"
"""Parameter of the page of a gateway: it answers when a request waits, or after so many seconds."""
LONGEST_WAIT_S: Final = 60.0

_Time = Annotated[float, Meta(ge=0.0, le=1e12)]


class ReplicaReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One replica.

    Attributes:
        name: Of its pod.
        load: Its load vector.
        age_s: Age of the load.
        drain_s: Predicted time until its running requests end; only that of the sidecar that is
            asked is known.
    """

    name: str
    load: LoadVector
    age_s: _Time = 0.0
    drain_s: _Time | None = None


class FleetReport(msgspec.Struct, frozen=True):
    """All replicas that one sidecar knows, its own first.

    Attributes:
        pod: Of the sidecar.
        replicas: Those with an engine, now or of late.
        waiting: Requests that wait at this sidecar for a replica that takes them; of a gateway.
        idle_s: Time since this sidecar had a request last, or since its start; 0 while it has one.
            None is not told, as by an older Weir.
    """

    pod: str
    replicas: tuple[ReplicaReport, ...] = ()
    waiting: Annotated[int, Meta(ge=0)] = 0
    idle_s: _Time | None = None

    def encode(self) -> bytes:
        """Return the page."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, page: bytes) -> FleetReport:
        """Read the page.

        Raises:
            ValueError: It is not one.
        """
        return msgspec.json.decode(page, type=cls)


def heard(known: ReplicaLoad, report: ReplicaReport) -> ReplicaLoad:
    """Return what is known of a replica with what is told of it.

    One without an engine takes nothing new, so it counts as leaving. Requests that run may last any
    time where that is not told.
    """
    running = report.load.sequences
    drain_s = report.drain_s if report.drain_s is not None else float("inf") if running else 0.0
    has_left = known.phase is Phase.READY and report.load.draining
    return replace(
        known,
        phase=Phase.DRAINING if has_left else known.phase,
        heard_s=report.age_s,
        work=tuple(
            ClassWork(one.name, one.offered, one.backlog_s, one.slack_s)
            for one in report.load.classes
        ),
        running=running,
        drain_s=drain_s,
    )
