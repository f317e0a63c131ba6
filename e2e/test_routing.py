"""Replicas serve each other's requests, also while one of them is disturbed.

What had begun at a replica that is killed is lost with it, and so is what clients had sent on their
connections to it. An answer that has begun also breaks off when the connection is reset over which
one replica passes it to another. Everything else is answered whole, whichever replica it was sent
to.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from e2e.counts import Counts, counting
from e2e.eventually import PATIENCE_S, eventually
from e2e.hosted import CHECKOUT
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.load import SLOTS, Ending, Load, Seen, loaded
from e2e.service import MODEL, NAMESPACE, Service, restarts
from e2e.target import Target
from weir_core.api.labels import (
    API_PORT,
    API_VERSION,
    ENGINE_CONTAINER,
    ENGINE_SOCKET,
    FACTS_FILE,
    MODEL_CONTAINER,
    PEER_PORT,
    POOL,
    RUN_DIR,
    SIDECAR_CONTAINER,
)
from weir_core.wire.steps import Facts
from weir_operator.render.patch import patched

REPLICAS = 3
DISTURBED_S = 10.0
ENOUGH = 200
"""Answers, to see where requests go."""
NEWER_SIDECAR = CHECKOUT / "e2e/newer_sidecar.py"
FACTS = Facts("fcfs", max_num_seqs=SLOTS, max_num_batched_tokens=2048, kv_capacity_tokens=0)
SPEEDS = {"fast": 1.0, "slow": 0.25}
"""Speed of the engines of a pool."""


def with_few_slots(engine: str, **env: Manifest) -> Manifest:
    """Return a pod patch with MOCKS that say of themselves that they have few slots.

    So requests wait before them. They need no model, and making one takes longer than all else of
    a pod's start.
    """
    says = f"echo '{FACTS.encode().decode()}' > {RUN_DIR}/{FACTS_FILE}"
    return {
        "spec": {
            "initContainers": [{"name": MODEL_CONTAINER, "command": ["true"]}],
            "containers": [
                {
                    "name": ENGINE_CONTAINER,
                    "command": ["sh", "-c", f"{says} && {engine}"],
                    "env": [{"name": name, "valueFrom": value} for name, value in env.items()],
                }
            ],
        }
    }


def mock(speed: float) -> str:
    """Return the shell's words that start a mock of this speed."""
    return (
        f"exec python3 -m weir_sim.mock_engine --model={MODEL} --uds={RUN_DIR}/{ENGINE_SOCKET} "
        f"--max-running={SLOTS} --ttft-ms={30 / speed:g} --token-gap-ms={15 / speed:g}"
    )


PATIENT = {"maxQueueWait": "10m", "shed": "never"}
"""How long something takes on this machine must refuse no request."""
RANKS = {"interactive": 100, "standard": 0, "batch": -100}
"""The names are those that every service knows: for the time of these scenarios all have these."""

ADMISSION = {"anonymousClass": "interactive"}


@dataclass(frozen=True)
class Lost:
    """What a disturbance takes away.

    Attributes:
        engine: Name of the pod whose answers may break off where they had begun.
        ingress: Address of the pod to which clients have lost their connections.
        passed: Whose answers may break off where they had begun: each is the address of the pod
            that took the request, and the name of the pod that answers it through that one.
    """

    engine: str = ""
    ingress: str = ""
    passed: frozenset[tuple[str, str]] = frozenset()

    def excuses(self, seen: Seen) -> bool:
        """Tell whether a request failed because its client, or its answer, was there."""
        if seen.ingress == self.ingress:
            return seen.ending in (Ending.UNANSWERED, Ending.BROKEN)
        is_lost = seen.replica == self.engine or (seen.ingress, seen.replica) in self.passed
        return seen.ending is Ending.BROKEN and is_lost


Disturbance = Callable[[Service, Load], Lost]


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
    spec = {"replicas": REPLICAS, "admission": ADMISSION}
    service = Service(target, "trio", spec, pod_patch=with_few_slots(mock(1.0)))
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


def peers_of(trio: Service, pod: Manifest) -> list[Manifest]:
    """Return what a replica says of the others."""
    found: list[Manifest] = trio.state_of(pod)["peers"]
    return found


def is_lost_to(trio: Service, at: Manifest, other: Manifest) -> None:
    """See that a replica takes another one to be lost."""
    states = {peer["name"]: peer["state"] for peer in peers_of(trio, at)}
    assert states[name_of(other)] == "lost"


def know_each_other(trio: Service) -> None:
    """Wait until each replica may send requests to each other one."""

    def usable() -> None:
        pods = trio.pods()
        names = {name_of(pod) for pod in pods}
        for pod in pods:
            states = {peer["name"]: peer["state"] for peer in peers_of(trio, pod)}
            others = names - {name_of(pod)}
            assert {name: states.get(name) for name in others} == dict.fromkeys(others, "usable")

    eventually(usable)


@contextmanager
def lasting() -> Iterator[None]:
    """Have what happens inside last as long as a disturbance."""
    until = time.monotonic() + DISTURBED_S
    yield
    time.sleep(max(0.0, until - time.monotonic()))


def killed(trio: Service, _load: Load) -> Lost:
    pod = trio.pods()[0]
    for container in (SIDECAR_CONTAINER, ENGINE_CONTAINER):
        trio.target.kill(pod, container)
    return Lost(engine=name_of(pod), ingress=address_of(pod))


def without_its_engine(trio: Service, _load: Load) -> Lost:
    """Kill an engine; its sidecar stays, so that no client loses its connection."""
    pod = trio.pods()[1]
    trio.target.kill(pod, ENGINE_CONTAINER)

    def restarted() -> None:
        now = trio.target.kubectl.get("pod", name_of(pod), NAMESPACE)
        assert restarts(now) != restarts(pod)

    eventually(restarted)
    return Lost(engine=name_of(pod))


def frozen(trio: Service, _load: Load) -> Lost:
    one, *others = trio.pods()
    trio.target.signal(one, SIDECAR_CONTAINER, signal.SIGSTOP)
    try:
        with lasting():
            for other in others:
                eventually(partial(is_lost_to, trio, other, one))
    finally:
        trio.target.signal(one, SIDECAR_CONTAINER, signal.SIGCONT)
    return Lost()


def partitioned(trio: Service, _load: Load) -> Lost:
    """Drop what goes between the peer ports of two replicas; the third one hears both."""
    cut(trio, "DROP")
    return Lost()


def reset(trio: Service, _load: Load) -> Lost:
    """Reset each connection between them at its next packet."""
    one, other = cut(trio, "REJECT", "--reject-with", "tcp-reset")
    pairs = ((one, other), (other, one))
    return Lost(passed=frozenset((address_of(took), name_of(answers)) for took, answers in pairs))


def cut(trio: Service, *verdict: str) -> tuple[Manifest, Manifest]:
    """Let two replicas lose each other by what the kernel does with their packets; return them."""
    one, other, _ = trio.pods()
    rules = [
        (chain, f"--{end}", address_of(other), "--protocol", "tcp", f"--{port}", str(PEER_PORT))
        for chain, end in (("INPUT", "source"), ("OUTPUT", "destination"))
        for port in ("sport", "dport")
    ]
    for rule in rules:
        trio.target.in_network_of(one, "iptables", "--wait", "--append", *rule, "--jump", *verdict)
    try:
        with lasting():
            eventually(partial(is_lost_to, trio, other, one))
            eventually(partial(is_lost_to, trio, one, other))
    finally:
        for rule in rules:
            trio.target.in_network_of(
                one, "iptables", "--wait", "--delete", *rule, "--jump", *verdict
            )
    return one, other


def slowed(trio: Service, load: Load) -> Lost:
    """Let an engine run for a tenth of the time; it gets less to do."""
    pod, *others = trio.pods()
    since_s = load.now_s()
    while load.now_s() < since_s + DISTURBED_S:
        trio.target.signal(pod, ENGINE_CONTAINER, signal.SIGSTOP)
        try:
            time.sleep(0.45)
        finally:
            trio.target.signal(pod, ENGINE_CONTAINER, signal.SIGCONT)
        time.sleep(0.05)
    answers = load.answers(since_s)
    assert answers[name_of(pod)] < min(answers[name_of(other)] for other in others), answers
    return Lost()


def scaled_away(trio: Service, _load: Load) -> Lost:
    trio.patch({"replicas": REPLICAS - 1})
    trio.wait_ready(REPLICAS - 1)
    trio.wait_gone(REPLICAS - 1)
    trio.patch({"replicas": REPLICAS})
    return Lost()


def drained(trio: Service, _load: Load) -> Lost:
    """Drain the node as if one replica were all it had; the next one waits for a node."""
    kubectl, pod = trio.target.kubectl, trio.pods()[0]
    node = pod["spec"]["nodeName"]
    kubectl("label", "pod", name_of(pod), f"--namespace={NAMESPACE}", "e2e=drained")
    try:
        which = ("--pod-selector=e2e=drained", "--delete-emptydir-data")
        kubectl("drain", node, *which, timeout_s=PATIENCE_S)
    finally:
        kubectl("uncordon", node)
    return Lost()


def rolled_to_a_newer_version(trio: Service, _load: Load) -> Lost:
    """Replace the pods, one after the other, by those of a sidecar that says more than this one.

    Meanwhile both kinds serve each other's requests. The new ones stay, so this comes last.
    """
    old = {name_of(pod) for pod in trio.pods()}
    sidecar = {"name": SIDECAR_CONTAINER, "command": ["python3", str(NEWER_SIDECAR)]}
    template = patched(
        trio.manifest["spec"]["podTemplate"], {"spec": {"initContainers": [sidecar]}}
    )
    trio.patch({"podTemplate": template})

    def replaced() -> None:
        names = {name_of(pod) for pod in trio.pods()}
        assert len(names) == REPLICAS
        assert not names & old

    eventually(replaced)
    trio.wait_gone(REPLICAS)
    exchanged = Counter[str]()
    for pod in trio.pods():
        for peer in peers_of(trio, pod):
            if peer["name"] in old:
                exchanged["old to new"] += peer["taken"]
                exchanged["new to old"] += peer["forwarded"]
    assert exchanged["old to new"] > 0
    assert exchanged["new to old"] > 0
    return Lost()


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(killed, id="killed"),
        pytest.param(without_its_engine, id="without its engine"),
        pytest.param(frozen, id="frozen"),
        pytest.param(partitioned, id="partitioned"),
        pytest.param(reset, id="its connections reset"),
        pytest.param(slowed, id="slowed"),
        pytest.param(scaled_away, id="scaled away"),
        pytest.param(drained, id="node drained"),
        pytest.param(rolled_to_a_newer_version, id="rolled to a newer version"),
    ],
)
def test_a_disturbed_replica_fails_no_request_that_had_not_begun(
    trio: Service, disturb: Disturbance
) -> None:
    url = trio.url()
    with counting(trio) as counts:
        with loaded(url, MODEL, lambda port: trio.target.behind(url, port)) as load:
            all_answer(trio, load)
            lost = disturb(trio, load)
            trio.wait_ready(REPLICAS)
            all_answer(trio, load)
        failed = [each for each in load.seen if each.ending is not Ending.WHOLE]
        assert [each for each in failed if not lost.excuses(each)] == []
        assert lost.ingress or not load.unconnected
        counted = {each.ingress for each in load.seen} - {lost.ingress}
        here = {address_of(pod) for pod in trio.pods()}
        eventually(lambda: each_has_one_outcome(counts, load, counted & here))
        for gone in counted - here:  # its last page may be older than its last request
            asked = [each for each in load.seen if each.ingress == gone]
            assert counts.outcomes(gone).total() <= len(asked)
    assert {each.class_name for each in load.seen} == set(RANKS)
    assert counts.sum("weir_forwarded_requests_total") > 0
    assert counts.sum("weir_preemptions_total") > 0, "no class had a lower one before it"
    assert counts.sum("weir_inversions_total") == 0


def all_answer(trio: Service, load: Load) -> None:
    """Wait until every replica has answered something that was sent from now on."""
    since_s = load.now_s()

    def answered() -> None:
        assert load.answers(since_s).keys() >= {name_of(pod) for pod in trio.pods()}

    eventually(answered)


def each_has_one_outcome(counts: Counts, load: Load, addresses: set[str]) -> None:
    """See that the replicas counted what their clients saw."""
    counts.look()
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


@pytest.fixture(scope="module")
def unequal_or_none(target: Target) -> Iterator[Service]:
    """A service of two pools, one engine each, the second one slower; it goes afterwards."""
    pools = [{"name": name, "accelerator": {"count": 0}, "replicas": 1} for name in SPEEDS]
    del pools[0]["replicas"]  # it has the service's number
    cases = "; ".join(f"{name}) {mock(speed)};" for name, speed in SPEEDS.items())
    engine = f'case "$POOL" in {cases} esac'
    patch = with_few_slots(engine, POOL={"fieldRef": {"fieldPath": f"metadata.labels['{POOL}']"}})
    spec = {"replicas": 1, "pools": pools, "admission": ADMISSION}
    service = Service(target, "unequal", spec, pod_patch=patch)
    yield service
    if target.kubectl.find("infs", service.name, NAMESPACE):
        service.delete()


@pytest.fixture
def unequal(
    weir: Installation, classes: None, trio_or_none: Service, unequal_or_none: Service
) -> Service:
    """Two ready replicas of unequal speed."""
    if trio_or_none.target.kubectl.find("infs", trio_or_none.name, NAMESPACE):
        trio_or_none.patch({"replicas": 0})  # the node has no CPU for the pods of both
    unequal_or_none.apply()
    unequal_or_none.wait_ready(len(SPEEDS))
    know_each_other(unequal_or_none)
    return unequal_or_none


def test_the_faster_of_two_pools_gets_more_untuned(unequal: Service) -> None:
    url = unequal.url()
    with loaded(url, MODEL, lambda port: unequal.target.behind(url, port)) as load:

        def enough() -> None:
            assert len(load.seen) >= ENOUGH

        eventually(enough)
    assert [each for each in load.seen if each.ending is not Ending.WHOLE] == []
    pool_of = {name_of(pod): pod["metadata"]["labels"][POOL] for pod in unequal.pods()}
    answers = {pool_of[name]: count for name, count in load.answers().items()}
    assert answers["fast"] > answers["slow"], answers
