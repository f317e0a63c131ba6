"""What the sidecars of a service say of its replicas: asked between passes, for the autoscaler.

Each sidecar knows the loads of all others, so two are asked, and one more where they leave
something open: a replica that neither has heard of, or one that may go next, which alone knows how
long its requests will last. Gateways are all asked, those that leave, too: each alone knows what
waits at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from weir_core.errors import EngineUnavailable
from weir_core.scale.shrink import victims_of
from weir_core.scale.types import Phase, ReplicaLoad
from weir_core.units import Seconds
from weir_core.wire.fleet import FLEET_PATH, WAIT, FleetReport, ReplicaReport, heard
from weir_operator.engines import Page, told_by
from weir_operator.views import Pod

_OVERDUE: Final = timedelta(minutes=1)
"""After the end of a pod's grace, which its `deletionTimestamp` is."""

AskFleet = Callable[[str, str, Sequence[str]], Awaitable[FleetReport]]
"""Takes a pod's address and name, and the keys of its service's sidecars; raises
`EngineUnavailable`, saying why, when it is not told."""

_FIRST: Final = 2
"""Sidecars that are asked for all replicas."""
_MORE: Final = 8
"""Replicas at most that are asked for themselves, because no other has heard of them."""


def fleet_by(page: Page) -> AskFleet:
    """Return what asks real sidecars for the loads that they know."""
    return partial(told_by, page, FLEET_PATH, FleetReport.decode)


def waiting_by(page: Page, longest_s: Seconds) -> AskFleet:
    """Return what asks a gateway, which answers when a request waits, or after `longest_s`."""
    return partial(told_by, page, f"{FLEET_PATH}?{WAIT}={longest_s:g}", FleetReport.decode)


def _is_overdue(pod: Pod, now: datetime) -> bool:
    """Tell whether a pod should be gone, and is not: its node is lost, most often."""
    ends = pod.metadata.deletion_timestamp
    return ends is not None and now - ends > _OVERDUE


class Survey:
    """What is found out about the replicas of one service at one instant.

    Args:
        ask: Asks one sidecar.
        pods: Those of the service.
        keys: Those of its sidecars.
        now: The time of day.

    Attributes:
        silent: Name of a pod that was asked in vain -> why.
    """

    def __init__(
        self, ask: AskFleet, pods: Sequence[Pod], keys: Sequence[str], now: datetime
    ) -> None:
        self._ask = ask
        self._pods = [pod for pod in pods if not pod.has_ended and not _is_overdue(pod, now)]
        self._keys = keys
        self._now = now
        self._reports: dict[str, ReplicaReport] = {}
        self._asked: set[str] = set()
        self._told: dict[str, FleetReport] = {}
        self.silent: dict[str, str] = {}

    async def take(self) -> list[ReplicaLoad]:
        """Ask; return every pod, also what no sidecar has told of."""
        gateways = [pod for pod in self._pods if pod.is_gateway and pod.status.pod_ip]
        replicas = [pod for pod in self._pods if not pod.is_gateway]
        ready = {pod.name: pod for pod in replicas if pod.is_ready and not pod.leaves}
        await self._ask_all([*gateways, *(ready[name] for name in sorted(ready)[:_FIRST])])
        unheard = [name for name in sorted(ready) if name not in self._reports]
        leaving = [name for name in self._next_to_leave() if name in ready]
        await self._ask_all(ready[name] for name in {*unheard[:_MORE], *leaving})
        return self._replicas()

    def _next_to_leave(self) -> list[str]:
        replicas = self._replicas()
        pools = sorted({one.pool for one in replicas})
        return [name for pool in pools for name in victims_of(replicas, pool)[:1]]

    async def _ask_all(self, pods: Iterable[Pod]) -> None:
        missing = [pod for pod in pods if pod.name not in self._asked]
        await asyncio.gather(*map(self._ask_one, missing))

    async def _ask_one(self, pod: Pod) -> None:
        self._asked.add(pod.name)
        try:
            report = await self._ask(pod.status.pod_ip, pod.name, self._keys)
        except EngineUnavailable as error:
            self.silent[pod.name] = str(error)
            return
        self._told[pod.name] = report
        for one in report.replicas:
            known = self._reports.get(one.name)
            if known is None or one.age_s < known.age_s or one.name == pod.name:
                self._reports[one.name] = one

    def _replicas(self) -> list[ReplicaLoad]:
        return [self._replica(pod) for pod in self._pods]

    def _replica(self, pod: Pod) -> ReplicaLoad:
        known = _replica(pod, self._reports.get(pod.name), self._now)
        told = self._told.get(pod.name)
        if told is None:
            return known
        heard_s = 0.0 if pod.is_gateway else known.heard_s
        return replace(known, heard_s=heard_s, waiting=told.waiting, idle_s=told.idle_s)

    def token_s(self) -> Mapping[str, Sequence[float]]:
        """Return the times per prompt token that the ready replicas of each pool tell."""
        found: dict[str, list[float]] = {}
        for pod in self._pods:
            report = self._reports.get(pod.name)
            if report is not None and pod.is_ready and report.load.token_s > 0.0:
                found.setdefault(pod.pool, []).append(report.load.token_s)
        return found


def _replica(pod: Pod, report: ReplicaReport | None, now: datetime) -> ReplicaLoad:
    """Return a pod as the autoscaler sees it."""
    created = pod.metadata.creation_timestamp
    known = ReplicaLoad(
        name=pod.name,
        pool=pod.pool,
        phase=_phase(pod),
        since_s=0.0 if created is None else max(0.0, (now - created).total_seconds()),
        started_in_s=pod.started_in_s,
        ordinal=pod.ordinal,
    )
    return known if report is None else heard(known, report)


def _phase(pod: Pod) -> Phase:
    if pod.leaves:
        return Phase.DRAINING
    return Phase.READY if pod.is_ready else Phase.STARTING
