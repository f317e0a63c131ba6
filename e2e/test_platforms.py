"""What a platform decides about the pods: who they run as, and that one hung process is its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import httpx
import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MOCK_ENGINE, MODEL, Service, restarts
from weir_core.api.labels import ENGINE_CONTAINER, SIDECAR_CONTAINER
from weir_operator.render.patch import patched

SOMEBODY = {"runAsUser": 1000680000, "runAsGroup": 0, "fsGroup": 1000680000}
"""A user as OpenShift assigns them: a number of the namespace's, without an account, in group 0."""
QUICK_PROBES: Manifest = {
    "spec": {
        "initContainers": [
            {
                "name": SIDECAR_CONTAINER,
                "livenessProbe": {
                    "periodSeconds": 1,
                    "timeoutSeconds": 1,
                    "failureThreshold": 4,
                    "terminationGracePeriodSeconds": 1,
                },
            }
        ],
        "containers": [
            {
                "name": ENGINE_CONTAINER,
                "livenessProbe": {"periodSeconds": 1, "failureThreshold": 1},
            }
        ],
    }
}
"""The order of the real ones would show only after a minute; here the engine's is the quicker."""


@pytest.fixture
def somebodys(weir: Installation) -> Iterator[Service]:
    """A service with a ready replica, its engine a MOCK, run as a user that no image knows."""
    patch = patched(MOCK_ENGINE, {"spec": {"securityContext": SOMEBODY}})
    service = Service(weir.target, "somebodys", pod_patch=patched(patch, QUICK_PROBES))
    service.ensure_ready()
    yield service
    service.patch({"replicas": 0})
    service.wait_gone(0)


def test_a_sidecar_that_hangs_is_restarted_alone_whoever_the_replica_runs_as(
    somebodys: Service,
) -> None:
    pod = somebodys.pod()
    assert pod["spec"]["securityContext"].items() >= SOMEBODY.items()
    assert set(restarts(pod)) == {0}
    if somebodys.target.own:
        somebodys.target.signal(pod, SIDECAR_CONTAINER, signal.SIGSTOP)

        def restarted() -> None:
            assert _restarts(somebodys.pod())[SIDECAR_CONTAINER] == 1

        eventually(restarted)
    somebodys.wait_ready(replicas=1)
    after = somebodys.pod()
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert _restarts(after)[ENGINE_CONTAINER] == 0, "the engine keeps its weights"

    def answers() -> None:
        body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
        url = f"{somebodys.url()}/v1/chat/completions"
        assert httpx.post(url, json=body, timeout=30).status_code == 200

    eventually(answers)


def _restarts(pod: Manifest) -> dict[str, int]:
    status = pod["status"]
    every = [*status["initContainerStatuses"], *status["containerStatuses"]]
    return {each["name"]: each["restartCount"] for each in every}
