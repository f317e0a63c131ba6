"""Leader election: the decision as a table, the elector against a Lease in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from weir_core.errors import ClusterUnavailable
from weir_core.units import Seconds
from weir_operator.kinds import Kind
from weir_operator.lease import Elector, Sighting, may_take, sighted
from weir_operator.settings import Leadership

SETTINGS = Leadership(namespace="weir-system", identity="me", duration=Seconds(15))
DURATION = SETTINGS.duration


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def elector(cluster: MemoryCluster, identity: str, clock: Clock) -> Elector:
    return Elector(cluster, replace(SETTINGS, identity=identity), clock)


def holder(cluster: MemoryCluster) -> str:
    (lease,) = cluster.of("Lease").values()
    return str(lease["spec"]["holderIdentity"])


@pytest.mark.parametrize(
    ("sighting", "now", "want"),
    [
        pytest.param(None, 0, True, id="there is no Lease"),
        pytest.param(Sighting("", "1", since=0), 1, True, id="it was given back"),
        pytest.param(Sighting("me", "1", since=0), 1, True, id="it is ours"),
        pytest.param(Sighting("other", "1", since=0), 14.9, False, id="its holder may live"),
        pytest.param(Sighting("other", "1", since=0), 15, True, id="its holder was silent"),
    ],
)
def test_may_take(sighting: Sighting | None, now: float, want: bool) -> None:
    assert may_take(sighting, "me", DURATION, now) is want


@pytest.mark.parametrize(
    ("version", "want"),
    [
        pytest.param("1", 0.0, id="the same record counts from when it was first seen"),
        pytest.param("2", 9.0, id="a renewal counts from now"),
    ],
)
def test_silence_is_measured_by_this_clock(version: str, want: float) -> None:
    lease: Manifest = {
        "metadata": {"resourceVersion": version},
        "spec": {"holderIdentity": "other", "renewTime": "1970-01-01T00:00:00Z"},
    }
    seen = sighted(lease, Sighting("other", "1", since=0.0), now=9.0)
    assert seen is not None
    assert seen.since == want


async def test_of_two_only_one_leads() -> None:
    cluster, clock = MemoryCluster(), Clock()
    first, second = elector(cluster, "a", clock), elector(cluster, "b", clock)
    assert await first._attempt()
    assert not await second._attempt()
    assert holder(cluster) == "a"


async def test_the_charts_lease_is_free_and_keeps_what_the_chart_wrote() -> None:
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    meta = {"name": SETTINGS.name, "namespace": SETTINGS.namespace, "labels": labels}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
    cluster = MemoryCluster({**lease, "metadata": {**meta, "resourceVersion": "7"}})
    assert await elector(cluster, "a", Clock())._attempt()
    assert holder(cluster) == "a"
    (written,) = cluster.of("Lease").values()
    assert written["metadata"]["labels"] == labels


async def test_a_standby_takes_over_from_a_silent_holder_and_the_holder_notices() -> None:
    cluster, clock = MemoryCluster(), Clock()
    first, second = elector(cluster, "a", clock), elector(cluster, "b", clock)
    await first._attempt()
    await second._attempt()
    clock.now = DURATION
    assert await second._attempt()
    assert not await first._attempt()
    assert holder(cluster) == "b"
    (lease,) = cluster.of("Lease").values()
    assert lease["spec"]["leaseTransitions"] == 1


async def test_a_renewing_holder_is_never_replaced() -> None:
    cluster, clock = MemoryCluster(), Clock()
    first, second = elector(cluster, "a", clock), elector(cluster, "b", clock)
    for _ in range(20):
        assert await first._attempt()
        assert not await second._attempt()
        clock.now += SETTINGS.renew_interval


async def test_a_restarted_operator_of_the_same_name_need_not_wait() -> None:
    cluster, clock = MemoryCluster(), Clock()
    await elector(cluster, "a", clock)._attempt()
    async with asyncio.timeout(5):
        again = elector(cluster, "a", clock)
        await again.acquire()
    assert again.leading


async def test_a_lease_given_back_is_free_at_once() -> None:
    cluster, clock = MemoryCluster(), Clock()
    first, second = elector(cluster, "a", clock), elector(cluster, "b", clock)
    await first.acquire()
    await first.release()
    assert holder(cluster) == ""
    assert await second._attempt()


async def test_who_was_replaced_gives_nothing_back() -> None:
    cluster, clock = MemoryCluster(), Clock()
    first, second = elector(cluster, "a", clock), elector(cluster, "b", clock)
    await first.acquire()
    await second._attempt()
    clock.now = DURATION
    await second._attempt()
    await first.release()
    assert holder(cluster) == "b"


async def test_an_outage_is_no_answer_and_no_error() -> None:
    cluster, clock = MemoryCluster(), Clock()
    candidate = elector(cluster, "a", clock)
    cluster.down = ClusterUnavailable("connection refused")
    assert not await candidate._attempt()
    cluster.down = None
    assert await candidate._attempt()


class SlowCluster(MemoryCluster):
    """Every question takes as long as it is until the next one."""

    def __init__(self, clock: Clock, settings: Leadership) -> None:
        super().__init__()
        self.clock = clock
        self.settings = settings

    async def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        self.clock.now += self.settings.renew_interval
        return await super().find(kind, namespace, name)


async def test_a_holder_that_cannot_renew_stops_before_others_may_start() -> None:
    clock, settings = Clock(), replace(SETTINGS, identity="a", duration=Seconds(0.4))
    cluster = SlowCluster(clock, settings)
    leader = Elector(cluster, settings, clock)
    await leader.acquire()
    seen_by_others = Sighting("a", "1", since=clock.now)
    cluster.down = ClusterUnavailable("connection refused")
    async with asyncio.timeout(30):
        await leader.keep()
    assert not leader.leading
    assert not may_take(seen_by_others, "b", settings.duration, clock.now)
