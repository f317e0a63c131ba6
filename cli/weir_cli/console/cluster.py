"""What the console shows of a cluster.

The API server tells of services and pods, and sidecars tell the rest.

Each replica is asked for its metrics once in some seconds, and less often while there is no viewer.
What its engine runs is told for all replicas by one of them (its page `/fleet`), and single
requests by those alone that a viewer has opened. `/fleet`, `/state` and `/requests` are shown to
what holds the service's keys, which are in its Secret `NAME-policies`; the keys themselves are sent
nowhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol, TypeVar
from urllib.parse import urlencode

import msgspec

from weir_cli.console.api_server import ApiServer
from weir_cli.console.feed import IDLE_S
from weir_cli.console.frames import Watched
from weir_cli.top_figures import Process, Reading, Service, read_page
from weir_core.api import labels
from weir_core.errors import ClusterUnavailable, EngineUnavailable
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy
from weir_core.wire import state_access
from weir_core.wire.fleet import FLEET_PATH, FleetReport
from weir_core.wire.request_state import REQUESTS_PATH, RequestReport
from weir_operator.engines import LONGEST_ANSWER, Page
from weir_operator.render import document_in
from weir_operator.views import Meta, Pod

log = logging.getLogger(__name__)

WINDOW_S: Final = 60.0
SURVEY_S: Final = 5.0
"""Time between two lists of services and pods."""
SECRET_S: Final = 60.0
"""Time between two readings of a service's classes and keys."""
METRICS_S: Final = 5.0
"""Time between two readings of a replica's metrics: the engine's are not cheap to make."""
ANSWER_WITHIN_S: Final = 3.0
"""A sidecar waits 2 s for the metrics of its engine."""
SILENT_S: Final = 2 * METRICS_S + 5.0
"""Age of its newest metrics from which on a replica does not answer."""
_TOLD_BY: Final = 3
"""Sidecars that are asked in turn for the loads of all, where the first does not answer."""
_LOOK_S: Final = 1.0
_NO_PAGE: Final = (EngineUnavailable, ValueError, RecursionError)
"""No answer, or none that a sidecar gives: what listens in a pod is not trusted."""

AskPod = Callable[[Pod, str, Sequence[str]], Awaitable[bytes]]
"""Takes a pod, a path of its admin port, and the keys of its service's sidecars; raises
`EngineUnavailable` or `ClusterUnavailable`, saying why, when there is no answer."""

Pause = Callable[[float], Awaitable[None]]


class _Pods(msgspec.Struct, frozen=True):
    items: tuple[Pod, ...] = ()


class _Named(msgspec.Struct, frozen=True):
    metadata: Meta


class _Services(msgspec.Struct, frozen=True):
    items: tuple[_Named, ...] = ()


class _OfAPod(Protocol):
    @property
    def pod(self) -> str:
        """The pod that says it."""


T = TypeVar("T", bound=_OfAPod)


@dataclass
class _Replica:
    """What is known of one pod.

    Attributes:
        asked_s: When its metrics were asked for last.
        load: What its engine runs and its slots, as a sidecar of the service told.
        trouble: Why its page of state was not read last; empty where it was, or was not asked for.
    """

    pod: Pod
    readings: tuple[Reading, ...] = ()
    detail: Reading | None = None
    asked_s: float = float("-inf")
    load: tuple[int, int] | None = None
    trouble: str = ""

    def process(self) -> Process:
        """Return it as it is shown."""
        at_engine, slots = self.load or (None, None)
        phase = _phase(self.pod)
        return Process(
            self.pod.name, phase, self.readings, self.detail, at_engine, slots, self.trouble
        )


@dataclass
class _Served:
    """What is known of one service.

    Attributes:
        key: Its namespace and name.
        keys: Those of its sidecars.
        read_s: When its Secret was read last.
        loads_s: When a sidecar was asked last for the loads of all.
    """

    key: tuple[str, str]
    classes: tuple[ClassPolicy, ...] = ()
    keys: tuple[str, ...] = ()
    read_s: float = float("-inf")
    loads_s: float = float("-inf")
    replicas: dict[str, _Replica] = field(default_factory=dict)


def directly(page: Page) -> AskPod:
    """Return what asks a pod at its own address, as the operator does."""

    async def ask(pod: Pod, path: str, keys: Sequence[str]) -> bytes:
        return await page(path, pod.status.pod_ip, pod.name, keys)

    return ask


def through(server: ApiServer, wall: Callable[[], float] = time.time) -> AskPod:
    """Return what asks a pod through the API server, from outside of its network."""

    async def ask(pod: Pod, path: str, keys: Sequence[str]) -> bytes:
        proof = state_access.authorization(keys, pod.name, wall())
        where = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.name}:{labels.ADMIN_PORT}"
        headers = {state_access.HEADER: proof}
        return await server.get(f"{where}/proxy{path}", headers, LONGEST_ANSWER)

    return ask


class Cluster:
    """Reads the services of a cluster, until it is cancelled.

    Args:
        server: The API server.
        ask: Asks pods.
        namespaces: Those that are read; empty is all of them.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        server: ApiServer,
        ask: AskPod,
        namespaces: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._ask = ask
        self._namespaces = sorted(namespaces)
        self._clock = clock
        self._served: dict[tuple[str, str], _Served] = {}
        self._surveyed_s = float("-inf")
        self._said = ""
        self.watched: Callable[[], Collection[Watched]] = tuple
        """Returns which replicas are opened by a viewer."""

    async def run(self, pause: Pause) -> None:
        """Look each second; metrics that do not come hold up nothing that a viewer has opened.

        Args:
            pause: Waits for a viewer, or for so many seconds where there is none.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_each_second(self._look_at_opened, pause))
            tasks.create_task(_each_second(self._look_at_metrics, pause))

    async def look(self) -> None:
        """Read what is due; what does not answer is asked again later."""
        await self._look_at_opened()
        await self._look_at_metrics()

    async def _look_at_opened(self) -> None:
        now = self._clock()
        if now >= self._surveyed_s + SURVEY_S:
            self._surveyed_s = now
            await self._survey()
        await asyncio.gather(*(self._look_at(each, now) for each in self._served.values()))

    async def _look_at_metrics(self) -> None:
        now = self._clock()
        due = [
            replica
            for served in self._served.values()
            for replica in served.replicas.values()
            if replica.pod.status.pod_ip and now >= replica.asked_s + METRICS_S
        ]
        await asyncio.gather(*(self._read_metrics(each, now) for each in due))

    def trouble(self) -> str:
        """Return why services and pods cannot be read; empty where they can."""
        return self._said and f"the cluster cannot be read: {self._said}"

    def services(self) -> list[Service]:
        """Return what was read."""
        return [self._service(each) for _, each in sorted(self._served.items())]

    async def requests(self, service: str, request_id: str) -> list[RequestReport]:
        """Return what the sidecars of a service say of the requests of one id."""
        served = next((each for each in self._served.values() if self._name(each) == service), None)
        if served is None:
            return []
        path = f"{REQUESTS_PATH}?{urlencode({'id': request_id})}"
        asked = [
            self._told(served, each.pod, path, RequestReport.decode)
            for each in served.replicas.values()
            if each.pod.status.pod_ip
        ]
        return [each for each in await asyncio.gather(*asked) if each is not None]

    # ---- what the API server tells

    async def _survey(self) -> None:
        """List services and pods."""
        try:
            services, pods = await self._lists()
        except (ClusterUnavailable, msgspec.MsgspecError) as error:
            if str(error) != self._said:  # once, not every five seconds
                log.warning("the cluster cannot be read: %s", error)
            self._said = str(error)
            return
        self._said = ""
        there = {(each.metadata.namespace, each.metadata.name) for each in services}
        self._served = {key: self._served.get(key) or _Served(key) for key in there}
        for key, served in self._served.items():
            mine = (
                pod
                for pod in pods
                if (pod.metadata.namespace, pod.metadata.labels.get(labels.SERVICE)) == key
                and not pod.has_ended
            )
            served.replicas = {pod.name: _of(served.replicas.get(pod.name), pod) for pod in mine}

    async def _lists(self) -> tuple[list[_Named], list[Pod]]:
        services: list[_Named] = []
        pods: list[Pod] = []
        mine = urlencode({"labelSelector": labels.SERVICE, "resourceVersion": "0"})
        for where in [f"/namespaces/{each}" for each in self._namespaces] or [""]:
            kinds = f"/apis/{labels.GROUP}/{labels.VERSION}{where}/inferenceservices"
            found = await self._server.get(f"{kinds}?resourceVersion=0")
            services += msgspec.json.decode(found, type=_Services).items
            found = await self._server.get(f"/api/v1{where}/pods?{mine}")
            pods += msgspec.json.decode(found, type=_Pods).items
        return services, pods

    async def _read_secret(self, served: _Served, now: float) -> None:
        """Read the classes and the keys of a service."""
        namespace, name = served.key
        served.read_s = now
        try:
            found = await self._server.get(
                f"/api/v1/namespaces/{namespace}/secrets/{name}-policies"
            )
            document = document_in(json.loads(found))
        except (ClusterUnavailable, ValueError) as error:
            log.warning("the keys of service %s cannot be read: %s", name, error)
            return
        if document is not None:
            served.classes = document.classes or BUILT_IN_CLASSES
            served.keys = document.peer_keys

    # ---- what sidecars tell

    async def _look_at(self, served: _Served, now: float) -> None:
        if now >= served.read_s + SECRET_S:
            await self._read_secret(served, now)
        name = self._name(served)
        opened = {each.replica for each in self.watched() if each.service == name}
        if not served.keys:
            return
        asked = [
            self._read_detail(served, each)
            for each in served.replicas.values()
            if each.pod.name in opened and each.pod.status.pod_ip
        ]
        if opened or now >= served.loads_s + METRICS_S:
            served.loads_s = now
            asked.append(self._read_loads(served))
        await asyncio.gather(*asked)

    async def _read_loads(self, served: _Served) -> None:
        """Have one sidecar tell what all engines of its service run."""
        ready = (e for e in served.replicas.values() if e.pod.is_ready and not e.pod.is_gateway)
        for each in islice(ready, _TOLD_BY):
            report = await self._told(served, each.pod, FLEET_PATH, FleetReport.decode)
            if report is None:
                continue
            for one in report.replicas:
                if one.name in served.replicas:
                    running, left = one.load.sequences, one.load.sequences_left
                    served.replicas[one.name].load = (running, running + left)
            return

    async def _read_metrics(self, replica: _Replica, now: float) -> None:
        replica.asked_s = now
        try:
            page = read_page((await self._page(replica.pod, "/metrics", ())).decode())
        except _NO_PAGE:
            return
        at_s = self._clock()
        kept = (each for each in replica.readings if each.at_s >= at_s - WINDOW_S)
        replica.readings = (*kept, Reading(at_s, None, page))

    async def _read_detail(self, served: _Served, replica: _Replica) -> None:
        """Read the page of state of a replica or a gateway, or why it cannot be read."""
        try:
            state = json.loads(await self._page(replica.pod, "/state", served.keys))
        except EngineUnavailable as error:
            replica.trouble = f"its page /state does not come: {error}"
            return
        except (ValueError, RecursionError):
            replica.trouble = "its page /state is no JSON"
            return
        if not isinstance(state, dict) or state.get("pod") != replica.pod.name:
            replica.trouble = "its page /state does not name this pod"
            return
        replica.trouble, replica.detail = "", Reading(self._clock(), state)

    async def _told(
        self, served: _Served, pod: Pod, path: str, read: Callable[[bytes], T]
    ) -> T | None:
        """Return what the sidecar of a pod says; None where it says nothing, or is another's."""
        try:
            told = read(await self._page(pod, path, served.keys))
        except _NO_PAGE:
            return None
        return told if told.pod == pod.name else None

    async def _page(self, pod: Pod, path: str, keys: Sequence[str]) -> bytes:
        """Return a page of a pod; raise `EngineUnavailable` where it is not answered in time."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self._ask(pod, path, keys)
        except (ClusterUnavailable, TimeoutError) as error:
            raise EngineUnavailable(str(error)) from error

    # ---- as it is shown

    def _name(self, served: _Served) -> str:
        namespace, name = served.key
        return name if len(self._namespaces) == 1 else f"{namespace}/{name}"

    def _service(self, served: _Served) -> Service:
        every: Iterable[_Replica] = served.replicas.values()
        gateways = tuple(each.process() for each in every if each.pod.is_gateway)
        replicas = tuple(each.process() for each in every if not each.pod.is_gateway)
        return Service(self._name(served), served.classes, gateways, replicas)


def _of(known: _Replica | None, pod: Pod) -> _Replica:
    """Return what is known of a pod, as it is now."""
    if known is None or known.pod.metadata.uid != pod.metadata.uid:
        return _Replica(pod)
    known.pod = pod
    return known


async def _each_second(look: Callable[[], Awaitable[None]], pause: Pause) -> None:
    while True:
        await look()
        await asyncio.sleep(_LOOK_S)
        await pause(IDLE_S - _LOOK_S)


def _phase(pod: Pod) -> str:
    if pod.leaves:
        return "draining"
    if pod.is_ready:
        return "ready"
    return "no node" if pod.unschedulable else "starting"
