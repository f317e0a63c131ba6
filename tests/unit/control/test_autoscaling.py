"""Scaling between passes: what is asked of sidecars, what is decided, and when nothing is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.unit.control.builders import NAME, NAMESPACE, body
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_reconcile_pass import KEY, conditions, finish_rollouts, parts
from weir_core.api.scaling import Scaling, ScalingRules
from weir_core.errors import ClusterUnavailable, EngineUnavailable
from weir_core.route.types import ClassLoad, LoadVector
from weir_core.scale.types import (
    ClassTarget,
    Direction,
    PoolFacts,
    RatePolicy,
    ScalingPolicy,
    Verdict,
)
from weir_core.units import Seconds
from weir_core.wire.fleet import FleetReport, ReplicaReport
from weir_core.wire.policies import PolicyDocument
from weir_operator.autoscaling import DELETION_COST, GOES_FIRST, NO_COST, Autoscaling, Scaled
from weir_operator.engines import LONGEST_ANSWER
from weir_operator.fleets import fleet_by
from weir_operator.metrics import Metrics
from weir_operator.parts.scaling import classes_of, policy_of
from weir_operator.reconcile import Reconciler
from weir_operator.render import Images
from weir_operator.views import Pod, view

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEYS = ("5e" * 32,)
SERVICE = (NAMESPACE, NAME)
CLASSES = (ClassTarget("interactive", 2, 0.5), ClassTarget("batch", 0, 3600.0))


def scaling(**more: Any) -> Scaling:
    return Scaling.model_validate({"maxReplicas": 5, **more})


def pod_object(name: str, *, ready: bool = True, leaving: bool = False, **meta: Any) -> Any:
    """Return a pod that took a minute to start, if it has started."""
    metadata = {
        "name": name,
        "namespace": NAMESPACE,
        "labels": {"serving.weir.dev/pool": "cpu"},
        "creationTimestamp": (NOW - timedelta(minutes=10)).isoformat(),
        **meta,
    }
    if leaving:
        metadata["deletionTimestamp"] = NOW.isoformat()
    since = (NOW - timedelta(minutes=9)).isoformat()
    condition = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "lastTransitionTime": since,
    }
    return {"metadata": metadata, "status": {"podIP": f"ip-{name}", "conditions": [condition]}}


def pod(name: str, **more: Any) -> Pod:
    return view(Pod, pod_object(name, **more))


def load(offered: float = 0.0, running: int = 0, *, token_s: float = 1e-4) -> LoadVector:
    work = ClassLoad("interactive", 0.0, 0, offered=offered)
    return LoadVector((work,), token_s, 0.01, 0.01, 2048, 100, 10000, sequences=running)


class Fleet:
    """The sidecars of one service, a cluster, and an operator that scales it."""

    def __init__(self) -> None:
        self.loads: dict[str, LoadVector] = {}
        self.drains: dict[str, float] = {}
        self.silent: set[str] = set()
        self.unheard: set[str] = set()
        """Those that no other sidecar has heard of."""
        self.gateways: dict[str, FleetReport] = {}
        self.told = asyncio.Event()
        """Gateways that are listened to answer."""
        self.heard: list[str] = []
        self.all_heard, self.woken = asyncio.Event(), asyncio.Event()
        self.asked: list[str] = []
        self.passes: list[tuple[str, str]] = []
        self.now = 1000.0
        self.cluster = MemoryCluster()
        self.metrics = Metrics(CollectorRegistry())
        self.autoscaling = self.operator()

    def operator(self) -> Autoscaling:
        """Return a new process."""
        return Autoscaling(
            self.ask, lambda: self.now, lambda: NOW, self.ask_pass, self.metrics, self.listen
        )

    def ask_pass(self, service: tuple[str, str]) -> None:
        self.passes.append(service)
        self.woken.set()

    async def listen(self, address: str, name: str, keys: Sequence[str]) -> FleetReport:
        assert (address, keys) == (f"ip-{name}", KEYS)
        self.heard.append(name)
        if len(self.heard) == len(self.gateways):
            self.all_heard.set()
        await self.told.wait()
        return self.gateways[name]

    async def ask(self, address: str, name: str, keys: Sequence[str]) -> FleetReport:
        assert (address, keys) == (f"ip-{name}", KEYS)
        self.asked.append(name)
        if name in self.silent:
            raise EngineUnavailable(f"{address} did not answer in time")
        if name in self.gateways:
            return self.gateways[name]
        own = ReplicaReport(name, self.loads[name], drain_s=self.drains.get(name, 0.0))
        others = [
            ReplicaReport(other, one, age_s=1.0)
            for other, one in self.loads.items()
            if other != name and other not in self.unheard
        ]
        return FleetReport(
            name, (own, *others), idle_s=0.0 if self.loads[name].sequences else 900.0
        )

    def follow(self, *pods: Pod, wanted: int, spec: Scaling | None = None) -> None:
        """Have a pass see the service."""
        facts = (PoolFacts("cpu", wanted),)
        policy = policy_of(spec or scaling(), 0)
        seen = Scaled(policy, CLASSES, facts, frozenset({"cpu"}), pods, KEYS)
        self.autoscaling.follow(SERVICE, seen)

    async def look(self, after_s: float = 5.0) -> Verdict:
        """Look once more; return why the number is what it is."""
        self.now += after_s
        await self.autoscaling.look(self.cluster)
        said = self.autoscaling.said(SERVICE)
        assert said is not None
        return said.reason

    @property
    def wanted(self) -> Any:
        return self.autoscaling.asked(SERVICE)

    @property
    def page(self) -> str:
        return generate_latest(self.metrics.registry).decode()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def test_work_beyond_the_target_load_grows_it_at_once(fleet: Fleet) -> None:
    fleet.loads = {"a": load(2.0)}
    fleet.follow(pod("a"), wanted=1)
    assert await fleet.look() is Verdict.SCALED_UP
    assert fleet.wanted == {"cpu": 3}
    assert fleet.passes == [SERVICE]
    assert 'weir_wanted_replicas{namespace="models",service="chat"} 3.0' in fleet.page
    assert 'input="offered:interactive",namespace="models",service="chat"} 2.0' in fleet.page
    assert 'input="cold_start_seconds",namespace="models",service="chat"} 60.0' in fleet.page


async def test_two_sidecars_tell_of_a_whole_fleet_and_one_of_itself(fleet: Fleet) -> None:
    names = [f"r{number}" for number in range(9)]
    fleet.loads = {name: load(0.5, running=number + 1) for number, name in enumerate(names)}
    fleet.loads["r7"] = load(0.5)
    fleet.follow(*map(pod, names), wanted=9, spec=scaling(maxReplicas=9))
    assert await fleet.look() is Verdict.WAITING
    assert fleet.asked == ["r0", "r1", "r7"]
    assert fleet.wanted == {"cpu": 9}


@pytest.mark.parametrize(
    ("silent", "unheard", "why"),
    [
        pytest.param({"a", "b"}, (), "a, b could not be asked", id="no sidecar answers"),
        pytest.param({"c"}, {"c"}, "ip-c did not answer in time", id="one has no peers either"),
    ],
)
async def test_missing_data_leaves_the_number_as_it_is(
    fleet: Fleet, silent: set[str], unheard: set[str], why: str
) -> None:
    fleet.loads = {"a": load(5.0), "b": load(5.0), "c": load(5.0)}
    fleet.silent, fleet.unheard = silent, unheard
    pods = [pod("a"), pod("b")] if not unheard else [pod("a"), pod("b"), pod("c")]
    fleet.follow(*pods, wanted=2)
    assert await fleet.look() is Verdict.DATA_MISSING
    said = fleet.autoscaling.said(SERVICE)
    assert said is not None
    assert why in said.message
    assert fleet.wanted == {}


async def test_a_bound_on_all_pools_holds_though_data_is_missing(fleet: Fleet) -> None:
    fleet.loads, fleet.silent = {"a": load(5.0)}, {"a"}
    pools = (PoolFacts("cpu", 3), PoolFacts("dear", 3, cost=2.0))
    policy = policy_of(scaling(maxReplicas=4), 0)
    seen = Scaled(policy, CLASSES, pools, frozenset({"cpu", "dear"}), (pod("a"),), KEYS)
    fleet.autoscaling.follow(SERVICE, seen)
    assert await fleet.look() is Verdict.DATA_MISSING
    assert fleet.wanted == {"cpu": 3, "dear": 1}
    said = fleet.autoscaling.said(SERVICE)
    assert said is not None
    assert said.message == (
        "a could not be asked; from 6 to 4 replicas, by the bounds of the spec; "
        "a: ip-a did not answer in time"
    )


async def test_a_replica_that_no_other_has_heard_of_is_asked_itself(fleet: Fleet) -> None:
    fleet.loads = {"a": load(0.7), "b": load(0.7), "c": load(0.7)}
    fleet.unheard = {"c"}
    fleet.follow(pod("a"), pod("b"), pod("c"), wanted=3)
    assert await fleet.look() is Verdict.STEADY
    assert set(fleet.asked) == {"a", "b", "c"}


async def shrink(fleet: Fleet, spec: Scaling) -> None:
    """Look until the window is over."""
    await fleet.look()
    for _ in range(4):
        await fleet.look(10.0)
    assert spec.behavior.scale_down.stabilization_window_seconds == 30


SHORT = scaling(behavior={"scaleDown": {"stabilizationWindowSeconds": 30}})


async def test_the_replica_with_the_least_to_lose_goes_first_after_the_window(
    fleet: Fleet,
) -> None:
    pods = [pod_object(name) for name in "abc"]
    fleet.cluster.all_pods = {KEY: pods}
    fleet.loads = {"a": load(0.1, 3), "b": load(0.1, 1), "c": load(0.1, 2)}
    fleet.follow(*(view(Pod, one) for one in pods), wanted=3, spec=SHORT)
    await fleet.look()
    await fleet.look(25.0)
    assert fleet.wanted == {"cpu": 3}
    assert await fleet.look(10.0) is Verdict.SCALED_DOWN
    assert fleet.wanted == {"cpu": 2}
    marks = [one["metadata"].get("annotations", {}).get(DELETION_COST) for one in pods]
    assert marks == [None, GOES_FIRST, None]


async def test_a_mark_is_taken_back_where_its_pod_stays(fleet: Fleet) -> None:
    marked = pod_object("a", annotations={DELETION_COST: GOES_FIRST})
    fleet.cluster.all_pods = {KEY: [marked]}
    fleet.loads = {"a": load(0.5)}
    fleet.follow(view(Pod, marked), wanted=1)
    await fleet.look()
    await fleet.look()
    assert marked["metadata"]["annotations"][DELETION_COST] == NO_COST
    assert fleet.cluster.touched == ["a"]


async def test_nothing_goes_where_it_could_not_be_marked(fleet: Fleet) -> None:
    fleet.cluster.down = ClusterUnavailable("down")
    fleet.loads = {"a": load(0.1), "b": load(0.1)}
    fleet.follow(pod("a"), pod("b"), wanted=2, spec=SHORT)
    await shrink(fleet, SHORT)
    assert fleet.wanted == {"cpu": 2}
    fleet.cluster.down = None
    for _ in range(7):  # until its rate lets another one go
        await fleet.look(10.0)
    assert fleet.wanted == {"cpu": 1}


@pytest.mark.parametrize(("drain_s", "want"), [(100.0, 1), (200.0, 2)])
async def test_a_replica_stays_while_its_requests_would_last_long(
    fleet: Fleet, drain_s: float, want: int
) -> None:
    fleet.loads = {"a": load(0.1, 2), "b": load(0.1, 1)}
    fleet.drains = {"a": drain_s, "b": drain_s}
    fleet.follow(pod("a"), pod("b"), wanted=2, spec=SHORT)
    await shrink(fleet, SHORT)
    assert fleet.wanted == {"cpu": want}


async def test_a_new_operator_waits_for_a_whole_window(fleet: Fleet) -> None:
    fleet.loads = {"a": load(0.1), "b": load(0.1)}
    fleet.follow(pod("a"), pod("b"), wanted=2, spec=SHORT)
    await fleet.look()
    await fleet.look(25.0)
    fleet.autoscaling = fleet.operator()
    fleet.follow(pod("a"), pod("b"), wanted=2, spec=SHORT)
    assert await fleet.look(25.0) is Verdict.WAITING
    assert fleet.wanted == {"cpu": 2}


async def test_one_that_drains_or_starts_is_no_replica_for_the_work(fleet: Fleet) -> None:
    fleet.loads = {"a": load(1.0)}
    pods = [pod_object("a"), pod_object("b", ready=False), pod_object("c", leaving=True)]
    fleet.cluster.all_pods = {KEY: pods}
    fleet.follow(*(view(Pod, one) for one in pods), wanted=2)
    assert await fleet.look() is Verdict.STEADY
    assert fleet.asked == ["a"]


async def test_one_that_left_holds_the_next_one_back_no_longer_than_it_is_there(
    fleet: Fleet,
) -> None:
    gone = pod_object("c", leaving=True)
    fleet.cluster.all_pods = {KEY: [pod_object("a"), pod_object("b"), gone]}
    fleet.loads = {"a": load(0.1), "b": load(0.1)}
    fleet.follow(pod("a"), pod("b"), view(Pod, gone), wanted=2, spec=SHORT)
    await shrink(fleet, SHORT)
    assert fleet.wanted == {"cpu": 2}
    fleet.cluster.all_pods[KEY].remove(gone)
    await fleet.look()
    assert fleet.wanted == {"cpu": 1}


async def test_faster_hardware_of_another_pool_counts_for_more(fleet: Fleet) -> None:
    fast = pod("f", labels={"serving.weir.dev/pool": "fast"})
    fleet.loads = {"a": load(0.9, token_s=4e-4), "f": load(0.9, token_s=1e-4)}
    pools = (PoolFacts("cpu", 1), PoolFacts("fast", 1, min_replicas=1, max_replicas=1))
    policy = policy_of(scaling(), 1)
    seen = Scaled(policy, CLASSES, pools, frozenset({"cpu"}), (pod("a"), fast), KEYS)
    fleet.autoscaling.follow(SERVICE, seen)
    await fleet.look()
    # 0.9 and 4 x 0.9 replicas of pool cpu at a load of 0.78 are 5.77; pool fast does 4 of them.
    assert fleet.wanted == {"cpu": 2}


async def test_the_cheapest_pool_grows_and_keeps_the_lower_bound(fleet: Fleet) -> None:
    pools = [{"name": "b", "cost": 4}, {"name": "a", "cost": 4, "spot": True}]
    cluster = fleet.cluster
    cluster.put(body({"pools": pools, "scaling": {"minReplicas": 2, "maxReplicas": 5}}))
    fleet.autoscaling = Autoscaling(
        _anyones(fleet), lambda: fleet.now, lambda: NOW, fleet.passes.append, fleet.metrics
    )
    operator = Reconciler(cluster, parts(Images(), autoscaling=fleet.autoscaling), lambda: NOW)

    def replicas() -> dict[str, int]:
        return {name: one["spec"]["replicas"] for name, one in cluster.of("Deployment").items()}

    await operator.run(KEY)
    assert replicas() == {"chat-b": 0, "chat-a": 2}
    assert "serving.weir.dev/pool" not in cluster.of("InferenceService")[NAME]["status"]["selector"]
    fleet.loads = {"x": load(1.5), "y": load(1.5)}
    finish_rollouts(cluster)
    of_a: Any = {"labels": {"serving.weir.dev/pool": "a"}}
    cluster.all_pods = {KEY: [pod_object("x", **of_a), pod_object("y", **of_a)]}
    await operator.run(KEY)
    assert await fleet.look() is Verdict.SCALED_UP
    await operator.run(KEY)
    assert replicas() == {"chat-b": 0, "chat-a": 4}


async def test_a_service_that_is_gone_leaves_no_metric(fleet: Fleet) -> None:
    fleet.loads = {"a": load(1.0)}
    fleet.follow(pod("a"), wanted=1)
    await fleet.look()
    fleet.autoscaling.forget(SERVICE)
    fleet.autoscaling.forget(SERVICE)
    assert 'service="chat"' not in fleet.page
    assert (fleet.wanted, fleet.autoscaling.said(SERVICE)) == ({}, None)


async def test_one_service_that_fails_stops_no_other(fleet: Fleet) -> None:
    fleet.loads = {"a": load(2.0)}
    fleet.follow(pod("a"), wanted=1)
    broken = Scaled(policy_of(scaling(), 0), CLASSES, (), frozenset({"cpu"}), (), ("no key",))
    fleet.autoscaling.follow(("models", "broken"), broken)
    await fleet.look()
    assert fleet.wanted == {"cpu": 3}


async def test_a_pass_writes_the_number_and_tells_of_it_once(fleet: Fleet) -> None:
    spec = {"scaling": {"maxReplicas": 5}}
    cluster = fleet.cluster
    cluster.put(body(spec))
    fleet.loads = {"a": load(2.0)}
    fleet.autoscaling = Autoscaling(
        _anyones(fleet), lambda: fleet.now, lambda: NOW, fleet.passes.append, fleet.metrics
    )
    operator = Reconciler(cluster, parts(Images(), autoscaling=fleet.autoscaling), lambda: NOW)
    await operator.run(KEY)
    assert conditions(cluster)["ScalingReady"]["reason"] == "Waiting"
    finish_rollouts(cluster)
    cluster.all_pods = {KEY: [pod_object("a")]}
    await operator.run(KEY)
    assert await fleet.look() is Verdict.SCALED_UP
    for _ in range(2):
        await operator.run(KEY)
        assert cluster.of("Deployment")["chat-cpu"]["spec"]["replicas"] == 3
    found = conditions(cluster)["ScalingReady"]
    assert (found["status"], found["reason"]) == ("True", "ScaledUp")
    told = [one for one in cluster.events if one["reason"] == "ScaledUp"]
    assert [one["type"] for one in told] == ["Normal"]
    assert "from 1 to 3 replicas: the work of class interactive" in told[0]["message"]


def _anyones(fleet: Fleet) -> Any:
    """Return an ask that takes any keys: a pass has made them."""

    async def ask(address: str, name: str, _keys: Sequence[str]) -> FleetReport:
        return await fleet.ask(address, name, KEYS)

    return ask


async def test_an_edit_that_is_wrong_leaves_scaling_as_it_was(fleet: Fleet) -> None:
    cluster = fleet.cluster
    cluster.put(body({"scaling": {"maxReplicas": 5}}))
    fleet.autoscaling = Autoscaling(
        _anyones(fleet), lambda: fleet.now, lambda: NOW, fleet.passes.append, fleet.metrics
    )
    operator = Reconciler(cluster, parts(Images(), autoscaling=fleet.autoscaling), lambda: NOW)
    await operator.run(KEY)
    finish_rollouts(cluster)
    wrong = {"scaling": {"maxReplicas": 5}, "engine": {"args": ["--por=1"]}}
    held = cluster.of("InferenceService")[NAME]
    cluster.put({**body(wrong, generation=2), "status": held["status"]})
    fleet.loads = {"a": load(2.0)}
    cluster.all_pods = {KEY: [pod_object("a")]}
    await operator.run(KEY)
    assert await fleet.look() is Verdict.SCALED_UP
    await operator.run(KEY)
    assert cluster.of("Deployment")["chat-cpu"]["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("written", "up", "down"),
    [
        pytest.param(
            {}, Direction(), Direction(900.0, (RatePolicy("Pods", 1, 60.0),)), id="nothing"
        ),
        pytest.param(
            {
                "scaleUp": {
                    "stabilizationWindowSeconds": 15,
                    "selectPolicy": "Min",
                    "policies": [
                        {"type": "Percent", "value": 100, "periodSeconds": 15},
                        {"type": "Pods", "value": 4},
                    ],
                },
                "scaleDown": {"selectPolicy": "Disabled"},
            },
            Direction(15.0, (RatePolicy("Percent", 100, 15), RatePolicy("Pods", 4, 60)), "Min"),
            Direction(900.0, (RatePolicy("Pods", 1, 60.0),), "Disabled"),
            id="all of it",
        ),
        pytest.param(
            {"scaleDown": {"stabilizationWindowSeconds": 0}},
            Direction(),
            Direction(0.0, (RatePolicy("Pods", 1, 60.0),)),
            id="no window",
        ),
    ],
)
def test_a_behavior_is_read_as_an_hpas(written: Any, up: Direction, down: Direction) -> None:
    policy = policy_of(scaling(behavior=written, minReplicas=2, targetLoad=0.5), 3)
    assert (policy.scale_up, policy.scale_down) == (up, down)
    assert (policy.min_replicas, policy.max_replicas, policy.target_load) == (5, 8, 0.5)


def test_what_is_not_written_is_as_the_core_has_it() -> None:
    assert policy_of(scaling(), 0) == ScalingPolicy(1, 5)


def test_the_definition_says_what_the_core_takes_where_nothing_is_written() -> None:
    usual = ScalingPolicy(1, 5)
    (rate,) = usual.scale_down.policies
    windows, rates = (
        ScalingRules.model_fields[name].description or ""
        for name in ("stabilization_window_seconds", "policies")
    )
    assert windows.endswith(
        f"Default: {usual.scale_up.window_s:g} up, {usual.scale_down.window_s:g} down."
    )
    assert (usual.scale_up.policies, rate.kind, rate.value) == ((), "Pods", 1)
    assert rates.endswith(f"Default: none up, one replica in {rate.period_s:g} s down.")


def test_the_classes_are_those_that_the_service_accepts() -> None:
    found = {one.name: one.target_s for one in classes_of(PolicyDocument())}
    assert found.keys() == {"interactive", "standard", "batch"}
    assert found["batch"] > found["standard"] > found["interactive"] > 0.0
    some = classes_of(PolicyDocument(accepted_classes=("batch",)))
    assert [one.name for one in some] == ["batch"]


@pytest.mark.parametrize(
    ("page", "why"),
    [
        pytest.param(b"{}", "did not answer as a sidecar", id="no report"),
        pytest.param(FleetReport("other").encode(), "10.0.0.1 is other by now", id="another's"),
    ],
)
async def test_what_is_no_answer_of_this_pod_is_silence(page: bytes, why: str) -> None:
    async def answer(path: str, _address: str, _pod: str, _keys: Sequence[str]) -> bytes:
        assert path == "/fleet"
        return page

    with pytest.raises(EngineUnavailable, match=why):
        await fleet_by(answer)("10.0.0.1", "a", KEYS)


def test_the_largest_fleet_fits_an_answer() -> None:
    work = tuple(
        ClassLoad(f"class-{number:02}", 1 / 3, 9999, 99, 99999, 1 / 3, 1 / 3, -1 / 3)
        for number in range(32)
    )
    one = LoadVector(work, 1 / 3, 1 / 3, 1 / 3, 2048, 100, 100000)
    pods = [f"chat-default-7f9c6d5b8-{number:05}" for number in range(1000)]
    page = FleetReport("a", tuple(ReplicaReport(pod, one, 1 / 3) for pod in pods)).encode()
    assert len(page) < LONGEST_ANSWER / 2
    assert FleetReport.decode(page).replicas[-1].load == one


ZERO = scaling(minReplicas=0)
IDLE = {name: FleetReport(name, idle_s=900.0) for name in ("g1", "g2")}


def gateway(name: str, **more: Any) -> Pod:
    return pod(name, labels={"app.kubernetes.io/component": "gateway"}, **more)


async def test_an_idle_service_goes_to_zero_and_is_looked_at_no_more(fleet: Fleet) -> None:
    fleet.loads, fleet.gateways = {"a": load()}, dict(IDLE)
    fleet.follow(pod("a"), gateway("g1"), gateway("g2"), wanted=1, spec=ZERO)
    assert await fleet.look() is Verdict.ASLEEP
    assert fleet.wanted == {"cpu": 0}
    assert set(fleet.asked) == {"a", "g1", "g2"}
    fleet.follow(gateway("g1"), gateway("g2"), wanted=0, spec=ZERO)
    fleet.asked.clear()
    assert await fleet.look() is Verdict.ASLEEP
    assert fleet.asked == []


@pytest.mark.parametrize(
    "gateways",
    [
        pytest.param({"g1": FleetReport("g1", idle_s=900.0)}, id="one that does not answer"),
        pytest.param({**IDLE, "g2": FleetReport("g2", idle_s=3.0)}, id="one that had a request"),
        pytest.param({**IDLE, "g2": FleetReport("g2")}, id="one that does not tell"),
    ],
)
async def test_a_gateway_keeps_the_last_replica(
    fleet: Fleet, gateways: dict[str, FleetReport]
) -> None:
    fleet.loads, fleet.gateways = {"a": load()}, gateways
    fleet.silent = {"g1", "g2"} - gateways.keys()
    fleet.follow(pod("a"), gateway("g1"), gateway("g2"), wanted=1, spec=ZERO)
    assert await fleet.look() is not Verdict.ASLEEP
    assert fleet.wanted in ({}, {"cpu": 1})


async def test_a_new_operator_listens_at_once_and_wakes_for_a_request_at_a_leaving_gateway(
    fleet: Fleet,
) -> None:
    fleet.gateways = {**IDLE, "g2": FleetReport("g2", waiting=1, idle_s=0.0)}
    fleet.follow(gateway("g1"), gateway("g2", leaving=True), wanted=0, spec=ZERO)
    running = asyncio.create_task(fleet.autoscaling.run(fleet.cluster, Seconds(3600.0)))
    async with asyncio.timeout(30):
        await fleet.all_heard.wait()
        assert fleet.wanted == {}
        fleet.told.set()
        await fleet.woken.wait()
    assert fleet.wanted == {"cpu": 1}
    said = fleet.autoscaling.said(SERVICE)
    assert said is not None
    assert said.reason is Verdict.WOKEN
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_wake_that_is_not_written_yet_outlasts_missing_data(fleet: Fleet) -> None:
    fleet.gateways = {**IDLE, "g2": FleetReport("g2", waiting=1, idle_s=0.0)}
    fleet.follow(gateway("g1"), gateway("g2"), wanted=0, spec=ZERO)
    assert await fleet.look() is Verdict.WOKEN
    assert await fleet.look() is Verdict.WOKEN
    assert fleet.wanted == {"cpu": 1}
    fleet.follow(gateway("g1"), gateway("g2"), pod("a", ready=False), wanted=1, spec=ZERO)
    await fleet.look()
    assert fleet.wanted == {}
