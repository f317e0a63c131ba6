"""Classes and tenants reach the sidecars: a Secret, a nudge for each pod, no new pod."""

from __future__ import annotations

import base64
import hashlib
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.control.builders import NAME, NAMESPACE, body, serving_pod
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_reconcile_pass import (
    KEY,
    NOW,
    conditions,
    edit,
    finish_rollouts,
    parts,
    reconciler,
    templates,
)
from weir_core.errors import ClusterRefuses, ClusterUnavailable, InvalidSpec
from weir_core.wire.policies import PolicyDocument
from weir_operator.interests import Change, Interests
from weir_operator.kinds import CLASS, DEPLOYMENT, SECRET, SERVICE, TENANT, Kind
from weir_operator.parts.policies import SECRET_GRACE
from weir_operator.reconcile import Key, Outcome, Reconciler
from weir_operator.render import POLICIES_ANNOTATION, Images, document_in

SECRET_GRACE_BUT_A_SECOND = timedelta(seconds=SECRET_GRACE - 1)
API = "serving.weir.dev/v1alpha1"
GOLD: Manifest = {
    "apiVersion": API,
    "kind": "InferencePriorityClass",
    "metadata": {"name": "standard", "uid": "c1"},
    "spec": {"rank": 7},
}
APP: Manifest = {
    "apiVersion": API,
    "kind": "InferenceTenant",
    "metadata": {"name": "app", "namespace": NAMESPACE, "uid": "t1", "generation": 1},
    "spec": {"apiKeySecretRef": {"name": "app-keys"}},
}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keys(value: bytes) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "app-keys", "namespace": NAMESPACE},
        "data": {"k": base64.b64encode(value).decode()},
    }


def cluster_with(*objects: Manifest) -> MemoryCluster:
    cluster = MemoryCluster(body(), *objects)
    cluster.all_pods = {KEY: [serving_pod()]}
    return cluster


def document(cluster: MemoryCluster) -> PolicyDocument:
    found = document_in(cluster.of("Secret")[f"{NAME}-policies"])
    assert found is not None
    return found


def annotation(cluster: MemoryCluster) -> str | None:
    (pod,) = cluster.all_pods[KEY]
    found: str | None = pod["metadata"].get("annotations", {}).get(POLICIES_ANNOTATION)
    return found


async def test_sidecars_are_told_of_classes_tenants_and_the_mode() -> None:
    cluster = cluster_with(GOLD, APP, keys(digest("k").encode()))
    edit(cluster, {"engine": {"scheduling": {"mode": "throughput"}}})
    await reconciler(cluster).run(KEY)
    told = document(cluster)
    assert [(policy.name, policy.rank) for policy in told.classes] == [("standard", 7)]
    assert [entry.key_hashes for entry in told.tenants] == [(digest("k"),)]
    assert told.engine.mode == "throughput"
    secret = cluster.of("Secret")[f"{NAME}-policies"]
    assert secret["type"] == "Opaque"
    assert secret["metadata"]["labels"]["serving.weir.dev/service"] == NAME


async def test_a_change_touches_each_pod_once_and_replaces_none() -> None:
    cluster = cluster_with(GOLD)
    await reconciler(cluster).run(KEY)
    first, before = annotation(cluster), templates(cluster)
    cluster.put({**GOLD, "spec": {"rank": 8}})
    await reconciler(cluster).run(KEY)
    assert annotation(cluster) not in (None, first)
    assert document(cluster).classes[0].rank == 8
    assert templates(cluster) == before
    writes = cluster.writes
    await reconciler(cluster).run(KEY)
    assert cluster.writes == writes


async def test_a_pod_that_mounts_no_policies_is_left_alone() -> None:
    cluster = cluster_with(GOLD)
    cluster.all_pods[KEY][0]["spec"]["volumes"] = []
    await reconciler(cluster).run(KEY)
    assert annotation(cluster) is None
    assert conditions(cluster)["PoliciesReady"]["reason"] == "RestartNeeded"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        pytest.param([{**GOLD, "spec": {"rank": "high"}}, APP], "InvalidClass", id="class"),
        pytest.param(
            [GOLD, {**APP, "spec": {**APP["spec"], "weight": 0}}],
            "InvalidTenant",
            id="tenant",
        ),
        pytest.param([GOLD, APP, keys(b"\xff\xfe")], "InvalidSecret", id="hash"),
    ],
)
async def test_what_is_broken_is_said_and_the_last_good_version_stays(
    broken: list[Manifest], reason: str
) -> None:
    cluster = cluster_with(GOLD, APP, keys(digest("k").encode()))
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    before = document(cluster)
    for one in broken:
        cluster.put(one)
    await reconciler(cluster).run(KEY)
    assert document(cluster) == before
    found = conditions(cluster)["PoliciesReady"]
    assert (found["status"], found["reason"]) == ("False", reason)
    assert conditions(cluster)["Ready"]["status"] == "True"
    assert [each["reason"] for each in cluster.events if each["type"] == "Warning"] == [reason]


async def test_a_secret_that_is_gone_leaves_the_tenant_its_keys() -> None:
    cluster = cluster_with(APP, keys(digest("k").encode()))
    await reconciler(cluster).run(KEY)
    before = document(cluster)
    cluster.objects.pop((SECRET, NAMESPACE, "app-keys"))
    await reconciler(cluster).run(KEY)
    assert document(cluster) == before
    assert conditions(cluster)["PoliciesReady"]["reason"] == "SecretMissing"


async def test_the_keys_of_a_secret_that_is_gone_are_revoked_after_a_while_and_come_back() -> None:
    now = NOW
    cluster = cluster_with(APP, keys(digest("k").encode()))
    operator = Reconciler(cluster, parts(Images(), clock=lambda: now), lambda: now)
    await operator.run(KEY)
    cluster.objects.pop((SECRET, NAMESPACE, "app-keys"))
    await operator.run(KEY)
    now += SECRET_GRACE_BUT_A_SECOND
    # Another operator goes on counting: the time is kept with the document.
    operator = Reconciler(cluster, parts(Images(), clock=lambda: now), lambda: now)
    await operator.run(KEY)
    assert document(cluster).tenants[0].key_hashes == (digest("k"),)
    now += timedelta(seconds=1)
    await operator.run(KEY)
    assert document(cluster).tenants[0].key_hashes == ()
    assert conditions(cluster)["PoliciesReady"]["reason"] == "KeysRevoked"
    warnings = [each["reason"] for each in cluster.events if each["type"] == "Warning"]
    assert warnings == ["SecretMissing", "KeysRevoked"]

    cluster.put(keys(digest("k").encode()))
    await operator.run(KEY)
    assert document(cluster).tenants[0].key_hashes == (digest("k"),)
    cluster.objects.pop((SECRET, NAMESPACE, "app-keys"))
    await operator.run(KEY)
    assert document(cluster).tenants[0].key_hashes == (digest("k"),), "it counts from anew"


async def test_a_tenant_says_how_many_keys_it_has_and_why_it_is_not_in_force() -> None:
    def said() -> tuple[int, str, str]:
        status = cluster.of("InferenceTenant")["app"]["status"]
        (accepted,) = status["conditions"]
        return status["keys"], accepted["status"], accepted["reason"]

    cluster = cluster_with(APP, keys(digest("k").encode()))
    await reconciler(cluster).run(KEY)
    assert said() == (1, "True", "InForce")
    writes = cluster.writes
    await reconciler(cluster).run(KEY)
    assert cluster.writes == writes
    cluster.put(keys(b"no hash"))
    await reconciler(cluster).run(KEY)
    assert said() == (0, "False", "InvalidSecret")
    cluster.put({**APP, "spec": {"weight": 0}})
    await reconciler(cluster).run(KEY)
    assert said() == (0, "False", "InvalidTenant")


async def test_services_that_hold_different_keys_do_not_write_a_tenants_status_in_turn() -> None:
    cluster = cluster_with(APP, keys(digest("k").encode()))
    await reconciler(cluster).run(KEY)
    cluster.put(keys(b"no hash"))
    cluster.put({**body(), "metadata": {**body()["metadata"], "name": "newer", "uid": "uid-9"}})
    newer = Key(NAMESPACE, "newer")
    for _ in range(2):
        await reconciler(cluster).run(KEY)
        await reconciler(cluster).run(newer)
    before = cluster.writes
    await reconciler(cluster).run(KEY)
    await reconciler(cluster).run(newer)
    assert cluster.writes == before


async def test_a_secret_that_may_not_be_read_revokes_nothing() -> None:
    now = NOW
    cluster = cluster_with(APP, keys(digest("k").encode()))
    operator = Reconciler(cluster, parts(Images(), clock=lambda: now), lambda: now)
    await operator.run(KEY)
    find = cluster.find

    async def no_right(kind: Kind, namespace: str, name: str) -> Manifest | None:
        if name == "app-keys":
            raise ClusterRefuses("Secrets are forbidden")
        return await find(kind, namespace, name)

    cluster.find = no_right  # type: ignore[method-assign]
    for _ in range(2):
        now += timedelta(days=1)
        await operator.run(KEY)
    assert document(cluster).tenants[0].key_hashes == (digest("k"),)


async def test_a_key_is_revoked_while_the_spec_is_refused() -> None:
    cluster = cluster_with(APP, keys(digest("k").encode()))
    await reconciler(cluster).run(KEY)
    first = annotation(cluster)
    edit(cluster, {"engine": {"args": ["--por=1"]}})
    interests: Interests[tuple[str, str]] = Interests()
    # One that never saw the spec before.
    operator = Reconciler(cluster, parts(Images(), interests), lambda: NOW)
    assert await operator.run(KEY) is Outcome.REJECTED
    assert interests.concerned(Change(SECRET, NAMESPACE, "app-keys")) == [KEY]

    cluster.put({**keys(b""), "data": {}})
    assert await operator.run(KEY) is Outcome.REJECTED
    assert document(cluster).tenants[0].key_hashes == ()
    assert annotation(cluster) not in (None, first)
    assert conditions(cluster)["Ready"]["reason"] == "InvalidSpec"
    assert conditions(cluster)["PoliciesReady"]["reason"] == "Applied"


async def test_a_refused_spec_hides_no_broken_tenant() -> None:
    cluster = cluster_with(APP, keys(digest("k").encode()))
    await reconciler(cluster).run(KEY)
    edit(cluster, {"engine": {"args": ["--por=1"]}})
    cluster.put({**APP, "spec": {**APP["spec"], "weight": 0}})
    await reconciler(cluster).run(KEY)
    assert conditions(cluster)["PoliciesReady"]["reason"] == "InvalidTenant"


async def test_admission_that_cannot_be_read_stays_as_it_was_and_says_so() -> None:
    cluster = cluster_with(GOLD)
    edit(cluster, {"admission": {"anonymousClass": "standard"}})
    await reconciler(cluster).run(KEY)
    before = document(cluster)
    edit(cluster, {"admission": {"anonymousClass": "No label"}})
    assert await reconciler(cluster).run(KEY) is Outcome.REJECTED
    assert document(cluster) == before
    found = conditions(cluster)["PoliciesReady"]
    assert found["reason"] == "InvalidAdmission"
    assert "spec.admission.anonymousClass: 'No label' is not a name here" in found["message"]


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(InvalidSpec("spec", "is refused"), id="the API server calls it invalid"),
        pytest.param(ClusterRefuses("exceeded quota"), id="the API server refuses"),
        pytest.param(ClusterUnavailable("a webhook is down"), id="the API server cannot serve"),
        pytest.param(RuntimeError("a mistake of ours"), id="the operator fails"),
    ],
)
async def test_sidecars_are_told_whatever_becomes_of_the_workloads(error: Exception) -> None:
    cluster = cluster_with(GOLD)
    await reconciler(cluster).run(KEY)
    first = annotation(cluster)
    cluster.put({**GOLD, "spec": {"rank": 8}})
    cluster.put({**APP, "spec": {"weight": 0}})
    cluster.unwritable["Deployment"] = error
    with nullcontext() if isinstance(error, InvalidSpec) else pytest.raises(type(error)):
        await reconciler(cluster).run(KEY)
    assert document(cluster).classes[0].rank == 8
    assert annotation(cluster) not in (None, first)
    assert conditions(cluster)["PoliciesReady"]["reason"] == "InvalidTenant"


async def test_a_document_that_cannot_be_written_is_said() -> None:
    cluster = cluster_with(GOLD)
    cluster.unwritable["Secret"] = ClusterRefuses("exceeded quota: secrets")
    with pytest.raises(ClusterRefuses):
        await reconciler(cluster).run(KEY)
    found = conditions(cluster)["PoliciesReady"]
    assert (found["status"], found["reason"]) == ("False", "Refused")
    assert "exceeded quota: secrets" in found["message"]


async def test_without_the_right_to_classes_the_rest_works_and_says_so() -> None:
    cluster = cluster_with(GOLD, APP, keys(digest("k").encode()))
    cluster.forbidden = {"InferencePriorityClass", "Pod"}
    await reconciler(cluster).run(KEY)
    finish_rollouts(cluster)
    await reconciler(cluster).run(KEY)
    assert document(cluster).classes == ()
    assert len(document(cluster).tenants) == 1
    found = conditions(cluster)["PoliciesReady"]
    assert found["reason"] == "Unreadable"
    assert "InferencePriorityClass: the operator may not read them" in found["message"]
    assert conditions(cluster)["Ready"]["status"] == "True"


async def test_a_document_that_someone_spoilt_is_made_anew() -> None:
    cluster = cluster_with(GOLD)
    await reconciler(cluster).run(KEY)
    before = document(cluster)
    cluster.of("Secret")[f"{NAME}-policies"]["data"] = {"policies.json": "!"}
    await reconciler(cluster).run(KEY)
    made = document(cluster)
    assert made.peer_keys != before.peer_keys, "the spoilt one held the only copy"
    assert replace(made, peer_keys=before.peer_keys) == before


async def test_somebody_elses_secret_of_that_name_is_not_taken_over() -> None:
    theirs = {**keys(b"x"), "metadata": {"name": f"{NAME}-policies", "namespace": NAMESPACE}}
    cluster = cluster_with(theirs)
    with pytest.raises(ClusterRefuses, match="Secret chat-policies exists already"):
        await reconciler(cluster).run(KEY)
    assert cluster.of("Secret")[f"{NAME}-policies"] == theirs


async def test_a_pass_notes_what_it_read_and_a_service_that_is_gone_is_forgotten() -> None:
    cluster = cluster_with(APP)
    interests: Interests[tuple[str, str]] = Interests()
    passes = Reconciler(cluster, parts(Images(), interests), lambda: NOW)
    await passes.run(KEY)
    rotated = Change(SECRET, NAMESPACE, "app-keys")
    assert interests.concerned(rotated) == [KEY]
    cluster.objects.pop((SERVICE, NAMESPACE, NAME))
    await passes.run(KEY)
    assert interests.concerned(rotated) == []


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (Change(CLASS, "", "gold"), {"here", "there"}),
        (Change(TENANT, "a", "any"), {"here"}),
        (Change(SECRET, "a", "keys"), {"here"}),
        (Change(SECRET, "a", "other"), set()),
        (Change(SECRET, "b", "keys"), set()),
        (Change(SERVICE, "a", "new"), {"new"}),
        (Change(SERVICE, "a", ""), {"here"}),
        (Change(DEPLOYMENT, "b", "there-cpu", service="there"), {"there"}),
        (Change(DEPLOYMENT, "b", "odd", service=""), set()),
    ],
)
def test_a_change_concerns_the_services_that_read_it(change: Change, want: set[str]) -> None:
    interests: Interests[tuple[str, str]] = Interests()
    interests.note(("a", "here"), {"keys"})
    interests.note(("b", "there"), {"more"})
    assert {name for _, name in interests.concerned(change)} == want


def test_an_empty_secret_holds_no_document() -> None:
    empty: dict[str, Any] = {"data": None}
    assert document_in(empty) is None
    assert document_in(None) is None
