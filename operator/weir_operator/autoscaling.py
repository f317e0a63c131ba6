"""Scales services by the work that their sidecars count: every few seconds, between passes.

`weir_core.scale` decides. A decision is written by the service's next pass, which this asks for, so
that a Deployment has one writer. Where another autoscaler sets the number, it is told what was
decided (`advice`), and nothing is written. What a decision is made from comes from the sidecars and
from the last pass: the spec, the classes, the pods. Nothing is kept beyond the process: a new
operator, or a new leader, shrinks nothing before it has seen a whole window.

A service without replicas is not looked at again and again. Each of its gateways is asked once to
answer when a request waits there; the question is repeated when it was answered, and every
`LISTEN_S`. So services that sleep cost little, however many they are, and each is woken at once. A
new operator asks so as soon as it has had its first pass over a service. While the API server
cannot be asked it goes on, and what it decides is written by the first pass that can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from weir_core.errors import (
    ClusterRefuses,
    ClusterUnavailable,
    EngineUnavailable,
    InvalidSpec,
)
from weir_core.scale.autoscaler import Autoscaler
from weir_core.scale.pools import with_speeds
from weir_core.scale.types import (
    ClassTarget,
    Decision,
    PoolFacts,
    ScalingPolicy,
    ServiceLoad,
    Verdict,
)
from weir_core.units import Seconds
from weir_operator.advice import Advice
from weir_operator.cluster import Cluster
from weir_operator.fleets import AskFleet, Survey
from weir_operator.metrics import Metrics
from weir_operator.views import Pod, view

log = logging.getLogger(__name__)

DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation of pods: those with the lowest go first when a Deployment shrinks."""
GOES_FIRST: Final = "-1000"
NO_COST: Final = "0"
_AT_ONCE: Final = 16
"""Services whose sidecars are asked side by side."""
LISTEN_S: Final = Seconds(25.0)
"""Time after which a gateway answers at which nothing waits: a connection that is silent for longer
may be forgotten on its way."""
LISTEN_AT_ONCE: Final = 4096
"""Gateways that may be listened to at once."""
_LISTEN_AGAIN_S: Final = 1.0
_SELDOM_S: Final = 30.0
"""Time between two passes for another reason alone, which may change with every look."""

Service = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Scaled:
    """A service that scales, as the last pass saw it.

    Attributes:
        pools: All of them, with the replicas that are asked for.
        open_pools: Names of those that scale.
        keys: Of its sidecars.
        advises: Another autoscaler sets the number.
    """

    policy: ScalingPolicy
    classes: tuple[ClassTarget, ...]
    pools: tuple[PoolFacts, ...]
    open_pools: frozenset[str]
    pods: Sequence[Pod]
    keys: Sequence[str]
    advises: bool = False

    @property
    def there(self) -> dict[str, int]:
        """Replicas that are asked for, by pool."""
        return {pool.name: pool.replicas for pool in self.pools}


class _Known:
    """One service."""

    def __init__(self, scaled: Scaled) -> None:
        self.scaled = scaled
        self.scaler = Autoscaler()
        self.asked: Mapping[str, int] = {}
        """Pool -> replicas, of those that scale; empty where the number stays as it is."""
        self.said: Decision | None = None
        self.news: Decision | None = None
        """What is to be told in an Event once it is written."""
        self.said_s = 0.0
        self.turn = asyncio.Lock()
        """Held by one look at a time."""
        self.costs: dict[str, str] = {}
        """Pod -> the deletion cost that it was given."""

    @property
    def sleeps(self) -> bool:
        """Whether it has no replica, and a request at a gateway brings one."""
        may = self.scaled.policy.min_replicas == 0
        return may and not any(pool.replicas for pool in self.pools)

    @property
    def is_unwritten(self) -> bool:
        """Whether the last pass saw other numbers than those that were decided."""
        there = self.scaled.there
        return any(there.get(pool, number) != number for pool, number in self.asked.items())

    @property
    def pools(self) -> tuple[PoolFacts, ...]:
        """The pools with the replicas that they have or will have in a moment.

        Another autoscaler takes its time, and may not follow at all, so what it is told goes on
        from what it was told before. From 0 it does not: a replica that is still there may get
        requests.
        """
        return tuple(replace(pool, replicas=self._held(pool)) for pool in self.scaled.pools)

    def _held(self, pool: PoolFacts) -> int:
        asked = self.asked.get(pool.name, pool.replicas)
        return asked or pool.replicas if self.scaled.advises else asked


class Autoscaling:
    """The services that scale, and what was decided of each.

    Args:
        ask: Asks one sidecar for all loads that it knows.
        clock: Seconds that only move forward.
        wall: The time of day, with its zone.
        changed: Asks for a pass over a service.
        metrics: The instruments.
        listen: Asks a gateway, which answers when a request waits, or after a while; None looks at
            services that sleep as at others.
    """

    def __init__(
        self,
        ask: AskFleet,
        clock: Callable[[], float],
        wall: Callable[[], datetime],
        changed: Callable[[Service], None],
        metrics: Metrics,
        listen: AskFleet | None = None,
    ) -> None:
        self._ask = ask
        self._listen = listen
        self._listening: dict[tuple[Service, str], asyncio.Task[None]] = {}
        self._clock = clock
        self._wall = wall
        self._changed = changed
        self._metrics = metrics
        self._known: dict[Service, _Known] = {}
        self.advice = Advice()
        """For autoscalers of others."""

    # ---- what a pass tells and asks

    def follow(self, service: Service, scaled: Scaled) -> None:
        """Note a service that scales, as it is now."""
        known = self._known.get(service)
        if known is None:
            self._known[service] = _Known(scaled)
        else:
            known.scaled = scaled
            if known.asked.keys() - {pool.name for pool in scaled.pools}:
                known.asked = {}  # the pass gave the others what one that left the spec had

    def follows(self, service: Service) -> bool:
        """Tell whether a service is known that scales."""
        return service in self._known

    def refresh(self, service: Service, pods: Sequence[Pod], replicas: Mapping[str, int]) -> None:
        """Note what is there of a service whose spec is wrong: the last good one goes on."""
        known = self._known.get(service)
        if known is not None:
            pools = tuple(
                replace(pool, replicas=replicas.get(pool.name, pool.replicas))
                for pool in known.scaled.pools
            )
            known.scaled = replace(known.scaled, pods=pods, pools=pools)

    def forget(self, service: Service) -> None:
        """Forget one that is gone, or has a fixed number of replicas."""
        if self._known.pop(service, None) is not None:
            self._metrics.scaled(service, None)
            self.advice.tell(service, None)

    def asked(self, service: Service) -> Mapping[str, int]:
        """Return the replicas of each pool that Weir scales; empty where they stay as they are."""
        known = self._known.get(service)
        return {} if known is None or known.scaled.advises else known.asked

    def said(self, service: Service) -> Decision | None:
        """Return the last decision that differed from the one before it."""
        known = self._known.get(service)
        return None if known is None else known.said

    def news(self, service: Service) -> Decision | None:
        """Return, once, a change of the number that a pass has written."""
        known = self._known.get(service)
        if known is None or known.news is None:
            return None
        there = known.scaled.there
        if any(there.get(pool) != number for pool, number in known.asked.items()):
            return None
        news, known.news = known.news, None
        return news

    # ---- what it does by itself

    async def run(self, cluster: Cluster, period: Seconds) -> None:
        """Look at all services each `period` seconds, and listen to gateways, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_again(cluster, period))
            if self._listen is not None:
                tasks.create_task(self._listen_again(cluster, self._listen))

    async def _look_again(self, cluster: Cluster, period: Seconds) -> None:
        while True:
            await asyncio.sleep(period)
            await self.look(cluster)

    async def _listen_again(self, cluster: Cluster, listen: AskFleet) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                for service, known, pod in self._silent_gateways():
                    asking = tasks.create_task(self._hear(service, known, pod, cluster, listen))
                    self._listening[service, pod.name] = asking
                await asyncio.sleep(_LISTEN_AGAIN_S)

    def _silent_gateways(self) -> list[tuple[Service, _Known, Pod]]:
        """Return the gateways of services that sleep that are not listened to at present."""
        self._listening = {one: task for one, task in self._listening.items() if not task.done()}
        return [
            (service, known, pod)
            for service, known in self._known.items()
            if known.sleeps
            for pod in known.scaled.pods
            if pod.is_gateway and pod.status.pod_ip and not pod.has_ended
            if (service, pod.name) not in self._listening
        ]

    async def _hear(
        self, service: Service, known: _Known, pod: Pod, cluster: Cluster, listen: AskFleet
    ) -> None:
        """Wait until a request waits at a gateway, and decide then."""
        try:
            report = await listen(pod.status.pod_ip, pod.name, known.scaled.keys)
        except EngineUnavailable as error:
            log.debug("%s/%s: gateway %s: %s", *service, pod.name, error)
            return
        if report.waiting and self._known.get(service) is known:
            await self._look_at(service, known, cluster)

    async def look(self, cluster: Cluster) -> None:
        """Ask the sidecars of each service, and decide."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(service: Service, known: _Known) -> None:
            async with places:
                await self._look_at(service, known, cluster)

        await asyncio.gather(
            *(one(*each) for each in list(self._known.items()) if not self._is_heard(each[1]))
        )

    def _is_heard(self, known: _Known) -> bool:
        """Tell whether its gateways say when there is something to decide."""
        if self._listen is None or known.said is None or not known.sleeps:
            return False
        return known.said.reason is Verdict.ASLEEP

    async def _look_at(self, service: Service, known: _Known, cluster: Cluster) -> None:
        """Decide on one service; what goes wrong with it stops no other."""
        try:
            async with known.turn:
                if not known.sleeps:  # a request must be heard though no pods can be listed
                    await _follow_leaving(service, known, cluster)
                decision = await self._decide(known)
                if self._known.get(service) is known:
                    await self._take_over(service, known, decision, cluster)
        except ClusterUnavailable as error:
            log.warning("%s/%s: scales later: %s", *service, error)
        except Exception:
            log.exception("%s/%s: could not decide on its replicas", *service)

    async def _decide(self, known: _Known) -> Decision:
        scaled = known.scaled
        survey = Survey(self._ask, scaled.pods, scaled.keys, self._wall())
        replicas = await survey.take()
        pools = with_speeds(known.pools, survey.token_s())
        load = ServiceLoad(scaled.classes, pools, tuple(replicas))
        decision = known.scaler.decide(load, scaled.policy, self._clock())
        if decision.reason is Verdict.DATA_MISSING and survey.silent:
            why = "; ".join(f"{pod}: {said}" for pod, said in sorted(survey.silent.items())[:3])
            return replace(decision, message=f"{decision.message}; {why}")
        return decision

    async def _take_over(
        self, service: Service, known: _Known, decision: Decision, cluster: Cluster
    ) -> None:
        before = {pool.name: pool.replicas for pool in known.pools}
        advises = known.scaled.advises
        await self._mark(known, decision, known.scaled.there if advises else before, cluster)
        if self._known.get(service) is not known:
            return
        scale = known.scaled.open_pools
        if before.keys() != {pool.name for pool in known.scaled.pools}:  # a pass has seen others
            scale = frozenset()
        has_changed = any(before[pool] != decision.replicas[pool] for pool in scale)
        # Bounds hold though data is missing. What was decided must outlast that until it is
        # written: a wake, above all.
        counts = has_changed or known.is_unwritten or decision.reason is not Verdict.DATA_MISSING
        known.asked = {name: decision.replicas[name] for name in sorted(scale)} if counts else {}
        self._metrics.scaled(service, decision)
        if not advises:
            self.advice.tell(service, None)
        elif scale:
            self.advice.tell(service, sum(decision.replicas[pool] for pool in scale))
        if has_changed:
            known.news = decision
            log.info("%s/%s: %s", *service, decision.message)
        last, now = known.said, self._clock()
        is_new = last is None or last.reason is not decision.reason
        if has_changed or last is None or (is_new and now >= known.said_s + _SELDOM_S):
            known.said, known.said_s = decision, now
            self._changed(service)

    async def _mark(
        self, known: _Known, decision: Decision, before: Mapping[str, int], cluster: Cluster
    ) -> None:
        """Have those go first that have the least to lose, and no others.

        Raises:
            ClusterUnavailable: A pod could not be marked now.
        """
        leaving: set[str] = set()
        for pool, victims in decision.victims.items():
            leaving |= set(victims[: max(0, before[pool] - decision.replicas[pool])])
        staying = [pod for pod in known.scaled.pods if not pod.leaves]
        known.costs = {
            pod.name: known.costs.get(pod.name, pod.metadata.annotations.get(DELETION_COST, ""))
            for pod in staying
        }
        for pod in staying:
            if (known.costs[pod.name] == GOES_FIRST) is not (pod.name in leaving):
                cost = GOES_FIRST if pod.name in leaving else NO_COST
                try:
                    await cluster.annotate_pod(pod, DELETION_COST, cost)
                except (ClusterRefuses, InvalidSpec) as error:  # another may go in its place
                    log.warning("%s: no deletion cost: %s", pod.name, error)
                known.costs[pod.name] = cost


async def _follow_leaving(service: Service, known: _Known, cluster: Cluster) -> None:
    """See whether pods that leave are gone: of that no Deployment tells, so there is no pass."""
    before = known.scaled
    if any(pod.leaves for pod in before.pods):
        pools = {pool.name for pool in before.pools} | {pod.pool for pod in before.pods}
        pods = [view(Pod, each) for each in await cluster.pods(*service)]
        if known.scaled is before:  # else a pass was there meanwhile
            known.scaled = replace(before, pods=[pod for pod in pods if pod.pool in pools])
