"""A service follows its work: replicas come with the load and go with it, and no request fails.

The engines are MOCKS of few slots, so that requests wait before them: what a sidecar has seen its
engine do meanwhile is what it counts work by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MODEL, NAMESPACE, READY_WITHIN_S, Service
from e2e.traffic import chatting
from weir_core.api.labels import (
    ENGINE_CONTAINER,
    ENGINE_SOCKET,
    FACTS_FILE,
    METRICS_PORT,
    MODEL_CONTAINER,
    RUN_DIR,
)
from weir_core.wire.steps import Facts

SLOTS = 8
"""Twice the clients of one `chatting`."""
MORE = 8
"""`chatting`s that come on top: more than three engines take at once."""
MOST = 3
FACTS = Facts("fcfs", max_num_seqs=SLOTS, max_num_batched_tokens=2048, kv_capacity_tokens=0)
MOCK: Manifest = {
    "spec": {
        "initContainers": [{"name": MODEL_CONTAINER, "command": ["true"]}],
        "containers": [
            {
                "name": ENGINE_CONTAINER,
                "command": [
                    "sh",
                    "-c",
                    f"echo '{FACTS.encode().decode()}' > {RUN_DIR}/{FACTS_FILE} && "
                    f"exec python3 -m weir_sim.mock_engine --model={MODEL} "
                    f"--uds={RUN_DIR}/{ENGINE_SOCKET} --max-running={SLOTS} --token-gap-ms=50",
                ],
            }
        ],
    }
}
SPEC: dict[str, Any] = {
    "scaling": {
        "minReplicas": 1,
        "maxReplicas": MOST,
        "behavior": {
            "scaleDown": {
                "stabilizationWindowSeconds": 10,
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}],
            }
        },
    },
    "admission": {"anonymousClass": "standard"},
}


@pytest.fixture
def scaled(weir: Installation, patient_classes: None) -> Iterator[Service]:
    """A service that scales, with one ready replica."""
    service = Service(weir.target, "scaled", SPEC, pod_patch=MOCK)
    manifest = service.manifest
    manifest["spec"].pop("replicas")
    weir.target.kubectl.apply(manifest)
    service.wait_ready(1)
    yield service
    service.delete()


def pages(weir: Installation) -> str:
    """Return what the operator's pods tell Prometheus."""
    addresses = [pod["status"]["podIP"] for pod in weir.pods()]
    return "".join(
        httpx.get(f"http://{address}:{METRICS_PORT}/metrics", timeout=30).text
        for address in addresses
    )


def test_replicas_come_and_go_with_the_load_and_no_request_fails(
    weir: Installation, scaled: Service
) -> None:
    with ExitStack() as clients:
        calm = clients.enter_context(chatting(scaled.url(), MODEL))
        eventually(lambda: _is_true(calm.answered > 0))
        with ExitStack() as crowd:
            more = [crowd.enter_context(chatting(scaled.url(), MODEL)) for _ in range(MORE)]
            scaled.wait_ready(MOST)
            assert f'service="{scaled.name}"}} {MOST}.0' in pages(weir)
        answered = calm.answered
        # To one or to two: by how fast this machine was while it was busy.
        eventually(lambda: shrunk(scaled), within_s=READY_WITHIN_S)
        eventually(lambda: _is_true(calm.answered > answered))
    assert [each.failures for each in (calm, *more)] == [[]] * (1 + MORE)
    assert all(each.answered > 0 for each in more)
    told = scaled.target.kubectl.list("events", NAMESPACE)
    reasons = {each["reason"] for each in told if each["involvedObject"]["name"] == scaled.name}
    assert {"ScaledUp", "ScaledDown"} <= reasons, reasons


def shrunk(scaled: Service) -> None:
    """See that a replica has left, to its last request."""
    pods = scaled.target.kubectl.list("pods", NAMESPACE, scaled.selector)
    assert 1 <= len(pods) < MOST


def _is_true(found: bool) -> None:
    assert found
