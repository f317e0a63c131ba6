"""A whole node is drained while clients chat with the replicas on it.

The node is a second kubelet with a containerd of its own, so this is for the tests' own cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.cluster import cluster
from e2e.eventually import PATIENCE_S
from e2e.installation import Installation
from e2e.kube import Kubectl
from e2e.service import MOCK_ENGINE, MODEL, NO_MODEL, Service
from e2e.traffic import chatting
from weir_operator.render.patch import patched

REPLICAS = 2


@pytest.fixture
def second_node(weir: Installation) -> Iterator[str]:
    """A node that nothing runs on yet; it goes afterwards."""
    layout = cluster.find(weir.target.kubectl.kubeconfig.parent.name)
    assert layout is not None
    with cluster.second_worker(layout) as name:
        yield name


@pytest.fixture
def there(weir: Installation, second_node: str) -> Iterator[Service]:
    """A service whose replicas, their engines MOCKS, all run on the second node."""
    kubectl = weir.target.kubectl
    mock = patched(MOCK_ENGINE, NO_MODEL)
    service = Service(weir.target, "there", {"replicas": REPLICAS}, pod_patch=mock)
    with _cordoned(kubectl, second_node):
        service.apply()
        service.wait_ready(REPLICAS)
    assert _nodes(service) == {second_node}
    yield service
    service.delete()


def test_draining_the_node_of_all_replicas_fails_no_request(
    there: Service, second_node: str
) -> None:
    kubectl = there.target.kubectl
    with chatting(there.url(), MODEL) as traffic:
        kubectl("drain", second_node, "--delete-emptydir-data", timeout_s=PATIENCE_S)
        there.wait_ready(REPLICAS)
        there.wait_gone(REPLICAS)
    assert second_node not in _nodes(there)
    left = ("get", "pods", "--all-namespaces", f"--field-selector=spec.nodeName={second_node}")
    assert kubectl(*left, "--output=name") == ""
    assert traffic.answered > 0
    assert traffic.failures == []


@contextmanager
def _cordoned(kubectl: Kubectl, but: str) -> Iterator[None]:
    """Have pods scheduled on no other node than `but` for the length of the context."""
    names = kubectl("get", "nodes", "--output=name").split()
    others = [name for name in names if name != f"node/{but}"]
    kubectl("cordon", *others)
    try:
        yield
    finally:
        kubectl("uncordon", *others)


def _nodes(service: Service) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in service.pods()}
