"""Parts of a service: what keeps one from its work, or is wrong in the spec, stops no other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import NAME, body
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_reconcile_pass import (
    KEY,
    conditions,
    edit,
    finish_rollouts,
    reconciler,
    templates,
)
from weir_core.api import labels
from weir_core.errors import ClusterRefuses, ClusterUnavailable, InvalidSpec
from weir_operator.reconcile import Key, Outcome

WRONG: dict[str, dict[str, Any]] = {
    "parsed": {"engine": {"args": ["--por=1"]}},
    "rendered": {"podTemplate": {"spec": {"containers": [{"image": "nameless"}]}}},
}


def wrong_specs() -> list[Any]:
    return [pytest.param(spec, id=f"wrong when it is {when}") for when, spec in WRONG.items()]


async def served(*, pools: int = 1) -> MemoryCluster:
    """Return a cluster in which a service serves."""
    names = "abc"[:pools]
    spec = {"pools": [{"name": name, "replicas": 1} for name in names]} if pools > 1 else {}
    cluster = MemoryCluster(body(spec))
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    await reconciler(cluster).run(KEY)
    return cluster


def replicas(cluster: MemoryCluster) -> dict[str, int]:
    return {name: one["spec"]["replicas"] for name, one in cluster.of("Deployment").items()}


@pytest.mark.parametrize("wrong", wrong_specs())
async def test_an_invalid_edit_freezes_neither_replicas_nor_what_is_seen(
    wrong: dict[str, Any],
) -> None:
    cluster = await served()
    before = templates(cluster)
    edit(cluster, {**wrong, "replicas": 3})
    assert await reconciler(cluster, "2").run(KEY) is Outcome.REJECTED
    assert replicas(cluster) == {"chat-cpu": 3}
    assert templates(cluster) == before
    assert conditions(cluster)["WorkloadsReady"]["reason"] == "Progressing"
    finish_rollouts(cluster)
    await reconciler(cluster).run(KEY)
    found = conditions(cluster)
    assert found["WorkloadsReady"]["status"] == "True"
    assert found["Ready"]["status"] == "True"
    assert (found["SpecValid"]["status"], found["SpecValid"]["reason"]) == ("False", "InvalidSpec")
    assert found["Stalled"]["reason"] == "InvalidSpec"
    assert cluster.of("InferenceService")[NAME]["status"]["readyReplicas"] == 3


async def test_what_the_api_server_calls_invalid_is_the_specs_fault_and_scaling_goes_on() -> None:
    cluster = await served()
    apply = cluster.apply

    async def picky(manifest: dict[str, Any]) -> dict[str, Any]:
        if "nodeSelector" in str(manifest):
            raise InvalidSpec("spec", "the API server refuses Deployment chat-cpu: nodeSelector")
        return await apply(manifest)

    cluster.apply = picky  # type: ignore[method-assign]
    pools = [{"name": "cpu", "accelerator": {"count": 0}, "nodeSelector": {"!": "x"}}]
    before = templates(cluster)
    edit(cluster, {"pools": pools, "replicas": 2})
    assert await reconciler(cluster).run(KEY) is Outcome.REJECTED
    assert (replicas(cluster), templates(cluster)) == ({"chat-cpu": 2}, before)
    assert "nodeSelector" in conditions(cluster)["SpecValid"]["message"]
    assert len(cluster.of("ControllerRevision")) == 1


async def test_replicas_of_each_pool_follow_an_invalid_spec_and_what_is_not_written_stays() -> None:
    cluster = await served(pools=3)
    pools = [{"name": "a", "replicas": 4}, {"name": "b"}, {"name": "d", "replicas": 9}]
    edit(cluster, {"pools": pools, "engine": {"args": ["--por=1"]}})
    await reconciler(cluster).run(KEY)
    assert replicas(cluster) == {"chat-a": 4, "chat-b": 1, "chat-c": 1}


async def test_an_invalid_edit_keeps_the_template_in_force_and_not_the_newest_ever() -> None:
    cluster = await served()
    first = templates(cluster)
    edit(cluster, {"engine": {"args": ["--max-model-len=1"]}})
    await reconciler(cluster).run(KEY)
    edit(cluster)
    await reconciler(cluster).run(KEY)
    edit(cluster, WRONG["parsed"])
    await reconciler(cluster).run(KEY)
    assert templates(cluster) == first


async def test_the_fields_of_a_later_weir_are_named_and_all_else_is_in_force() -> None:
    cluster = await served()
    edit(cluster, {"replicas": 2, "rollout": {"maxSurge": 0, "maxUnavailable": 1, "pace": "slow"}})
    await reconciler(cluster).run(KEY)
    assert replicas(cluster) == {"chat-cpu": 2}
    found = conditions(cluster)["SpecValid"]
    assert (found["status"], found["reason"]) == ("True", "UnknownFields")
    assert "spec.rollout.pace" in found["message"]
    edit(cluster, {"replicas": 2})
    await reconciler(cluster).run(KEY)
    assert conditions(cluster)["SpecValid"]["reason"] == "Valid"


async def test_an_invalid_spec_from_the_start_makes_nothing_and_says_why() -> None:
    cluster = MemoryCluster(body(WRONG["parsed"]))
    assert await reconciler(cluster).run(KEY) is Outcome.REJECTED
    assert cluster.of("Deployment") == {}
    found = conditions(cluster)
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "InvalidSpec")
    assert found["WorkloadsReady"]["status"] == "False"


@pytest.mark.parametrize(
    ("kind", "condition", "others"),
    [
        pytest.param("NetworkPolicy", "NetworkReady", {"Deployment", "Secret"}, id="network"),
        pytest.param("Secret", "PoliciesReady", {"Deployment", "Service"}, id="policies"),
        pytest.param("Deployment", "WorkloadsReady", {"Service", "Secret"}, id="workloads"),
    ],
)
@pytest.mark.parametrize("on", ["reading", "writing"])
async def test_what_keeps_a_part_from_its_work_is_its_condition_and_stops_no_other(
    kind: str, condition: str, others: set[str], on: str
) -> None:
    cluster = MemoryCluster(body())
    if on == "reading":
        cluster.forbidden = {kind}
    else:
        cluster.unwritable[kind] = ClusterRefuses("exceeded quota")
    with pytest.raises(ClusterRefuses):
        await reconciler(cluster).run(KEY)
    assert all(cluster.of(each) for each in others)
    found = conditions(cluster)
    assert (found[condition]["status"], found[condition]["reason"]) == ("False", "Refused")
    refused = {type_ for type_, each in found.items() if each["reason"] == "Refused"}
    assert refused <= {condition, "Ready", "Stalled"}


async def test_a_part_that_could_not_look_says_nothing_new() -> None:
    cluster = await served()
    before = conditions(cluster)
    cluster.forbidden = {"Deployment"}
    with pytest.raises(ClusterRefuses):
        await reconciler(cluster).run(KEY)
    after = conditions(cluster)
    assert {each: after[each] for each in ("ModelReady", "RouterReady", "Ready")} == {
        each: before[each] for each in ("ModelReady", "RouterReady", "Ready")
    }


async def test_a_failure_nobody_foresaw_is_not_hidden_by_a_refusal() -> None:
    cluster = MemoryCluster(body())
    cluster.unwritable = {"Secret": ClusterRefuses("no"), "Deployment": KeyError("ours")}
    with pytest.raises(KeyError):
        await reconciler(cluster).run(KEY)


async def test_a_pass_that_changes_nothing_applies_nothing() -> None:
    cluster = await served()
    operator = reconciler(cluster)
    await operator.run(KEY)
    cluster.applied.clear()
    for _ in range(3):
        await operator.run(KEY)
    assert cluster.applied == []


@pytest.mark.parametrize("kind", ["Service", "Deployment", "Secret", "NetworkPolicy"])
async def test_what_someone_changed_is_applied_anew_and_nothing_else(kind: str) -> None:
    cluster = await served()
    operator = reconciler(cluster)
    await operator.run(KEY)
    cluster.applied.clear()
    (changed, *_) = cluster.of(kind).values()
    changed["metadata"]["labels"]["serving.weir.dev/service"] = NAME
    changed["data" if kind == "Secret" else "spec"] = {"theirs": "x"}
    await operator.run(KEY)
    assert cluster.applied == [kind]


async def test_an_outage_in_the_middle_leaves_the_rest_for_the_next_pass() -> None:
    cluster = MemoryCluster(body())
    operator = reconciler(cluster)
    for calls in range(40):
        cluster.calls_left = calls
        try:
            await operator.run(KEY)
        except ClusterUnavailable:
            continue
        break
    assert set(replicas(cluster)) == {"chat-cpu"}
    assert len(cluster.of("ControllerRevision")) == 1


@pytest.mark.parametrize("kind", ["Job", "LeaderWorkerSet"])
async def test_without_a_right_that_it_needs_not_a_service_goes_on(kind: str) -> None:
    cluster = await served()
    cluster.forbidden.add(kind)
    edit(cluster, {"replicas": 2})
    one = reconciler(cluster, "2")
    await one.run(KEY)
    finish_rollouts(cluster)
    assert await one.run(KEY) is Outcome.SETTLED
    assert one.is_idle(Key(*KEY))
    assert replicas(cluster) == {"chat-cpu": 2}
    assert {each["status"] for each in conditions(cluster).values()} == {"True"}


@pytest.mark.parametrize(
    ("kind", "condition", "spec"),
    [
        pytest.param(
            "Job",
            "PrefetchReady",
            {
                "model": {
                    "name": "m",
                    "source": {"uri": "hf://o/m@v1"},
                    "cache": {"claimName": "models", "prefetch": True},
                }
            },
            id="a Job",
        ),
        pytest.param(
            "LeaderWorkerSet",
            "WorkloadsReady",
            {
                "pools": [
                    {
                        "name": "large",
                        "accelerator": {"count": 0},
                        "engine": {"parallelism": {"tensor": 2, "nodes": 2}},
                    },
                    {"name": "cpu", "replicas": 1, "accelerator": {"count": 0}},
                ]
            },
            id="a LeaderWorkerSet",
        ),
    ],
)
async def test_a_service_that_needs_a_missing_right_says_so_and_all_else_of_it_goes_on(
    kind: str, condition: str, spec: dict[str, Any]
) -> None:
    cluster = MemoryCluster(body(spec))
    cluster.forbidden.add(kind)
    with pytest.raises(ClusterRefuses, match=f"{kind} is forbidden"):
        await reconciler(cluster).run(KEY)
    found = conditions(cluster)[condition]
    assert (found["status"], found["reason"]) == ("False", "Refused")
    assert f"{kind} is forbidden" in found["message"]
    assert "chat-cpu" in cluster.of("Deployment")
    assert not cluster.of(kind)


async def test_groups_that_cannot_be_read_any_more_are_not_taken_for_gone() -> None:
    cluster = await served()
    (one,) = cluster.all_pods.values()
    one[0]["metadata"]["labels"][labels.GROUP_SET] = "chat-large"
    cluster.forbidden.add("LeaderWorkerSet")
    before = cluster.of("InferenceService")[KEY.name]["status"]
    assert before["readyReplicas"] == 1
    with pytest.raises(ClusterRefuses):
        await reconciler(cluster).run(KEY)
    assert conditions(cluster)["WorkloadsReady"]["reason"] == "Refused"
    after = cluster.of("InferenceService")[KEY.name]["status"]
    counts = ("replicas", "readyReplicas", "pools", "selector")
    assert [after[each] for each in counts] == [before[each] for each in counts]
