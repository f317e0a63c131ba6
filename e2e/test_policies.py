"""Classes, tenants and keys change while requests run; each pod is told, and none is replaced."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Kubectl, Manifest, conditions
from e2e.service import MODEL, NAMESPACE, Service, restarts
from e2e.traffic import chatting
from weir_core.api.labels import (
    API_VERSION,
    POLICIES_DIR,
    POLICIES_FILE,
    POOL,
    SIDECAR_CONTAINER,
)
from weir_operator.render import POLICIES_ANNOTATION, digest_of, document_in

CLASS: Manifest = {
    "apiVersion": API_VERSION,
    "kind": "InferencePriorityClass",
    "metadata": {"name": "e2e-gold"},
    "spec": {"rank": 77, "ttftTargetMs": 800},
}


def tenant(**spec: Any) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceTenant",
        "metadata": {"name": "e2e-app", "namespace": NAMESPACE},
        "spec": {"apiKeySecretRef": {"name": "e2e-app-keys"}, **spec},
    }


def keys(**of: str) -> Manifest:
    """Return the tenant's Secret with the hashes of these keys."""
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in of.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "e2e-app-keys", "namespace": NAMESPACE},
        "data": {name: base64.b64encode(each.encode()).decode() for name, each in hashes.items()},
    }


@pytest.fixture
def tenanted(mocked: Service) -> Iterator[Service]:
    """The mocked service with a class and a tenant, told of both; they go afterwards."""
    kubectl = mocked.target.kubectl
    for one in (CLASS, keys(first="sk-first"), tenant(defaultClass="e2e-gold")):
        kubectl.apply(one)

    def told() -> None:
        assert [each["policy"]["name"] for each in document(mocked)["tenants"]] == ["e2e-app"]

    eventually(told)
    yield mocked
    kubectl("delete", "itn/e2e-app", f"--namespace={NAMESPACE}", "--ignore-not-found")
    kubectl("delete", "secret/e2e-app-keys", f"--namespace={NAMESPACE}", "--ignore-not-found")
    kubectl("delete", "ipc/e2e-gold", "--ignore-not-found")


@pytest.fixture
def refused(tenanted: Service) -> Iterator[Service]:
    """The same service with a spec that the operator refuses; it is put right afterwards."""
    tenanted.patch({"podTemplate": {"metadata": {"labels": {POOL: "another"}}}})

    def said() -> None:
        spec = conditions(tenanted.object())["SpecValid"]
        assert (spec["status"], spec["reason"]) == ("False", "InvalidSpec"), spec

    eventually(said)
    yield tenanted
    tenanted.patch({"podTemplate": {"metadata": None}})
    tenanted.wait_ready(replicas=1)


def document(service: Service) -> Manifest:
    """Return what the sidecar of the service's only pod can read."""
    where = (service.pod()["metadata"]["name"], f"--namespace={NAMESPACE}")
    path = f"{POLICIES_DIR}/{POLICIES_FILE}"
    done = service.target.kubectl.attempt(
        "exec", *where, f"--container={SIDECAR_CONTAINER}", "--", "cat", path
    )
    assert done.code == 0, done.err
    found: Manifest = json.loads(done.out)
    return found


def was_told(service: Service) -> None:
    """See that the kubelet of the only pod need not find the newest document by itself.

    It would, when it next looks: after a minute or more.
    """
    held = document_in(service.target.kubectl.get("secret", f"{service.name}-policies", NAMESPACE))
    assert held is not None
    told = service.pod()["metadata"]["annotations"][POLICIES_ANNOTATION]
    assert told.partition("@")[0] == digest_of(held)


def gold(found: Manifest) -> Manifest:
    """Return the class of these scenarios in a document."""
    named: dict[str, Manifest] = {each["name"]: each for each in found["classes"]}
    assert "e2e-gold" in named, sorted(named)
    return named["e2e-gold"]


def set_rank(kubectl: Kubectl, rank: int) -> None:
    """Edit the class."""
    kubectl(
        "patch", "ipc/e2e-gold", "--type=merge", f"--patch={json.dumps({'spec': {'rank': rank}})}"
    )


def test_an_edited_class_is_in_the_running_pod_which_was_told_and_no_request_fails(
    tenanted: Service, record_property: Callable[[str, object], None]
) -> None:
    pod = tenanted.pod()
    with chatting(tenanted.url(), MODEL) as traffic:
        for rank in (78, 79, 80):
            begun = time.monotonic()
            set_rank(tenanted.target.kubectl, rank)

            def arrived(rank: int = rank) -> None:
                assert gold(document(tenanted))["rank"] == rank
                was_told(tenanted)

            eventually(arrived)
            record_property("seconds_to_arrive", round(time.monotonic() - begun, 1))
    now = tenanted.pod()
    assert now["metadata"]["uid"] == pod["metadata"]["uid"]
    assert restarts(now) == restarts(pod)
    assert traffic.answered > 0
    assert traffic.failures == []


def test_a_rotated_key_works_and_the_old_one_does_not(tenanted: Service) -> None:
    expect(tenanted, "sk-first", 200)
    expect(tenanted, "sk-second", 401)
    tenanted.target.kubectl.apply(keys(second="sk-second"))
    expect(tenanted, "sk-second", 200)
    expect(tenanted, "sk-first", 401)


def test_a_key_is_revoked_although_the_spec_is_refused(refused: Service) -> None:
    pod = refused.pod()["metadata"]["uid"]
    expect(refused, "sk-first", 200)
    refused.target.kubectl.apply(keys(second="sk-second"))
    expect(refused, "sk-second", 200)
    expect(refused, "sk-first", 401)
    assert conditions(refused.object())["SpecValid"]["reason"] == "InvalidSpec"
    assert refused.pod()["metadata"]["uid"] == pod


def expect(service: Service, key: str, status: int) -> None:
    """Wait until a chat with this key is answered so."""
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}

    def answered() -> None:
        answer = httpx.post(
            f"{service.url()}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )
        assert answer.status_code == status, answer.text

    eventually(answered)


def test_a_broken_tenant_is_named_and_its_last_good_version_stays(tenanted: Service) -> None:
    before = document(tenanted)["tenants"]
    tenanted.target.kubectl.apply(tenant(defaultClass="e2e-golden"))
    said = tenanted.says("PoliciesReady", "False", "InvalidTenant")
    assert "InferenceTenant/e2e-app: spec.defaultClass" in said["message"]
    assert document(tenanted)["tenants"] == before
    assert conditions(tenanted.object())["Ready"]["status"] == "True"
    expect(tenanted, "sk-first", 200)
    tenanted.target.kubectl.apply(tenant(defaultClass="e2e-gold"))
    tenanted.says("PoliciesReady", "True", "Applied")


def test_a_broken_class_is_named_and_its_last_good_version_stays(tenanted: Service) -> None:
    before = gold(document(tenanted))
    patch = json.dumps({"spec": {"minShare": 1.0}})  # each is valid, together they are not
    tenanted.target.kubectl("patch", "ipc/e2e-gold", "--type=merge", f"--patch={patch}")
    said = tenanted.says("PoliciesReady", "False", "InvalidClass")
    assert "InferencePriorityClass/e2e-gold: spec.minShare" in said["message"]
    assert gold(document(tenanted)) == before


def test_a_secret_that_is_deleted_is_missed_and_takes_nobody_the_key(tenanted: Service) -> None:
    kubectl = tenanted.target.kubectl
    kubectl("delete", "secret/e2e-app-keys", f"--namespace={NAMESPACE}")
    tenanted.says("PoliciesReady", "False", "SecretMissing")
    expect(tenanted, "sk-first", 200)


def test_the_document_comes_back_when_someone_edits_it(
    weir: Installation, tenanted: Service
) -> None:
    kubectl = weir.target.kubectl
    name = f"{tenanted.name}-policies"
    before = document_in(kubectl.get("secret", name, NAMESPACE))
    assert before is not None
    kubectl.patch("secret", name, NAMESPACE, {"data": {POLICIES_FILE: ""}})

    def back() -> None:
        found = document_in(kubectl.get("secret", name, NAMESPACE))
        assert found is not None
        # What it held and nothing else does is gone: the peers get another key.
        assert replace(found, peer_keys=before.peer_keys) == before
        assert found.peer_keys
        assert found.peer_keys != before.peer_keys

    eventually(back)


def test_an_operator_of_some_namespaces_without_a_right_to_classes_does_the_rest(
    weir: Installation, tenanted: Service
) -> None:
    weir.upgrade({"watchNamespaces": [NAMESPACE], "rbac": {"readClasses": False}})
    said = tenanted.says("PoliciesReady", "False", "Unreadable")
    assert "InferencePriorityClass: the operator may not read them" in said["message"]
    assert conditions(tenanted.object())["Ready"]["status"] == "True"
    assert gold(document(tenanted))["rank"] == 77, "the last good classes stay"
    tenanted.target.kubectl.apply(keys(second="sk-second"))
    expect(tenanted, "sk-second", 200)
    weir.upgrade({"watchNamespaces": [], "rbac": {"readClasses": True}})
    tenanted.says("PoliciesReady", "True", "Applied")
