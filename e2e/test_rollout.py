"""A new pod template rolls out under traffic, and no client notices."""

from __future__ import annotations

from e2e.service import MODEL, Service
from e2e.traffic import chatting


def test_a_rolling_update_under_traffic_fails_no_request(quickstart: Service) -> None:
    before = quickstart.pod()["metadata"]["uid"]
    with chatting(quickstart.url(), MODEL) as traffic:
        quickstart.patch({"engine": {"env": [{"name": "EXAMPLE", "value": "changed"}]}})
        quickstart.observed()
        quickstart.wait_replaced(before)
        quickstart.wait_ready(replicas=1)
        quickstart.wait_gone(replicas=1)
    assert traffic.answered > 0
    assert traffic.failures == []
