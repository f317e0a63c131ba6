"""One pass, whatever asked for it: the world becomes what the spec says, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import pytest

from tests.unit.control.builders import (
    NAME,
    NAMESPACE,
    UID,
    body,
    engines,
    no_adapters,
    no_autoscaling,
    serving_pod,
)
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from weir_core.api import labels
from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_operator.autoscaling import Autoscaling
from weir_operator.interests import Interests
from weir_operator.kinds import API_SERVICE, SECRET, Kind
from weir_operator.parts import (
    AdaptersOf,
    Network,
    Part,
    Policies,
    Prefetch,
    Scaling,
    Scheduling,
    Workloads,
)
from weir_operator.reconcile import Key, Outcome, Reconciler
from weir_operator.render import Access, Images

KEY = Key(NAMESPACE, NAME)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POOL = "serving.weir.dev/pool"
FIRST_DIGEST = "c592753dd2015020"
DIGEST_WITH_NAMES = "0fc535675ef71ce9"
MODEL = {"name": "m", "source": {"uri": "tiny://"}}
OWNED_KINDS = {
    "ServiceAccount", "NetworkPolicy", "Service", "PodDisruptionBudget", "Deployment",
    "ControllerRevision", "Secret",
}  # fmt: skip


def reconciler(cluster: MemoryCluster, version: str = "1") -> Reconciler:
    """Return the operator of a Weir version, which shows in its default images."""
    images = Images(f"weir:{version}", f"engine:{version}", f"engine-cpu:{version}")
    return Reconciler(cluster, parts(images), lambda: NOW)


def parts(
    images: Images,
    interests: Interests[tuple[str, str]] | None = None,
    clock: Callable[[], datetime] = lambda: NOW,
    autoscaling: Autoscaling | None = None,
) -> Sequence[Part]:
    """Return the parts of a service, as the operator makes them."""
    scales = autoscaling or no_autoscaling()
    return (
        Policies(interests or Interests(), lambda: token_hex(32), clock),
        Network(Access()),
        Workloads(images, scales.asked),
        Prefetch(images),
        Scaling(scales, clock),
        Scheduling(engines()),
        AdaptersOf(no_adapters()),
    )


def owner(api_version: str, name: str = NAME) -> Manifest:
    """Return a reference to an InferenceService that is not the one under test."""
    return {"apiVersion": api_version, "kind": "InferenceService", "name": name, "uid": "uid-0"}


def conditions(cluster: MemoryCluster) -> dict[str, Manifest]:
    found = cluster.of("InferenceService")[NAME]["status"]["conditions"]
    return {each["type"]: each for each in found}


def templates(cluster: MemoryCluster) -> dict[str, Any]:
    return {name: one["spec"]["template"] for name, one in cluster.of("Deployment").items()}


def edit(cluster: MemoryCluster, spec: dict[str, Any] | None = None, **meta: Any) -> None:
    """Have the user change the spec."""
    before = cluster.of("InferenceService")[NAME]
    generation = before["metadata"]["generation"] + 1
    changed = body(spec, generation=generation, **meta)
    cluster.put({**changed, "status": before.get("status", {})})


def finish_rollouts(cluster: MemoryCluster) -> None:
    """Do what the Deployment controller and the kubelet would."""
    for one in cluster.of("Deployment").values():
        wanted = one["spec"]["replicas"]
        counts = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")
        status: dict[str, Any] = dict.fromkeys(counts, wanted)
        one["status"] = {**status, "observedGeneration": one["metadata"]["generation"]}
    pools = [one["metadata"]["labels"][POOL] for one in cluster.of("Deployment").values()]
    cluster.all_pods = {KEY: [serving_pod(pool) for pool in pools]}


async def test_makes_everything_a_service_owns() -> None:
    cluster = MemoryCluster(body())
    assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING
    kinds = {kind.name for kind, _, _ in cluster.objects}
    assert kinds == OWNED_KINDS | {"InferenceService"}
    for kind in kinds:
        for one in cluster.of(kind).values() if kind != "InferenceService" else ():
            (owner,) = one["metadata"]["ownerReferences"]
            assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (
                UID,
                True,
                True,
            )


async def test_publishes_what_it_saw() -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    assert await reconciler(cluster).run(KEY) is Outcome.SETTLED
    status = cluster.of("InferenceService")[NAME]["status"]
    assert {type_: each["status"] for type_, each in conditions(cluster).items()} == {
        "Ready": "True",
        "SpecValid": "True",
        "NetworkReady": "True",
        "WorkloadsReady": "True",
        "ModelReady": "True",
        "PrefetchReady": "True",
        "RouterReady": "True",
        "ScalingReady": "True",
        "PoliciesReady": "True",
        "SchedulingReady": "True",
        "AdaptersReady": "True",
    }
    assert status["url"] == "http://chat.models.svc"
    assert status["observedGeneration"] == 1
    assert status["pools"] == [
        {"name": "cpu", "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}
    ]


async def test_a_pass_over_a_settled_world_writes_nothing() -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    await reconciler(cluster).run(KEY)
    before = cluster.writes
    await reconciler(cluster).run(KEY)
    assert cluster.writes == before


@pytest.mark.parametrize("kind", sorted(OWNED_KINDS))
async def test_brings_back_what_someone_deleted(kind: str) -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster).run(KEY)
    before = cluster.of(kind)
    for place in [place for place in cluster.objects if place[0].name == kind]:
        del cluster.objects[place]
    await reconciler(cluster).run(KEY)
    assert {name: one.get("spec") for name, one in cluster.of(kind).items()} == {
        name: one.get("spec") for name, one in before.items()
    }


async def test_deletes_a_pool_that_the_spec_no_longer_names() -> None:
    pools = [{"name": "a", "replicas": 1}, {"name": "b", "replicas": 1}]
    cluster = MemoryCluster(body({"pools": pools}))
    await reconciler(cluster).run(KEY)
    edit(cluster, {"pools": pools[:1]})
    await reconciler(cluster).run(KEY)
    assert list(cluster.of("Deployment")) == ["chat-a"]
    assert [name.rpartition("-")[0] for name in cluster.of("ControllerRevision")] == ["chat-a"]


@pytest.mark.parametrize(
    "old", [{"pools": [{"name": "a"}]}, {"pools": []}], ids=["another name", "no name before"]
)
async def test_a_renamed_pool_serves_until_its_successor_does(old: dict[str, Any]) -> None:
    cluster = MemoryCluster(body(old))
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    before = cluster.of("Deployment")
    (name,) = before
    edit(cluster, {"pools": [{"name": "b"}]})
    for _ in range(2):
        assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING
        assert set(cluster.of("Deployment")) == {name, "chat-b"}
        assert len(cluster.of("ControllerRevision")) == 2
    assert cluster.of("Deployment")[name] == before[name]
    assert conditions(cluster)["Ready"]["status"] == "True"
    workloads = conditions(cluster)["WorkloadsReady"]
    assert (workloads["status"], workloads["reason"]) == ("False", "Progressing")
    assert workloads["message"].endswith(f": {name.removeprefix('chat-')}")

    finish_rollouts(cluster)
    assert await reconciler(cluster).run(KEY) is Outcome.SETTLED
    assert list(cluster.of("Deployment")) == ["chat-b"]
    assert [each.rpartition("-")[0] for each in cluster.of("ControllerRevision")] == ["chat-b"]
    # Its pods are still there, and are not spoken of.
    assert len(cluster.all_pods[KEY]) == 2
    assert conditions(cluster)["ModelReady"]["message"] == "loaded by 1 of 1 engines"


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        pytest.param({"replicas": 1}, {"readyReplicas": 0}, id="none of it is ready"),
        pytest.param({"replicas": 0}, {"readyReplicas": 1}, id="it is scaled to zero"),
    ],
)
async def test_a_pool_that_serves_nobody_waits_for_no_successor(
    spec: Manifest, status: Manifest
) -> None:
    cluster = MemoryCluster(body({"pools": [{"name": "a"}]}))
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    cluster.of("Deployment")["chat-a"]["spec"].update(spec)
    cluster.of("Deployment")["chat-a"]["status"].update(status)
    edit(cluster, {"pools": [{"name": "b"}]})
    await reconciler(cluster).run(KEY)
    assert list(cluster.of("Deployment")) == ["chat-b"]


async def test_a_pool_that_comes_back_in_time_keeps_its_pods() -> None:
    pools = {"pools": [{"name": "a"}]}
    cluster = MemoryCluster(body(pools))
    await reconciler(cluster, "1").run(KEY)
    finish_rollouts(cluster)
    before = templates(cluster)
    edit(cluster, {"pools": [{"name": "b"}]})
    await reconciler(cluster, "2").run(KEY)
    edit(cluster, pools)
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster) == before


async def test_deletes_nothing_that_is_not_its_own() -> None:
    stranger = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "other",
            "namespace": NAMESPACE,
            "uid": "x",
            "labels": {"serving.weir.dev/service": NAME},
        },
        "spec": {},
    }
    cluster = MemoryCluster(body(), stranger)
    await reconciler(cluster).run(KEY)
    assert "other" in cluster.of("Deployment")


@pytest.mark.parametrize(
    "owners",
    [
        pytest.param([], id="a user's"),
        pytest.param([owner("serving.weir.dev/v1alpha1", name="other")], id="another service's"),
        pytest.param([owner("serving.kserve.io/v1beta1")], id="KServe's service of this name"),
    ],
)
async def test_takes_over_nothing_and_says_what_is_in_the_way(owners: list[Manifest]) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "ownerReferences": owners},
        "spec": {"theirs": True},
    }
    cluster = MemoryCluster(body(), theirs)
    with pytest.raises(ClusterRefuses):
        await reconciler(cluster).run(KEY)
    assert cluster.of("Service") == {NAME: theirs}
    ready = conditions(cluster)["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "Refused")
    assert "Service chat exists already" in ready["message"]

    cluster.objects.pop((API_SERVICE, NAMESPACE, NAME))
    await reconciler(cluster).run(KEY)
    assert conditions(cluster)["Ready"]["reason"] != "Refused"


@pytest.mark.parametrize(
    ("kind", "name", "condition"),
    [(API_SERVICE, NAME, "NetworkReady"), (SECRET, f"{NAME}-policies", "PoliciesReady")],
    ids=["Service", "Secret"],
)
async def test_waits_calmly_for_the_objects_of_an_earlier_service_of_its_name_to_go(
    kind: Kind, name: str, condition: str
) -> None:
    # Its API version may be an older one.
    earlier = [owner("serving.weir.dev/v1alpha0")]
    theirs = {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": earlier},
    }
    cluster = MemoryCluster(body(), theirs)
    assert await reconciler(cluster).run(KEY) is Outcome.WAITING
    assert cluster.of(kind.name)[name] == theirs
    found = conditions(cluster)[condition]
    assert (found["status"], found["reason"]) == ("False", "WaitingForPredecessor")
    assert f"{kind.name} {name}" in found["message"]
    assert {each["type"] for each in cluster.events} == {"Normal"}

    cluster.objects.pop((kind, NAMESPACE, name))
    assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING
    assert conditions(cluster)["Ready"]["reason"] == "Progressing"


async def test_a_wrong_spec_is_said_once_and_what_runs_stays() -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster).run(KEY)
    running = templates(cluster)
    edit(cluster, {"podTemplate": {"spec": {"containers": [{"image": "nameless"}]}}})
    assert await reconciler(cluster).run(KEY) is Outcome.REJECTED
    ready = conditions(cluster)["Ready"]
    assert (ready["reason"], ready["observedGeneration"]) == ("InvalidSpec", 2)
    assert "spec.podTemplate.spec.containers[0].name" in ready["message"]
    assert templates(cluster) == running

    before = cluster.writes
    assert await reconciler(cluster).run(KEY) is Outcome.REJECTED
    assert cluster.writes == before


async def test_a_service_that_is_gone_or_going_is_left_alone() -> None:
    cluster = MemoryCluster()
    assert await reconciler(cluster).run(KEY) is Outcome.GONE
    cluster.put(body(deletionTimestamp="2026-01-01T00:00:00Z"))
    assert await reconciler(cluster).run(KEY) is Outcome.GONE
    assert cluster.writes == 0


async def test_an_outage_ends_the_pass_and_a_later_one_makes_it_good() -> None:
    cluster = MemoryCluster(body())
    cluster.down = ClusterUnavailable("connection refused")
    with pytest.raises(ClusterUnavailable):
        await reconciler(cluster).run(KEY)
    cluster.down = None
    await reconciler(cluster).run(KEY)
    assert list(cluster.of("Deployment")) == ["chat-cpu"]


async def test_what_was_seen_of_a_service_is_not_said_of_the_next_one_of_its_name() -> None:
    class Replaced(MemoryCluster):
        async def pods(
            self, namespace: str, service: str, label: str = labels.SERVICE
        ) -> list[Manifest]:
            self.put(body(uid="uid-2"))
            return await super().pods(namespace, service, label)

    cluster = Replaced(body())
    with pytest.raises(ClusterUnavailable):
        await reconciler(cluster).run(KEY)
    assert "status" not in cluster.of("InferenceService")[NAME]


async def test_an_event_that_cannot_be_written_does_not_fail_the_pass() -> None:
    cluster = MemoryCluster(body())
    cluster.no_events = True
    assert await reconciler(cluster).run(KEY) is Outcome.PROGRESSING


async def test_an_upgrade_of_the_operator_changes_no_pod() -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster, "1").run(KEY)
    before = templates(cluster)
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster) == before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"replicas": 5}, id="replicas"),
        pytest.param({"rollout": {"maxSurge": 0, "maxUnavailable": 1}}, id="rollout"),
        pytest.param({"scaling": {"minReplicas": 2, "maxReplicas": 4}}, id="scaling"),
        pytest.param({"engine": {"scheduling": {"mode": "throughput"}}}, id="engine mode"),
        pytest.param({"admission": {"anonymousClass": "batch"}}, id="classes"),
        pytest.param({"admission": {"maxQueued": 7, "maxBodyBytes": 2048}}, id="limits"),
        pytest.param({"model": {**MODEL, "aliases": ["gpt"]}}, id="an alias"),
    ],
)
async def test_what_touches_no_pod_rolls_none_not_even_after_an_upgrade(
    change: dict[str, Any],
) -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster, "1").run(KEY)
    before = templates(cluster)
    edit(cluster, change)
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster) == before


def adapters(*uris: str, **model: Any) -> dict[str, Any]:
    """Return the change of a spec that lists these adapters."""
    listed = [{"name": f"a{at}", "source": {"uri": uri}} for at, uri in enumerate(uris)]
    return {"model": {**MODEL, "adapters": listed, **model}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            adapters(adapterSlots=2), adapters("hf://o/a", adapterSlots=2), id="the first"
        ),
        pytest.param(adapters("hf://o/a"), adapters("hf://o/a", "s3://b/c"), id="another one"),
        pytest.param(adapters("hf://o/a"), adapters("hf://o/a@v2"), id="other weights"),
        pytest.param(adapters("hf://o/a", "hf://o/b"), adapters("hf://o/b"), id="one less"),
        pytest.param(
            adapters("pvc://c/a"), adapters("pvc://c/a", "pvc://c/b"), id="on the same claim"
        ),
        pytest.param(adapters("hf://o/a"), adapters("hf://o/a", adapterSlots=4), id="said"),
    ],
)
async def test_adapters_come_and_go_without_a_new_pod(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    cluster = MemoryCluster(body(before))
    await reconciler(cluster).run(KEY)
    rendered = templates(cluster)
    edit(cluster, after)
    await reconciler(cluster).run(KEY)
    assert templates(cluster) == rendered


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(adapters(), adapters("hf://o/a"), id="room for the first"),
        pytest.param(adapters("hf://o/a"), adapters("hf://o/a", adapterRank=64), id="a rank"),
        pytest.param(adapters("hf://o/a"), adapters("hf://o/a", "pvc://c/b"), id="a volume"),
    ],
)
async def test_what_adapters_ask_of_a_pod_rolls_it(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    cluster = MemoryCluster(body(before))
    await reconciler(cluster).run(KEY)
    rendered = templates(cluster)
    edit(cluster, after)
    await reconciler(cluster).run(KEY)
    assert templates(cluster) != rendered


async def test_a_pod_that_learns_no_names_is_kept_over_an_upgrade_and_rolled_for_another_one() -> (
    None
):
    spec = {
        **adapters(aliases=["other"]),
        "admission": {"maxQueued": 7, "keepAlive": "5s"},
    }
    spec["model"]["adapters"] = [{"name": "sql", "source": {"uri": "hf://o/sql"}}]
    cluster = MemoryCluster(body(spec))
    await reconciler(cluster, "1").run(KEY)
    before = templates(cluster)
    (revision,) = cluster.of("ControllerRevision").values()
    # What an earlier operator made of this spec: computed with its code, at commit a69679b.
    revision["metadata"]["annotations"]["serving.weir.dev/spec-hash"] = DIGEST_WITH_NAMES
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster) == before
    edit(cluster, {**spec, "model": {**spec["model"], "aliases": ["other", "third"]}})
    await reconciler(cluster, "2").run(KEY)
    (template,) = templates(cluster).values()
    assert template["spec"]["containers"][0]["image"] == "engine-cpu:2"


CPU = {"name": "cpu", "accelerator": {"count": 0}}
LONGER = {"args": ["--max-model-len=1024"]}
TRACED = {"tracing": {"endpoint": "http://collector:4318"}}


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        pytest.param({}, ["5d29dccf0fefedd2"], id="a plain one"),
        pytest.param(
            {"scaling": {"minReplicas": 2, "maxReplicas": 4}}, ["5d29dccf0fefedd2"], id="scaling"
        ),
        pytest.param(
            {
                "replicas": 3,
                "rollout": {"maxSurge": 0, "maxUnavailable": 1},
                "pools": [{**CPU, "cost": 2}, {"name": "gpu", "replicas": 1, "engine": LONGER}],
            },
            ["5d29dccf0fefedd2", "20ba3c20e557e030"],
            id="two pools",
        ),
        pytest.param(
            {"engine": {"scheduling": {"mode": "throughput"}, **LONGER}, **TRACED},
            ["46003a550e9cf14c"],
            id="a mode",
        ),
        pytest.param(
            {"admission": {"maxQueued": 7, "anonymousClass": "batch"}},
            ["dce2f1e2b7437450"],
            id="limits",
        ),
    ],
)
async def test_what_the_operator_before_run_time_adapters_kept_is_still_used(
    spec: dict[str, Any], digests: list[str]
) -> None:
    cluster = MemoryCluster(body(spec))
    await reconciler(cluster, "1").run(KEY)
    before = {name: one["spec"] for name, one in cluster.of("Deployment").items()}
    by_pool = dict(zip([name.removeprefix("chat-") for name in before], digests, strict=True))
    # What that operator made of these specs: computed with its code, at commit a69679b.
    for one in (*cluster.of("ControllerRevision").values(), *cluster.of("Deployment").values()):
        digest = by_pool[one["metadata"]["labels"][POOL]]
        one["metadata"]["annotations"]["serving.weir.dev/spec-hash"] = digest
    await reconciler(cluster, "2").run(KEY)
    assert {name: one["spec"] for name, one in cluster.of("Deployment").items()} == before
    assert len(cluster.of("ControllerRevision")) == len(digests)


async def test_a_template_kept_by_an_operator_that_put_the_mode_into_it_is_still_used() -> None:
    spec = {
        "engine": {"scheduling": {"mode": "throughput"}},
        "admission": {"defaultClass": "batch"},
    }
    cluster = MemoryCluster(body(spec))
    await reconciler(cluster, "1").run(KEY)
    before = templates(cluster)
    (revision,) = cluster.of("ControllerRevision").values()
    # What that operator made of this spec: computed with its code, at commit a116812.
    revision["metadata"]["annotations"]["serving.weir.dev/spec-hash"] = FIRST_DIGEST
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster) == before


async def test_an_edit_or_a_restart_gets_the_new_operators_pods() -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster, "1").run(KEY)
    edit(cluster, annotations={"serving.weir.dev/restarted-at": "2026-01-02"})
    await reconciler(cluster, "2").run(KEY)
    (template,) = templates(cluster).values()
    assert template["spec"]["containers"][0]["image"] == "engine-cpu:2"


async def test_going_back_to_an_earlier_spec_gets_the_very_pods_of_then() -> None:
    cluster = MemoryCluster(body())
    await reconciler(cluster, "1").run(KEY)
    before = templates(cluster)
    edit(cluster, {"engine": {"args": ["--max-model-len=1"]}})
    await reconciler(cluster, "1").run(KEY)
    assert templates(cluster) != before
    edit(cluster)
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster) == before


async def test_few_revisions_are_kept() -> None:
    cluster = MemoryCluster(body())
    for length in range(10):
        edit(cluster, {"engine": {"args": [f"--max-model-len={length}"]}})
        await reconciler(cluster).run(KEY)
    assert 1 < len(cluster.of("ControllerRevision")) <= 4


@pytest.mark.parametrize(
    ("set_by_autoscaler", "want"),
    [(3, 3), (9, 4), (0, 2)],
    ids=["within bounds", "above", "below"],
)
async def test_an_autoscalers_number_stays_within_the_bounds(
    set_by_autoscaler: int, want: int
) -> None:
    cluster = MemoryCluster(body({"scaling": {"minReplicas": 2, "maxReplicas": 4}}))
    await reconciler(cluster).run(KEY)
    assert cluster.of("Deployment")["chat-cpu"]["spec"]["replicas"] == 2
    cluster.of("Deployment")["chat-cpu"]["spec"]["replicas"] = set_by_autoscaler
    await reconciler(cluster).run(KEY)
    assert cluster.of("Deployment")["chat-cpu"]["spec"]["replicas"] == want


@pytest.mark.parametrize(
    ("before", "want"),
    [
        pytest.param({"a": 3}, 3, id="one that was renamed"),
        pytest.param({"a": 1}, 2, id="one below the least"),
        pytest.param({"a": 9}, 4, id="one above the most"),
        pytest.param({"a": 1, "old": 2}, 3, id="two for one"),
        pytest.param({}, 2, id="none before"),
    ],
)
async def test_a_new_pool_that_scales_begins_with_what_the_spec_no_longer_names(
    before: dict[str, int], want: int
) -> None:
    fixed = {"name": "fixed", "replicas": 1}
    pools = [fixed, *({"name": pool, "replicas": count} for pool, count in before.items())]
    cluster = MemoryCluster(body({"pools": pools}))
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    scaling = {"minReplicas": 2, "maxReplicas": 4}
    edit(cluster, {"pools": [fixed, {"name": "b"}], "scaling": scaling})
    passes = 0
    while await reconciler(cluster).run(KEY) is not Outcome.SETTLED:
        finish_rollouts(cluster)
        passes += 1
        assert passes < 10
    replicas = {name: one["spec"]["replicas"] for name, one in cluster.of("Deployment").items()}
    assert replicas == {"chat-fixed": 1, "chat-b": want}


async def test_a_renamed_pool_hands_over_replica_by_replica() -> None:
    cluster = MemoryCluster(body({"replicas": 3, "pools": [{"name": "a"}]}))
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    before = templates(cluster)["chat-a"]
    edit(cluster, {"replicas": 3, "pools": [{"name": "b"}]})
    numbers = []
    for _ in range(5):
        outcome = await reconciler(cluster).run(KEY)
        there = cluster.of("Deployment")
        numbers.append({name: one["spec"]["replicas"] for name, one in there.items()})
        if "chat-a" in there:
            assert there["chat-a"]["spec"]["template"] == before
            assert conditions(cluster)["Ready"]["status"] == "True"
        finish_rollouts(cluster)
    assert numbers == [
        {"chat-a": 3, "chat-b": 1},
        {"chat-a": 2, "chat-b": 2},
        {"chat-a": 1, "chat-b": 3},
        {"chat-b": 3},
        {"chat-b": 3},
    ]
    assert outcome is Outcome.SETTLED


async def test_a_number_in_the_spec_is_restored() -> None:
    cluster = MemoryCluster(body({"replicas": 2}))
    await reconciler(cluster).run(KEY)
    cluster.of("Deployment")["chat-cpu"]["spec"]["replicas"] = 7
    await reconciler(cluster).run(KEY)
    assert cluster.of("Deployment")["chat-cpu"]["spec"]["replicas"] == 2


async def test_tells_the_story_in_events_each_once() -> None:
    cluster = MemoryCluster(body())
    for _ in range(3):
        await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    for _ in range(3):
        await reconciler(cluster).run(KEY)
    told = [(each["type"], each["reason"]) for each in cluster.events]
    assert told == [("Normal", "Progressing"), ("Normal", "Serving")]
    assert {each["involvedObject"]["uid"] for each in cluster.events} == {UID}


async def test_gateways_stay_until_a_replica_serves_and_keep_their_template() -> None:
    zero = {"scaling": {"minReplicas": 0, "maxReplicas": 4}}
    cluster = MemoryCluster(body(zero))
    await reconciler(cluster).run(KEY)
    (gateway,) = (name for name in cluster.of("Deployment") if name.startswith("chat-gateway"))
    assert {name: each["spec"]["replicas"] for name, each in cluster.of("Deployment").items()} == {
        gateway: 2,
        "chat-cpu": 0,
    }
    before = templates(cluster)[gateway]
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster)[gateway] == before
    edit(cluster, zero, annotations={"serving.weir.dev/restarted-at": "now"})
    await reconciler(cluster, "2").run(KEY)
    assert templates(cluster)[gateway]["spec"]["containers"][0]["image"] == "weir:2"
    edit(cluster, {"scaling": {"minReplicas": 1, "maxReplicas": 4}})
    await reconciler(cluster).run(KEY)
    assert gateway in cluster.of("Deployment")
    cluster.all_pods = {KEY: [serving_pod("cpu")]}
    await reconciler(cluster).run(KEY)
    assert list(cluster.of("Deployment")) == ["chat-cpu"]


async def test_gateways_answer_browsers_as_the_arguments_of_the_first_pool_say() -> None:
    def written(*args: str) -> dict[str, Any]:
        pool = {"name": "cpu", "engine": {"args": list(args)}}
        return {"scaling": {"minReplicas": 0, "maxReplicas": 4}, "pools": [pool]}

    cluster = MemoryCluster(body(written()))
    await reconciler(cluster).run(KEY)
    edit(cluster, written('--allowed-origins=["https://a.example"]'))
    await reconciler(cluster).run(KEY)
    (gateway,) = (name for name in cluster.of("Deployment") if name.startswith("chat-gateway"))
    (container,) = templates(cluster)[gateway]["spec"]["containers"]
    assert "https://a.example" in str(container["env"])


async def test_a_service_of_which_no_replica_is_asked_for_has_no_gateways() -> None:
    cluster = MemoryCluster(body({"scaling": {"minReplicas": 0, "maxReplicas": 4}}))
    await reconciler(cluster).run(KEY)
    edit(cluster, {"replicas": 0})
    await reconciler(cluster).run(KEY)
    assert list(cluster.of("Deployment")) == ["chat-cpu"]
    assert conditions(cluster)["Ready"]["reason"] == "ScaledToZero"


async def test_the_gateways_of_a_service_go_on_while_its_spec_is_wrong() -> None:
    cluster = MemoryCluster(body({"scaling": {"minReplicas": 0, "maxReplicas": 4}}))
    await reconciler(cluster).run(KEY)
    before = templates(cluster)
    edit(cluster, {"scaling": {"minReplicas": 5, "maxReplicas": 4}})
    assert await reconciler(cluster).run(KEY) is Outcome.REJECTED
    assert templates(cluster) == before
