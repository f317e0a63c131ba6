"""Services that another autoscaler scales: it is told what their work takes; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.control.builders import body
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
)
from tests.unit.control.test_reconcile_pass import KEY, conditions, finish_rollouts, parts
from weir_core.api.scaling import Scaling
from weir_core.scale.types import PoolFacts, Verdict
from weir_core.wire.fleet import FleetReport
from weir_operator.advice import Advice
from weir_operator.autoscaling import DELETION_COST, GOES_FIRST, Autoscaling, Scaled
from weir_operator.parts.scaling import policy_of
from weir_operator.reconcile import Reconciler
from weir_operator.render import Images
from weir_operator.views import Pod, view

GATEWAY = {"labels": {"app.kubernetes.io/component": "gateway"}}


@pytest.fixture
def fleet() -> Fleet:
    """A fleet whose gateways are looked at like its replicas."""
    made = Fleet()
    made.autoscaling = Autoscaling(
        made.ask, lambda: made.now, lambda: NOW, made.ask_pass, made.metrics
    )
    return made


def follow(fleet: Fleet, *pods: Pod, there: int, spec: Scaling | None = None) -> None:
    """Have a pass see the service with so many replicas, set by another autoscaler."""
    policy = policy_of(spec or scaling(), 0)
    pools = (PoolFacts("cpu", there),)
    seen = Scaled(policy, CLASSES, pools, frozenset({"cpu"}), pods, KEYS, advises=True)
    fleet.autoscaling.follow(SERVICE, seen)


def advised(fleet: Fleet) -> int | None:
    return fleet.autoscaling.advice.of(SERVICE)


async def test_it_is_told_what_the_work_takes_and_no_pass_writes_it(fleet: Fleet) -> None:
    fleet.loads = {"a": load(2.0)}
    follow(fleet, pod("a"), there=1)
    assert advised(fleet) is None
    assert await fleet.look() is Verdict.SCALED_UP
    assert advised(fleet) == 3
    assert fleet.wanted == {}
    assert 'weir_wanted_replicas{namespace="models",service="chat"} 3.0' in fleet.page
    await fleet.look()
    assert advised(fleet) == 3


async def test_it_shrinks_step_by_step_though_the_other_one_takes_its_time(fleet: Fleet) -> None:
    pods = [pod_object(name) for name in "abc"]
    fleet.cluster.all_pods = {KEY: pods}
    fleet.loads = {"a": load(0.1, 3), "b": load(0.1, 1), "c": load(0.1, 2)}
    follow(fleet, *(view(Pod, one) for one in pods), there=3, spec=SHORT)
    told = [3]
    for _ in range(20):
        await fleet.look(10.0)
        told.append(advised(fleet) or 0)
    assert sorted(set(told)) == [1, 2, 3]
    assert told == sorted(told, reverse=True)
    marks = [one["metadata"].get("annotations", {}).get(DELETION_COST) for one in pods]
    assert marks == [None, GOES_FIRST, GOES_FIRST]


async def test_missing_data_holds_the_number_that_is_there(fleet: Fleet) -> None:
    fleet.loads = {"a": load(5.0)}
    fleet.silent = {"a"}
    follow(fleet, pod("a"), there=2)
    assert await fleet.look() is Verdict.DATA_MISSING
    assert advised(fleet) == 2


async def test_a_request_at_a_gateway_wants_one_until_it_is_ready_and_idle_again(
    fleet: Fleet,
) -> None:
    spec = scaling(minReplicas=0, idleTimeout="10m")
    fleet.gateways = {"g": FleetReport("g", (), idle_s=3600.0)}
    fleet.loads = {}
    follow(fleet, pod("g", **GATEWAY), there=0, spec=spec)
    await fleet.look()
    assert advised(fleet) == 0
    fleet.gateways["g"] = FleetReport("g", (), waiting=1)
    await fleet.look()
    assert advised(fleet) == 1
    fleet.gateways["g"] = FleetReport("g", ())  # its client gave up before anything started
    await fleet.look()
    assert advised(fleet) == 1
    starting = pod("a", ready=False)
    follow(fleet, pod("g", **GATEWAY), starting, there=1, spec=spec)
    await fleet.look()
    assert advised(fleet) == 1
    fleet.loads = {"a": load()}
    follow(fleet, pod("g", **GATEWAY), pod("a"), there=1, spec=spec)
    await fleet.look()
    assert advised(fleet) == 1
    fleet.gateways["g"] = FleetReport("g", (), idle_s=900.0)
    for _ in range(80):
        await fleet.look(15.0)
    assert advised(fleet) == 0


async def test_a_replica_that_was_not_taken_yet_and_has_work_again_is_wanted(
    fleet: Fleet,
) -> None:
    spec = scaling(minReplicas=0, idleTimeout="10m")
    fleet.gateways = {"g": FleetReport("g", (), idle_s=900.0)}
    fleet.loads = {"a": load()}
    follow(fleet, pod("g", **GATEWAY), pod("a"), there=1, spec=spec)
    await fleet.look()
    assert advised(fleet) == 0
    fleet.loads = {"a": load(0.3, running=1)}
    await fleet.look()
    assert advised(fleet) == 1


@pytest.mark.parametrize(("there", "want"), [(0, 3), (4, 4)])
async def test_a_pass_leaves_the_number_to_the_other_one(
    fleet: Fleet, there: int, want: int
) -> None:
    fleet.loads = {"a": load(2.0)}

    async def ask(address: str, name: str, keys: Sequence[str]) -> FleetReport:
        assert keys
        return await fleet.ask(address, name, KEYS)

    fleet.autoscaling = Autoscaling(
        ask, lambda: fleet.now, lambda: NOW, fleet.passes.append, fleet.metrics
    )
    spec = {"replicas": there, "scaling": {"maxReplicas": 5, "mode": "Advise"}}
    operator = Reconciler(
        fleet.cluster, parts(Images(), autoscaling=fleet.autoscaling), lambda: NOW
    )

    def replicas() -> Any:
        (made,) = fleet.cluster.of("Deployment").values()
        return made["spec"]["replicas"]

    fleet.cluster.put(body(spec))
    await operator.run(KEY)
    assert replicas() == there
    finish_rollouts(fleet.cluster)
    fleet.cluster.all_pods = {KEY: [pod_object("a")]}
    await operator.run(KEY)
    await fleet.look()
    await operator.run(KEY)
    assert replicas() == there
    assert advised(fleet) == want
    said = conditions(fleet.cluster)["ScalingReady"]
    assert said["message"].startswith("another autoscaler is told: ")
    fleet.cluster.put(body({"replicas": there}))
    await operator.run(KEY)
    assert advised(fleet) is None


async def test_what_waits_for_a_change_hears_of_it_once() -> None:
    advice = Advice()
    turn = advice.next_turn(SERVICE)
    advice.tell(SERVICE, 1)
    assert turn.is_set()
    again = advice.next_turn(SERVICE)
    advice.tell(SERVICE, 1)
    assert not again.is_set()
    advice.tell(SERVICE, None)
    assert again.is_set()
    assert advice.of(SERVICE) is None


async def test_names_of_services_that_never_were_leave_nothing_behind() -> None:
    advice = Advice()
    for number in range(100):
        advice.next_turn(("models", f"none-{number}"))
    assert len(advice._turns) == 0
