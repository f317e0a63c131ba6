"""The replicas of a service know each other: who is there, and by which key."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MOCK_ENGINE, NAMESPACE, Service, restarts
from e2e.target import Target
from weir_core.api.labels import (
    PEER_PORT,
    POLICIES_DIR,
    POLICIES_FILE,
    ROTATE_PEER_KEY,
    SIDECAR_CONTAINER,
)
from weir_core.wire.policies import PolicyDocument
from weir_operator.render import POLICIES_ANNOTATION, document_in

REPLICAS = 3


@pytest.fixture(scope="module")
def fleet_or_none(target: Target) -> Iterator[Service]:
    """The service of these scenarios, its engines MOCKS; without replicas when they are over."""
    service = Service(target, "fleet", {"replicas": REPLICAS}, pod_patch=MOCK_ENGINE)
    yield service
    if target.kubectl.find("infs", service.name, NAMESPACE):
        service.patch({"replicas": 0})


@pytest.fixture
def fleet(weir: Installation, fleet_or_none: Service) -> Service:
    """Three ready replicas that the operator has told of each other."""
    fleet_or_none.ensure_ready()
    is_told_of_its_pods(fleet_or_none)
    return fleet_or_none


def document(fleet: Service) -> PolicyDocument:
    """Return what the Secret holds."""
    kubectl = fleet.target.kubectl
    found = document_in(kubectl.find("secret", f"{fleet.name}-policies", NAMESPACE))
    assert found is not None
    return found


def mounted(fleet: Service, pod: Manifest) -> PolicyDocument:
    """Return what the sidecar of a pod can read."""
    where = (pod["metadata"]["name"], f"--namespace={NAMESPACE}")
    path = f"{POLICIES_DIR}/{POLICIES_FILE}"
    reading = ("exec", *where, f"--container={SIDECAR_CONTAINER}", "--", "cat", path)
    done = fleet.target.kubectl.attempt(*reading)
    assert done.code == 0, done.err
    return PolicyDocument.decode(done.out.encode())


def is_told_of_its_pods(fleet: Service) -> None:
    """See that the Secret lists exactly the pods there are, and that each was told with itself."""

    def told() -> None:
        pods = {pod["metadata"]["name"]: pod for pod in fleet.pods()}
        want = {name: f"{pod['status']['podIP']}:{PEER_PORT}" for name, pod in pods.items()}
        assert {peer.name: peer.address for peer in document(fleet).peers} == want
        for name, pod in pods.items():
            mark = pod["metadata"]["annotations"][POLICIES_ANNOTATION]
            assert mark.partition("@")[2] == want[name]

    eventually(told)


def starts(fleet: Service) -> dict[str, list[int]]:
    """Return how often each container has started again, by the uid of the pod."""
    return {pod["metadata"]["uid"]: restarts(pod) for pod in fleet.pods()}


class Touches:
    """What `kubectl get --watch` wrote of a service's pods: no change of an object is left out."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def by_pod(self) -> dict[str, list[str]]:
        """Return the values that the annotation of each pod has had, in their order."""
        found: dict[str, list[str]] = {}
        text, decoder, at = self._log.read_text(), json.JSONDecoder(), 0
        while (at := text.find("{", at)) >= 0:
            try:
                pod, at = decoder.raw_decode(text, at)
            except ValueError:  # it is being written
                break
            values = found.setdefault(pod["metadata"]["name"], [])
            value = pod["metadata"].get("annotations", {}).get(POLICIES_ANNOTATION)
            if value is not None and value not in values[-1:]:
                values.append(value)
        return found


@contextmanager
def touches(fleet: Service, folder: Path) -> Iterator[Touches]:
    """Watch the pods; what there is at the beginning counts as the first touch of a pod."""
    kubectl, log = fleet.target.kubectl, folder / "pods.json"
    command = ("get", "pods", f"--namespace={NAMESPACE}", f"--selector={fleet.selector}")
    with log.open("w") as output:
        watching = subprocess.Popen(
            [str(kubectl.program), *command, "--watch", "--output=json"],
            stdout=output,
            env={**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)},
        )
    try:
        yield Touches(log)
    finally:
        watching.terminate()
        watching.wait(timeout=30)


def scale(fleet: Service, replicas: int) -> None:
    """Set the number of replicas and wait until the operator has told all of them."""
    fleet.patch({"replicas": replicas})
    if replicas:
        fleet.wait_ready(replicas)
    fleet.wait_gone(replicas)
    is_told_of_its_pods(fleet)


def test_replicas_that_come_up_together_are_told_of_each_other_with_few_touches(
    fleet: Service, tmp_path: Path
) -> None:
    scale(fleet, 0)
    assert document(fleet).peers == ()
    with touches(fleet, tmp_path) as seen:
        scale(fleet, REPLICAS)
        names = {pod["metadata"]["name"] for pod in fleet.pods()}

        def all_seen() -> None:
            told = {name: values for name, values in seen.by_pod().items() if name in names}
            assert len(told) == REPLICAS
            assert all(1 <= len(values) <= 2 for values in told.values()), told

        eventually(all_seen)
    assert len(document(fleet).peer_keys) == 1

    def of_two_one_knows_the_other() -> None:
        pods = {pod["metadata"]["name"]: mounted(fleet, pod) for pod in fleet.pods()}
        known = {(name, peer.name) for name, held in pods.items() for peer in held.peers}
        for one, held in pods.items():
            assert held.peer_keys == document(fleet).peer_keys
            assert all({(one, other), (other, one)} & known for other in pods), known

    eventually(of_two_one_knows_the_other)


def test_a_replica_more_touches_no_other_and_those_that_go_are_no_peers(
    fleet: Service, tmp_path: Path
) -> None:
    before = starts(fleet)
    old = {pod["metadata"]["name"] for pod in fleet.pods()}
    key = document(fleet).peer_keys
    with touches(fleet, tmp_path) as seen:
        scale(fleet, REPLICAS + 1)
        assert starts(fleet).items() >= before.items()
        scale(fleet, 2)
        told = seen.by_pod()
    assert {name: len(told[name]) for name in old} == dict.fromkeys(old, 1)
    ((values),) = (values for name, values in told.items() if name not in old)
    assert len(values) <= 2
    assert all(count == [0] * len(count) for count in starts(fleet).values())
    assert document(fleet).peer_keys == key


def test_a_rotated_key_reaches_every_replica_beside_the_old_one_and_restarts_none(
    fleet: Service,
) -> None:
    before, first = starts(fleet), document(fleet).peer_keys[0]

    def rotate(value: str) -> None:
        where = (f"infs/{fleet.name}", f"--namespace={NAMESPACE}", "--overwrite")
        fleet.target.kubectl("annotate", *where, f"{ROTATE_PEER_KEY}={value}")

    def everywhere(*old: str) -> tuple[str, ...]:
        def arrived() -> tuple[str, ...]:
            keys = document(fleet).peer_keys
            assert len(keys) == 2
            assert keys[1:] == old
            for pod in fleet.pods():
                assert mounted(fleet, pod).peer_keys == keys
            return keys

        return eventually(arrived)

    uid = fleet.object()["metadata"]["uid"]
    rotate(f"{uid}-1")
    second = everywhere(first)[0]
    rotate(f"{uid}-2")
    third = everywhere(second)[0]
    assert len({first, second, third}) == 3
    assert starts(fleet) == before
