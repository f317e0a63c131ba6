"""The number of a service's replicas follows its work: what the operator does, on one machine.

`weir_core.scale` decides, with the policy that the operator makes of `spec.scaling`. All sidecars
are asked each second: replicas' at their admin sockets, and the gateway at its admin port where the
service may sleep. What is decided is done at once, for here is no Deployment between: a replica is
started in a free place, or drained and ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import aiohttp

from weir_cli.plan import ServicePlan
from weir_cli.records import ScalingRecord
from weir_cli.replica import Phase as Shown
from weir_cli.replica import Replica
from weir_cli.served import Served
from weir_cli.show import page_of
from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.scale.autoscaler import Autoscaler
from weir_core.scale.pools import with_speeds
from weir_core.scale.types import (
    Decision,
    Phase,
    PoolFacts,
    ReplicaLoad,
    ScalingPolicy,
    ServiceLoad,
)
from weir_core.wire.fleet import FLEET_PATH, FleetReport, ReplicaReport, heard
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.state_access import authorization
from weir_operator.parts.scaling import classes_of, policy_of

LOOK_EVERY_S: Final = 1.0

_ANSWER_WITHIN: Final = aiohttp.ClientTimeout(total=1.0)


class Sidecars(Protocol):
    """What is asked; an answer is None where there is none."""

    async def replica(self, admin_socket: str) -> FleetReport | None:
        """Ask the sidecar of a replica."""

    async def gateway(self, plan: ServicePlan, keys: Sequence[str]) -> FleetReport | None:
        """Ask the gateway of a service, which knows who asks by one of the keys."""


class Scaling:
    """The scaling of one service.

    Args:
        served: The service.
        spec: As it was read; it scales.
        told: Returns what its sidecars are told now.
        say: Tells the user.
        sidecars: Are asked.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        served: Served,
        spec: InferenceService,
        told: Callable[[], PolicyDocument],
        say: Callable[[str], None],
        sidecars: Sidecars,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        """Replaced by an edit; only `spec.scaling` of it may differ from what was started."""
        self._served = served
        self._told = told
        self._say = say
        self._sidecars = sidecars
        self._clock = clock
        self._scaler = Autoscaler()
        pools = spec.spec.hardware_pools
        self._wanted = {pool.name: spec.spec.replicas_of(pool) for pool in pools}
        self._trouble = ""

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Look each second, for ever; what drains ends among `tasks`."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look(tasks)

    async def look(self, tasks: asyncio.TaskGroup) -> None:
        """Ask, decide, say it, and do it."""
        decision = await self._decide()
        before = sum(self._wanted.values())
        self._wanted = dict(decision.replicas)
        reason, message = decision.reason.value, decision.message
        self._served.scaling = ScalingRecord(
            replicas=decision.total, reason=reason, message=message
        )
        if decision.total != before:
            self._say(f"{self._served.plan.name}: {message}")
        self._do(decision, tasks)

    async def _decide(self) -> Decision:
        replicas = self._served.replicas
        reports = await asyncio.gather(*map(self._report, replicas))
        loads = [_load(*each, self._clock()) for each in zip(replicas, reports, strict=True)]
        token_s: dict[str, list[float]] = {}
        for replica, report in zip(replicas, reports, strict=True):
            own = _own(report)
            if own is not None and own.load.token_s > 0.0:
                token_s.setdefault(replica.plan.pool, []).append(own.load.token_s)
        pools = with_speeds(self._pools(), token_s)
        if self._served.plan.sleeps:
            loads.append(await self._gateway())
        load = ServiceLoad(classes_of(self._told()), pools, tuple(loads))
        policy = policy_for(self.spec, sleeps=self._served.plan.sleeps)
        return self._scaler.decide(load, policy, self._clock())

    async def _report(self, replica: Replica) -> FleetReport | None:
        socket = replica.plan.admin_socket
        return await self._sidecars.replica(socket) if replica.ready and socket else None

    async def _gateway(self) -> ReplicaLoad:
        """Return the gateway: it has no pool, and requests wait there while no replica is ready."""
        served = self._served
        phase = Phase.READY if served.gateway.healthy else Phase.STARTING
        known = ReplicaLoad(served.plan.gateway.name, "", phase)
        report = await self._sidecars.gateway(served.plan, self._told().peer_keys)
        if report is None:
            return known
        return replace(known, heard_s=0.0, waiting=report.waiting, idle_s=report.idle_s)

    def _pools(self) -> list[PoolFacts]:
        spec, places = self.spec.spec, self._served.plan.replicas
        return [
            PoolFacts(
                pool.name,
                self._wanted[pool.name],
                cost=pool.hourly_cost,
                spot=pool.spot,
                min_replicas=spec.replicas_of(pool),
                max_replicas=sum(place.pool == pool.name for place in places),
            )
            for pool in spec.hardware_pools
        ]

    def _do(self, decision: Decision, tasks: asyncio.TaskGroup) -> None:
        """Start what is missing, and have leave what is too much."""
        staying = [each for each in self._served.replicas if not each.leaving]
        for pool, wanted in decision.replicas.items():
            missing = wanted - sum(each.plan.pool == pool for each in staying)
            for plan in self._served.free(pool)[: max(0, missing)]:
                try:
                    self._served.start(plan, self._told())
                except OSError as error:  # a full disk, most often
                    self._complain(f"{plan.name} cannot be started: {error}; trying until it can")
                    return
            victims: Sequence[str] = decision.victims.get(pool, ())
            for name in victims[: max(0, -missing)]:
                tasks.create_task(self._served.leave(name), name=name)
        self._trouble = ""

    def _complain(self, trouble: str) -> None:
        """Tell of a trouble once, however long it lasts."""
        if trouble != self._trouble:
            self._trouble = trouble
            self._say(trouble)


def policy_for(service: InferenceService, *, sleeps: bool) -> ScalingPolicy:
    """Return what a service asks of its scaling.

    Args:
        service: As it is now.
        sleeps: Its gateway can be asked. One replica stays otherwise, for nothing would wake it.
    """
    spec = service.spec
    assert spec.scaling is not None
    policy = policy_of(spec.scaling, sum(pool.replicas or 0 for pool in spec.pools))
    return policy if sleeps else replace(policy, min_replicas=max(1, policy.min_replicas))


class RealSidecars:
    """Those that run.

    Args:
        http: Asks gateways.
        wall: Unix time, in seconds.
    """

    def __init__(self, http: aiohttp.ClientSession, wall: Callable[[], float] = time.time) -> None:
        self._http = http
        self._wall = wall

    async def replica(self, admin_socket: str) -> FleetReport | None:
        """Ask the sidecar of a replica, in a thread that a silent one holds up."""
        return _decoded(await asyncio.to_thread(page_of, admin_socket, FLEET_PATH))

    async def gateway(self, plan: ServicePlan, keys: Sequence[str]) -> FleetReport | None:
        """Ask a gateway, as the operator does."""
        url = f"http://{plan.gateway.address}:{labels.ADMIN_PORT}{FLEET_PATH}"
        shown = {"Authorization": authorization(keys, plan.gateway.name, self._wall())}
        try:
            async with self._http.get(url, headers=shown, timeout=_ANSWER_WITHIN) as answer:
                return _decoded(await answer.read()) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


def _decoded(page: bytes | None) -> FleetReport | None:
    try:
        return None if page is None else FleetReport.decode(page)
    except ValueError:
        return None


def _own(report: FleetReport | None) -> ReplicaReport | None:
    """Return what a sidecar says of its own replica."""
    replicas = () if report is None else report.replicas
    return next((each for each in replicas if report and each.name == report.pod), None)


def _load(replica: Replica, report: FleetReport | None, now: float) -> ReplicaLoad:
    """Return a replica as the autoscaler sees it."""
    known = ReplicaLoad(
        name=replica.plan.name,
        pool=replica.plan.pool,
        phase=_PHASES.get(replica.phase, Phase.STARTING),
        since_s=now - replica.since,
        started_in_s=replica.started_in_s,
    )
    own = _own(report)
    if report is None or own is None:
        return known
    return replace(heard(known, own), idle_s=report.idle_s)


_PHASES: Final = {
    Shown.READY: Phase.READY,
    Shown.DRAINING: Phase.DRAINING,
    Shown.STOPPED: Phase.DRAINING,
}
