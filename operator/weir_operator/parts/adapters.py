"""On how many replicas each adapter can be asked for, and what keeps it from the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from weir_core.wire.sidecar_state import ADAPTER_COMING, ADAPTER_HAS_NO_ROOM, ADAPTER_RENEWED
from weir_operator.adapters import Adapters
from weir_operator.cluster import Cluster
from weir_operator.conditions import ADAPTERS, LONGEST_MESSAGE, Verdict, wrong
from weir_operator.observed import Observed
from weir_operator.parts.part import Part

_UNDER_WAY: Final = {
    ADAPTER_COMING: "Loading",
    ADAPTER_RENEWED: "Loading",
    ADAPTER_HAS_NO_ROOM: "NoRoom",
}
"""Reasons by what a sidecar says; all else it says is a failure."""
_WORST_FIRST: Final = ("AdapterFailed", "NoRoom", "Loading", "Unreachable", "Loaded")
_LONGEST_WORDS: Final = 300
"""On one adapter, so that it cannot hide the others."""


class AdaptersOf(Part):
    """Owns nothing; it asks the sidecars.

    Args:
        adapters: What the sidecars say.
    """

    condition = ADAPTERS

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """Ask the sidecars of the pods that are there now."""
        meta, told = seen.owner.metadata, seen.told
        service, keys = (meta.namespace, meta.name), told.keys.valid
        pods, named = seen.staying, told.document.adapters
        return replace(seen, adapters=await self._adapters.lacks(service, named, pods, keys))

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say of each adapter how many replicas have it."""
        return {ADAPTERS: _adapters(seen)}

    def forget(self, service: tuple[str, str]) -> None:
        """Forget what its sidecars said."""
        self._adapters.forget(service)


def _adapters(seen: Observed) -> Verdict:
    named = [each.name for each in seen.told.document.adapters]
    if not named:
        return Verdict("True", "NoAdapters", "the spec names none")
    if seen.scaled_to_zero:
        return Verdict("Unknown", "ScaledToZero", "no engine runs")
    if not seen.adapters:
        return Verdict("Unknown", "Waiting", "no replica takes requests yet")
    found = sorted((_one(seen, name) for name in named), key=_rank)
    worst = found[0].reason
    if worst == "Loaded":
        replicas = len(seen.adapters)
        said = f"{', '.join(named)}: ready on {replicas} of {replicas} replicas"
        return Verdict("True", worst, said[:LONGEST_MESSAGE])
    said = "; ".join(each.message for each in found)
    status = "Unknown" if worst == "Unreachable" else "False"
    return Verdict(status, worst, said[:LONGEST_MESSAGE])


def _one(seen: Observed, name: str) -> Verdict:
    """Return on how many replicas an adapter is ready, and why it is not on the worst of them."""
    troubles = sorted(_troubles(seen, name), key=_rank)
    total = len(seen.adapters)
    counted = f"{name}: ready on {total - len(troubles)} of {total} replicas"
    if not troubles:
        return Verdict("True", "Loaded", counted)
    return troubles[0]._replace(message=f"{counted}; {troubles[0].message}")


def _troubles(seen: Observed, name: str) -> Iterator[Verdict]:
    """Yield a verdict on each replica that is not known to have an adapter, by the pods' names."""
    for pod, lacks in sorted(seen.adapters.items()):
        if isinstance(lacks, str):
            yield wrong("Unreachable", pod, lacks[:_LONGEST_WORDS])
        elif name in lacks:
            why = lacks[name]
            yield wrong(_UNDER_WAY.get(why, "AdapterFailed"), pod, why[:_LONGEST_WORDS])


def _rank(verdict: Verdict) -> int:
    return _WORST_FIRST.index(verdict.reason)
