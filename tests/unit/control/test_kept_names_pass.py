"""An operator that names objects otherwise goes on with those that are there."""

from __future__ import annotations

from tests.unit.control.builders import NAME, NAMESPACE, body
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_reconcile_pass import reconciler
from weir_operator.reconcile import Key

KEY = Key(NAMESPACE, NAME)


def renamed(cluster: MemoryCluster, kind: str, now: str, then: str) -> Manifest:
    """Have an object under the name that an earlier operator gave it."""
    place = next(place for place in cluster.objects if place[0].name == kind and place[2] == now)
    found = cluster.objects.pop(place)
    found["metadata"]["name"] = then
    cluster.put(found)
    return found


async def test_the_objects_of_an_earlier_operator_are_neither_made_anew_nor_deleted() -> None:
    pool = {"name": "a100-spot", "accelerator": {"count": 0}}
    cluster = MemoryCluster(body({"pools": [pool]}))
    operator = reconciler(cluster)
    await operator.run(KEY)
    (deployment,) = cluster.of("Deployment")
    headless = next(name for name in cluster.of("Service") if name != NAME)
    assert (deployment, headless) != ("chat-a100-spot", "chat-replicas")
    before = {
        "Deployment": renamed(cluster, "Deployment", deployment, "chat-a100-spot"),
        "Service": renamed(cluster, "Service", headless, "chat-replicas"),
    }
    await operator.run(KEY)
    assert set(cluster.of("Deployment")) == {"chat-a100-spot"}
    assert set(cluster.of("Service")) == {NAME, "chat-replicas"}
    for kind, one in before.items():
        assert (
            cluster.of(kind)[one["metadata"]["name"]]["metadata"]["uid"] == one["metadata"]["uid"]
        )
