"""A namespace that enforces the restricted Pod Security Standard runs what Weir renders."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Kubectl, Manifest
from e2e.service import MOCK_ENGINE, MODEL, Service

NAMESPACE = "weir-e2e-restricted"
ENFORCED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture
def namespace(weir: Installation) -> Iterator[str]:
    """The namespace; what is in it goes with it, and what it claimed goes, too."""
    kubectl = weir.target.kubectl
    meta = {"name": NAMESPACE, "labels": ENFORCED}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    yield NAMESPACE
    kubectl("delete", "infs", "--all", f"--namespace={NAMESPACE}")
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    kubectl("delete", "persistentvolumes", f"--selector=e2e={NAMESPACE}", "--wait=false")


def test_a_refused_pod_is_told_and_one_without_what_was_refused_serves(
    weir: Installation, namespace: str
) -> None:
    """The pods need this checkout: first from host paths, which are refused, then from claims."""
    service = Service(weir.target, "modest", pod_patch=MOCK_ENGINE, namespace=namespace)
    service.apply()
    if weir.target.own:
        refused = service.says("WorkloadsReady", "False", "FailedCreate")
        assert 'violates PodSecurity "restricted:latest": ' in refused["message"]
        assert "hostPath" in refused["message"]
        service.patch({"podTemplate": _claiming(weir.target.kubectl, service.manifest["spec"])})
    service.wait_ready(replicas=1)

    def answers() -> None:
        body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
        url = f"{service.url()}/v1/chat/completions"
        assert httpx.post(url, json=body, timeout=30).status_code == 200

    eventually(answers)


def _claiming(kubectl: Kubectl, spec: Manifest) -> Manifest:
    """Return the pod template with claims in the place of host paths; make what they claim."""
    template: dict[str, Any] = copy.deepcopy(spec["podTemplate"])
    for volume in template["spec"]["volumes"]:
        path = volume.pop("hostPath")["path"]
        volume["persistentVolumeClaim"] = {"claimName": volume["name"]}
        size = {"storage": "1Mi"}
        access = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        name = f"{NAMESPACE}-{volume['name']}"
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name, "labels": {"e2e": NAMESPACE}},
                "spec": {
                    **access,
                    "capacity": size,
                    "hostPath": {"path": path},
                    "claimRef": {"name": volume["name"], "namespace": NAMESPACE},
                },
            }
        )
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": volume["name"], "namespace": NAMESPACE},
                "spec": {**access, "resources": {"requests": size}, "volumeName": name},
            }
        )
    return template
