"""From what the cluster shows to what a user is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.control.builders import (
    GPU,
    asking,
    container,
    deployment,
    facts,
    observed,
    pod,
    serving_pod,
)
from tests.unit.control.test_reconcile_pass import parts
from weir_core.wire.problems import Problem
from weir_operator import status
from weir_operator.conditions import Verdict
from weir_operator.observed import Observed, Said, Told
from weir_operator.render import Images
from weir_operator.views import Deployment, Pod, view

Manifest = dict[str, Any]

CRASHED = {"exitCode": 1, "reason": "Error", "message": "CUDA out of memory\n"}


SERVICE_OBJECT = {"kind": "Service", "metadata": {"name": "chat"}}


def spoken(seen: Observed) -> dict[str, Verdict]:
    """Return what the parts say of a world."""
    said: dict[str, Verdict] = {}
    for part in parts(Images()):
        said |= part.verdicts(seen)
    return said


def verdicts(seen: Observed) -> dict[str, Verdict]:
    """Return what the parts and the status say of a world, by condition."""
    found = status.observed(seen, spoken(seen), "t")["conditions"]
    return {
        each["type"]: Verdict(each["status"], each["reason"], each["message"]) for each in found
    }


def told(*pods: Manifest, wanted: int = 1, **status: Any) -> dict[str, Verdict]:
    engines = {each["metadata"]["name"]: facts() for each in pods if view(Pod, each).is_ready}
    one = deployment(wanted, **status)
    return verdicts(observed({"cpu": one}, pods, engines=engines, owned=[SERVICE_OBJECT]))


def test_a_service_whose_pods_serve_is_ready_in_every_way() -> None:
    assert {type_: (v.status, v.reason) for type_, v in told(serving_pod()).items()} == {
        "Ready": ("True", "Serving"),
        "SpecValid": ("True", "Valid"),
        "NetworkReady": ("True", "Applied"),
        "WorkloadsReady": ("True", "Available"),
        "ModelReady": ("True", "Loaded"),
        "PrefetchReady": ("True", "NotAsked"),
        "RouterReady": ("True", "Serving"),
        "ScalingReady": ("True", "Fixed"),
        "PoliciesReady": ("True", "Applied"),
        "SchedulingReady": ("True", "Weir"),
        "AdaptersReady": ("True", "NoAdapters"),
    }


def loading_beside_the_old_pool(*pods: Manifest) -> dict[str, Verdict]:
    """Return what is said while the only pool has got another name, and its pods come up."""
    new = deployment(updatedReplicas=1, readyReplicas=0, availableReplicas=0)
    return verdicts(
        observed({"cpu": new}, [serving_pod("old"), *pods], leaving={"old": deployment()})
    )


def test_a_pool_that_left_the_spec_serves_and_is_counted_apart() -> None:
    seen = loading_beside_the_old_pool(pod(container("engine")))
    assert seen["Ready"] == Verdict(
        "True", "Serving", "0 of 1 replicas take requests, and 1 of pools no longer in the spec"
    )
    assert seen["WorkloadsReady"] == Verdict(
        "False",
        "Progressing",
        "pool cpu: 0 of 1 replicas available, 1 of the newest template; no longer in the spec, and "
        "serving until its successors do: old",
    )


def test_what_keeps_the_new_pool_back_is_said_with_the_old_one_that_stays() -> None:
    verdict = loading_beside_the_old_pool(pod(unschedulable="0/1 nodes"))["WorkloadsReady"]
    assert verdict.reason == "Unschedulable"
    assert verdict.message.startswith("pod chat-cpu-1: 0/1 nodes; ")
    assert verdict.message.endswith(": old")


def test_a_broken_pod_of_a_pool_that_left_the_spec_is_nobodys_trouble() -> None:
    broken = pod(container("engine", "waiting", reason="CrashLoopBackOff"), pool="old")
    assert loading_beside_the_old_pool(broken)["WorkloadsReady"].reason == "Progressing"


def test_pods_of_a_pool_that_was_just_deleted_are_no_replicas() -> None:
    seen = told(serving_pod(), serving_pod("old"))
    assert seen["Ready"].message == "1 of 1 replicas take requests"


def test_pods_of_an_earlier_service_of_this_name_do_not_make_it_ready() -> None:
    seen = told(serving_pod(), readyReplicas=0, availableReplicas=0)
    assert (seen["Ready"].status, seen["RouterReady"].reason) == ("False", "NoReadyReplica")


def test_zero_replicas_are_a_wish_and_no_trouble() -> None:
    seen = told(wanted=0)
    assert (seen["Ready"].status, seen["Ready"].reason) == ("True", "ScaledToZero")
    assert seen["WorkloadsReady"].status == "True"
    assert not {"Reconciling", "Stalled"} & set(seen)


ZERO = {"scaling": {"minReplicas": 0, "maxReplicas": 3}}


def asleep(
    wanted: int, *pods: Manifest, gateways: int = 2, told_of: Sequence[Manifest] = ()
) -> dict[str, Verdict]:
    """Return what is said of a service that may have no replicas, of whose gateways some serve."""
    component = {"app.kubernetes.io/component": "gateway"}
    gateway = {
        "metadata": {"name": "chat-gateway", "generation": 1, "labels": component},
        "spec": {"replicas": 2},
        "status": {"availableReplicas": gateways, "conditions": list(told_of)},
    }
    mine = []
    for number in range(gateways):
        one = pod(container("gateway", started=True), ready=True)
        one["metadata"] = {"name": f"chat-gateway-{number}", "labels": component}
        mine.append(one)
    pools = {"cpu": deployment(wanted, readyReplicas=0, availableReplicas=0)}
    told: dict[str, Any] = {"owned": [SERVICE_OBJECT], "gateway": view(Deployment, gateway)}
    return verdicts(observed(pools, [*mine, *pods], spec=ZERO, **told))


def test_a_service_that_sleeps_on_purpose_is_ready_and_current() -> None:
    seen = asleep(0)
    assert seen["Ready"] == Verdict(
        "True",
        "Asleep",
        "no replica runs; 2 of 2 gateways take requests, and the first one starts a replica",
    )
    assert seen["WorkloadsReady"].status == "True"
    assert seen["ModelReady"].reason == "ScaledToZero"
    assert not {"Reconciling", "Stalled"} & set(seen)


def test_a_service_that_wakes_is_ready_and_under_way() -> None:
    seen = asleep(1, pod(container("engine")))
    assert (seen["Ready"].status, seen["Ready"].reason) == ("True", "Waking")
    assert seen["Reconciling"].status == "True"


def test_a_replica_that_cannot_start_leaves_a_waking_service_not_ready() -> None:
    stuck = container("engine", "waiting", reason="CrashLoopBackOff", last=CRASHED)
    seen = asleep(1, pod(stuck))
    assert (seen["Ready"].status, seen["RouterReady"].reason) == ("False", "NoReadyReplica")
    assert seen["Stalled"].status == "True"


def test_a_service_whose_gateways_are_not_there_cannot_sleep() -> None:
    seen = asleep(0, gateways=0)
    assert (seen["RouterReady"].status, seen["RouterReady"].reason) == ("False", "NoReadyGateway")
    assert seen["WorkloadsReady"].message == "0 of 2 gateways available"
    assert "Reconciling" in seen


def test_why_gateways_are_missing_is_said() -> None:
    quota = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": "exceeded quota",
    }
    homeless = pod(unschedulable="no node has the label zone=b")
    homeless["metadata"] = {
        "name": "chat-gateway-9",
        "labels": {"app.kubernetes.io/component": "gateway"},
    }
    assert asleep(0, homeless, gateways=1, told_of=[quota])["WorkloadsReady"].message == (
        "1 of 2 gateways available; FailedCreate: exceeded quota; "
        "pod chat-gateway-9 has no node yet: no node has the label zone=b"
    )


@pytest.mark.parametrize(
    ("pods", "reason", "said"),
    [
        pytest.param(
            [pod(container("engine", "waiting", reason="ImagePullBackOff", message="no such tag"))],
            "ImagePullBackOff",
            "pod chat-cpu-1, container engine: no such tag",
            id="an image that is not there",
        ),
        pytest.param(
            [pod(container("engine", "waiting", reason="CrashLoopBackOff", last=CRASHED))],
            "CrashLoopBackOff",
            "container engine: CUDA out of memory",
            id="an engine that keeps dying, in its own last words",
        ),
        pytest.param(
            [
                pod(
                    container("engine", "waiting", reason="PodInitializing"),
                    init=(container("model", "waiting", reason="CrashLoopBackOff", last=CRASHED),),
                )
            ],
            "CrashLoopBackOff",
            "container model: CUDA out of memory",
            id="weights that cannot be had",
        ),
        pytest.param(
            [pod(unschedulable="0/3 nodes have nvidia.com/gpu")],
            "Unschedulable",
            "pod chat-cpu-1: 0/3 nodes have nvidia.com/gpu",
            id="no node fits",
        ),
    ],
)
def test_a_stuck_pod_is_quoted(pods: list[Manifest], reason: str, said: str) -> None:
    seen = told(*pods, availableReplicas=0)
    for type_ in ("WorkloadsReady", "Ready"):
        assert (seen[type_].status, seen[type_].reason) == ("False", reason)
        assert said in seen[type_].message


FULL = f"0/1 nodes are available: 1 Insufficient {GPU}."


def rolling(
    *, wanted: int = 2, mark: str = "", **rollout: Any
) -> tuple[dict[str, Verdict], set[str]]:
    """Return what is said, and what of it of trouble, while one more pod has no node."""
    one = deployment(wanted, replicas=wanted + 1, updatedReplicas=1)
    if mark:
        one["metadata"]["annotations"] = {"serving.weir.dev/one-by-one": mark}
    old = asking(serving_pod(), "old", nodeName="node")
    new = asking(pod(unschedulable=FULL), "new")
    new["metadata"]["name"] = "chat-cpu-2"
    seen = verdicts(observed({"cpu": one}, [old, new], spec={"rollout": rollout}))
    return seen, {"Reconciling", "Stalled"} & set(seen)


def test_a_rollout_that_waits_for_room_is_under_way_and_says_what_follows() -> None:
    seen, sums = rolling(surgeTimeout="90s")
    assert seen["WorkloadsReady"] == Verdict(
        "False",
        "Progressing",
        "pool cpu: 2 of 2 replicas available, 1 of the newest template; pod chat-cpu-2: "
        f"{FULL}; if it has no node after 90s (spec.rollout.surgeTimeout), replicas are replaced "
        "one by one",
    )
    assert (sums, seen["Ready"].status) == ({"Reconciling"}, "True")


def test_a_rollout_one_by_one_says_why_and_what_would_help() -> None:
    seen, sums = rolling(mark="digest")
    said = seen["WorkloadsReady"]
    assert (said.status, said.reason) == ("False", "OneByOne")
    for part in (
        "one by one, because one more replica had no node with room for 5m "
        "(spec.rollout.surgeTimeout)",
        "free room for one more",
        "{maxSurge: 0, maxUnavailable: 1}",
        f"pod chat-cpu-2 has no node yet: {FULL}",
    ):
        assert part in said.message
    assert sums == {"Reconciling"}


@pytest.mark.parametrize(
    ("wanted", "rollout", "said"),
    [
        pytest.param(1, {}, "the only replica serves on", id="it would be an outage"),
        pytest.param(2, {"surgeTimeout": "0s"}, "serve on until it has one", id="it is refused"),
    ],
)
def test_a_rollout_that_waits_for_ever_is_stuck_and_says_what_to_do(
    wanted: int, rollout: dict[str, Any], said: str
) -> None:
    seen, sums = rolling(wanted=wanted, **rollout)
    found = seen["WorkloadsReady"]
    assert (found.status, found.reason) == ("False", "Unschedulable")
    for part in (FULL, said, "free room for one more", "{maxSurge: 0, maxUnavailable: 1}"):
        assert part in found.message
    assert (sums, seen["Ready"].status) == ({"Stalled"}, "True")


def test_a_pod_that_waits_for_the_place_of_one_that_drains_is_no_trouble() -> None:
    one = deployment(1, updatedReplicas=1, readyReplicas=0, availableReplicas=0)
    old = asking(pod(leaving=True), "old", nodeName="node")
    new = asking(pod(unschedulable=FULL), "new")
    seen = verdicts(
        observed({"cpu": one}, [old, new], spec={"rollout": {"maxSurge": 0, "maxUnavailable": 1}})
    )
    found = seen["WorkloadsReady"]
    assert (found.reason, "Stalled" in seen) == ("Progressing", False)
    assert f"pod chat-cpu-1 has no node yet: {FULL}" in found.message


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        pytest.param(
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"},
            "FailedCreate",
            id="a quota",
        ),
        pytest.param(
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"},
            "ProgressDeadlineExceeded",
            id="no progress",
        ),
    ],
)
def test_a_stuck_deployment_is_quoted(condition: Manifest, reason: str) -> None:
    seen = told(conditions=[{**condition, "message": "because"}], availableReplicas=0)
    assert seen["WorkloadsReady"] == Verdict("False", reason, "pool cpu: because")


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"observedGeneration": 0}, id="not looked at yet"),
        pytest.param({"updatedReplicas": 0}, id="the old template still serves"),
        pytest.param({"availableReplicas": 0}, id="the new pod is not available"),
        pytest.param({"replicas": 2}, id="an old pod is still there"),
    ],
)
def test_a_rollout_under_way_leaves_the_service_ready(status: Manifest) -> None:
    seen = told(serving_pod(), **status)
    assert (seen["WorkloadsReady"].status, seen["WorkloadsReady"].reason) == (
        "False",
        "Progressing",
    )
    assert seen["Ready"].status == "True"


@pytest.mark.parametrize(
    ("one", "want"),
    [
        pytest.param(pod(), ("False", "Waiting"), id="nothing has started"),
        pytest.param(
            pod(init=(container("model"),)), ("False", "Fetching"), id="weights are on their way"
        ),
        pytest.param(pod(container("engine")), ("False", "Loading"), id="vLLM is loading"),
        pytest.param(
            pod(container("engine", last=CRASHED)), ("False", "Loading"), id="vLLM tries again"
        ),
        pytest.param(
            pod(container("engine", "terminated", **CRASHED)),
            ("False", "EngineFailed"),
            id="vLLM has died",
        ),
        pytest.param(
            pod(init=(container("model", "terminated", **CRASHED),)),
            ("False", "FetchFailed"),
            id="the download has failed",
        ),
        pytest.param(
            pod(init=(container("model", "terminated", exitCode=0),)),
            ("False", "Waiting"),
            id="the download is complete",
        ),
        pytest.param(
            pod(container("engine", started=True)), ("True", "Loaded"), id="vLLM has answered"
        ),
    ],
)
def test_the_models_way_into_memory(one: Manifest, want: tuple[str, str]) -> None:
    verdict = told(one, availableReplicas=0)["ModelReady"]
    assert (verdict.status, verdict.reason) == want


def test_a_pod_on_its_way_out_neither_serves_nor_troubles() -> None:
    leaving = pod(container("engine", started=True), ready=True, leaving=True)
    seen = told(leaving)
    assert seen["RouterReady"].status == "False"
    assert seen["ModelReady"].reason == "Waiting"


def test_scaling_says_so_before_a_sidecar_was_asked() -> None:
    scaled = {"scaling": {"minReplicas": 2, "maxReplicas": 4}}
    verdict = verdicts(observed({"cpu": deployment(2)}, [], spec=scaled))["ScalingReady"]
    assert (verdict.status, verdict.reason) == ("Unknown", "Waiting")


def test_a_message_is_bounded() -> None:
    crashed = {**CRASHED, "message": "x" * 5000}
    seen = told(pod(container("engine", "waiting", reason="CrashLoopBackOff", last=crashed)))
    assert len(seen["WorkloadsReady"].message) <= 1000


def test_a_broken_class_or_tenant_is_quoted_and_the_service_stays_ready() -> None:
    problems = (
        Problem("SecretMissing", "InferenceTenant", "app", "spec.apiKeySecretRef.name", "is gone"),
        Problem("InvalidClass", "InferencePriorityClass", "gold", "spec.rank", "is a word"),
    )
    seen = observed({"cpu": deployment()}, [serving_pod()], told=Told(problems=problems))
    found = verdicts(seen)
    assert found["PoliciesReady"] == Verdict(
        "False",
        "SecretMissing",
        "InferenceTenant/app: spec.apiKeySecretRef.name: is gone; "
        "InferencePriorityClass/gold: spec.rank: is a word",
    )
    assert found["Ready"].status == "True"


def test_pods_of_an_older_weir_are_counted_and_the_way_out_is_named() -> None:
    old = pod(container("engine", started=True), ready=True, volumes=("run",))
    found = told(old, serving_pod(), wanted=2)["PoliciesReady"]
    assert (found.status, found.reason) == ("False", "RestartNeeded")
    assert "1 of 2 pods" in found.message
    assert "kubectl annotate infs chat serving.weir.dev/restarted-at=" in found.message


PLAIN = replace(facts(), kind="fcfs")


@pytest.mark.parametrize(
    ("engines", "want"),
    [
        pytest.param({}, ("Unknown", "Waiting", "no replica takes requests"), id="none is loaded"),
        pytest.param({"a": facts(), "b": facts()}, ("True", "Weir", "2 engines"), id="all do"),
        pytest.param(
            {"a": replace(facts(), kind="priority"), "b": facts()},
            ("True", "NotNeeded", "1 of 2 engines have no decodes to protect"),
            id="embeddings need none",
        ),
        pytest.param(
            {"a": facts(), "b": facts("chunked prefill is off")},
            (
                *("False", "Fallback"),
                "1 of 2 engines run without Weir's scheduler: b: vLLM's own priority policy "
                "instead, because chunked prefill is off",
            ),
            id="one could not, and says why",
        ),
        pytest.param(
            {"b": facts("x"), "a": facts("x"), "d": facts("x"), "c": facts("x"), "e": PLAIN},
            ("False", "Fallback", "a, b, c and 1 more: vLLM's own priority policy"),
            id="pods with one reason are told together, and few by name",
        ),
        pytest.param(
            {"a": PLAIN}, ("False", "Fallback", "it says nothing of itself"), id="a strange engine"
        ),
        pytest.param(
            {"a": facts(), "b": "10.0.0.2:8001 did not answer in time"},
            (
                *("Unknown", "Unreachable"),
                "1 of 2 sidecars do not tell how their engine runs: b: 10.0.0.2:8001 did not",
            ),
            id="silence is not a fallback",
        ),
        pytest.param(
            {"a": facts("x"), "b": "no answer"}, ("False", "Fallback", "a: "), id="nor hides one"
        ),
    ],
)
def test_how_engines_order_requests_is_told_and_never_in_the_way_of_ready(
    engines: dict[str, Said], want: tuple[str, str, str]
) -> None:
    found = verdicts(observed({"cpu": deployment()}, [serving_pod()], engines=engines))
    said = found["SchedulingReady"]
    assert (said.status, said.reason) == want[:2]
    assert want[2] in said.message
    assert found["Ready"].status == "True"


def test_one_engines_long_reason_does_not_hide_the_others() -> None:
    engines = {"a": facts("x" * 5000), "b": facts("y" * 5000)}
    message = verdicts(observed({"cpu": deployment()}, [], engines=engines))[
        "SchedulingReady"
    ].message
    assert len(message) <= 1000
    assert "xxx" in message
    assert "yyy" in message


@pytest.mark.parametrize(
    ("seen", "want"),
    [
        pytest.param(told(serving_pod()), set(), id="all is well"),
        pytest.param(told(pod(), availableReplicas=0), {"Reconciling"}, id="pods are coming"),
        pytest.param(told(serving_pod(), updatedReplicas=0), {"Reconciling"}, id="a rollout"),
        pytest.param(
            told(pod(unschedulable="0/3 nodes"), availableReplicas=0), {"Stalled"}, id="stuck"
        ),
    ],
)
def test_what_is_under_way_or_stuck_is_a_condition_of_its_own_while_it_is(
    seen: dict[str, Verdict], want: set[str]
) -> None:
    assert {"Reconciling", "Stalled"} & set(seen) == want
    assert all(seen[each].status == "True" for each in want)
