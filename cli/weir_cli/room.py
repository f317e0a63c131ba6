"""Whether this machine has the processors and the memory that replicas ask for.

A cluster's scheduler leaves a pod without a node pending. Here nothing holds it back, so it is said
before: replicas that share too few processors slow each other down, and those that share too little
memory are killed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

_QUANTITY: Final = re.compile(r"(\d*\.?\d+(?:[eE][+-]?\d+)?)([a-zA-Z]*)")
_UNITS: Final = {
    "": 1.0,
    **{unit: 1000.0**power for power, unit in zip((-3, -2, -1), "num", strict=True)},
    **{unit: 1000.0**power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)},
}
_GIB: Final = 2**30


class Room(NamedTuple):
    """Processors, and memory in bytes."""

    cpus: float
    memory: float


def asked_by(template: Mapping[str, Any]) -> Room:
    """Return what the containers of a pod that run side by side ask for."""
    spec = template["spec"]
    sidecars = [one for one in spec.get("initContainers", ()) if one.get("restartPolicy")]
    resources = [one.get("resources", {}) for one in (*sidecars, *spec["containers"])]
    asked = [{**one.get("limits", {}), **one.get("requests", {})} for one in resources]
    return Room(
        sum(_amount(one.get("cpu", 0)) for one in asked),
        sum(_amount(one.get("memory", 0)) for one in asked),
    )


def of_this_machine() -> Room:
    """Return what there is."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Room(float(len(os.sched_getaffinity(0))), float(pages * size))


def shortage(service: str, asked: Iterable[Room], has: Room) -> str:
    """Return what to say where the replicas of a service ask for more than there is; else empty."""
    each = list(asked)
    cpus, memory = sum(one.cpus for one in each), sum(one.memory for one in each)
    if cpus <= has.cpus and memory <= has.memory:
        return ""
    return (
        f"{service}: {len(each)} replicas (maxReplicas) ask for {cpus:.3g} CPUs and "
        f"{memory / _GIB:.3g} GiB together, and this machine has {has.cpus:g} and "
        f"{has.memory / _GIB:.3g} GiB; so many would slow each other down or run out of memory, so "
        "write a lower maxReplicas"
    )


def _amount(quantity: int | str) -> float:
    """Return a quantity of Kubernetes as a number; one that is checked elsewhere counts as 0."""
    found = _QUANTITY.fullmatch(str(quantity))
    return 0.0 if found is None else float(found[1]) * _UNITS.get(found[2], 0.0)
