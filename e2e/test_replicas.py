"""The number of replicas follows whoever sets it: `kubectl scale` or an edit."""

from __future__ import annotations

from e2e.service import MODEL, NAMESPACE, Service
from e2e.traffic import chatting


def test_scaling_up_and_down_serves_every_request(quickstart: Service) -> None:
    scale = ("scale", f"infs/{quickstart.name}", f"--namespace={NAMESPACE}")
    with chatting(quickstart.url(), MODEL) as traffic:
        quickstart.target.kubectl(*scale, "--replicas=2")
        quickstart.wait_ready(replicas=2)
        quickstart.patch({"replicas": 1})
        quickstart.wait_ready(replicas=1)
        quickstart.wait_gone(replicas=1)
    assert traffic.answered > 0
    assert traffic.failures == []


def test_zero_replicas_stop_every_engine_and_say_so(empty_service: Service) -> None:
    assert empty_service.pods() == []
    assert empty_service.object()["status"]["replicas"] == 0
