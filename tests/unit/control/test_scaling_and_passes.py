"""Scaling beside what else happens to a service: lost answers, deletions, renames, faulty pods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.control.builders import NAME, body
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_autoscaling import (
    CLASSES,
    KEYS,
    NOW,
    SERVICE,
    SHORT,
    Fleet,
    load,
    pod,
    pod_object,
    scaling,
    shrink,
)
from tests.unit.control.test_reconcile_pass import KEY, finish_rollouts, parts
from weir_core.api.labels import REPLICAS_TO_COME
from weir_core.errors import ClusterRefuses, ClusterUnavailable, InvalidSpec
from weir_core.scale.types import PoolFacts, Verdict
from weir_core.wire.fleet import FleetReport
from weir_operator.autoscaling import DELETION_COST, GOES_FIRST, Autoscaling, Scaled
from weir_operator.parts.scaling import policy_of
from weir_operator.reconcile import Reconciler
from weir_operator.render import Images
from weir_operator.views import Pod, view

SPEC: dict[str, Any] = {"scaling": {"maxReplicas": 8}}


class Marking(MemoryCluster):
    """A cluster in which something happens whenever a pod is marked."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self._happens = happens

    async def annotate_pod(self, *_: object) -> None:
        self._happens()


class Whole:
    """A fleet, and an operator whose passes its autoscaler asks for."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.cluster: MemoryCluster = self.fleet.cluster
        self.start()

    def start(self) -> None:
        """Begin a new process."""
        fleet = self.fleet

        async def ask(address: str, name: str, keys: Sequence[str]) -> FleetReport:
            assert keys
            return await fleet.ask(address, name, KEYS)

        fleet.autoscaling = Autoscaling(
            ask, lambda: fleet.now, lambda: NOW, fleet.passes.append, fleet.metrics
        )
        made = parts(Images(), autoscaling=fleet.autoscaling)
        self.operator = Reconciler(self.cluster, made, lambda: NOW)

    async def run(self) -> None:
        await self.operator.run(KEY)

    def serve(self, **offered: float) -> None:
        """Have ready replicas of pool cpu, each with so much work."""
        finish_rollouts(self.cluster)
        self.cluster.all_pods = {KEY: [pod_object(name) for name in offered]}
        self.fleet.loads = {name: load(each) for name, each in offered.items()}

    @property
    def replicas(self) -> dict[str, int]:
        found = self.cluster.of("Deployment")
        return {name: one["spec"]["replicas"] for name, one in sorted(found.items())}

    async def grown(self) -> None:
        """Have a service whose work takes six replicas, and gets them."""
        self.cluster.put(body(SPEC))
        await self.run()
        self.serve(a=4.0)
        await self.run()
        await self.fleet.look()
        await self.run()
        assert self.replicas == {"chat-cpu": 6}
        self.serve(**dict.fromkeys("abcdef", 0.6))
        await self.run()


def to_come(whole: Whole) -> dict[str, str | None]:
    """Return how many replicas each Deployment is noted to get."""
    return {
        name: one["metadata"].get("annotations", {}).get(REPLICAS_TO_COME)
        for name, one in whole.cluster.of("Deployment").items()
    }


@pytest.fixture
def whole() -> Whole:
    return Whole()


async def test_a_pass_that_could_not_list_the_deployments_shrinks_nothing(whole: Whole) -> None:
    await whole.grown()
    whole.start()
    whole.cluster.forbidden = {"Deployment"}
    with pytest.raises(ClusterRefuses):
        await whole.run()
    await whole.fleet.autoscaling.look(whole.cluster)
    whole.cluster.forbidden = set()
    await whole.run()
    assert whole.replicas == {"chat-cpu": 6}


async def test_a_pass_that_could_not_read_the_classes_changes_no_number(whole: Whole) -> None:
    await whole.grown()
    assert await whole.fleet.look() is not Verdict.DATA_MISSING
    whole.cluster.forbidden = {"Secret"}
    with pytest.raises(ClusterRefuses):
        await whole.run()
    await whole.fleet.look()
    said = whole.fleet.autoscaling.said(SERVICE)
    assert said is not None
    assert said.reason is not Verdict.DATA_MISSING


async def test_a_service_made_anew_under_its_name_begins_from_its_own_spec(whole: Whole) -> None:
    await whole.grown()
    for place in list(whole.cluster.objects):
        del whole.cluster.objects[place]
    whole.cluster.all_pods = {}
    whole.cluster.put(body(SPEC, uid="uid-2"))
    await whole.run()
    assert whole.replicas == {"chat-cpu": 1}


async def test_a_pod_that_ended_is_no_replica(whole: Whole) -> None:
    """The ReplicaSet controller does not count it, and takes a serving pod in its place."""
    fleet = whole.fleet
    evicted = pod_object("evicted", ready=False)
    evicted["status"]["phase"] = "Failed"
    pods = [pod_object("a"), pod_object("b"), evicted]
    fleet.cluster.all_pods = {KEY: pods}
    fleet.loads = {"a": load(0.1, 2), "b": load(0.1, 1)}
    fleet.drains = {"a": 200.0, "b": 200.0}
    fleet.follow(*(view(Pod, one) for one in pods), wanted=2, spec=SHORT)
    await shrink(fleet, SHORT)
    assert fleet.wanted == {"cpu": 2}
    fleet.drains = {"a": 1.0, "b": 1.0}
    await fleet.look(10.0)
    assert fleet.wanted == {"cpu": 1}
    assert fleet.cluster.touched == ["b"]


@pytest.mark.parametrize(
    ("late", "want"),
    [
        pytest.param(timedelta(seconds=30), 2, id="in a moment"),
        pytest.param(timedelta(minutes=10), 1, id="its node is lost"),
    ],
)
async def test_a_pod_that_should_be_gone_long_since_holds_no_other_back(
    late: timedelta, want: int
) -> None:
    fleet = Fleet()
    stuck = pod_object("c", deletionTimestamp=(NOW - late).isoformat())
    fleet.cluster.all_pods = {KEY: [pod_object("a"), pod_object("b"), stuck]}
    fleet.loads = {"a": load(0.1), "b": load(0.1)}
    fleet.follow(pod("a"), pod("b"), view(Pod, stuck), wanted=2, spec=SHORT)
    await shrink(fleet, SHORT)
    assert fleet.wanted == {"cpu": want}


async def test_a_service_deleted_while_its_pods_are_marked_leaves_no_metric() -> None:
    fleet = Fleet()
    fleet.cluster = Marking(lambda: fleet.autoscaling.forget(SERVICE))
    marked = pod("a", annotations={DELETION_COST: GOES_FIRST})
    fleet.loads = {"a": load(2.0)}
    fleet.follow(marked, wanted=1)
    fleet.now += 5.0
    await fleet.autoscaling.look(fleet.cluster)
    assert 'service="chat"' not in fleet.page
    assert fleet.passes == []


async def test_a_pool_that_is_named_while_pods_are_marked_waits_for_the_next_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = Fleet()
    pools = (PoolFacts("new", 1),)
    seen = Scaled(policy_of(scaling(), 0), CLASSES, pools, frozenset({"new"}), (pod("a"),), KEYS)
    fleet.cluster = Marking(lambda: fleet.autoscaling.follow(SERVICE, seen))
    fleet.loads = {"a": load(2.0)}
    fleet.follow(pod("a", annotations={DELETION_COST: GOES_FIRST}), wanted=1)
    await fleet.look()
    assert fleet.wanted == {}
    await fleet.look()
    assert fleet.wanted == {"new": 3}
    assert not caplog.records


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(ClusterRefuses("a webhook says no"), id="refused"),
        pytest.param(InvalidSpec("pod", "a webhook says 422"), id="called invalid"),
    ],
)
async def test_a_mark_that_is_refused_keeps_no_service_from_scaling(refusal: Exception) -> None:
    fleet = Fleet()

    def refuse() -> None:
        raise refusal

    fleet.cluster = Marking(refuse)
    fleet.loads = {"a": load(0.1), "b": load(0.1)}
    fleet.follow(pod("a"), pod("b"), wanted=2, spec=SHORT)
    await shrink(fleet, SHORT)
    assert fleet.wanted == {"cpu": 1}


async def test_a_pool_that_was_renamed_shrinks_after_a_window_of_its_own() -> None:
    fleet = Fleet()
    fleet.loads = dict.fromkeys("abc", load(0.3))
    pods = [pod(name) for name in "abc"]
    fleet.follow(*pods, wanted=3, spec=SHORT)
    fleet.loads = dict.fromkeys("abc", load(0.7))
    for _ in range(6):
        await fleet.look(10.0)
    assert fleet.wanted == {"cpu": 3}
    new = {"labels": {"serving.weir.dev/pool": "new"}}
    seen = Scaled(
        policy_of(SHORT, 0),
        CLASSES,
        (PoolFacts("new", 3),),
        frozenset({"new"}),
        [pod(name, **new) for name in "abc"],
        KEYS,
    )
    fleet.autoscaling.follow(SERVICE, seen)
    fleet.loads = dict.fromkeys("abc", load(0.2))
    for _ in range(3):
        await fleet.look(9.0)
    assert fleet.wanted == {"new": 3}
    await fleet.look(10.0)
    await fleet.look(10.0)
    assert fleet.wanted == {"new": 2}


async def test_pools_that_take_the_place_of_one_share_its_replicas(whole: Whole) -> None:
    await whole.grown()
    pools = [{"name": "new"}, {"name": "other"}]
    held = whole.cluster.of("InferenceService")[NAME]
    made = body({**SPEC, "pools": pools}, generation=2)
    whole.cluster.put({**made, "status": held["status"]})
    await whole.run()
    assert to_come(whole) == {"chat-cpu": None, "chat-new": "6", "chat-other": None}


async def test_a_pool_that_was_taken_out_hands_its_replicas_to_one_that_scales(
    whole: Whole,
) -> None:
    pools = [{"name": "cpu", "cost": 2}, {"name": "dear", "cost": 3}]
    whole.cluster.put(body({**SPEC, "pools": pools}))
    await whole.run()
    dear: Any = {"labels": {"serving.weir.dev/pool": "dear"}}
    for pool, number in (("cpu", 3), ("dear", 2)):
        one = whole.cluster.of("Deployment")[f"chat-{pool}"]
        whole.cluster.put({**one, "spec": {**one["spec"], "replicas": number}})
    finish_rollouts(whole.cluster)
    whole.cluster.all_pods = {
        KEY: [*(pod_object(name) for name in "abc"), *(pod_object(name, **dear) for name in "de")]
    }
    whole.fleet.loads = dict.fromkeys("abcde", load(0.45))
    await whole.run()
    await whole.fleet.look()
    await whole.run()
    assert whole.replicas == {"chat-cpu": 3, "chat-dear": 2}
    held = whole.cluster.of("InferenceService")[NAME]
    whole.cluster.put(
        {**body({**SPEC, "pools": pools[:1]}, generation=2), "status": held["status"]}
    )
    for _ in range(2):
        await whole.run()
        assert whole.replicas == {"chat-cpu": 4, "chat-dear": 2}
        assert to_come(whole) == {"chat-cpu": "5", "chat-dear": None}
        await whole.fleet.look()


async def test_an_invalid_edit_pauses_a_hand_over_and_makes_no_pod(whole: Whole) -> None:
    await whole.grown()
    renamed = {**SPEC, "pools": [{"name": "new"}]}
    held = whole.cluster.of("InferenceService")[NAME]
    whole.cluster.put({**body(renamed, generation=2), "status": held["status"]})
    await whole.run()
    assert whole.replicas == {"chat-cpu": 6, "chat-new": 1}
    wrong = {**renamed, "engine": {"args": ["--por=1"]}}
    whole.cluster.put({**body(wrong, generation=3), "status": held["status"]})
    for _ in range(2):
        await whole.run()
        assert whole.replicas == {"chat-cpu": 6, "chat-new": 1}
    whole.start()
    whole.cluster.put({**body(renamed, generation=4), "status": held["status"]})
    await whole.run()
    assert whole.replicas == {"chat-cpu": 6, "chat-new": 1}
    assert (
        whole.cluster.of("Deployment")["chat-new"]["metadata"]["annotations"][REPLICAS_TO_COME]
        == "6"
    )


@pytest.mark.parametrize(
    ("mode", "written", "advised"),
    [
        pytest.param({}, 1, None, id="Apply"),
        pytest.param({"mode": "Advise"}, 0, 1, id="Advise"),
    ],
)
async def test_a_new_operator_wakes_a_service_whose_spec_is_wrong(
    whole: Whole, mode: dict[str, str], written: int, advised: int | None
) -> None:
    asleep: dict[str, Any] = {"scaling": {"minReplicas": 0, "maxReplicas": 8, **mode}}
    if mode:
        asleep["replicas"] = 0
    whole.cluster.put(body(asleep))
    await whole.run()
    assert whole.replicas["chat-cpu"] == 0
    held = whole.cluster.of("InferenceService")[NAME]
    wrong = {**asleep, "engine": {"args": ["--por=1"]}}
    whole.cluster.put({**body(wrong, generation=2), "status": held["status"]})
    whole.start()
    gate = pod_object("g1")
    gate["metadata"]["labels"]["app.kubernetes.io/component"] = "gateway"
    whole.cluster.all_pods = {KEY: [gate]}
    whole.fleet.gateways = {"g1": FleetReport("g1", waiting=1, idle_s=0.0)}
    await whole.run()
    await whole.fleet.autoscaling.look(whole.cluster)
    await whole.run()
    assert whole.replicas["chat-cpu"] == written
    assert whole.fleet.autoscaling.advice.of(SERVICE) == advised


async def test_an_outage_in_the_middle_of_a_pass_is_made_good(whole: Whole) -> None:
    await whole.grown()
    whole.fleet.loads = dict.fromkeys("abcdef", load(0.9))
    assert await whole.fleet.look() is Verdict.SCALED_UP
    for calls in range(20):
        whole.cluster.calls_left = calls
        try:
            await whole.run()
        except ClusterUnavailable:
            assert whole.replicas["chat-cpu"] in (6, 7, 8)
        whole.cluster.calls_left = None
        await whole.fleet.look()
    await whole.run()
    assert whole.replicas == {"chat-cpu": 7}
