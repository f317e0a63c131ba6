"""Replicas that spread over nodes, on the real LeaderWorkerSet; `make e2e-groups` runs these.

Each group is two pods of the one node. Its engines are mocks where a scenario is about Kubernetes,
and vLLM where it is about what such a group answers. This cluster has a name server, by which
vLLM's workers find their leader.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from e2e import lws
from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MOCK_ENGINE, MODEL, NO_MODEL, READY_WITHIN_S, Service
from e2e.traffic import chatting
from weir_core.api import labels
from weir_operator.render.patch import patched

NODES = 2
MODEL_READY_WITHIN_S = 480.0
"""Of two pods with vLLM: six processes that all load it, on two busy cores 2 to 4 minutes."""
ANSWER_WITHIN_S = 120.0
"""Longest silence that is no hang."""
SPREAD: Manifest = {
    "replicas": 2,
    "engine": {"parallelism": {"tensor": NODES, "nodes": NODES}},
    # Other groups serve while one is replaced, as they would with no node to spare.
    "rollout": {"maxSurge": 0, "maxUnavailable": 1},
}

EXACT: Manifest = {"args": ["--dtype=float32"]}
"""Two processes round the halves of a sum, one rounds the sum. In bfloat16, the tiny model's own
type, that changes which token is the likeliest."""
PROMPTS = ["The fox names", "Seven boats", "Count to ten:"]
TOKENS = 32
LONG_ANSWER = 4000


@pytest.fixture
def spread(weir: Installation) -> Service:
    return Service(weir.target, "spread", SPREAD, patched(MOCK_ENGINE, NO_MODEL))


@pytest.fixture
def alone(weir: Installation) -> Service:
    """A service whose only replica is vLLM in one process."""
    return Service(weir.target, "alone", {"engine": EXACT})


@pytest.fixture
def joint(weir: Installation) -> Service:
    """The same over two pods."""
    spec = {**SPREAD, "replicas": 1, "engine": {**SPREAD["engine"], **EXACT}}
    return Service(weir.target, "joint", spec)


def workers(service: Service) -> list[Manifest]:
    """Return the pods of its groups that are no leaders, and not ending."""
    kubectl = service.target.kubectl
    found = kubectl.list("pods", service.namespace, f"{labels.WORKER_OF}={service.name}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def uids(pods: list[Manifest]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def wait_whole(
    service: Service, groups: int, without: set[str], *, within_s: float = READY_WITHIN_S
) -> None:
    """Wait until there are so many ready groups, of whose pods none is among `without`."""

    def whole() -> None:
        pods = [*service.pods(), *workers(service)]
        assert len(pods) == groups * NODES
        assert not uids(pods) & without

    eventually(whole, within_s=within_s)
    service.wait_ready(groups, within_s=within_s)


def test_groups_are_replicas_from_their_first_pod_to_their_last(spread: Service) -> None:
    spread.apply()
    spread.says("WorkloadsReady", "False", "LeaderWorkerSetMissing")
    lws.install(spread.target)
    wait_whole(spread, 2, without=set())

    old = uids([*spread.pods(), *workers(spread)])
    with chatting(spread.url(), MODEL) as traffic:
        args = ["--max-model-len=4096"]
        spread.patch({"engine": {**SPREAD["engine"], "args": args}})
        spread.observed()
        wait_whole(spread, 2, without=old)
        spread.says("WorkloadsReady", "True", "Available")
    assert traffic.answered > 0
    assert traffic.failures == []

    victim = workers(spread)[0]
    leader = victim["metadata"]["annotations"]["leaderworkerset.sigs.k8s.io/leader-name"]
    of_group = [pod for pod in spread.pods() if pod["metadata"]["name"] == leader]
    with chatting(spread.url(), MODEL) as traffic:
        spread.target.kill(victim, labels.ENGINE_CONTAINER)
        wait_whole(spread, 2, without=uids([victim, *of_group]))
        assert traffic.answered > 0

    kubectl = spread.target.kubectl
    kubectl("scale", "infs", spread.name, f"--namespace={spread.namespace}", "--replicas=1")
    spread.observed()
    wait_whole(spread, 1, without=set())
    spread.delete()
    eventually(lambda: _gone(spread))


@pytest.mark.timeout(1200)
def test_vllm_over_two_pods_answers_as_in_one_and_comes_back_when_a_worker_is_killed(
    alone: Service, joint: Service
) -> None:
    lws.install(joint.target)
    alone.apply()
    joint.apply()
    alone.wait_ready(1)
    expected = likeliest(alone)
    wait_whole(joint, 1, without=set(), within_s=MODEL_READY_WITHIN_S)
    joint.says("SchedulingReady", "True", "Weir")
    assert likeliest(joint) == expected

    (worker,) = workers(joint)
    old = uids([*joint.pods(), worker])
    assert ending_without(joint, worker) in ("broken", "error", "whole")
    wait_whole(joint, 1, without=old, within_s=MODEL_READY_WITHIN_S)
    joint.says("SchedulingReady", "True", "Weir")
    assert likeliest(joint) == expected


def likeliest(service: Service) -> list[str]:
    """Return its engine's answers to some prompts, made of the likeliest token each time."""
    texts = []
    for prompt in PROMPTS:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
        url = f"{service.url()}/v1/completions"
        answer = httpx.post(url, json={**body, "temperature": 0}, timeout=ANSWER_WITHIN_S)
        assert answer.status_code == 200, answer.text
        texts.append(answer.json()["choices"][0]["text"])
    return texts


def ending_without(service: Service, worker: Manifest) -> str:
    """Kill a worker's engine at the first token of a long stream; return how the stream ends.

    It is `broken`, `error` or `whole`, or else the last events. A silent one raises an error.
    """
    body = {
        "model": MODEL,
        "prompt": "On and on",
        "max_tokens": LONG_ANSWER,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    url, events = f"{service.url()}/v1/completions", list[str]()
    try:
        with httpx.stream("POST", url, json=body, timeout=ANSWER_WITHIN_S) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                if not events:
                    service.target.kill(worker, labels.ENGINE_CONTAINER)
                events.append(line.removeprefix("data: "))
    except (httpx.RemoteProtocolError, httpx.ReadError):
        assert events, "it broke before the worker was killed"
        return "broken"
    return _ending(events)


def _ending(events: list[str]) -> str:
    """Return what the client of a stream that came to its end takes it for."""
    pieces: list[dict[str, Any]] = [json.loads(each) for each in events if each != "[DONE]"]
    if any("error" in piece for piece in pieces):
        return "error"
    usage = (pieces[-1].get("usage") if pieces else None) or {}
    is_whole = events[-1:] == ["[DONE]"] and usage.get("completion_tokens") == LONG_ANSWER
    return "whole" if is_whole else f"{events[-3:]}"


def _gone(service: Service) -> None:
    assert not [*service.pods(), *workers(service)]
