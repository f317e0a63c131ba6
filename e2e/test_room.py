"""Rollouts on a node with few accelerators: a spare one is used, and without one none hangs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest, conditions, kind_and_name
from e2e.service import MOCK_ENGINE, MODEL, NAMESPACE, Service, quickstart_spec
from e2e.target import Target
from e2e.traffic import chatting

ACCELERATOR = "weir.test/accelerator"
ANOTHER_TEMPLATE: Manifest = {"engine": {"env": [{"name": "EXAMPLE", "value": "changed"}]}}
OneService = Callable[[int, int], Service]


@pytest.fixture
def served_on(weir: Installation) -> Iterator[OneService]:
    """Makes a service of so many replicas on a node with so many accelerators.

    The node says that it has them, which is all that the scheduler and the kubelet look at. The
    engine is a MOCK.
    """
    (node,) = weir.target.kubectl.list("nodes", NAMESPACE)
    made: list[Service] = []

    def serve(replicas: int, accelerators: int) -> Service:
        _offer(weir.target, node, str(accelerators))
        (pool,) = quickstart_spec()["pools"]
        pool |= {"accelerator": {"resource": ACCELERATOR, "count": 1}}
        pool |= {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}
        spec = {"pools": [pool], "replicas": replicas, "rollout": {"surgeTimeout": "3s"}}
        one = Service(weir.target, f"room{replicas}of{accelerators}", spec, MOCK_ENGINE)
        made.append(one)
        one.apply()
        one.wait_ready(replicas)
        return one

    yield serve
    for one in made:
        one.delete()
        eventually(lambda one=one: _expect_none(one.owned()))  # type: ignore[misc]
    _offer(weir.target, node, None)


def _offer(target: Target, node: Manifest, number: str | None) -> None:
    amount = {ACCELERATOR: number}
    patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
    what = ("node", node["metadata"]["name"])
    target.kubectl("patch", *what, "--subresource=status", "--type=merge", f"--patch={patch}")


def _expect_none(found: list[Manifest]) -> None:
    assert not found, [kind_and_name(each) for each in found]


def deployment(service: Service) -> Manifest:
    """Return its only Deployment."""
    (one,) = service.target.kubectl.list("deployments", NAMESPACE, service.selector)
    return one


def bounds(one: Manifest) -> tuple[int, int]:
    """Return how far a Deployment lets the number of pods be off."""
    rolling = one["spec"]["strategy"]["rollingUpdate"]
    return rolling["maxSurge"], rolling["maxUnavailable"]


def uids(service: Service) -> set[str]:
    return {pod["metadata"]["uid"] for pod in service.pods()}


def rolled_out(service: Service, before: set[str], replicas: int) -> None:
    """Wait until every pod is another one, and the service is whole again."""

    def done() -> None:
        assert not before & uids(service)

    eventually(done, within_s=300)
    service.wait_ready(replicas)
    service.says("WorkloadsReady", "True", "Available")


def test_without_a_spare_accelerator_replicas_go_one_by_one_and_no_request_fails(
    served_on: OneService,
) -> None:
    service = served_on(2, 2)
    before = uids(service)
    with chatting(service.url(), MODEL) as traffic:
        service.patch(ANOTHER_TEMPLATE)
        said = service.says("WorkloadsReady", "False", "OneByOne")
        rolled_out(service, before, 2)
    assert "for 3s (spec.rollout.surgeTimeout)" in said["message"]
    assert bounds(deployment(service)) == (1, 0)
    assert traffic.answered > 0
    assert traffic.failures == []


def test_a_spare_accelerator_is_used(served_on: OneService) -> None:
    service = served_on(2, 3)
    before, generation = uids(service), deployment(service)["metadata"]["generation"]
    service.patch(ANOTHER_TEMPLATE)
    rolled_out(service, before, 2)
    found = deployment(service)
    assert bounds(found) == (1, 0)
    # One edit of the Deployment, that of the template: it never was to go one by one.
    assert found["metadata"]["generation"] == generation + 1


def test_the_only_replica_serves_on_until_the_spec_lets_it_go(served_on: OneService) -> None:
    service = served_on(1, 1)
    before = uids(service)
    service.patch(ANOTHER_TEMPLATE)
    said = service.says("WorkloadsReady", "False", "Unschedulable")
    assert "the only replica serves on" in said["message"]
    assert before <= uids(service)
    assert conditions(service.object())["Ready"]["status"] == "True"
    service.patch({"rollout": {"maxSurge": 0, "maxUnavailable": 1}})
    rolled_out(service, before, 1)


def test_a_renamed_pool_hands_over_without_a_spare_accelerator_and_no_request_fails(
    served_on: OneService,
) -> None:
    service = served_on(2, 2)
    before = uids(service)
    (pool,) = service.object()["spec"]["pools"]
    with chatting(service.url(), MODEL) as traffic:
        service.patch({"pools": [{**pool, "name": "renamed"}]})
        service.says("WorkloadsReady", "False", "OneByOne")
        rolled_out(service, before, 2)
    assert list(service.templates()) == [f"{service.name}-renamed"]
    assert traffic.answered > 0
    assert traffic.failures == []
