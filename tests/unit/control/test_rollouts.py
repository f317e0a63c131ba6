"""What a rollout does where no node has room for one more pod, and how pools take over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.unit.control.builders import GPU, NOW, asking, deployment, pod
from weir_core.api.inferenceservice import Rollout
from weir_operator.rollouts import (
    Bounds,
    Outlook,
    Situation,
    bounds,
    handed_over,
    leaving,
    one_by_one,
    outlook,
)
from weir_operator.views import Deployment, Pod, view

Manifest = dict[str, Any]

CLAIMS = (
    "0/1 nodes are available: 1 cannot allocate all claims. preemption: 0/1 nodes are available."
)
CLAIMED: Manifest = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]}
GANG = "1/1 tasks in gang unschedulable: pod group is not ready, 1 Pending, 1 minAvailable"
GANGS: Manifest = {"schedulerName": "volcano"}

FULL = f"0/1 nodes are available: 1 Insufficient {GPU}. preemption: 0/1 nodes are available."
FAR_OFF = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."


def on_a_node(template: str = "old", pool: str = "cpu", count: str = "1", **spec: Any) -> Pod:
    """Return a pod of a template that serves, and has accelerators."""
    return view(Pod, asking(pod(ready=True, pool=pool), template, count, nodeName="node", **spec))


def draining(template: str = "old", pool: str = "cpu") -> Pod:
    return view(Pod, asking(pod(leaving=True, pool=pool), template, nodeName="node"))


def evicted() -> Pod:
    one = asking(pod(), "old", nodeName="node")
    one["status"]["phase"] = "Failed"
    return view(Pod, one)


def without_a_node(
    said: str = FULL, *, for_s: float = 300, pool: str = "cpu", count: str = "1", **spec: Any
) -> Pod:
    """Return a pod of the newest template that waits for a node since so many seconds."""
    one = pod(unschedulable=said, since=NOW - timedelta(seconds=for_s), pool=pool)
    return view(Pod, asking(one, "new", count, **spec))


def pool(wanted: int = 1, mark: str = "", spec: str = "now", **status: int) -> Deployment:
    """Return a pool's Deployment in the middle of a rollout, unless `status` says otherwise."""
    one = deployment(wanted, **{"updatedReplicas": 1, "replicas": wanted + 1, **status})
    notes = {"serving.weir.dev/one-by-one": mark, "serving.weir.dev/spec-hash": spec}
    one["metadata"]["annotations"] = notes
    return view(Deployment, one)


def gone(replicas: int, ready: int | None = None) -> Deployment:
    """Return the Deployment of a pool that left the spec."""
    return view(
        Deployment, deployment(replicas, readyReplicas=replicas if ready is None else ready)
    )


def situation(
    *pods: Pod,
    rollout: Manifest | None = None,
    wanted: dict[str, int] | None = None,
    deployments: dict[str, Deployment] | None = None,
) -> Situation:
    wanted = wanted or {"cpu": 2}
    there = {"cpu": pool(2)} if deployments is None else deployments
    read = Rollout.model_validate(rollout or {})
    return Situation(read, wanted, there, leaving(there, wanted), pods, NOW)


@pytest.mark.parametrize(
    ("rollout", "wanted", "want"),
    [
        pytest.param({}, 4, Bounds(1, 0), id="the default"),
        pytest.param({"maxSurge": 0, "maxUnavailable": 1}, 4, Bounds(0, 1), id="counts"),
        pytest.param(
            {"maxSurge": "30%", "maxUnavailable": "30%"}, 4, Bounds(2, 1), id="more up, less down"
        ),
        pytest.param(
            {"maxSurge": 0, "maxUnavailable": "30%"}, 2, Bounds(0, 1), id="both come to nothing"
        ),
    ],
)
def test_bounds_are_the_deployment_controllers(
    rollout: Manifest, wanted: int, want: Bounds
) -> None:
    assert bounds(Rollout.model_validate(rollout), wanted) == want


@pytest.mark.parametrize(
    ("waits", "others", "want"),
    [
        pytest.param(without_a_node(), [on_a_node()], Outlook.HELD, id="its predecessor's place"),
        pytest.param(without_a_node(), [], Outlook.STUCK, id="there is no predecessor"),
        pytest.param(
            without_a_node(), [on_a_node("new")], Outlook.STUCK, id="a pod of its own template"
        ),
        pytest.param(
            without_a_node(), [on_a_node(pool="b")], Outlook.STUCK, id="a pod of another pool"
        ),
        pytest.param(without_a_node(), [evicted()], Outlook.STUCK, id="one that was evicted"),
        pytest.param(without_a_node(), [draining()], Outlook.COMING, id="one that drains"),
        pytest.param(
            without_a_node(), [draining("new")], Outlook.COMING, id="one that drains, of its own"
        ),
        pytest.param(
            without_a_node(FAR_OFF), [on_a_node()], Outlook.STUCK, id="no node is of its kind"
        ),
        pytest.param(
            without_a_node(CLAIMS, **CLAIMED),
            [on_a_node(**CLAIMED)],
            Outlook.HELD,
            id="a resource claim has no device",
        ),
        pytest.param(
            without_a_node(CLAIMS, **CLAIMED), [on_a_node()], Outlook.STUCK, id="it claims more"
        ),
        pytest.param(
            without_a_node(FAR_OFF, **CLAIMED),
            [on_a_node(**CLAIMED)],
            Outlook.STUCK,
            id="it has a claim, and no node is of its kind",
        ),
        pytest.param(
            without_a_node('persistentvolumeclaim "weights" not found'),
            [on_a_node()],
            Outlook.STUCK,
            id="a volume claim has no volume",
        ),
        pytest.param(
            without_a_node(GANG, **GANGS),
            [on_a_node(**GANGS)],
            Outlook.HELD,
            id="another scheduler has its own words",
        ),
        pytest.param(
            without_a_node(FAR_OFF, **GANGS),
            [on_a_node(**GANGS)],
            Outlook.STUCK,
            id="another scheduler, with the usual words, and no node is of its kind",
        ),
        pytest.param(
            without_a_node(GANG, count="2", **GANGS),
            [on_a_node(**GANGS)],
            Outlook.STUCK,
            id="another scheduler, and it asks for more",
        ),
        pytest.param(
            without_a_node(GANG, **GANGS),
            [on_a_node()],
            Outlook.STUCK,
            id="its predecessor has another scheduler",
        ),
        pytest.param(
            without_a_node(nodeSelector={"gpu": "h100"}),
            [on_a_node(nodeSelector={"gpu": "a100"})],
            Outlook.STUCK,
            id="its predecessor is on other hardware",
        ),
        pytest.param(
            without_a_node(count="2"), [on_a_node()], Outlook.STUCK, id="it asks for more"
        ),
        pytest.param(without_a_node(), [on_a_node(count="2")], Outlook.HELD, id="it asks for less"),
        pytest.param(
            without_a_node("0/1 nodes are available: 1 Insufficient cpu."),
            [on_a_node(count="9")],
            Outlook.HELD,
            id="another resource is short, of which it asks for the same",
        ),
        pytest.param(
            without_a_node(),
            [on_a_node(), on_a_node("older", nodeSelector={"gpu": "a100"})],
            Outlook.STUCK,
            id="only one of two has a place for it",
        ),
    ],
)
def test_what_becomes_of_a_pod_without_a_node(waits: Pod, others: list[Pod], want: Outlook) -> None:
    assert outlook(situation(waits, *others), waits) is want


def test_with_a_replica_that_may_be_missing_its_place_comes_free_by_itself() -> None:
    waits = without_a_node()
    seen = situation(waits, on_a_node(), rollout={"maxUnavailable": 1})
    assert outlook(seen, waits) is Outlook.COMING


OTHER = {"cpu": pool(1), "b": pool(1)}


@pytest.mark.parametrize(
    ("seen", "want"),
    [
        pytest.param(situation(without_a_node(), on_a_node()), {"cpu"}, id="it waited long enough"),
        pytest.param(situation(without_a_node(for_s=299), on_a_node()), set(), id="it may wait"),
        pytest.param(
            situation(without_a_node(for_s=60), on_a_node(), rollout={"surgeTimeout": "1m"}),
            {"cpu"},
            id="the time is set",
        ),
        pytest.param(
            situation(without_a_node(for_s=9e6), on_a_node(), rollout={"surgeTimeout": "0s"}),
            set(),
            id="it waits for ever",
        ),
        pytest.param(
            situation(
                without_a_node(), on_a_node(), wanted={"cpu": 1}, deployments={"cpu": pool(1)}
            ),
            set(),
            id="the only replica",
        ),
        pytest.param(
            situation(without_a_node(), on_a_node(), wanted={"cpu": 1, "b": 1}, deployments=OTHER),
            {"cpu"},
            id="the only one of its pool, while another pool serves",
        ),
        pytest.param(
            situation(
                without_a_node(),
                on_a_node(),
                wanted={"cpu": 1, "b": 1},
                deployments={"cpu": pool(1), "b": pool(1, readyReplicas=0)},
            ),
            set(),
            id="the other pool does not serve",
        ),
        pytest.param(
            situation(
                without_a_node(),
                on_a_node(),
                without_a_node(pool="b"),
                on_a_node(pool="b"),
                wanted={"cpu": 2, "b": 2},
                deployments={"cpu": pool(2), "b": pool(2)},
            ),
            {"cpu"},
            id="one pool at a time",
        ),
        pytest.param(
            situation(
                without_a_node(),
                on_a_node(),
                wanted={"cpu": 2, "b": 2},
                deployments={"cpu": pool(2), "b": pool(2, mark="now")},
            ),
            {"b"},
            id="another pool is at it",
        ),
        pytest.param(
            situation(without_a_node(), on_a_node(), deployments={"cpu": pool(2, spec="before")}),
            set(),
            id="the pod is of the template before",
        ),
        pytest.param(
            situation(
                without_a_node(), on_a_node(), deployments={"cpu": pool(2, updatedReplicas=0)}
            ),
            set(),
            id="the newest template has no pod yet",
        ),
        pytest.param(
            situation(deployments={"cpu": pool(2, mark="now")}), {"cpu"}, id="it goes on with it"
        ),
        pytest.param(
            situation(deployments={"cpu": pool(2, mark="now", updatedReplicas=2, replicas=2)}),
            set(),
            id="the rollout is complete",
        ),
        pytest.param(
            situation(deployments={"cpu": pool(2, mark="before")}),
            set(),
            id="it was for another template",
        ),
        pytest.param(
            situation(deployments={"cpu": pool(2, mark="now")}, rollout={"surgeTimeout": "0s"}),
            set(),
            id="it may no longer",
        ),
        pytest.param(
            situation(deployments={"cpu": pool(2, mark="now")}, rollout={"maxUnavailable": 2}),
            set(),
            id="the spec now lets replicas be missing",
        ),
        pytest.param(
            situation(
                without_a_node(),
                on_a_node(pool="old"),
                deployments={"cpu": pool(1), "old": gone(2)},
            ),
            {"cpu"},
            id="the old ones are of a pool that left the spec",
        ),
        pytest.param(
            situation(
                without_a_node(),
                on_a_node(pool="old"),
                wanted={"cpu": 1},
                deployments={"cpu": pool(1), "old": gone(1)},
            ),
            set(),
            id="the only replica is of a pool that left the spec",
        ),
        pytest.param(
            situation(
                deployments={
                    "cpu": pool(2, mark="now", updatedReplicas=2, replicas=2),
                    "old": gone(1),
                }
            ),
            {"cpu"},
            id="the pool is complete, but has not taken over yet",
        ),
    ],
)
def test_replicas_go_one_by_one_where_one_more_has_no_place(
    seen: Situation, want: set[str]
) -> None:
    assert one_by_one(seen, {"cpu": "now", "b": "now"}) == want


ONE_LESS = {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize(
    ("old", "new", "available", "rollout", "want"),
    [
        pytest.param(3, 0, 0, {}, {"cpu": 1, "old": 3}, id="one more at first"),
        pytest.param(3, 1, 0, {}, {"cpu": 1, "old": 3}, id="it loads"),
        pytest.param(3, 1, 1, {}, {"cpu": 2, "old": 2}, id="it serves"),
        pytest.param(2, 2, 2, {}, {"cpu": 3, "old": 1}, id="the next"),
        pytest.param(1, 3, 3, {}, {"cpu": 3}, id="all serve"),
        pytest.param(3, 0, 0, {"maxSurge": "100%"}, {"cpu": 3, "old": 3}, id="all at once"),
        pytest.param(3, 0, 0, ONE_LESS, {"cpu": 1, "old": 2}, id="one less at first"),
        pytest.param(2, 1, 1, ONE_LESS, {"cpu": 2, "old": 1}, id="one less, the next"),
        pytest.param(1, 2, 2, ONE_LESS, {"cpu": 3}, id="one less, the last"),
        pytest.param(5, 0, 0, {}, {"cpu": 1, "old": 3}, id="fewer from now on"),
        pytest.param(1, 0, 0, {}, {"cpu": 3, "old": 1}, id="more from now on"),
        pytest.param(2, 2, 1, {}, {"cpu": 2, "old": 2}, id="one that served broke down"),
        pytest.param(1, 3, 1, {}, {"cpu": 3, "old": 1}, id="old ones do not come back"),
    ],
)
def test_a_renamed_pool_hands_over_within_the_bounds_of_a_rollout(
    old: int, new: int, available: int, rollout: Manifest, want: dict[str, int]
) -> None:
    there = {"old": gone(old)}
    if new:
        there["cpu"] = pool(new, availableReplicas=available)
    seen = situation(rollout=rollout, wanted={"cpu": 3}, deployments=there)
    assert handed_over(seen, ()) == want


def test_a_renamed_pool_hands_over_one_by_one_where_one_more_has_no_place() -> None:
    there = {"cpu": pool(1, availableReplicas=0), "old": gone(3)}
    assert handed_over(situation(wanted={"cpu": 3}, deployments=there), {"cpu"}) == {
        "cpu": 1,
        "old": 2,
    }


def test_pools_that_stay_keep_their_replicas_and_count_as_serving() -> None:
    there = {"stays": pool(2), "old": gone(2)}
    seen = situation(wanted={"stays": 2, "cpu": 2}, deployments=there)
    assert handed_over(seen, ()) == {"stays": 2, "cpu": 1, "old": 2}


def test_a_pool_that_was_only_taken_out_goes_at_once() -> None:
    there = {"stays": pool(2), "old": gone(2)}
    assert handed_over(situation(wanted={"stays": 2}, deployments=there), ()) == {"stays": 2}


@pytest.mark.parametrize("one", [gone(2, ready=0), gone(0)], ids=["none ready", "none wanted"])
def test_a_pool_that_serves_nobody_holds_up_nobody(one: Deployment) -> None:
    seen = situation(wanted={"cpu": 3}, deployments={"old": one})
    assert handed_over(seen, ()) == {"cpu": 3}
