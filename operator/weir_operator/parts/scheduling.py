"""Whether Weir's scheduler orders the engines' steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from weir_core.wire.sidecar_state import shortfall
from weir_core.wire.steps import Facts
from weir_operator.cluster import Cluster
from weir_operator.conditions import LONGEST_MESSAGE, SCHEDULING, Verdict
from weir_operator.engines import Engines
from weir_operator.observed import Observed, Said
from weir_operator.parts.part import Part

_LONGEST_REASON: Final = 200
"""Of one engine, in its own words; so that one cannot hide the others."""
_PODS_NAMED: Final = 3


class Scheduling(Part):
    """Owns nothing; it asks the sidecars.

    Args:
        engines: What the engines say.
    """

    condition = SCHEDULING

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """Ask the sidecars of the pods that are there now."""
        meta = seen.owner.metadata
        service, keys = (meta.namespace, meta.name), seen.told.keys.valid
        said = await self._engines.said(service, seen.staying, keys)
        return replace(seen, engines=said)

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say which engines run without Weir's scheduler; silence is no fallback."""
        return {SCHEDULING: _scheduling(seen)}

    def forget(self, service: tuple[str, str]) -> None:
        """Forget what its engines said."""
        self._engines.forget(service)


def _scheduling(seen: Observed) -> Verdict:
    if seen.scaled_to_zero:
        return Verdict("Unknown", "ScaledToZero", "no engine runs")
    engines = seen.engines
    if not engines:
        return Verdict("Unknown", "Waiting", "no replica takes requests yet")
    without: dict[str, list[str]] = {}
    silent: dict[str, list[str]] = {}
    for pod, said in engines.items():
        if isinstance(said, str):
            silent.setdefault(said, []).append(pod)
        elif why := shortfall(said):
            without.setdefault(f"{_policy(said)} instead, because {why}", []).append(pod)
    if without:
        count = f"{_count(without)} of {len(engines)} engines run without Weir's scheduler"
        return Verdict("False", "Fallback", _by_pods(count, without))
    if silent:
        count = f"{_count(silent)} of {len(engines)} sidecars do not tell how their engine runs"
        return Verdict("Unknown", "Unreachable", _by_pods(count, silent))
    return _ordered(engines)


def _ordered(engines: Mapping[str, Said]) -> Verdict:
    passing = sum(1 for said in engines.values() if isinstance(said, Facts) and said.kind != "weir")
    if passing:
        count = f"{passing} of {len(engines)} engines have no decodes to protect"
        return Verdict("True", "NotNeeded", f"{count}: they compute embeddings")
    return Verdict("True", "Weir", f"Weir's scheduler orders the steps of {len(engines)} engines")


def _policy(facts: Facts) -> str:
    return f"vLLM's own {facts.kind} policy"


def _count(pods_by_reason: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, pods_by_reason.values()))


def _by_pods(count: str, pods_by_reason: Mapping[str, Sequence[str]]) -> str:
    """Return each reason with the pods it holds for; the same for pods in any order."""
    parts = []
    for reason, pods in sorted(pods_by_reason.items()):
        names, more = sorted(pods)[:_PODS_NAMED], len(pods) - _PODS_NAMED
        named = ", ".join(names) + (f" and {more} more" if more > 0 else "")
        parts.append(f"{named}: {reason[:_LONGEST_REASON]}")
    return f"{count}: {'; '.join(parts)}"[:LONGEST_MESSAGE]
