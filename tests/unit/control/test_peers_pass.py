"""Sidecars learn of each other: addresses and keys in the Secret, one touch for each pod."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from tests.unit.control.builders import NAME, body, pod
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_policies_pass import document
from tests.unit.control.test_reconcile_pass import (
    KEY,
    edit,
    reconciler,
    templates,
)
from tests.unit.control.test_worker import Bench
from weir_core.errors import ClusterUnavailable
from weir_core.wire.policies import PolicyDocument
from weir_operator.kinds import SECRET
from weir_operator.render import POLICIES_ANNOTATION, digest_of
from weir_operator.views import Pod

ROTATE = "serving.weir.dev/rotate-peer-key"


def replica(name: str, ip: str = "", **fields: Any) -> Manifest:
    """Return a pod with a name of its own."""
    made = pod(ip=ip, **fields)
    made["metadata"]["name"] = name
    return made


def cluster_with(*pods: Manifest, **meta: Any) -> MemoryCluster:
    cluster = MemoryCluster(body(**meta))
    cluster.all_pods = {KEY: list(pods)}
    return cluster


def peers(cluster: MemoryCluster) -> dict[str, str]:
    """Return the addresses in the Secret by the names of the pods."""
    return {peer.name: peer.address for peer in document(cluster).peers}


def marks(cluster: MemoryCluster) -> dict[str, str | None]:
    """Return what each pod was last told, as its annotation says."""
    metas = [each["metadata"] for each in cluster.all_pods[KEY]]
    return {meta["name"]: meta.get("annotations", {}).get(POLICIES_ANNOTATION) for meta in metas}


async def rotate(cluster: MemoryCluster, value: str | None) -> tuple[str, ...]:
    """Have the user ask for another key; return those in force after a pass."""
    edit(cluster, annotations={} if value is None else {ROTATE: value})
    await reconciler(cluster).run(KEY)
    return document(cluster).peer_keys


async def test_every_pod_that_can_be_reached_is_a_peer() -> None:
    finished = [replica(phase, "10.0.0.8") for phase in ("Succeeded", "Failed")]
    for each in finished:
        each["status"]["phase"] = each["metadata"]["name"]
    cluster = cluster_with(
        replica("chat-b", "10.0.0.2"),
        replica("chat-a", "10.0.0.1", ready=True, pool="other"),
        replica("chat-c", "fd00::7"),
        replica("chat-d"),
        replica("chat-e", "10.0.0.9", leaving=True),
        *finished,
    )
    await reconciler(cluster).run(KEY)
    assert list(peers(cluster).items()) == [
        ("chat-a", "10.0.0.1:8002"),
        ("chat-b", "10.0.0.2:8002"),
        ("chat-c", "[fd00::7]:8002"),
    ]


@pytest.mark.parametrize("spec", [None, {"engine": {"args": ["--por=1"]}}], ids=["good", "refused"])
async def test_sidecars_get_one_key_and_keep_it(spec: dict[str, Any] | None) -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"))
    edit(cluster, spec)
    await reconciler(cluster).run(KEY)
    (key,) = document(cluster).peer_keys
    assert re.fullmatch("[0-9a-f]{64}", key)
    cluster.all_pods[KEY].append(replica("chat-b", "10.0.0.2"))
    await reconciler(cluster).run(KEY)
    assert len(peers(cluster)) == 2
    assert document(cluster).peer_keys == (key,)


async def test_two_services_have_different_keys() -> None:
    first, second = cluster_with(), cluster_with()
    await reconciler(first).run(KEY)
    await reconciler(second).run(KEY)
    assert document(first).peer_keys != document(second).peer_keys


async def test_a_rotation_adds_a_key_and_the_next_one_drops_the_oldest() -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"))
    await reconciler(cluster).run(KEY)
    (first,) = document(cluster).peer_keys
    second, kept = await rotate(cluster, "1")
    assert kept == first
    assert await rotate(cluster, "1") == (second, first)
    assert await rotate(cluster, None) == (second, first)
    third, kept = await rotate(cluster, "2")
    assert kept == second
    assert len({first, second, third}) == 3


async def test_a_rotation_that_the_first_pass_finds_is_none() -> None:
    cluster = cluster_with(annotations={ROTATE: "1"})
    await reconciler(cluster).run(KEY)
    (key,) = document(cluster).peer_keys
    await reconciler(cluster).run(KEY)
    assert document(cluster).peer_keys == (key,)


async def test_a_rotation_touches_every_pod_and_replaces_none() -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"), replica("chat-b", "10.0.0.2"))
    await reconciler(cluster).run(KEY)
    before, digests = templates(cluster), set(marks(cluster).values())
    cluster.touched.clear()
    await rotate(cluster, "1")
    assert sorted(cluster.touched) == ["chat-a", "chat-b"]
    assert digests.isdisjoint(marks(cluster).values())
    assert templates(cluster) == before


async def test_a_rotation_happens_once_wherever_passes_break_off() -> None:
    cluster = cluster_with(*(replica(f"chat-{n}", f"10.0.0.{n}") for n in range(1, 4)))
    await reconciler(cluster).run(KEY)
    (first,) = document(cluster).peer_keys
    edit(cluster, annotations={ROTATE: "1"})
    seen = set()
    for calls in range(20):
        cluster.calls_left = calls
        with suppress(ClusterUnavailable):
            await reconciler(cluster).run(KEY)
        seen.add(document(cluster).peer_keys)
    cluster.calls_left = None
    await reconciler(cluster).run(KEY)
    seen.add(document(cluster).peer_keys)
    assert len(seen - {(first,)}) == 1
    assert document(cluster).peer_keys[1:] == (first,)


async def test_a_pod_is_touched_once_and_only_when_its_own_address_is_in_the_secret() -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"), replica("chat-b"))
    await reconciler(cluster).run(KEY)
    assert cluster.touched == ["chat-a"]
    cluster.all_pods[KEY][1]["status"]["podIP"] = "10.0.0.2"
    await reconciler(cluster).run(KEY)
    await reconciler(cluster).run(KEY)
    assert cluster.touched == ["chat-a", "chat-b"]
    digest = digest_of(document(cluster))
    assert marks(cluster) == {
        "chat-a": f"{digest}@10.0.0.1:8002",
        "chat-b": f"{digest}@10.0.0.2:8002",
    }


async def test_a_pod_with_another_address_is_touched_again() -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"))
    await reconciler(cluster).run(KEY)
    cluster.all_pods[KEY][0]["status"]["podIP"] = "10.0.0.7"
    await reconciler(cluster).run(KEY)
    assert cluster.touched == ["chat-a", "chat-a"]


async def test_a_pod_that_leaves_is_no_peer_and_still_told_what_else_changes() -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"), replica("chat-b", "10.0.0.2"))
    await reconciler(cluster).run(KEY)
    cluster.all_pods[KEY][0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.touched.clear()
    await reconciler(cluster).run(KEY)
    assert list(peers(cluster)) == ["chat-b"]
    assert cluster.touched == []
    edit(cluster, {"engine": {"scheduling": {"mode": "throughput"}}})
    await reconciler(cluster).run(KEY)
    assert cluster.touched == ["chat-a", "chat-b"]
    assert marks(cluster)["chat-a"] == digest_of(document(cluster))


class Kubelets(MemoryCluster):
    """An API server whose pods mount the Secret anew when they are touched, and never else."""

    def __init__(self) -> None:
        super().__init__(body())
        self.all_pods = {KEY: []}
        self.mounted: dict[str, set[str]] = {}

    async def annotate_pod(self, pod: Pod, key: str, value: str) -> None:
        await super().annotate_pod(pod, key, value)
        self.mounted[pod.name] = set(peers(self))

    def start(self) -> None:
        """Have one more pod, without an address."""
        self.all_pods[KEY].append(replica(f"chat-{len(self.all_pods[KEY])}"))

    def give_address(self) -> None:
        """Give the pod that waits for an address longest one."""
        for number, each in enumerate(self.all_pods[KEY]):
            if not each["status"]["podIP"]:
                each["status"]["podIP"] = f"10.0.0.{number}"
                return

    async def passes(self, calls: int | None = None) -> None:
        """Run a pass that breaks off after so many calls."""
        self.calls_left = calls
        with suppress(ClusterUnavailable):
            await reconciler(self).run(KEY)

    async def step(self, step: str | int) -> None:
        """Do one thing of `STEPS`."""
        match step:
            case "start":
                self.start()
            case "address":
                self.give_address()
            case "pass":
                await self.passes()
            case calls:
                await self.passes(int(calls))


STEPS = st.one_of(st.sampled_from(["start", "address", "pass"]), st.integers(0, 12))


@given(steps=st.lists(STEPS, max_size=12))
def test_of_two_pods_one_knows_the_other_wherever_passes_break_off(steps: list[str | int]) -> None:
    async def film() -> Kubelets:
        cluster = Kubelets()
        for step in steps:
            await cluster.step(step)
        for _ in cluster.all_pods[KEY]:
            cluster.give_address()
        await cluster.passes()
        return cluster

    cluster = asyncio.run(film())
    names = {each["metadata"]["name"] for each in cluster.all_pods[KEY]}
    assert sorted(cluster.touched) == sorted(names)
    known = {(one, other) for one in names for other in cluster.mounted[one]}
    assert all({(one, other), (other, one)} & known for one in names for other in names)


async def test_the_keys_of_an_older_operators_document_are_added_and_no_pod_is_replaced() -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"))
    await reconciler(cluster, "1").run(KEY)
    before = templates(cluster)
    for template in before.values():
        env = template["spec"]["initContainers"][0]["env"]
        env[:] = [each for each in env if each["name"] != "WEIR_POD_IP"]
    for revision in cluster.of("ControllerRevision").values():
        (revision["data"],) = before.values()
    held = PolicyDocument()
    secret = cluster.of("Secret")[f"{NAME}-policies"]
    secret["data"]["policies.json"] = base64.b64encode(held.encode()).decode()
    await reconciler(cluster, "2").run(KEY)
    assert len(document(cluster).peer_keys) == 1
    assert templates(cluster) == before


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        pytest.param(None, None, id="all is well"),
        pytest.param({"engine": {"args": ["--por=1"]}}, None, id="a spec that is refused"),
        pytest.param(None, RuntimeError("a mistake of ours"), id="a pass that fails"),
    ],
)
async def test_a_key_is_in_the_secret_and_nowhere_else(
    spec: dict[str, Any] | None, refused: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = cluster_with(replica("chat-a", "10.0.0.1"))
    bench = Bench(cluster)
    if refused is not None:
        cluster.unwritable["Deployment"] = refused
    with caplog.at_level(logging.DEBUG):
        for number in (1, 2):
            edit(cluster, spec, annotations={ROTATE: str(number)})
            bench.queue.add(KEY)
            await bench.passes(number)
            bench.now += 60
    keys = document(cluster).peer_keys
    assert len(keys) == 2
    secret = cluster.objects.pop((SECRET, KEY.namespace, f"{NAME}-policies"))
    said = [
        caplog.text,
        json.dumps(list(cluster.objects.values())),
        json.dumps(cluster.all_pods[KEY]),
        json.dumps(secret["metadata"]),
        json.dumps(cluster.events),
        generate_latest(bench.registry).decode(),
    ]
    assert [key for key in keys for text in said if key in text] == []
