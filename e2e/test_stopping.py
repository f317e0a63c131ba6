"""An operator that stops has ended what it was writing before another may lead.

Reads the API server's audit log, so it is for the tests' own cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Kubectl
from e2e.service import Service

SERVICES = 8
"""Their first passes write a dozen objects each."""
POD_NAME = "authentication.kubernetes.io/pod-name"


def test_the_lease_is_given_back_after_the_last_write(weir: Installation) -> None:
    kubectl = weir.target.kubectl
    services = [Service(weir.target, f"busy-{n}", {"replicas": 0}) for n in range(SERVICES)]
    (pod,) = weir.pods()
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]

    def leads() -> None:
        assert weir.holder() == name

    eventually(leads)
    for service in services:
        service.apply()
    kubectl("delete", "pod", name, f"--namespace={namespace}", "--wait=false")
    for service in services:
        service.observed()

    *others, last = sorted(written(kubectl, name), key=lambda one: one["requestReceivedTimestamp"])
    assert last["objectRef"]["resource"] == "leases"
    assert {one["objectRef"]["resource"] for one in others} >= {"leases", "deployments"}
    # Both are when the server was done: it may note that of an answer a moment after the operator
    # had it, so the instant at which the give-back came in would be no measure.
    later = [one for one in others if one["stageTimestamp"] > last["stageTimestamp"]]
    assert [(one["verb"], one["requestURI"], one["stageTimestamp"]) for one in later] == []
    for service in services:
        service.delete()

    def gone() -> None:
        assert not any(service.owned() for service in services)

    eventually(gone)


def written(kubectl: Kubectl, pod: str) -> Iterator[dict[str, Any]]:
    """Yield what the API server was asked to write by a pod."""
    with (kubectl.kubeconfig.parent / "audit.log").open() as log:
        for line in log:
            entry = json.loads(line)
            if pod in entry["user"].get("extra", {}).get(POD_NAME, ()):
                yield entry
