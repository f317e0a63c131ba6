"""The loop around passes: what a failure means for the queue, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from tests.unit.control.builders import NAME, NAMESPACE, body
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_reconcile_pass import parts
from weir_core.errors import ClusterUnavailable
from weir_core.units import Seconds
from weir_operator.kinds import API_SERVICE, SERVICE
from weir_operator.metrics import Metrics
from weir_operator.queue import WorkQueue
from weir_operator.reconcile import Key, Reconciler
from weir_operator.render import Images
from weir_operator.worker import RECHECK, work

KEY = Key(NAMESPACE, NAME)
AT_ONCE = Seconds(0)


class Bench:
    """A worker over a cluster in memory."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.cluster = cluster
        self.now = 0.0
        self.queue: WorkQueue[Key] = WorkQueue(lambda: self.now, first_delay=Seconds(3))
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        now = datetime(2026, 1, 1, tzinfo=UTC)
        self.reconciler = Reconciler(cluster, parts(Images()), lambda: now)

    async def passes(self, count: int) -> None:
        """Let the worker run so many passes."""
        await until(lambda: self.count() >= count, work(self.queue, self.reconciler, self.metrics))

    def count(self, **outcome: str) -> float:
        """Return how many passes ended, or ended so."""
        if outcome:
            found = self.registry.get_sample_value("weir_operator_passes_total", outcome)
            return found or 0.0
        return self.registry.get_sample_value("weir_operator_pass_seconds_count") or 0.0

    def services(self, outcome: str) -> float | None:
        """Return how many services are in that state."""
        return self.registry.get_sample_value("weir_operator_services", {"outcome": outcome})


async def until(true: Callable[[], bool], job: Awaitable[Any]) -> None:
    """Run a job that never ends until something holds."""
    task = asyncio.ensure_future(job)
    try:
        async with asyncio.timeout(5):
            while not true():
                await asyncio.sleep(0)
                if task.done():
                    task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_rollout_is_looked_at_again_without_an_event() -> None:
    bench = Bench(MemoryCluster(body()))
    bench.queue.add(KEY)
    await bench.passes(1)
    assert bench.count(outcome="progressing") == 1
    assert len(bench.queue) == 1
    bench.now = RECHECK
    await bench.passes(2)
    assert bench.count(outcome="progressing") == 2


async def test_an_outage_is_waited_out() -> None:
    bench = Bench(MemoryCluster(body()))
    bench.cluster.down = ClusterUnavailable("connection refused")
    bench.queue.add(KEY)
    await bench.passes(1)
    bench.cluster.down = None
    bench.now = 3
    await bench.passes(2)
    assert (bench.count(outcome="unavailable"), bench.count(outcome="progressing")) == (1, 1)


async def test_a_service_that_waits_for_an_earlier_one_of_its_name_is_tried_again_soon() -> None:
    service = body()
    owner = {key: service[key] for key in ("apiVersion", "kind")}
    owners = [{**owner, "name": NAME, "uid": "an earlier one's"}]
    meta = {"name": NAME, "namespace": NAMESPACE, "ownerReferences": owners}
    left = {"apiVersion": "v1", "kind": "Service", "metadata": meta}
    bench = Bench(MemoryCluster(body(), left))
    bench.queue.add(KEY)
    await bench.passes(1)
    bench.cluster.objects.pop((API_SERVICE, NAMESPACE, NAME))
    bench.now = 3
    await bench.passes(2)
    assert (bench.count(outcome="waiting"), bench.count(outcome="progressing")) == (1, 1)


async def test_a_wrong_spec_is_not_tried_again() -> None:
    bench = Bench(MemoryCluster(body({"replicas": -1})))
    bench.queue.add(KEY)
    await bench.passes(1)
    assert bench.count(outcome="rejected") == 1
    assert len(bench.queue) == 0


async def test_an_error_nobody_foresaw_ends_one_pass_and_not_the_worker() -> None:
    bench = Bench(MemoryCluster({**body(), "metadata": {"namespace": NAMESPACE, "name": NAME}}))
    broken = bench.cluster.objects.pop(next(iter(bench.cluster.objects)))
    del broken["metadata"]
    bench.cluster.objects[SERVICE, *KEY] = broken
    bench.queue.add(KEY)
    bench.queue.add(Key(NAMESPACE, "another"))
    await bench.passes(2)
    assert (bench.count(outcome="failed"), bench.count(outcome="gone")) == (1, 1)


async def test_services_are_counted_by_how_their_last_pass_ended() -> None:
    bench = Bench(MemoryCluster(body({"replicas": -1})))
    bench.queue.add(KEY)
    await bench.passes(1)
    assert bench.services("rejected") == 1
    bench.cluster.put(body())
    bench.queue.add(KEY)
    await bench.passes(2)
    assert (bench.services("rejected"), bench.services("progressing")) == (0, 1)
    bench.cluster.objects.clear()
    bench.queue.add(KEY)
    await bench.passes(3)
    assert bench.services("progressing") == 0
