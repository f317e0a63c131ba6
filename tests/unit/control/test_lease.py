"""Leader election: the decision as a table, the elector against a Lease in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.virtual_time import VirtualTime
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


async def test_a_lease_that_is_there_already_keeps_what_others_wrote() -> None:
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    meta = {"name": SETTINGS.name, "namespace": SETTINGS.namespace, "labels": labels}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
    cluster = MemoryCluster({**lease, "metadata": {**meta, "resourceVersion": "7"}})
    assert await elector(cluster, "a", Clock())._attempt()
    assert holder(cluster) == "a"
    (written,) = cluster.of("Lease").values()
    assert written["metadata"]["labels"] == labels


async def test_the_first_operator_creates_the_lease() -> None:
    cluster = MemoryCluster()
    assert await elector(cluster, "a", Clock())._attempt()
    (lease,) = cluster.of("Lease").values()
    assert lease["metadata"]["name"] == SETTINGS.name
    assert lease["spec"]["leaseTransitions"] == 0


async def test_a_lease_that_was_deleted_is_its_holders_for_as_long_as_before() -> None:
    cluster, clock = MemoryCluster(), Clock()
    first, second = elector(cluster, "a", clock), elector(cluster, "b", clock)
    assert await first._attempt()
    assert not await second._attempt()
    cluster.objects.clear()
    clock.now = DURATION - 1
    assert not await second._attempt()
    assert await first._attempt()
    assert holder(cluster) == "a"


async def test_a_lease_that_was_deleted_and_stays_away_is_free_in_the_end() -> None:
    cluster, clock = MemoryCluster(), Clock()
    first, second = elector(cluster, "a", clock), elector(cluster, "b", clock)
    await first._attempt()
    await second._attempt()
    cluster.objects.clear()
    clock.now = DURATION
    assert await second._attempt()
    assert holder(cluster) == "b"


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


class Racing(MemoryCluster):
    """A renewal that was cut short is written just before the first write after it."""

    raced = False

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        if lease["spec"]["holderIdentity"] == "" and not self.raced:
            self.raced = True
            (late,) = self.of("Lease").values()
            await super().write_lease(late)
        return await super().write_lease(lease)


async def test_a_renewal_that_arrives_late_does_not_keep_the_lease_from_being_given_back() -> None:
    cluster = Racing()
    leader = elector(cluster, "a", Clock())
    await leader.acquire()
    await leader.release()
    assert holder(cluster) == ""


@pytest.mark.parametrize(
    ("spec", "waited", "want"),
    [
        pytest.param(None, 0, False, id="there is no Lease, and none can be made"),
        pytest.param({}, 0, False, id="it has no holder, and cannot be taken"),
        pytest.param({"holderIdentity": "other"}, 0, True, id="another one holds it"),
        pytest.param(
            {"holderIdentity": "other"}, 29.9, True, id="silent for nearly twice its time"
        ),
        pytest.param({"holderIdentity": "other"}, 30, False, id="silent for twice its time"),
    ],
)
async def test_a_standby_is_ready_while_another_operator_leads(
    spec: Manifest | None, waited: float, want: bool
) -> None:
    meta = {"name": SETTINGS.name, "namespace": SETTINGS.namespace, "resourceVersion": "7"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
    cluster, clock = Refusing(*([] if spec is None else [{**lease, "spec": spec}])), Clock()
    standby = elector(cluster, "a", clock)
    await standby._attempt()
    clock.now = waited
    await standby._attempt()
    assert standby.led is want


class Refusing(MemoryCluster):
    """Has no right to write a Lease."""

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        raise ClusterUnavailable(f"403: {lease['kind']}")


async def test_no_operator_is_known_to_lead_before_the_first_look() -> None:
    assert not elector(MemoryCluster(), "a", Clock()).led


async def test_the_leader_is_ready_while_it_renews() -> None:
    clock = Clock()
    leader = elector(MemoryCluster(), "a", clock)
    for _ in range(20):
        await leader._attempt()
        assert leader.led
        clock.now += SETTINGS.renew_interval
    clock.now += 2 * DURATION
    assert not leader.led


async def test_an_outage_is_no_answer_and_no_error() -> None:
    cluster, clock = MemoryCluster(), Clock()
    candidate = elector(cluster, "a", clock)
    cluster.down = ClusterUnavailable("connection refused")
    assert not await candidate._attempt()
    cluster.down = None
    assert await candidate._attempt()


class SlowCluster(MemoryCluster):
    """Each answer takes so many seconds; what it is to write is written before that."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.written = 0.0
        """When the last write was written: others see it then at the earliest."""

    async def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        await asyncio.sleep(self.seconds)
        return await super().find(kind, namespace, name)

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        written = await super().write_lease(lease)
        self.written = asyncio.get_running_loop().time()
        await asyncio.sleep(self.seconds)
        return written


@pytest.mark.parametrize("renewals", [0, 1, 3], ids=["never", "once", "thrice"])
@pytest.mark.parametrize("slow", [0.0, 1.0], ids=["an API server that is gone", "a slow one"])
def test_a_holder_that_cannot_renew_stops_before_others_may_start(
    renewals: int, slow: float
) -> None:
    async def lead() -> None:
        clock = asyncio.get_running_loop().time
        cluster = SlowCluster(slow)
        leader = Elector(cluster, SETTINGS, clock)
        await leader.acquire()
        keeping = asyncio.ensure_future(leader.keep())
        await asyncio.sleep(renewals * (SETTINGS.renew_interval + 2 * slow) + 0.1)
        cluster.seconds = DURATION if slow else 0.0
        cluster.down = None if slow else ClusterUnavailable("connection refused")
        await keeping
        assert not leader.leading
        seen_by_others = Sighting("me", "1", since=cluster.written)
        assert not may_take(seen_by_others, "b", DURATION, clock())
        assert cluster.written + DURATION - clock() >= SETTINGS.renew_interval

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(lead())


def test_a_holder_that_can_renew_leads_on() -> None:
    async def lead() -> None:
        leader = Elector(SlowCluster(1.0), SETTINGS, asyncio.get_running_loop().time)
        await leader.acquire()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(leader.keep(), 100 * DURATION)
        assert leader.leading

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(lead())
