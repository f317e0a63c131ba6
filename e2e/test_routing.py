"""One of three replicas is disturbed under a mixed load, and no client that waits loses a request.

What had begun at a replica that is killed is lost with it, and so is what clients had sent on their
connections to it. Everything else is answered whole, whichever replica it was sent to: that is
what the replicas are for each other.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest

from e2e.counts import Counts, counting
from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.load import SLOTS, Ending, Load, Seen, loaded
from e2e.service import MODEL, NAMESPACE, Service
from e2e.target import Target
from weir_core.api.labels import (
    ADMIN_PORT,
    API_PORT,
    API_VERSION,
    ENGINE_CONTAINER,
    ENGINE_SOCKET,
    FACTS_FILE,
    RUN_DIR,
    SIDECAR_CONTAINER,
)
from weir_core.wire.steps import Facts

REPLICAS = 3
DISTURBED_S = 10.0
FACTS = Facts("fcfs", max_num_seqs=SLOTS, max_num_batched_tokens=2048, kv_capacity_tokens=0)
MOCK = (
    f"exec python3 -m weir_sim.mock_engine --model={MODEL} --uds={RUN_DIR}/{ENGINE_SOCKET} "
    f"--max-running={SLOTS} --ttft-ms=30 --token-gap-ms=15"
)
TELLS_FACTS = f"echo '{FACTS.encode().decode()}' > {RUN_DIR}/{FACTS_FILE} && {MOCK}"
FEW_SLOTS: Manifest = {
    "spec": {"containers": [{"name": ENGINE_CONTAINER, "command": ["sh", "-c", TELLS_FACTS]}]}
}
"""A pod patch with a MOCK that says of itself that it has few slots, so that requests wait."""

PATIENT = {"maxQueueWait": "10m", "shed": "never"}
"""How long something takes on this machine must refuse no request."""
RANKS = {"interactive": 100, "standard": 0, "batch": -100}
"""The names are those that every service knows: for the time of these scenarios all have these."""

Disturbance = Callable[[Service], frozenset[str]]
"""Disturbs a replica, and returns the pods that are lost with all they hold, by name."""


@pytest.fixture(scope="module")
def classes(target: Target) -> Iterator[None]:
    """Classes that refuse nothing for being late; they go afterwards."""
    for name, rank in RANKS.items():
        spec = {"rank": rank, "preemptible": rank <= 0, **PATIENT}
        meta = {"name": name}
        kind = {"apiVersion": API_VERSION, "kind": "InferencePriorityClass"}
        target.kubectl.apply({**kind, "metadata": meta, "spec": spec})
    yield
    for name in RANKS:
        target.kubectl("delete", f"ipc/{name}", "--ignore-not-found")


@pytest.fixture(scope="module")
def trio_or_none(target: Target) -> Iterator[Service]:
    """The service of these scenarios; without replicas when they are over."""
    spec = {"replicas": REPLICAS, "admission": {"anonymousClass": "interactive"}}
    service = Service(target, "trio", spec, pod_patch=FEW_SLOTS)
    yield service
    if target.kubectl.find("infs", service.name, NAMESPACE):
        service.patch({"replicas": 0})


@pytest.fixture
def trio(weir: Installation, classes: None, trio_or_none: Service) -> Service:
    """Three ready replicas that serve each other's requests."""
    trio_or_none.ensure_ready()
    know_each_other(trio_or_none)
    return trio_or_none


def name_of(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def address_of(pod: Manifest) -> str:
    return str(pod["status"]["podIP"])


def know_each_other(trio: Service) -> None:
    """Wait until each replica may send requests to each other one."""

    def usable() -> None:
        pods = trio.pods()
        names = {name_of(pod) for pod in pods}
        for pod in pods:
            page = httpx.get(f"http://{address_of(pod)}:{ADMIN_PORT}/state", timeout=5).json()
            states = {one["name"]: one["state"] for one in page["peers"]}
            others = names - {name_of(pod)}
            assert {name: states.get(name) for name in others} == dict.fromkeys(others, "usable")

    eventually(usable)


def killed(trio: Service) -> frozenset[str]:
    pod = trio.pods()[0]
    for container in (SIDECAR_CONTAINER, ENGINE_CONTAINER):
        trio.target.kill(pod, container)
    return frozenset({name_of(pod)})


def frozen(trio: Service) -> frozenset[str]:
    pod = trio.pods()[1]
    trio.target.signal(pod, SIDECAR_CONTAINER, signal.SIGSTOP)
    try:
        time.sleep(DISTURBED_S)
    finally:
        trio.target.signal(pod, SIDECAR_CONTAINER, signal.SIGCONT)
    return frozenset()


def scaled_away(trio: Service) -> frozenset[str]:
    trio.patch({"replicas": REPLICAS - 1})
    trio.wait_ready(REPLICAS - 1)
    trio.wait_gone(REPLICAS - 1)
    trio.patch({"replicas": REPLICAS})
    return frozenset()


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(killed, id="killed"),
        pytest.param(frozen, id="frozen"),
        pytest.param(scaled_away, id="scaled away"),
    ],
)
def test_a_disturbed_replica_fails_no_request_that_had_not_begun(
    trio: Service, disturb: Disturbance
) -> None:
    url = trio.url()
    pods = {address_of(pod): name_of(pod) for pod in trio.pods()}
    with counting(trio) as counts:
        with loaded(url, MODEL, lambda port: trio.target.behind(url, port)) as load:
            all_answer(trio, load)
            lost = disturb(trio)
            trio.wait_ready(REPLICAS)
            all_answer(trio, load)
        lost_at = {address for address, name in pods.items() if name in lost}
        failed = [each for each in load.seen if each.ending is not Ending.WHOLE]
        assert [each for each in failed if not is_lost(each, lost, lost_at)] == []
        assert lost or not load.unconnected
        counted = {each.ingress for each in load.seen} - lost_at
        eventually(lambda: each_has_one_outcome(counts, load, counted))
    assert {each.class_name for each in load.seen} == set(RANKS)
    assert sum(counts.since(address, "weir_forwarded_requests_total") for address in counted) > 0
    assert not any(counts.since(address, "weir_inversions_total") for address in counted)


def all_answer(trio: Service, load: Load) -> None:
    """Wait until every replica has answered something that was sent from now on."""
    since_s = load.now_s()

    def answered() -> None:
        assert load.answered_by(since_s) >= {name_of(pod) for pod in trio.pods()}

    eventually(answered)


def is_lost(seen: Seen, lost: frozenset[str], lost_at: set[str]) -> bool:
    """Tell whether a request failed because its client, or its answer, was at a lost replica."""
    if seen.ending is Ending.UNANSWERED:
        return seen.ingress in lost_at
    return seen.ending is Ending.BROKEN and (seen.ingress in lost_at or seen.replica in lost)


def each_has_one_outcome(counts: Counts, load: Load, addresses: set[str]) -> None:
    """See that the replicas counted what their clients saw."""
    for address in addresses:
        mine = [each for each in load.seen if each.ingress == address]
        outcomes = counts.outcomes(address)
        assert outcomes.total() == len(mine), (address, outcomes)
        assert outcomes["ok"] == Counter(each.ending for each in mine)[Ending.WHOLE], outcomes


def test_what_reaches_one_replica_is_served_by_all(trio: Service) -> None:
    address = address_of(trio.pods()[0])
    url = f"http://{address}:{API_PORT}"
    with counting(trio) as counts:
        with loaded(url, MODEL, lambda _: address) as load:
            all_answer(trio, load)
        assert [each for each in load.seen if each.ending is not Ending.WHOLE] == []
        eventually(lambda: each_has_one_outcome(counts, load, {address}))
