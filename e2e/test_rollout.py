"""Pods are replaced under traffic, by a new template or a new pool, and no client notices."""

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


def test_renaming_a_pool_under_traffic_fails_no_request(mocked: Service) -> None:
    (pool,) = mocked.object()["spec"]["pools"]
    before = mocked.pod()["metadata"]["uid"]
    with chatting(mocked.url(), MODEL) as traffic:
        mocked.patch({"pools": [{**pool, "name": "renamed"}]})
        mocked.observed()
        mocked.wait_replaced(before)
        mocked.wait_ready(replicas=1)
        mocked.wait_gone(replicas=1)
    assert list(mocked.templates()) == [f"{mocked.name}-renamed"]
    assert traffic.answered > 0
    assert traffic.failures == []
