"""What the page is sent: the fleet, one replica's requests, and the last minutes; no I/O, no clock.

The figures are those of `weir top` (`weir_cli.top_figures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from weir_cli.console.told import Told, read
from weir_cli.top_figures import (
    Choice,
    ClassRow,
    Picture,
    Process,
    ReplicaRow,
    Service,
    count_of,
    picture,
)

GONE_SHOWN_S: Final = 60.0
"""How long a replica that is no longer there is shown."""
GONE: Final = "gone"
_NEWEST_KEPT: Final = 6
"""Readings that tell rates, and whether a process answers."""
_EVERY: Final = 20
"""Of the older readings every so many is looked at."""


class Watched(NamedTuple):
    """A replica that a viewer has opened."""

    service: str
    replica: str


@dataclass(frozen=True)
class Moment:
    """One service at one instant, for the timelines; the numbers by class leave out those of 0.

    Attributes:
        at_s: Unix time.
        ttft_p99_s: Of the last minute.
        rejected: In the last minute.
    """

    at_s: float
    waiting: Mapping[str, int]
    at_engine: int
    output_tokens_s: float
    prompt_tokens_s: float
    ttft_p99_s: Mapping[str, float]
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Fleet:
    """What all viewers of a service see.

    Attributes:
        at_s: Unix time of the frame.
        services: Names of all services that run.
        service: The one that is shown; empty where it does not run.
        gateways: The rows of its gateways, by name.
        replicas: By name; those that have just gone are among them. In a frame, those that differ
            from what its viewer was sent before.
        left: Names of those that its viewer was sent before and that are no longer shown.
        slots: Slots of the engine, by replica, where they are known; None is as before.
        trouble: Why what runs cannot be read; empty where it can.
    """

    at_s: float
    services: tuple[str, ...] = ()
    service: str = ""
    gateways: tuple[ReplicaRow, ...] = ()
    replicas: tuple[ReplicaRow, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    slots: Mapping[str, int] | None = field(default_factory=dict)
    left: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Replica:
    """The requests of one replica or gateway, as it told them last.

    Attributes:
        age_s: Age of what it told.
        state: What is shown of its page `/state`; None where there is none that can be read.
        trouble: Why that page cannot be read; empty where it can.
    """

    name: str
    age_s: float | None = None
    state: Told | None = None
    trouble: str = ""


def fleet_of(
    services: Sequence[Service], name: str, at_s: float, heard_since_s: float
) -> tuple[Fleet, Service | None]:
    """Return what is shown of a service, and the service; its name may be of none that runs."""
    names = tuple(sorted({each.name for each in services}))
    service = next((each for each in services if each.name == name), None)
    if service is None:
        return Fleet(at_s, names), None
    shown = _picture(service, heard_since_s)
    gateways = {each.name for each in service.gateways}
    return (
        Fleet(
            at_s,
            names,
            name,
            tuple(row for row in shown.replicas if row.name in gateways),
            tuple(row for row in shown.replicas if row.name not in gateways),
            shown.classes,
            {each.name: slots for each in service.replicas if (slots := _slots(each))},
        ),
        service,
    )


def _picture(service: Service, heard_since_s: float) -> Picture:
    """Return the figures of a service, from some of its readings.

    All those of 100 replicas take seconds to compare. A counter that began anew is still seen where
    it is lower than it was.
    """
    some = replace(
        service,
        gateways=tuple(_thinned(each) for each in service.gateways),
        replicas=tuple(_thinned(each) for each in service.replicas),
    )
    return picture([some], Choice(), heard_since_s, since_start=False)


def _thinned(process: Process) -> Process:
    readings = process.readings
    kept = (*readings[:-_NEWEST_KEPT:_EVERY], *readings[-_NEWEST_KEPT:])
    return replace(process, readings=kept)


def moment_of(fleet: Fleet) -> Moment:
    """Return what the timelines keep of a frame."""
    rows = [*fleet.replicas, *fleet.gateways]
    return Moment(
        fleet.at_s,
        {row.name: n for row in fleet.classes if (n := sum(row.waiting.values()))},
        sum(row.at_engine or 0 for row in rows),
        sum(row.output_tokens_s or 0.0 for row in rows),
        sum(row.prompt_tokens_s or 0.0 for row in rows),
        {row.name: row.ttft_p99_s for row in fleet.classes if row.ttft_p99_s is not None},
        {row.name: n for row in fleet.classes if (n := sum(row.rejected.values()))},
    )


def with_gone(fleet: Fleet, before: Mapping[str, tuple[float, ReplicaRow]]) -> Fleet:
    """Return the frame with the replicas that have gone a short time ago.

    Args:
        fleet: The frame.
        before: When each replica was there last, and its row.
    """
    there = {row.name for row in fleet.replicas}
    gone = [
        ReplicaRow(row.service, row.name, GONE, answers=False)
        for name, (at_s, row) in before.items()
        if name not in there and fleet.at_s - at_s <= GONE_SHOWN_S
    ]
    rows = sorted([*fleet.replicas, *gone], key=lambda row: row.name)
    return replace(fleet, replicas=tuple(rows))


def changed(fleet: Fleet, sent: Fleet) -> Fleet:
    """Return what a viewer is sent of a fleet: of 100 replicas few change from frame to frame.

    Args:
        fleet: As it is now.
        sent: The whole of what the viewer was sent before.
    """
    before = {row.name: row for row in sent.replicas}
    rows = tuple(row for row in fleet.replicas if before.pop(row.name, None) != row)
    slots = None if fleet.slots == sent.slots else fleet.slots
    return replace(fleet, replicas=rows, left=tuple(before), slots=slots)


def opened_of(service: Service | None, name: str) -> Process | None:
    """Return a replica or a gateway by its name; the first one, replicas first, if it is empty."""
    every = (*service.replicas, *service.gateways) if service else ()
    return next((each for each in every if name in {"", each.name}), None)


def replica_of(service: Service | None, name: str, now_s: float) -> Replica:
    """Return the requests of a replica or a gateway.

    Args:
        service: Where it is looked for.
        name: Its name; that of `opened_of` where it is empty.
        now_s: By the clock of the readings.
    """
    found = opened_of(service, name)
    if found is None:
        return Replica(name)
    heard = found.states
    if not heard:
        return Replica(found.name, trouble=found.trouble)
    newest = heard[-1]
    age_s = round(now_s - newest.at_s, 1)
    try:
        return Replica(found.name, age_s, read(newest.state), found.trouble)
    except ValueError as error:
        return Replica(found.name, age_s, trouble=str(error))


def _slots(process: Process) -> int | None:
    """Return how many sequences an engine computes at a time."""
    if process.slots is not None:
        return process.slots
    for reading in reversed(process.states):
        # What listens in a pod is not trusted to be a sidecar.
        match reading.state:
            case {"scheduling": {"engine": {"max_num_seqs": told}}}:
                return count_of(told)
    return None
