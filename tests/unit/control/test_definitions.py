"""Definitions that are older than the operator: what it finds, and who is told."""

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.control.builders import body
from tests.unit.control.memory_cluster import Manifest, MemoryCluster
from tests.unit.control.test_reconcile_pass import KEY, NOW, conditions, parts
from tests.unit.control.virtual_time import VirtualTime
from weir_core.api.crd import custom_resource_definitions
from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_operator.definitions import EVERY, REMEDY, Definitions, lacking
from weir_operator.metrics import Metrics
from weir_operator.reconcile import Reconciler
from weir_operator.render import Images
from weir_operator.settings import Leadership

SETTINGS = Leadership(namespace="weir-system")
SERVICES = "inferenceservices.serving.weir.dev"
LEASE = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": {"name": SETTINGS.name, "namespace": SETTINGS.namespace, "uid": "a-lease"},
}

MINE: dict[str, Any] = {
    "properties": {
        "mode": {"type": "string", "enum": ["latency", "throughput"]},
        "pools": {"items": {"properties": {"name": {}, "engine": {"properties": {"args": {}}}}}},
        "shares": {"additionalProperties": {"properties": {"share": {}}}},
    }
}


def without(path: str) -> dict[str, Any]:
    """Return the schema without what is at a path of keys."""
    *parents, last = path.split("/")
    schema = copy.deepcopy(MINE)
    node: Any = schema
    for key in parents:
        node = node[key]
    node.remove(last) if isinstance(node, list) else node.pop(last)
    return schema


@pytest.mark.parametrize(
    ("theirs", "want"),
    [
        pytest.param(MINE, [], id="the same"),
        pytest.param(
            without("properties/pools/items/properties/engine"),
            [".pools[].engine"],
            id="a field of a list's items, once, without its own fields",
        ),
        pytest.param(
            without("properties/shares/additionalProperties/properties/share"),
            [".shares[].share"],
            id="a field of a map's values",
        ),
        pytest.param(without("properties/mode/enum/latency"), [".mode: latency"], id="a value"),
        pytest.param(without("properties/mode/enum"), [], id="it takes any value"),
        pytest.param(
            {"properties": {**MINE["properties"], "new": {}}}, [], id="it knows what we do not"
        ),
        pytest.param(
            {"x-kubernetes-preserve-unknown-fields": True}, [], id="it takes whatever comes"
        ),
        pytest.param({}, [".mode", ".pools", ".shares"], id="it is not there"),
    ],
)
def test_lacking(theirs: dict[str, Any], want: list[str]) -> None:
    assert list(lacking(MINE, theirs)) == want


class Bench:
    """The cluster's definitions, and what was said of them."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster(LEASE, *custom_resource_definitions().values())
        self.registry = CollectorRegistry()
        self.definitions = Definitions(
            self.cluster, Metrics(self.registry), SETTINGS, lambda: datetime(2026, 1, 1, tzinfo=UTC)
        )

    def lacks(self, definition: str = SERVICES) -> float | None:
        """Return what Prometheus is told of a definition."""
        return self.registry.get_sample_value(
            "weir_operator_definition_lacks", {"definition": definition}
        )

    def replace(self) -> None:
        """Have somebody install definitions without `spec.model.aliases`."""
        older: Manifest = copy.deepcopy(custom_resource_definitions()[SERVICES])
        schema = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        del schema["properties"]["spec"]["properties"]["model"]["properties"]["aliases"]
        self.cluster.put(older)

    async def look(self) -> None:
        """Look once."""
        await self.definitions._look()


async def test_definitions_of_this_version_are_no_news() -> None:
    bench = Bench()
    await bench.look()
    assert [bench.lacks(name) for name in custom_resource_definitions()] == [0, 0, 0]
    assert bench.cluster.events == []


async def test_an_older_definition_is_told_once_with_the_field_and_the_remedy() -> None:
    bench = Bench()
    bench.replace()
    await bench.look()
    await bench.look()
    assert bench.definitions.lacks[SERVICES] == (".spec.model.aliases",)
    assert bench.lacks() == 1
    (told,) = bench.cluster.events
    assert told["type"] == "Warning"
    assert told["reason"] == "DefinitionsOutdated"
    assert told["involvedObject"]["uid"] == "a-lease"
    assert SERVICES in told["message"]
    assert ".spec.model.aliases" in told["message"]
    assert REMEDY in told["message"]


def test_an_older_definition_that_comes_later_is_noticed() -> None:
    async def watch() -> None:
        bench = Bench()
        following = asyncio.ensure_future(bench.definitions.follow())
        await asyncio.sleep(1)
        assert bench.lacks() == 0
        bench.replace()
        await asyncio.sleep(EVERY)
        assert bench.lacks() == 1
        following.cancel()

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(watch())


async def test_services_are_told_that_their_spec_may_lack_something() -> None:
    bench = Bench()
    bench.cluster.put(body())
    one = Reconciler(bench.cluster, parts(Images()), lambda: NOW, remark=bench.definitions.remark)
    for older in (False, True):
        if older:
            bench.replace()
        await bench.look()
        await one.run(KEY)
        said = conditions(bench.cluster)["SpecValid"]
        assert (said["status"], said["reason"]) == ("True", "Valid")
        assert (".spec.model.aliases" in said["message"]) is older
        assert (REMEDY in said["message"]) is older


async def test_what_is_repaired_is_forgotten() -> None:
    bench = Bench()
    bench.replace()
    await bench.look()
    assert bench.definitions.remark()
    bench.cluster.put(custom_resource_definitions()[SERVICES])
    await bench.look()
    assert bench.lacks() == 0
    assert not bench.definitions.remark()


async def test_what_cannot_be_read_now_is_looked_at_again() -> None:
    bench = Bench()
    bench.cluster.down = ClusterUnavailable("connection refused")
    await bench.look()
    assert bench.lacks() is None
    bench.cluster.down = None
    await bench.look()
    assert bench.lacks() == 0


@pytest.mark.parametrize(
    ("why", "lines"),
    [
        pytest.param(KeyError("metadata"), 2, id="a bug"),
        pytest.param(ClusterRefuses("no right"), 1, id="no right"),
    ],
)
def test_what_keeps_it_from_looking_ends_nothing(
    why: Exception, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def watch() -> None:
        bench = Bench()
        bench.cluster.down = why
        following = asyncio.ensure_future(bench.definitions.follow())
        await asyncio.sleep(EVERY + 1)
        assert bench.lacks() is None
        bench.cluster.down = None
        await asyncio.sleep(EVERY)
        assert bench.lacks() == 0
        following.cancel()

    caplog.set_level("INFO")
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(watch())
    assert len(caplog.records) == lines
