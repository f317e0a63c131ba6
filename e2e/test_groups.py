"""Replicas that spread over nodes, on the real LeaderWorkerSet; `make e2e-groups` runs these.

Each group is two pods of the one node, and its engines are mocks: what vLLM does over nodes is for
the tests of the engine. This cluster has a name server, by which real ones find their leader.
"""

from __future__ import annotations

import pytest

from e2e import lws
from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MOCK_ENGINE, MODEL, NO_MODEL, READY_WITHIN_S, Service
from e2e.traffic import chatting
from weir_core.api import labels
from weir_operator.render.patch import patched

NODES = 2
SPREAD: Manifest = {
    "replicas": 2,
    "engine": {"parallelism": {"tensor": NODES, "nodes": NODES}},
    # Other groups serve while one is replaced, as they would with no node to spare.
    "rollout": {"maxSurge": 0, "maxUnavailable": 1},
}


@pytest.fixture
def spread(weir: Installation) -> Service:
    return Service(weir.target, "spread", SPREAD, patched(MOCK_ENGINE, NO_MODEL))


def workers(service: Service) -> list[Manifest]:
    """Return the pods of its groups that are no leaders, and not ending."""
    kubectl = service.target.kubectl
    found = kubectl.list("pods", service.namespace, f"{labels.WORKER_OF}={service.name}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def uids(pods: list[Manifest]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def wait_whole(service: Service, groups: int, without: set[str]) -> None:
    """Wait until there are so many ready groups, of whose pods none is among `without`."""

    def whole() -> None:
        pods = [*service.pods(), *workers(service)]
        assert len(pods) == groups * NODES
        assert not uids(pods) & without

    eventually(whole, within_s=READY_WITHIN_S)
    service.wait_ready(groups)


def test_groups_are_replicas_from_their_first_pod_to_their_last(spread: Service) -> None:
    spread.apply()
    spread.says("WorkloadsReady", "False", "LeaderWorkerSetMissing")
    lws.install(spread.target)
    wait_whole(spread, 2, without=set())

    old = uids([*spread.pods(), *workers(spread)])
    with chatting(spread.url(), MODEL) as traffic:
        args = ["--max-model-len=4096"]
        spread.patch({"engine": {**SPREAD["engine"], "args": args}})
        spread.observed()
        wait_whole(spread, 2, without=old)
        spread.says("WorkloadsReady", "True", "Available")
    assert traffic.answered > 0
    assert traffic.failures == []

    victim = workers(spread)[0]
    leader = victim["metadata"]["annotations"]["leaderworkerset.sigs.k8s.io/leader-name"]
    of_group = [pod for pod in spread.pods() if pod["metadata"]["name"] == leader]
    with chatting(spread.url(), MODEL) as traffic:
        spread.target.kill(victim, labels.ENGINE_CONTAINER)
        wait_whole(spread, 2, without=uids([victim, *of_group]))
        assert traffic.answered > 0

    kubectl = spread.target.kubectl
    kubectl("scale", "infs", spread.name, f"--namespace={spread.namespace}", "--replicas=1")
    spread.observed()
    wait_whole(spread, 1, without=set())
    spread.delete()
    eventually(lambda: _gone(spread))


def _gone(service: Service) -> None:
    assert not [*service.pods(), *workers(service)]
