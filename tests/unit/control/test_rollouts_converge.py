"""Rollouts from their first pass to their last, beside a model of what Kubernetes does meanwhile.

The model is the Deployment controller's rule for a rolling update, a node with a number of
accelerators, and pods that are ready a minute after they have a place.
"""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.control.builders import GPU, NOW, asking, body, container, pod
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_reconcile_pass import KEY, conditions, edit, parts
from weir_core.api.inferenceservice import Rollout
from weir_core.api.labels import POOL
from weir_operator.reconcile import Outcome, Reconciler
from weir_operator.render import Images
from weir_operator.rollouts import bounds

MINUTE = timedelta(minutes=1)
LONGEST = 40
"""Minutes; a rollout of three replicas needs about ten."""


class Node:
    """A node with accelerators, and the pods of Deployments.

    Args:
        cluster: Where the Deployments are, and the operator finds the pods.
        places: How many pods get an accelerator.
    """

    def __init__(self, cluster: MemoryCluster, places: int) -> None:
        self._cluster = cluster
        self._places = places
        self._names = itertools.count()
        self._pods: list[Manifest] = []
        self.now = NOW

    @property
    def ready(self) -> int:
        """Pods that take requests."""
        return len([each for each in self._pods if _is_ready(each)])

    def pass_a_minute(self) -> None:
        """Have controllers, scheduler and kubelet do what they do."""
        self.now += MINUTE
        for each in self._pods:
            if each["spec"].get("nodeName"):
                each["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        there = self._cluster.of("Deployment").values()
        pools = {one["metadata"]["labels"][POOL] for one in there}
        self._pods = [each for each in self._pods if each["metadata"]["labels"][POOL] in pools]
        for one in there:
            self._roll(one)
        for each in self._pods:
            taken = [other for other in self._pods if other["spec"].get("nodeName")]
            if not each["spec"].get("nodeName") and len(taken) < self._places:
                each["spec"]["nodeName"] = "node"
                each["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        for one in there:
            self._say(one)
        self._cluster.all_pods = {KEY: self._pods}

    def _roll(self, one: Manifest) -> None:
        """Make and stop pods as the Deployment controller does until it waits."""
        wanted = one["spec"]["replicas"]
        written = Rollout.model_validate(one["spec"]["strategy"]["rollingUpdate"])
        surge, missing = bounds(written, wanted)
        while True:
            new, old = self._of(one)
            available = [each for each in (*new, *old) if _is_ready(each)]
            if len(new) > wanted:
                self._pods.remove(new[-1])
            elif len(new) < wanted and len(new) + len(old) < wanted + surge:
                self._pods.append(self._make(one))
            else:
                least = wanted - missing
                not_yet = len(new) - len([each for each in new if _is_ready(each)])
                may_go = len(new) + len(old) - least - not_yet
                broken = [each for each in old if not _is_ready(each)]
                if not old or may_go <= 0 or not (broken or len(available) > least):
                    return
                self._pods.remove((broken or old)[0])

    def _of(self, one: Manifest) -> tuple[list[Manifest], list[Manifest]]:
        """Return a Deployment's pods, of its newest template and of others."""
        mine = [
            each
            for each in self._pods
            if each["metadata"]["labels"][POOL] == one["metadata"]["labels"][POOL]
        ]
        newest = _hash_of(one)
        new = [each for each in mine if each["metadata"]["labels"]["pod-template-hash"] == newest]
        return new, [each for each in mine if each not in new]

    def _make(self, one: Manifest) -> Manifest:
        pool = one["metadata"]["labels"][POOL]
        fresh = pod(container("engine"), unschedulable=f"1 Insufficient {GPU}.", since=self.now)
        fresh["metadata"] = {"name": f"{pool}-{next(self._names)}", "labels": {POOL: pool}}
        return asking(fresh, _hash_of(one))

    def _say(self, one: Manifest) -> None:
        new, old = self._of(one)
        ready = len([each for each in (*new, *old) if _is_ready(each)])
        one["status"] = {
            "observedGeneration": one["metadata"]["generation"],
            "replicas": len(new) + len(old),
            "updatedReplicas": len(new),
            "readyReplicas": ready,
            "availableReplicas": ready,
        }


def _is_ready(one: Manifest) -> bool:
    return {"type": "Ready", "status": "True"} in one["status"]["conditions"]


def _hash_of(deployment: Manifest) -> str:
    return json.dumps(deployment["spec"]["template"], sort_keys=True)


async def step(cluster: MemoryCluster, node: Node) -> Outcome:
    """Make a pass, as an operator that has just started, and let a minute go by."""
    operator = Reconciler(cluster, parts(Images()), lambda: node.now)
    outcome = await operator.run(KEY)
    node.pass_a_minute()
    return outcome


def spec(replicas: int, pool: str, rollout: Manifest, **more: Any) -> Manifest:
    return {"replicas": replicas, "pools": [{"name": pool}], "rollout": rollout, **more}


async def served(replicas: int, places: int, rollout: Manifest) -> tuple[MemoryCluster, Node]:
    cluster = MemoryCluster(body(spec(replicas, "a", rollout)))
    node = Node(cluster, places)
    while await step(cluster, node) is not Outcome.SETTLED:
        assert node.now - NOW < LONGEST * MINUTE
    assert node.ready == replicas
    return cluster, node


def edited(replicas: int, rollout: Manifest, change: str) -> Manifest:
    if change == "renamed":
        return spec(replicas, "b", rollout)
    return spec(replicas, "a", rollout, engine={"args": ["--max-model-len=1"]})


LET_GO = {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("change", ["edited", "renamed"])
@pytest.mark.parametrize(
    ("replicas", "spare", "rollout", "least"),
    [
        pytest.param(1, 1, {}, 1, id="the only one, with a spare place"),
        pytest.param(3, 1, {}, 3, id="three, with a spare place"),
        pytest.param(2, 0, {}, 1, id="two, without one"),
        pytest.param(3, 0, {}, 2, id="three, without one"),
        pytest.param(3, 0, LET_GO, 2, id="three, where one may be missing"),
        pytest.param(1, 0, LET_GO, 0, id="the only one, where it may be missing"),
        pytest.param(4, 0, {"maxSurge": "50%", "maxUnavailable": "25%"}, 3, id="shares"),
        pytest.param(4, 0, {"maxSurge": "50%"}, 3, id="two more at once, without a place for them"),
    ],
)
async def test_a_rollout_ends_and_never_leaves_more_missing_than_it_may(
    replicas: int, spare: int, rollout: Manifest, least: int, change: str
) -> None:
    cluster, node = await served(replicas, replicas + spare, rollout)
    before = cluster.all_pods[KEY]
    edit(cluster, edited(replicas, rollout, change))
    begun = node.now
    while await step(cluster, node) is not Outcome.SETTLED:
        assert node.ready >= least
        assert node.now - begun < LONGEST * MINUTE, conditions(cluster)["WorkloadsReady"]
    assert node.ready == replicas
    assert not {each["metadata"]["name"] for each in before} & {
        each["metadata"]["name"] for each in cluster.all_pods[KEY]
    }


@pytest.mark.parametrize("change", ["edited", "renamed"])
@pytest.mark.parametrize(
    ("replicas", "rollout"),
    [
        pytest.param(1, {}, id="the only replica"),
        pytest.param(3, {"surgeTimeout": "0s"}, id="one by one is refused"),
    ],
)
async def test_a_rollout_that_may_let_none_go_waits_and_says_so(
    replicas: int, rollout: Manifest, change: str
) -> None:
    cluster, node = await served(replicas, replicas, rollout)
    edit(cluster, edited(replicas, rollout, change))
    for _ in range(LONGEST):
        assert await step(cluster, node) is Outcome.PROGRESSING
        assert node.ready == replicas
    said = conditions(cluster)["WorkloadsReady"]
    assert said["reason"] == "Unschedulable"
    assert "maxUnavailable: 1" in said["message"]
