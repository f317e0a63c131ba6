"""Pools whose replicas spread over nodes, in passes: LeaderWorkerSets, and what their pods say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import NAME, NAMESPACE, body, container, pod
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_reconcile_pass import KEY, conditions, edit, reconciler
from weir_core.api import labels
from weir_core.errors import ClusterRefuses, KindMissing
from weir_operator.interests import Change, Interests
from weir_operator.kinds import GROUP_SET, OPTIONAL
from weir_operator.reconcile import Outcome
from weir_operator.views import Pod, view

GROUPS: dict[str, Any] = {
    "engine": {"parallelism": {"tensor": 2, "nodes": 2}},
    "pools": [{"name": "cpu", "replicas": 2, "accelerator": {"count": 0}}],
}
MIXED: dict[str, Any] = {
    "pools": [
        {
            "name": "large",
            "replicas": 1,
            "accelerator": {"count": 0},
            "engine": {"parallelism": {"tensor": 2, "nodes": 2}},
        },
        {"name": "cpu", "replicas": 1, "accelerator": {"count": 0}},
    ]
}


def group_set(cluster: MemoryCluster) -> Manifest:
    (found,) = cluster.of("LeaderWorkerSet").values()
    return found


def groups(spec: dict[str, Any] | None = None) -> MemoryCluster:
    return MemoryCluster(body(GROUPS if spec is None else spec))


def leader(cluster: MemoryCluster, *, ready: bool = True, leaving: bool = False) -> Manifest:
    """Return a leader as LeaderWorkerSet would make it from what was applied."""
    made = group_set(cluster)
    template = made["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["metadata"]
    one = pod(container("engine", started=ready), ready=ready, leaving=leaving)
    one["metadata"]["labels"][labels.GROUP_SET] = made["metadata"]["name"]
    one["metadata"]["annotations"] = dict(template["annotations"])
    return one


def worker(cluster: MemoryCluster, *containers: Manifest, **more: Any) -> Manifest:
    one = pod(*containers, **more)
    one["metadata"]["name"] = "chat-cpu-0-1"
    one["metadata"]["labels"][labels.GROUP_SET] = group_set(cluster)["metadata"]["name"]
    return one


async def test_a_pool_over_nodes_is_a_leader_worker_set() -> None:
    cluster = groups()
    assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING
    made = group_set(cluster)
    assert not cluster.of("Deployment")
    assert made["spec"]["replicas"] == 2
    template = made["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    workers = template["workerTemplate"]["metadata"]["labels"]
    assert (labels.SERVICE in workers, workers[labels.WORKER_OF]) == (False, NAME)


async def test_is_settled_when_every_leader_is_ready_and_of_the_newest_template() -> None:
    cluster = groups()
    await reconciler(cluster).run(KEY)
    cluster.all_pods = {KEY: [leader(cluster), leader(cluster, ready=False)]}
    assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING
    said = conditions(cluster)["WorkloadsReady"]
    assert said["message"].startswith("pool cpu: 1 of 2 replicas available, 2 of the newest")
    cluster.all_pods = {KEY: [leader(cluster), leader(cluster)]}
    assert await reconciler(cluster).run(KEY) is Outcome.SETTLED
    status = cluster.of("InferenceService")[NAME]["status"]
    assert (status["replicas"], status["readyReplicas"]) == (2, 2)


async def test_a_leader_of_the_template_before_does_not_complete_a_rollout() -> None:
    cluster = groups()
    await reconciler(cluster).run(KEY)
    cluster.all_pods = {KEY: [leader(cluster), leader(cluster)]}
    edit(cluster, {**GROUPS, "engine": {**GROUPS["engine"], "args": ["--seed=1"]}})
    assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING
    assert "0 of the newest template" in conditions(cluster)["WorkloadsReady"]["message"]


async def test_an_upgrade_of_the_operator_changes_no_template() -> None:
    cluster = groups()
    await reconciler(cluster, "1").run(KEY)
    before = group_set(cluster)
    await reconciler(cluster, "2").run(KEY)
    assert group_set(cluster) == before
    edit(cluster, {**GROUPS, "engine": {"parallelism": {"nodes": 0}}})  # a spec that is wrong
    assert await reconciler(cluster, "2").run(KEY) is Outcome.REJECTED
    assert group_set(cluster)["spec"] == before["spec"]


async def test_says_what_to_install_and_applies_the_other_pools() -> None:
    cluster = groups(MIXED)
    cluster.unwritable["LeaderWorkerSet"] = KindMissing(OPTIONAL[GROUP_SET])
    with pytest.raises(KindMissing):
        await reconciler(cluster).run(KEY)
    assert list(cluster.of("Deployment")) == ["chat-cpu"]
    said = conditions(cluster)["WorkloadsReady"]
    assert said["reason"] == "LeaderWorkerSetMissing"
    assert "install it (https://lws.sigs.k8s.io" in said["message"]


async def test_refuses_a_name_whose_service_is_taken() -> None:
    cluster = groups()
    await reconciler(cluster).run(KEY)
    name = group_set(cluster)["metadata"]["name"]
    meta: Manifest = {"name": name, "namespace": NAMESPACE, "uid": "x"}
    theirs: Manifest = {"apiVersion": "v1", "kind": "Service", "metadata": meta}
    cluster.put(theirs)
    with pytest.raises(ClusterRefuses, match=f"Service {name} exists already"):
        await reconciler(cluster).run(KEY)
    meta["ownerReferences"] = [{"kind": "LeaderWorkerSet", "uid": "y"}]
    cluster.put(theirs)
    assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING


async def test_a_pool_keeps_its_form_and_another_name_takes_over() -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster).run(KEY)
    edit(cluster, GROUPS)
    assert await reconciler(cluster).run(KEY) is Outcome.REJECTED
    assert not cluster.of("LeaderWorkerSet")
    said = conditions(cluster)["SpecValid"]["message"]
    assert "it is a Deployment, and with nodes: 2 would be a LeaderWorkerSet" in said
    edit(cluster, {**GROUPS, "pools": [{**GROUPS["pools"][0], "name": "large"}]})
    assert await reconciler(cluster).run(KEY) is not Outcome.REJECTED
    assert group_set(cluster)["metadata"]["labels"][labels.POOL] == "large"


def test_a_change_of_a_set_concerns_its_service_alone() -> None:
    interests: Interests[tuple[str, str]] = Interests()
    for name in (NAME, "other"):
        interests.note((NAMESPACE, name), set())
    changed = Change(GROUP_SET, NAMESPACE, "chat-cpu-group-12345", service=NAME)
    assert interests.concerned(changed) == [(NAMESPACE, NAME)]
    assert len(interests.concerned(Change(GROUP_SET, NAMESPACE, ""))) == 2  # it may be any


async def test_a_pool_that_left_the_spec_goes_with_its_set() -> None:
    cluster = groups(MIXED)
    await reconciler(cluster).run(KEY)
    edit(cluster, {"pools": MIXED["pools"][1:]})
    await reconciler(cluster).run(KEY)
    assert not cluster.of("LeaderWorkerSet")


@pytest.mark.parametrize(
    ("name", "group_set", "ordinal"),
    [("chat-group-1a2b3-12", "chat-group-1a2b3", 12), ("chat-cpu-1a2b3-12", "", 0)],
    ids=["a leader", "a Deployment's"],
)
def test_a_leader_is_known_by_the_number_in_which_groups_go(
    name: str, group_set: str, ordinal: int
) -> None:
    one = view(Pod, {"metadata": {"name": name, "labels": {labels.GROUP_SET: group_set}}})
    assert one.ordinal == ordinal


async def test_groups_that_serve_on_keep_their_policy_and_their_budget() -> None:
    cluster = groups(MIXED)
    await reconciler(cluster).run(KEY)
    name = group_set(cluster)["metadata"]["name"]
    large = leader(cluster)
    large["metadata"]["labels"][labels.POOL] = "large"
    cluster.all_pods = {KEY: [large]}
    edit(cluster, {"pools": MIXED["pools"][1:]})
    await reconciler(cluster).run(KEY)
    assert group_set(cluster)["spec"]["replicas"] == 1
    assert name in cluster.of("NetworkPolicy")
    budgets = cluster.of("PodDisruptionBudget")
    assert name in budgets
    kept_out = {"key": labels.GROUP_SET, "operator": "DoesNotExist"}  # of one budget only
    assert kept_out in budgets[NAME]["spec"]["selector"]["matchExpressions"]
    cluster.all_pods = {KEY: []}
    await reconciler(cluster).run(KEY)
    assert not cluster.of("LeaderWorkerSet")
    assert name not in cluster.of("NetworkPolicy")
    assert name not in cluster.of("PodDisruptionBudget")


@pytest.mark.parametrize(
    ("containers", "more", "condition", "reason"),
    [
        pytest.param(
            (), {"unschedulable": "0/1 nodes"}, "WorkloadsReady", "Unschedulable", id="node"
        ),
        pytest.param(
            (container("engine", "waiting", reason="ErrImagePull"),),
            {},
            "WorkloadsReady",
            "ErrImagePull",
            id="image",
        ),
        pytest.param(
            (container("engine", "terminated", exitCode=1, reason="Error"),),
            {},
            "ModelReady",
            "EngineFailed",
            id="engine",
        ),
    ],
)
async def test_says_what_is_wrong_with_a_worker(
    containers: tuple[Manifest, ...], more: dict[str, Any], condition: str, reason: str
) -> None:
    cluster = groups()
    await reconciler(cluster).run(KEY)
    cluster.all_pods = {KEY: [leader(cluster, ready=False)]}
    cluster.workers = {KEY: [worker(cluster, *containers, **more)]}
    await reconciler(cluster).run(KEY)
    assert conditions(cluster)[condition]["reason"] == reason
    assert "pod chat-cpu-0-1" in conditions(cluster)[condition]["message"]


async def test_a_worker_that_waits_for_an_old_pod_to_leave_is_no_trouble() -> None:
    cluster = groups()
    await reconciler(cluster).run(KEY)
    cluster.all_pods = {KEY: [leader(cluster, ready=False, leaving=True)]}
    cluster.workers = {KEY: [worker(cluster, unschedulable="0/1 nodes")]}
    await reconciler(cluster).run(KEY)
    assert conditions(cluster)["WorkloadsReady"]["reason"] == "Progressing"
