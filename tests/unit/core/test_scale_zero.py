"""To zero and back: when the last replica goes, and what brings the first one; literal times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from weir_core.scale.autoscaler import Autoscaler
from weir_core.scale.types import (
    ClassTarget,
    ClassWork,
    Direction,
    Phase,
    PoolFacts,
    ReplicaLoad,
    ScalingPolicy,
    ServiceLoad,
    Verdict,
)

CLASSES = (ClassTarget("standard", 0, 5.0),)
POLICY = ScalingPolicy(min_replicas=0, max_replicas=3, idle_timeout_s=600.0, cold_start_s=90.0)
GATEWAY = ReplicaLoad("gate-a", "", Phase.READY, heard_s=0.0, idle_s=700.0)
OTHER = replace(GATEWAY, name="gate-b")
REPLICA = ReplicaLoad("gpu-a", "gpu", Phase.READY, heard_s=0.0, idle_s=700.0, started_in_s=40.0)
BUSY = (ClassWork("standard", 1.2),)


def load(*replicas: ReplicaLoad, held: int = 0, **pool: Any) -> ServiceLoad:
    return ServiceLoad(CLASSES, (PoolFacts("gpu", held, **pool),), replicas)


def test_asleep_and_nothing_waits_so_no_replica_runs() -> None:
    decision = Autoscaler().decide(load(GATEWAY, OTHER), POLICY, 0.0)
    assert (decision.reason, decision.total) == (Verdict.ASLEEP, 0)
    assert decision.message == (
        "0 replicas, because no request waits; the next request starts one, which takes 90 s"
    )


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(OTHER, id="the other gateway has none"),
        pytest.param(replace(OTHER, heard_s=None, idle_s=None), id="the other could not be asked"),
        pytest.param(replace(OTHER, phase=Phase.STARTING, heard_s=None), id="the other starts"),
    ],
)
def test_a_request_that_waits_at_one_gateway_wakes_at_once(other: ReplicaLoad) -> None:
    waits = replace(GATEWAY, waiting=2, idle_s=0.0)
    slow = replace(POLICY, scale_up=Direction(window_s=300.0))
    decision = Autoscaler().decide(load(waits, other), slow, 0.0)
    assert (decision.reason, dict(decision.replicas)) == (Verdict.WOKEN, {"gpu": 1})
    assert decision.message == (
        "from 0 to 1 replicas: 2 requests wait at the gateway; a start takes 90 s"
    )


def test_it_wakes_with_the_cheapest_pool_that_serves_all_classes() -> None:
    pools = (
        PoolFacts("fixed", 0, cost=0.1, max_replicas=0),
        PoolFacts("slow", 0, cost=0.5, unfit=frozenset({"standard"})),
        PoolFacts("dear", 0, cost=4.0),
        PoolFacts("fit", 0, cost=2.0),
    )
    waits = ServiceLoad(CLASSES, pools, (replace(GATEWAY, waiting=1),))
    decision = Autoscaler().decide(waits, POLICY, 0.0)
    assert dict(decision.replicas) == {"fixed": 0, "slow": 0, "dear": 0, "fit": 1}


def test_the_last_replica_goes_when_all_were_idle_for_the_whole_time() -> None:
    decision = Autoscaler().decide(load(REPLICA, GATEWAY, OTHER, held=1), POLICY, 0.0)
    assert (decision.reason, decision.total) == (Verdict.ASLEEP, 0)
    assert decision.victims == {"gpu": ("gpu-a",)}
    assert decision.message == (
        "from 1 to 0 replicas: no request came, waited or ran for 600 s; the next request starts "
        "one, which takes 40 s"
    )


@pytest.mark.parametrize(
    ("replicas", "policy", "reason"),
    [
        pytest.param((replace(REPLICA, idle_s=599.0), GATEWAY), POLICY, Verdict.STEADY, id="early"),
        pytest.param((REPLICA, replace(GATEWAY, idle_s=0.0)), POLICY, Verdict.STEADY, id="gateway"),
        pytest.param((REPLICA, replace(GATEWAY, idle_s=None)), POLICY, Verdict.STEADY, id="untold"),
        pytest.param(
            (REPLICA, replace(GATEWAY, heard_s=None)), POLICY, Verdict.DATA_MISSING, id="silent"
        ),
        pytest.param(
            (REPLICA, replace(OTHER, phase=Phase.STARTING)), POLICY, Verdict.STEADY, id="starting"
        ),
        pytest.param(
            (REPLICA, GATEWAY), replace(POLICY, min_replicas=1), Verdict.STEADY, id="never to zero"
        ),
        pytest.param(
            (REPLICA, GATEWAY),
            replace(POLICY, scale_down=Direction(select="Disabled")),
            Verdict.STEADY,
            id="never down",
        ),
    ],
)
def test_the_last_replica_stays(
    replicas: tuple[ReplicaLoad, ...], policy: ScalingPolicy, reason: Verdict
) -> None:
    decision = Autoscaler().decide(load(*replicas, held=1), policy, 0.0)
    assert (decision.reason, decision.total) == (reason, 1)


def test_several_replicas_first_come_down_to_one_as_ever() -> None:
    two = load(REPLICA, replace(REPLICA, name="gpu-b"), GATEWAY, held=2)
    assert Autoscaler().decide(two, POLICY, 0.0).total == 2


def test_a_replica_that_has_started_has_the_whole_time_for_its_first_request() -> None:
    scaler = Autoscaler()
    starts = replace(REPLICA, phase=Phase.STARTING, heard_s=None, idle_s=None)
    ready = replace(REPLICA, idle_s=700.0)
    assert scaler.decide(load(starts, GATEWAY, held=1), POLICY, 0.0).total == 1
    assert scaler.decide(load(ready, GATEWAY, held=1), POLICY, 599.0).total == 1
    assert scaler.decide(load(ready, GATEWAY, held=1), POLICY, 600.0).total == 0


def test_gateways_alone_tell_no_work_so_replicas_that_are_all_down_stay() -> None:
    scaler = Autoscaler()
    down = [
        replace(REPLICA, name=name, phase=Phase.STARTING, heard_s=None, idle_s=None)
        for name in ("gpu-a", "gpu-b", "gpu-c")
    ]
    busy = replace(GATEWAY, waiting=9, idle_s=0.0)
    for now in range(0, 3600, 30):
        decision = scaler.decide(load(*down, busy, OTHER, held=3), POLICY, float(now))
        assert (decision.reason, decision.total) == (Verdict.DATA_MISSING, 3)


def test_once_woken_it_grows_by_the_work_as_ever() -> None:
    scaler = Autoscaler()
    waits = replace(GATEWAY, waiting=9, idle_s=0.0)
    assert scaler.decide(load(waits, OTHER), POLICY, 0.0).total == 1
    works = replace(REPLICA, work=BUSY, idle_s=0.0)
    decision = scaler.decide(load(works, GATEWAY, OTHER, held=1), POLICY, 40.0)
    assert (decision.reason, decision.total) == (Verdict.SCALED_UP, 2)


def test_a_pool_with_replicas_of_its_own_serves_on() -> None:
    decision = Autoscaler().decide(load(REPLICA, held=1, min_replicas=1), POLICY, 0.0)
    assert (decision.reason, decision.total) == (Verdict.STEADY, 1)


DOWN = replace(REPLICA, phase=Phase.STARTING, heard_s=None, idle_s=None, started_in_s=None)


def test_a_replica_that_never_becomes_ready_goes_when_no_request_waits_for_it() -> None:
    scaler = Autoscaler()
    scaler.decide(load(replace(GATEWAY, waiting=1, idle_s=0.0), OTHER), POLICY, 0.0)
    for now in range(5, 695, 5):  # the timeout and a start of 90 s
        quiet = replace(GATEWAY, idle_s=float(now))
        decision = scaler.decide(load(DOWN, quiet, OTHER, held=1), POLICY, float(now))
        assert decision.total == 1
    quiet = replace(GATEWAY, idle_s=695.0)
    decision = scaler.decide(load(DOWN, quiet, OTHER, held=1), POLICY, 695.0)
    assert (decision.reason, decision.total) == (Verdict.ASLEEP, 0)
    assert decision.message == (
        "from 1 to 0 replicas: none became ready, and no request has waited for one for 690 s; "
        "the next request starts one, which is given more time"
    )
    again = replace(GATEWAY, waiting=1, idle_s=0.0)
    assert scaler.decide(load(again, OTHER), POLICY, 700.0).reason is Verdict.WOKEN


def _given_up_after(scaler: Autoscaler, begun: int) -> int:
    """Return after how long a start is given up for which one request came, and did not wait."""
    other = replace(OTHER, idle_s=1e6)
    scaler.decide(load(replace(GATEWAY, waiting=1, idle_s=0.0), other), POLICY, float(begun))
    for passed in range(10, 6000, 10):
        quiet = replace(GATEWAY, idle_s=float(passed))
        now = float(begun + passed)
        if scaler.decide(load(DOWN, quiet, other, held=1), POLICY, now).total == 0:
            return passed
    raise AssertionError


def test_a_start_after_one_in_vain_is_given_more_time_until_a_replica_is_ready() -> None:
    scaler = Autoscaler()
    found = [_given_up_after(scaler, begun) for begun in range(0, 40_000, 10_000)]
    assert found == [700, 1390, 2770, 4210]
    scaler.decide(load(replace(REPLICA, idle_s=1.0), GATEWAY, OTHER, held=1), POLICY, 50_000.0)
    assert _given_up_after(scaler, 60_000) < found[1]


@pytest.mark.parametrize(
    ("replicas", "policy"),
    [
        pytest.param((replace(GATEWAY, waiting=1, idle_s=0.0),), POLICY, id="one waits"),
        pytest.param((replace(GATEWAY, idle_s=689.0),), POLICY, id="one came of late"),
        pytest.param((replace(GATEWAY, heard_s=None, idle_s=None),), POLICY, id="untold"),
        pytest.param((), POLICY, id="no gateway"),
        pytest.param((GATEWAY,), replace(POLICY, min_replicas=1), id="one is to stay"),
        pytest.param(
            (GATEWAY,), replace(POLICY, scale_down=Direction(select="Disabled")), id="never down"
        ),
    ],
)
def test_a_replica_that_is_not_ready_stays(
    replicas: tuple[ReplicaLoad, ...], policy: ScalingPolicy
) -> None:
    scaler = Autoscaler()
    for now in (0.0, 700.0):
        assert scaler.decide(load(DOWN, *replicas, held=1), policy, now).total == 1


def test_a_replica_that_has_just_failed_gets_the_time_of_a_start_and_the_timeout() -> None:
    scaler = Autoscaler()
    assert (
        scaler.decide(load(replace(REPLICA, idle_s=0.0), GATEWAY, held=1), POLICY, 0.0).total == 1
    )
    assert scaler.decide(load(DOWN, GATEWAY, held=1), POLICY, 100.0).total == 1
    assert scaler.decide(load(DOWN, GATEWAY, held=1), POLICY, 739.0).total == 1
    assert scaler.decide(load(DOWN, GATEWAY, held=1), POLICY, 740.0).total == 0  # a start: 40 s
