"""KEDA and the HPA that it makes scale a service by Weir's own number, from zero and to zero.

The real ones: KEDA's operator asks the scaler in Weir's, its metrics adapter answers the HPA, and
the HPA controller writes the scale subresource. The ScaledObject is the one of autoscaling.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from e2e import keda
from e2e.eventually import eventually
from e2e.installation import NAMESPACE as WEIR
from e2e.installation import Installation
from e2e.kube import conditions
from e2e.service import MODEL, NAMESPACE, READY_WITHIN_S, Service
from e2e.test_autoscaling import documented
from e2e.test_scaling_by_work import MOCK, MORE, SPEC
from e2e.test_scaling_to_zero import SCALING, chat, grown, wait_asleep
from e2e.traffic import chatting

NAME = "chat"
"""Of the service that autoscaling.md names."""
NEVER_S = 3600
"""A polling interval with which only what is pushed counts."""


@pytest.fixture
def scaler(weir: Installation) -> Iterator[str]:
    """The address of the scaler, which the chart leaves out unless told."""
    weir.upgrade({"externalScaler": {"enabled": True}})
    yield keda.address_of(weir.target.kubectl, "weir-scaler", WEIR)
    weir.upgrade({})


@pytest.fixture
def advised(weir: Installation, scaler: str, patient_classes: None) -> Iterator[Service]:
    """A service that may have no replicas, and has none; nothing scales it yet."""
    overrides: dict[str, Any] = {**SPEC, "replicas": 0, "scaling": {**SCALING, "mode": "Advise"}}
    service = Service(weir.target, NAME, overrides, pod_patch=MOCK)
    service.apply()
    wait_asleep(service)
    yield service
    service.delete()


@pytest.fixture
def scaled(advised: Service, scaler: str) -> Iterator[Service]:
    """The same with a ScaledObject, which does not poll yet."""
    kubectl = advised.target.kubectl
    installed = keda.install(kubectl, {f"weir-scaler.{WEIR}": scaler})
    manifest = documented("ScaledObject")
    kubectl.apply({**manifest, "spec": {**manifest["spec"], "pollingInterval": NEVER_S}})
    where = (f"scaledobject.keda.sh/{NAME}", f"--namespace={NAMESPACE}")
    kubectl("wait", "--for=condition=Ready", *where, "--timeout=60s", timeout_s=90)
    yield advised
    kubectl("delete", *where, timeout_s=90)  # its finalizer is KEDA's
    keda.uninstall(kubectl, installed)


def test_keda_wakes_grows_and_shrinks_a_service_by_its_work_and_no_request_fails(
    weir: Installation, scaled: Service
) -> None:
    assert chat(scaled.url()) == 200
    scaled.target.kubectl.apply(documented("ScaledObject"))
    with ExitStack() as crowd:
        more = [crowd.enter_context(chatting(scaled.url(), MODEL)) for _ in range(MORE)]
        eventually(lambda: grown(scaled), within_s=READY_WITHIN_S)
    assert [each.failures for each in more] == [[]] * MORE
    wait_asleep(scaled)
    (operator,) = weir.pods()
    where = (operator["metadata"]["name"], f"--namespace={WEIR}")
    scaled.target.kubectl("delete", "pod", *where, timeout_s=90)
    assert chat(scaled.url()) == 200
    said = conditions(scaled.object())["ScalingReady"]
    assert said["message"].startswith("another autoscaler is told: "), said
