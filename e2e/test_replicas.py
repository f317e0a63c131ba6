"""The number of replicas follows whoever sets it: `kubectl scale` or an edit."""

from __future__ import annotations

from e2e.eventually import eventually
from e2e.service import MODEL, NAMESPACE, Service
from e2e.traffic import chatting


def test_scaling_up_and_down_serves_every_request(mocked: Service) -> None:
    scale = ("scale", f"infs/{mocked.name}", f"--namespace={NAMESPACE}")
    with chatting(mocked.url(), MODEL) as traffic:
        mocked.target.kubectl(*scale, "--replicas=2")
        mocked.wait_ready(replicas=2)
        mocked.patch({"replicas": 1})
        mocked.wait_ready(replicas=1)
        mocked.wait_gone(replicas=1)
    assert traffic.answered > 0
    assert traffic.failures == []


def test_a_replica_that_is_not_wanted_any_more_goes_while_its_engine_loads(
    quickstart: Service,
) -> None:
    quickstart.patch({"replicas": 2})

    def loading() -> None:
        engines = [
            pod["status"].get("containerStatuses", [{"state": {}}])[0] for pod in quickstart.pods()
        ]
        started = [engine.get("started") for engine in engines if "running" in engine["state"]]
        assert sorted(started) == [False, True]

    eventually(loading)
    quickstart.patch({"replicas": 1})
    quickstart.wait_gone(replicas=1)  # by itself: the pods' grace period is longer than any wait


def test_zero_replicas_stop_every_engine_and_say_so(empty_service: Service) -> None:
    assert empty_service.pods() == []
    assert empty_service.object()["status"]["replicas"] == 0
