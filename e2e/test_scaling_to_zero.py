"""A service without replicas: woken by its first requests, grown by more, asleep again.

On the way one of its gateways is deleted while requests wait at both, the operator is killed, and
the API server does not answer when a request comes. The engines are MOCKS, as in
`test_scaling_by_work`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import httpx
import pytest

from e2e.eventually import eventually, throughout
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MODEL, NAMESPACE, READY_WITHIN_S, Service
from e2e.test_api_server_outage import outage
from e2e.test_scaling_by_work import MOCK, MORE, SPEC
from e2e.traffic import chatting
from weir_core.api import labels

SCALING: dict[str, Any] = {**SPEC["scaling"], "minReplicas": 0, "idleTimeout": "20s"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Wake up."}], "max_tokens": 8}
GATEWAYS = 2
OUTAGE_S = 8.0
"""Shorter than the operator's Lease, so that the one that heard of the request writes the wake."""


@pytest.fixture
def asleep(weir: Installation, patient_classes: None) -> Iterator[Service]:
    """A service that may have no replicas, and has none."""
    service = Service(weir.target, "seldom", {**SPEC, "scaling": SCALING}, pod_patch=MOCK)
    manifest = service.manifest
    manifest["spec"].pop("replicas")
    weir.target.kubectl.apply(manifest)
    wait_asleep(service)
    yield service
    service.delete()


def test_its_first_requests_wake_it_and_none_is_lost(
    weir: Installation, asleep: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    gateways = pods_of(asleep, labels.GATEWAY)
    addresses = [f"http://{pod['status']['podIP']}:{labels.API_PORT}" for pod in gateways]
    with ThreadPoolExecutor() as clients:
        weir.kill()
        waiting = [clients.submit(chat, url) for url in (*addresses, asleep.url())]
        name = gateways[0]["metadata"]["name"]
        kubectl = asleep.target.kubectl
        kubectl("delete", "pod", name, f"--namespace={NAMESPACE}", "--wait=false")
        assert [each.result() for each in waiting] == [200] * len(waiting)
    with ExitStack() as crowd:
        more = [crowd.enter_context(chatting(asleep.url(), MODEL)) for _ in range(MORE)]
        eventually(lambda: grown(asleep), within_s=READY_WITHIN_S)
    assert [each.failures for each in more] == [[]] * MORE
    wait_asleep(asleep)
    took_s = first_token_s(asleep.url())
    with capsys.disabled():
        start = eventually(lambda: start_of(asleep))
        sys.stdout.write(f"\nfirst token after {took_s:.2f} s; {start}\n")
    wait_asleep(asleep)
    url = asleep.url()  # the API server is asked for it
    with ThreadPoolExecutor() as clients:
        with outage(asleep.target.kubectl):
            held = clients.submit(chat, url)
            throughout(lambda: None, for_s=OUTAGE_S)
        assert held.result() == 200
    told = asleep.target.kubectl.list("events", NAMESPACE)
    reasons = {each["reason"] for each in told if each["involvedObject"]["name"] == asleep.name}
    assert {"Woken", "Asleep", "ScaledUp"} <= reasons, reasons


def chat(url: str) -> int:
    """Return the status of one chat, which waits until the model is there."""
    return httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=READY_WITHIN_S).status_code


def first_token_s(url: str) -> float:
    """Return how long a chat that streams takes to its first event."""
    began = time.monotonic()
    chats = f"{url}/v1/chat/completions"
    asked = {**CHAT, "stream": True}
    with httpx.stream("POST", chats, json=asked, timeout=READY_WITHIN_S) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))
        took_s = time.monotonic() - began
        assert answer.status_code == 200
    return took_s


def start_of(service: Service) -> str:
    """Return how long the one replica took, once the kubelet has said so, in whole seconds."""
    (pod,) = pods_of(service, "replica")
    (engine,) = pod["status"]["containerStatuses"]
    conditions = pod["status"]["conditions"]
    is_ready = {each["type"]: each["lastTransitionTime"] for each in conditions if _holds(each)}
    created, started, ready = map(
        datetime.fromisoformat,
        (
            pod["metadata"]["creationTimestamp"],
            engine["state"]["running"]["startedAt"],
            is_ready["Ready"],
        ),
    )
    return (
        f"its pod's engine was started after {(started - created).total_seconds():.0f} s, and it "
        f"was ready after {(ready - created).total_seconds():.0f} s"
    )


def _holds(condition: Manifest) -> bool:
    return bool(condition["status"] == "True")


def pods_of(service: Service, component: str) -> list[Manifest]:
    """Return the gateways or the replicas of a service, those that leave as well."""
    selector = f"{service.selector},{labels.COMPONENT}={component}"
    return service.target.kubectl.list("pods", NAMESPACE, selector)


def grown(service: Service) -> None:
    """See that there are several replicas."""
    assert service.object()["status"]["readyReplicas"] > 1


def wait_asleep(service: Service) -> None:
    """Wait until no replica is left, and both gateways take requests."""

    def sleeps() -> None:
        assert service.object()["status"]["readyReplicas"] == 0
        assert pods_of(service, "replica") == []
        (deployment,) = service.target.kubectl.list(
            "deployments", NAMESPACE, f"{service.selector},{labels.COMPONENT}={labels.GATEWAY}"
        )
        assert deployment["status"].get("availableReplicas") == GATEWAYS
        assert len(pods_of(service, labels.GATEWAY)) == GATEWAYS

    eventually(sleeps, within_s=READY_WITHIN_S)
    service.says("Ready", "True", "Asleep")
