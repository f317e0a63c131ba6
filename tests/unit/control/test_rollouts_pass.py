"""A rollout for which no node has room, pass by pass: one more pod first, then one by one."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from tests.unit.control.builders import GPU, NOW, asking, body, pod, serving_pod
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_parts import WRONG
from tests.unit.control.test_reconcile_pass import (
    KEY,
    conditions,
    edit,
    finish_rollouts,
    parts,
    templates,
)
from weir_operator.reconcile import Outcome, Reconciler
from weir_operator.render import Images

SURGE, ONE_BY_ONE = (1, 0), (0, 1)
EDITED: dict[str, Any] = {"replicas": 2, "engine": {"args": ["--max-model-len=1"]}}


async def run(cluster: MemoryCluster, after: timedelta = timedelta()) -> Outcome:
    """Make a pass at that time, as an operator that has just started."""
    now: datetime = NOW + after
    return await Reconciler(cluster, parts(Images()), lambda: now).run(KEY)


def bounds(cluster: MemoryCluster, name: str = "chat-cpu") -> tuple[int, int]:
    rolling = cluster.of("Deployment")[name]["spec"]["strategy"]["rollingUpdate"]
    return rolling["maxSurge"], rolling["maxUnavailable"]


async def rolling_without_room(spec: dict[str, Any] | None = None) -> MemoryCluster:
    """Return a cluster in which an edited service of two waits for a node for one more pod."""
    cluster = MemoryCluster(body({"replicas": 2}))
    await run(cluster)
    finish_rollouts(cluster)
    edit(cluster, {**EDITED, **(spec or {})})
    await run(cluster)
    has_no_room(cluster)
    return cluster


def has_no_room(cluster: MemoryCluster) -> None:
    """Have the Deployment controller make one more pod, and the scheduler find no node for it."""
    one = cluster.of("Deployment")["chat-cpu"]
    one["status"] |= {
        "observedGeneration": one["metadata"]["generation"],
        "replicas": 3,
        "updatedReplicas": 1,
    }
    new = asking(pod(unschedulable=f"1 Insufficient {GPU}."), "new")
    cluster.all_pods[KEY] = [*(old(number) for number in range(2)), new]


def old(number: int) -> Manifest:
    one = asking(serving_pod(), "old", nodeName="node")
    one["metadata"]["name"] = f"chat-cpu-old-{number}"
    return one


async def test_waits_for_room_then_goes_one_by_one_and_back_when_it_is_done() -> None:
    cluster = await rolling_without_room()
    before = templates(cluster)
    for after in (timedelta(), timedelta(minutes=4)):
        assert await run(cluster, after) is Outcome.PROGRESSING
        assert bounds(cluster) == SURGE
    assert "surgeTimeout" in conditions(cluster)["WorkloadsReady"]["message"]

    for after in (timedelta(minutes=5), timedelta(minutes=6)):
        assert await run(cluster, after) is Outcome.PROGRESSING
        assert bounds(cluster) == ONE_BY_ONE
        has_no_room(cluster)
    assert conditions(cluster)["WorkloadsReady"]["reason"] == "OneByOne"
    assert templates(cluster) == before
    assert len(cluster.of("ControllerRevision")) == 2

    finish_rollouts(cluster)
    assert await run(cluster, timedelta(minutes=9)) is Outcome.PROGRESSING
    assert bounds(cluster) == SURGE
    finish_rollouts(cluster)
    assert await run(cluster, timedelta(minutes=9)) is Outcome.SETTLED
    assert templates(cluster) == before


async def test_another_edit_on_the_way_waits_for_room_of_its_own() -> None:
    cluster = await rolling_without_room()
    await run(cluster, timedelta(minutes=5))
    edit(cluster, {**EDITED, "engine": {"args": ["--max-model-len=2"]}})
    await run(cluster, timedelta(minutes=6))
    assert bounds(cluster) == SURGE


async def test_an_invalid_edit_on_the_way_changes_nothing_about_it() -> None:
    cluster = await rolling_without_room()
    await run(cluster, timedelta(minutes=5))
    edit(cluster, {**EDITED, **WRONG["parsed"]})
    for _ in range(2):
        await run(cluster, timedelta(minutes=6))
        assert bounds(cluster) == ONE_BY_ONE
    edit(cluster, EDITED)
    await run(cluster, timedelta(minutes=6))
    assert bounds(cluster) == ONE_BY_ONE


async def test_only_the_edited_bounds_take_the_only_replica() -> None:
    cluster = await rolling_without_room({"replicas": 1})
    await run(cluster, timedelta(days=1))
    assert bounds(cluster) == SURGE
    said = conditions(cluster)["WorkloadsReady"]
    assert said["reason"] == "Unschedulable"
    assert "the only replica serves on" in said["message"]
    edit(cluster, {**EDITED, "replicas": 1, "rollout": {"maxSurge": 0, "maxUnavailable": 1}})
    await run(cluster, timedelta(days=1))
    assert bounds(cluster) == ONE_BY_ONE
