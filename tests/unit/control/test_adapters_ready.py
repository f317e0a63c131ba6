"""Which adapters replicas have: asked of sidecars that lack one, and said in AdaptersReady."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.unit.control.builders import (
    NAME,
    NAMESPACE,
    body,
    deployment,
    observed,
    serving_pod,
)
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_engines import pod
from tests.unit.control.test_reconcile_pass import conditions, finish_rollouts, parts
from weir_core.errors import EngineUnavailable
from weir_core.wire.policies import AdapterEntry, PolicyDocument
from weir_core.wire.sidecar_state import (
    ADAPTER_COMING,
    ADAPTER_HAS_NO_ROOM,
    ADAPTER_READY,
    ADAPTER_RENEWED,
    SidecarState,
)
from weir_operator.adapters import AGAIN_S, Adapters
from weir_operator.observed import Lacks, Told
from weir_operator.parts import AdaptersOf
from weir_operator.reconcile import Key, Reconciler
from weir_operator.render import Images
from weir_operator.views import Pod

SERVICE = (NAMESPACE, NAME)
KEYS = ("5e" * 32,)
LAW, SQL = AdapterEntry("law", "hf://o/law"), AdapterEntry("sql", "hf://o/sql")
GONE = "hf://o/sql: 404 Repository Not Found"


class Sidecars:
    """Those of some pods, which have what they are told to have."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.says: dict[str, str] = {}
        """Of each adapter."""
        self.sources: dict[str, str] = {}
        self.silent = False
        self.now = 0.0
        self.passes: list[tuple[str, str]] = []
        self.adapters = Adapters(self._ask, lambda: self.now, self.passes.append)

    async def _ask(self, address: str, pod: str, keys: Sequence[str]) -> SidecarState:
        assert keys == KEYS
        self.asked.append(pod)
        if self.silent:
            raise EngineUnavailable(f"{address} did not answer")
        return SidecarState(pod, adapters=dict(self.says), adapter_sources=dict(self.sources))

    async def lacks(
        self, *pods: Pod, adapters: tuple[AdapterEntry, ...] = (SQL,)
    ) -> dict[str, Lacks | str]:
        return await self.adapters.lacks(SERVICE, adapters, pods, KEYS)

    async def later(self, seconds: float) -> None:
        self.now += seconds
        await self.adapters.look()


async def test_a_service_without_adapters_asks_none() -> None:
    sidecars = Sidecars()
    assert await sidecars.lacks(pod("a"), adapters=()) == {}
    await sidecars.later(1000)
    assert sidecars.asked == []


async def test_a_replica_with_all_of_them_is_asked_once() -> None:
    sidecars = Sidecars()
    sidecars.says = {"sql": ADAPTER_READY}
    for _ in range(3):
        assert await sidecars.lacks(pod("a"), pod("loading", ready=False)) == {"a": {}}
        await sidecars.later(1000)
    assert (sidecars.asked, sidecars.passes) == (["a"], [])


async def test_one_that_gets_it_later_asks_for_a_pass_which_asks_none() -> None:
    sidecars = Sidecars()
    assert await sidecars.lacks(pod("a")) == {"a": {"sql": ADAPTER_COMING}}
    await sidecars.later(AGAIN_S[0])
    assert sidecars.passes == []
    sidecars.says = {"sql": ADAPTER_READY}
    await sidecars.later(AGAIN_S[0])
    assert sidecars.passes == [SERVICE]
    asked = list(sidecars.asked)
    assert await sidecars.lacks(pod("a")) == {"a": {}}
    await sidecars.later(1000)
    assert sidecars.asked == asked == ["a"] * 3


async def test_what_cannot_be_had_is_asked_for_ever_more_seldom_and_costs_no_pass() -> None:
    sidecars = Sidecars()
    sidecars.says = {"sql": GONE}
    await sidecars.lacks(pod("a"))
    for _ in range(1800):
        await sidecars.later(2.0)
        await sidecars.lacks(pod("a"))  # as a rollout's passes do
    assert len(sidecars.asked) < 3600 / AGAIN_S[1] + 20
    assert sidecars.passes == []


async def test_a_silent_sidecar_is_unknown_and_asked_again() -> None:
    sidecars = Sidecars()
    sidecars.silent = True
    assert await sidecars.lacks(pod("a")) == {"a": "10.0.0.1 did not answer"}
    sidecars.silent, sidecars.says = False, {"sql": ADAPTER_READY}
    await sidecars.later(AGAIN_S[0])
    assert await sidecars.lacks(pod("a")) == {"a": {}}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"run": "2"}, id="an engine that starts anew"),
        pytest.param({"adapters": (SQL, LAW)}, id="another adapter"),
    ],
)
async def test_what_may_have_changed_is_asked_anew(change: dict[str, Any]) -> None:
    sidecars = Sidecars()
    sidecars.says = {"sql": ADAPTER_READY, "law": ADAPTER_READY}
    await sidecars.lacks(pod("a"))
    await sidecars.lacks(pod("a", change.pop("run", "1")), **change)
    assert sidecars.asked == ["a", "a"]


async def test_old_weights_are_not_taken_for_the_new_ones() -> None:
    sidecars = Sidecars()
    sidecars.says, sidecars.sources = {"sql": ADAPTER_READY}, {"sql": "hf://o/older"}
    assert await sidecars.lacks(pod("a")) == {"a": {"sql": ADAPTER_COMING}}
    sidecars.sources = {"sql": SQL.uri}
    await sidecars.later(AGAIN_S[0])
    assert await sidecars.lacks(pod("a")) == {"a": {}}


async def test_no_pass_is_asked_for_over_a_service_that_is_gone() -> None:
    sidecars = Sidecars()
    await sidecars.lacks(pod("a"))
    sidecars.adapters.forget(SERVICE)
    await sidecars.later(AGAIN_S[0])
    assert (sidecars.asked, sidecars.passes) == (["a"], [])


@pytest.mark.parametrize(
    ("said", "want"),
    [
        pytest.param({}, ("Unknown", "Waiting", "no replica"), id="no replica"),
        pytest.param(
            {"a": {}, "b": {}},
            ("True", "Loaded", "law, sql: ready on 2 of 2 replicas"),
            id="all have all",
        ),
        pytest.param(
            {"a": {}, "b": {"sql": ADAPTER_COMING}},
            (
                "False",
                "Loading",
                f"sql: ready on 1 of 2 replicas; b: {ADAPTER_COMING}; "
                "law: ready on 2 of 2 replicas",
            ),
            id="one is loading",
        ),
        pytest.param(
            {"a": {"law": ADAPTER_RENEWED}}, ("False", "Loading", "law: ready on 0 of 1"), id="new"
        ),
        pytest.param(
            {"a": {"law": ADAPTER_COMING, "sql": GONE}, "b": "no answer"},
            ("False", "AdapterFailed", f"sql: ready on 0 of 2 replicas; a: {GONE}; law: "),
            id="what failed comes first",
        ),
        pytest.param(
            {"a": {"law": ADAPTER_HAS_NO_ROOM, "sql": ADAPTER_HAS_NO_ROOM}},
            ("False", "NoRoom", ADAPTER_HAS_NO_ROOM),
            id="no room",
        ),
        pytest.param(
            {"a": {}, "b": "b did not answer"},
            ("Unknown", "Unreachable", "law: ready on 1 of 2 replicas; b: b did not answer"),
            id="one is silent",
        ),
        pytest.param(
            {"a": {"law": "x" * 9000, "sql": "y" * 9000}},
            ("False", "AdapterFailed", "yyy"),
            id="one's long words do not hide the other",
        ),
    ],
)
def test_each_adapter_is_told_with_its_replicas_and_what_keeps_it_from_them(
    said: Mapping[str, Lacks | str], want: tuple[str, str, str]
) -> None:
    told = Told(PolicyDocument(adapters=(LAW, SQL)))
    seen = observed({"cpu": deployment()}, [serving_pod()], told=told, adapters=said)
    (verdict,) = AdaptersOf(Sidecars().adapters).verdicts(seen).values()
    assert (verdict.status, verdict.reason) == want[:2]
    assert want[2] in verdict.message
    assert len(verdict.message) <= 1000


async def test_an_adapter_that_cannot_be_fetched_is_an_event_and_leaves_ready_alone() -> None:
    adapter = {"name": "sql", "source": {"uri": SQL.uri}}
    cluster = MemoryCluster(
        body({"model": {"name": "m", "source": {"uri": "tiny://"}, "adapters": [adapter]}})
    )

    async def ask(_address: str, pod: str, _keys: Sequence[str]) -> SidecarState:
        return SidecarState(pod, adapters={"sql": GONE}, adapter_sources={"sql": SQL.uri})

    others = [each for each in parts(Images()) if not isinstance(each, AdaptersOf)]
    of_these = AdaptersOf(Adapters(ask, lambda: 0.0, lambda _service: None))
    passes = Reconciler(cluster, [*others, of_these], lambda: observed({}, []).now)
    await passes.run(Key(*SERVICE))
    finish_rollouts(cluster)
    for _ in range(2):
        await passes.run(Key(*SERVICE))
    found = conditions(cluster)
    assert found["AdaptersReady"]["reason"] == "AdapterFailed"
    assert (found["Ready"]["status"], "Reconciling" in found, "Stalled" in found) == (
        "True",
        False,
        False,
    )
    told = [each for each in cluster.events if GONE in each["message"]]
    assert [each["type"] for each in told] == ["Warning"]
