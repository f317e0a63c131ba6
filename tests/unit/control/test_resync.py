"""A resync finds what no watch told of, and costs next to nothing where nothing has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.unit.control.builders import (
    NAMESPACE,
    body,
    facts,
    no_adapters,
    no_autoscaling,
    serving_pod,
)
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_reconcile_pass import finish_rollouts
from tests.unit.control.virtual_time import VirtualTime
from weir_core.errors import ClusterRefuses, ClusterUnavailable, EngineUnavailable, InvalidSpec
from weir_core.units import Seconds
from weir_operator.engines import Engines
from weir_operator.interests import Interests
from weir_operator.kinds import SECRET, Kind
from weir_operator.parts import (
    AdaptersOf,
    Network,
    Policies,
    Prefetch,
    Scaling,
    Scheduling,
    Workloads,
)
from weir_operator.queue import WorkQueue
from weir_operator.reconcile import Key, Reconciler
from weir_operator.render import Access, Images
from weir_operator.resync import Resync
from weir_operator.watches import Topic

NAMES = tuple(f"chat-{number}" for number in range(200))
TENANT: Manifest = {
    "apiVersion": "serving.weir.dev/v1alpha1",
    "kind": "InferenceTenant",
    "metadata": {"name": "app", "namespace": NAMESPACE, "uid": "uid-t"},
    "spec": {"apiKeySecretRef": {"name": "keys"}},
}
KEYS: Manifest = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "keys", "namespace": NAMESPACE, "uid": "uid-k"},
    "data": {"key": "YTBhMA=="},
}


class Bench:
    """An operator over some services, each with a pod, whose watches tell of nothing."""

    def __init__(self, *names: str, tenants: bool = False) -> None:
        services = [body(name=name, uid=f"uid-{name}") for name in names]
        self.cluster = MemoryCluster(*services, *([TENANT, KEYS] if tenants else ()))
        for name in names:
            pod = serving_pod()
            pod["metadata"] |= {"name": f"{name}-1", "uid": f"uid-{name}-1"}
            self.cluster.all_pods[NAMESPACE, name] = [pod]
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.silent = False
        self.remark = ""
        self.blind: set[Topic] = set()
        self.queue: WorkQueue[Key] = WorkQueue(lambda: 0.0)
        interests: Interests[tuple[str, str]] = Interests()
        autoscaling = no_autoscaling()
        self.parts = (
            Policies(interests, lambda: "5e" * 32, lambda: self.now),
            Network(Access()),
            Workloads(Images(), autoscaling.asked),
            Prefetch(Images()),
            Scaling(autoscaling, lambda: self.now),
            Scheduling(Engines(self._ask, lambda: 0.0)),
            AdaptersOf(no_adapters()),
        )
        self.reconciler = Reconciler(
            self.cluster, self.parts, lambda: self.now, remark=lambda: self.remark
        )
        self.resync = Resync(
            self.queue,
            self.cluster,
            interests,
            self.blind,
            self.reconciler.is_idle,
            lambda: self.remark,
        )

    async def _ask(self, address: str, *_: object) -> Any:
        if self.silent:
            raise EngineUnavailable(f"{address} did not answer")
        return facts()

    async def look(self) -> list[str]:
        """Look once, make the passes that are asked for, and return of which services."""
        await self.resync.look()
        passed = []
        while len(self.queue):
            key = await self.queue.get()
            passed.append(key.name)
            await self.reconciler.run(key)
            self.queue.done(key)
        return passed

    def finish_rollouts(self) -> None:
        """Do what the Deployment controller would; the pods are there already."""
        pods = self.cluster.all_pods
        finish_rollouts(self.cluster)
        self.cluster.all_pods = pods

    async def settle(self) -> None:
        """Look until no pass is asked for any more."""
        await self.look()
        self.finish_rollouts()
        async with asyncio.timeout(60):
            while await self.look():
                pass


async def settled(*names: str, tenants: bool = False) -> Bench:
    bench = Bench(*names, tenants=tenants)
    await bench.settle()
    return bench


@pytest.mark.parametrize("blind", [False, True], ids=["Secrets are watched", "they are not"])
async def test_a_resync_of_unchanged_services_costs_a_tenth_of_their_passes(blind: bool) -> None:
    bench = Bench(*NAMES, tenants=True)
    if blind:
        bench.blind.add((SECRET, None))
    await bench.settle()
    before = bench.cluster.calls
    for name in NAMES:
        await bench.reconciler.run(Key(NAMESPACE, name))
    passes, before = bench.cluster.calls - before, bench.cluster.calls
    assert await bench.look() == []
    calls = bench.cluster.calls - before
    assert passes == 15 * len(NAMES)
    assert calls == 12 + (len(NAMES) + 1 if blind else 0)
    assert 10 * calls <= passes


def touch(kind: str, name: str) -> Callable[[Bench], None]:
    """Return what edits an object of a kind without a word."""

    def change(bench: Bench) -> None:
        one = bench.cluster.of(kind)[name]
        one["metadata"].setdefault("annotations", {})["edited"] = "yes"

    return change


def restart(bench: Bench) -> None:
    (pod,) = bench.cluster.all_pods[NAMESPACE, "a"]
    pod["status"]["containerStatuses"][0]["containerID"] = "another"


def delete(kind: str, name: str) -> Callable[[Bench], None]:
    """Return what deletes an object without a word."""

    def change(bench: Bench) -> None:
        of_kind = (at for at in bench.cluster.objects if (at[0].name, at[2]) == (kind, name))
        del bench.cluster.objects[next(of_kind)]

    return change


def say(bench: Bench) -> None:
    bench.remark = "the definitions are old"


@pytest.mark.parametrize(
    ("change", "want"),
    [
        pytest.param(touch("InferenceService", "a"), ["a"], id="the service"),
        pytest.param(touch("NetworkPolicy", "a"), ["a"], id="what it owns"),
        pytest.param(delete("PodDisruptionBudget", "a"), ["a"], id="what it owns is gone"),
        pytest.param(restart, ["a"], id="a pod"),
        pytest.param(touch("InferenceTenant", "app"), ["a", "b"], id="a tenant of the namespace"),
        pytest.param(delete("InferenceTenant", "app"), ["a", "b"], id="a tenant is gone"),
        pytest.param(say, ["a", "b"], id="what there is to say of every spec"),
    ],
)
async def test_what_changed_unseen_is_found(
    change: Callable[[Bench], None], want: list[str]
) -> None:
    bench = await settled("a", "b", tenants=True)
    change(bench)
    assert await bench.look() == want


@pytest.mark.parametrize("name", ["keys", "a-policies"])
async def test_secrets_that_no_watch_tells_of_are_read(name: str) -> None:
    bench = Bench("a", tenants=True)
    bench.blind.add((SECRET, None))
    await bench.settle()
    touch("Secret", name)(bench)
    assert await bench.look() == ["a"]


async def test_a_sidecar_that_is_silent_is_asked_again() -> None:
    bench = Bench("a")
    bench.silent = True
    await bench.look()
    bench.finish_rollouts()
    for _ in range(3):
        assert await bench.look() == ["a"]


async def test_a_key_whose_secret_is_gone_is_revoked_in_time() -> None:
    bench = await settled("a", tenants=True)
    delete("Secret", "keys")(bench)
    await bench.reconciler.run(Key(NAMESPACE, "a"))  # the watch told
    for _ in range(2):
        assert await bench.look() == ["a"]
    bench.now += timedelta(hours=1)
    await bench.look()
    said = bench.cluster.of("InferenceService")["a"]["status"]["conditions"]
    policies = next(each for each in said if each["type"] == "PoliciesReady")
    assert policies["status"] == "False"


async def test_a_secret_that_may_not_be_read_is_tried_again() -> None:
    """To grant the right changes no object, so that no watch and no version tells of it."""
    bench = await settled("a", tenants=True)
    find = bench.cluster.find

    async def refuse(kind: Kind, namespace: str, name: str) -> Manifest | None:
        if (kind, name) == (SECRET, "keys"):
            raise ClusterRefuses("no right")
        return await find(kind, namespace, name)

    bench.cluster.find = refuse  # type: ignore[method-assign]
    await bench.reconciler.run(Key(NAMESPACE, "a"))
    for _ in range(2):
        assert await bench.look() == ["a"]
    bench.cluster.find = find  # type: ignore[method-assign]
    await bench.settle()
    assert await bench.look() == []


async def test_a_service_that_still_starts_is_looked_at_again() -> None:
    bench = Bench("a")
    for _ in range(3):
        assert await bench.look() == ["a"]


async def test_a_change_during_a_pass_is_no_reason_to_leave_a_service_alone() -> None:
    bench = await settled("a")
    touch("InferenceService", "a")(bench)
    await bench.resync.look()
    await bench.reconciler.run(await bench.queue.get())
    touch("InferenceService", "a")(bench)
    touch("Deployment", "a-cpu")(bench)
    bench.queue.done(Key(NAMESPACE, "a"))
    assert await bench.look() == ["a"]


@pytest.mark.parametrize("kind", ["NetworkPolicy", "InferenceTenant", "Secret"])
async def test_what_may_not_be_read_keeps_no_service_from_its_passes(kind: str) -> None:
    bench = Bench("a", "b", tenants=True)
    bench.blind.add((SECRET, None))
    await bench.settle()
    bench.cluster.forbidden = {kind}
    await bench.resync.look()
    assert len(bench.queue) == 2


async def test_that_a_kind_no_service_needs_cannot_be_read_asks_for_no_pass() -> None:
    bench = await settled("a")
    bench.cluster.forbidden = {"Job", "LeaderWorkerSet"}
    assert await bench.look() == []


async def test_a_service_that_is_gone_is_forgotten() -> None:
    bench = await settled("a", "b")
    gone = bench.cluster.of("InferenceService")["a"]
    delete("InferenceService", "a")(bench)
    assert await bench.look() == ["a"]  # whose pass forgets it, though no watch told
    assert await bench.look() == []
    bench.cluster.put(gone)
    assert await bench.look() == ["a"]


@pytest.mark.parametrize(
    "down",
    [
        pytest.param(None, id="the cluster answers"),
        pytest.param(ClusterUnavailable("connection refused"), id="not at first"),
        pytest.param(InvalidSpec("", "the list is refused"), id="with a refusal at first"),
        pytest.param(KeyError("metadata"), id="with what nothing foresaw at first"),
    ],
)
def test_it_looks_at_once_and_after_each_interval(down: Exception | None) -> None:
    async def follow() -> None:
        bench = Bench("a")
        bench.cluster.down = down
        following = asyncio.ensure_future(bench.resync.follow(Seconds(300)))
        await asyncio.sleep(1)
        assert len(bench.queue) == (0 if down else 1)
        bench.cluster.down = None
        await asyncio.sleep(300)
        assert len(bench.queue) == 1
        following.cancel()

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(follow())
