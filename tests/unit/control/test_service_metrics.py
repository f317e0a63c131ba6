"""What the operator shows Prometheus of each service, as long as the service is there."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, Metric

from tests.unit.control.builders import NAME, NAMESPACE, body
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_reconcile_pass import KEY, NOW, edit, finish_rollouts, parts
from weir_core.errors import ClusterRefuses
from weir_operator.kinds import SERVICE
from weir_operator.metrics import Metrics
from weir_operator.reconcile import UNREADABLE_FOR, Outcome, Reconciler
from weir_operator.render import Images

OF = {"namespace": NAMESPACE, "service": NAME}


def shown(metrics: Metrics, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return a metric's series by the values of some labels."""
    found: list[Metric] = [each for each in metrics.registry.collect() if each.name == name]
    samples = [sample for family in found for sample in family.samples]
    assert all(OF.items() <= sample.labels.items() for sample in samples)
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in samples}


async def test_conditions_and_replicas_follow_the_service_until_it_is_gone() -> None:
    cluster = MemoryCluster(body({"replicas": 2}))
    metrics = Metrics(CollectorRegistry())
    reconciler = Reconciler(cluster, parts(Images()), lambda: NOW, metrics)

    def ready() -> dict[tuple[str, ...], float]:
        series = shown(metrics, "weir_service_condition", "type", "status")
        return {labels: value for labels, value in series.items() if labels[0] == "Ready"}

    def replicas() -> dict[tuple[str, ...], float]:
        return shown(metrics, "weir_service_replicas", "pool", "state")

    await reconciler.run(KEY)
    assert ready() == {("Ready", "False"): 1}
    assert replicas() == {
        ("cpu", "wanted"): 2,
        ("cpu", "existing"): 0,
        ("cpu", "updated"): 0,
        ("cpu", "ready"): 0,
    }
    finish_rollouts(cluster)
    await reconciler.run(KEY)
    assert ready() == {("Ready", "True"): 1}
    assert set(replicas().values()) == {2}

    edit(cluster, {"pools": [{"name": "other", "accelerator": {"count": 0}}]})
    await reconciler.run(KEY)
    finish_rollouts(cluster)
    await reconciler.run(KEY)
    await reconciler.run(KEY)
    assert {pool for pool, _ in replicas()} == {"other"}

    del cluster.objects[SERVICE, NAMESPACE, NAME]
    assert await reconciler.run(KEY) is Outcome.GONE
    assert shown(metrics, "weir_service_condition") == {}
    assert shown(metrics, "weir_service_replicas") == {}


async def test_workloads_that_cannot_be_read_are_not_taken_for_none() -> None:
    cluster = MemoryCluster(body({"replicas": 2}))
    metrics = Metrics(CollectorRegistry())
    reconciler = Reconciler(cluster, parts(Images()), lambda: NOW, metrics)
    await reconciler.run(KEY)
    finish_rollouts(cluster)
    await reconciler.run(KEY)
    seen = shown(metrics, "weir_service_replicas", "state")
    cluster.forbidden = {"Deployment"}
    with pytest.raises(ClusterRefuses):
        await reconciler.run(KEY)
    del seen["wanted",]
    assert shown(metrics, "weir_service_replicas", "state") == seen


async def test_a_service_that_may_not_be_read_for_long_is_followed_no_longer() -> None:
    """Its namespace was deleted, and the operator's Role in it went first."""
    cluster = MemoryCluster(body())
    metrics = Metrics(CollectorRegistry())
    now = NOW
    reconciler = Reconciler(cluster, parts(Images()), lambda: now, metrics)
    await reconciler.run(KEY)
    seen = shown(metrics, "weir_service_condition", "type")

    for _ in range(2):  # the right comes back in between, and every refusal counts anew
        cluster.forbidden = {"InferenceService"}
        with pytest.raises(ClusterRefuses):
            await reconciler.run(KEY)
        now += UNREADABLE_FOR - timedelta(seconds=1)
        with pytest.raises(ClusterRefuses):
            await reconciler.run(KEY)
        assert shown(metrics, "weir_service_condition", "type") == seen
        cluster.forbidden = set()
        await reconciler.run(KEY)

    cluster.forbidden = {"InferenceService"}
    with pytest.raises(ClusterRefuses):
        await reconciler.run(KEY)
    now += UNREADABLE_FOR
    assert await reconciler.run(KEY) is Outcome.GONE
    assert shown(metrics, "weir_service_condition") == {}
    with pytest.raises(ClusterRefuses):  # something asked for a pass none the less
        await reconciler.run(KEY)
