"""Scaling decisions: work by class, trends, windows, pools, missing data; literal times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.scale.autoscaler import Autoscaler
from weir_core.scale.demand import Demand, Trend, demand_of, needs
from weir_core.scale.pools import bounded, place
from weir_core.scale.shrink import victims_of
from weir_core.scale.types import (
    ClassTarget,
    ClassWork,
    Decision,
    Direction,
    Phase,
    PoolFacts,
    RatePolicy,
    ReplicaLoad,
    ScalingPolicy,
    ServiceLoad,
    Verdict,
)

INTERACTIVE = ClassTarget("interactive", 100, 1.0)
STANDARD = ClassTarget("standard", 0, 5.0)
BATCH = ClassTarget("batch", -100, 60.0)
NIGHTLY = ClassTarget("nightly", -200, 7200.0)
CLASSES = (INTERACTIVE, STANDARD, BATCH)
POLICY = ScalingPolicy(
    min_replicas=1,
    max_replicas=20,
    batch_target_load=0.95,
    scale_down=Direction(window_s=600.0, policies=(RatePolicy("Pods", 1),)),
    cold_start_s=300.0,
    catch_up_s=60.0,
)


def replica(name: str, pool: str = "gpu", **facts: object) -> ReplicaLoad:
    made = ReplicaLoad(name, pool, Phase.READY, since_s=1000.0, heard_s=1.0)
    return replace(made, **facts)  # type: ignore[arg-type] # the fields of the test


def service(
    offered: dict[str, float],
    replicas: int = 2,
    pools: Sequence[PoolFacts] | None = None,
    backlog: dict[str, tuple[float, float]] | None = None,
    classes: tuple[ClassTarget, ...] = CLASSES,
) -> ServiceLoad:
    """Return a service whose work all replicas see in equal parts."""
    pools = pools or [PoolFacts("gpu", replicas)]
    every = sum(pool.replicas for pool in pools)
    waits = backlog or {}
    return ServiceLoad(
        classes,
        tuple(pools),
        tuple(
            replica(
                f"{pool.name}-{number}",
                pool.name,
                work=tuple(
                    ClassWork(
                        name,
                        amount / every / pool.speed,
                        waits.get(name, (0.0, 0.0))[0] / every / pool.speed,
                        waits.get(name, (0.0, 0.0))[1],
                    )
                    for name, amount in offered.items()
                ),
            )
            for pool in pools
            for number in range(pool.replicas)
        ),
    )


def film(
    offered: Callable[[float], dict[str, float]],
    until_s: float,
    policy: ScalingPolicy = POLICY,
    replicas: int = 2,
    cold_start_s: float = 300.0,
) -> list[tuple[float, int, Decision]]:
    """Let an autoscaler decide every 10 s, its replicas starting as it asks; return each decision.

    Work that the ready replicas cannot do is lost, so nothing ever waits.
    """
    scaler = Autoscaler()
    begun = [-1e4] * replicas
    seen = []
    now = 0.0
    while now <= until_s:
        ready = [number for number, at in enumerate(begun) if now - at >= cold_start_s]
        amounts = offered(now)
        work = tuple(ClassWork(name, each / len(ready)) for name, each in amounts.items())
        loads = tuple(
            replica(f"r{at:g}-{number}", started_in_s=cold_start_s, work=work)
            if number in ready
            else replica(f"r{at:g}-{number}", phase=Phase.STARTING, since_s=now - at, heard_s=None)
            for number, at in enumerate(begun)
        )
        load = ServiceLoad(CLASSES, (PoolFacts("gpu", len(begun)),), loads)
        decision = scaler.decide(load, policy, now)
        seen.append((now, len(begun), decision))
        wanted = decision.replicas["gpu"]
        begun = begun[:wanted] + [now] * (wanted - len(begun))
        now += 10.0
    return seen


def need_of(demands: Sequence[Demand], capacity: float = 10.0, horizon_s: float = 300.0) -> float:
    ahead = {demand.target.name: demand.offered for demand in demands}
    return max(each.replicas for each in needs(demands, ahead, capacity, horizon_s, POLICY))


# ---- how much work there is


def test_work_of_slow_and_fast_replicas_and_of_gateways_is_summed_in_one_unit() -> None:
    load = ServiceLoad(
        (STANDARD,),
        (PoolFacts("fast", 1, speed=2.0), PoolFacts("slow", 1, speed=0.5)),
        (
            replica("a", "fast", work=(ClassWork("standard", 0.5, 10.0, 4.0),)),
            replica("b", "slow", work=(ClassWork("standard", 2.0, 20.0, 1.0),)),
            replica("gateway", "", work=(ClassWork("standard", 0.25), ClassWork("gone", 9.0))),
        ),
    )
    assert demand_of(load) == [Demand(STANDARD, 2.25, 30.0, 3.0)]


@pytest.mark.parametrize(
    ("demands", "need"),
    [
        pytest.param([Demand(INTERACTIVE, 3.9, 0, 0)], 5.0, id="offered work over the target load"),
        pytest.param(
            [Demand(INTERACTIVE, 3.9, 0, 0), Demand(BATCH, 0.85, 0, 0)],
            5.0,
            id="batch work fills what the target load leaves free",
        ),
        pytest.param(
            [Demand(STANDARD, 3.9, 0, 0), Demand(BATCH, 5.6, 0, 0)],
            10.0,
            id="more batch work counts at its own, higher target",
        ),
        pytest.param(
            [Demand(STANDARD, 7.8, 900.0, -5.0)],
            (7.8 + (900 - 2.2 * 300) / 60) / 0.78,
            id="a backlog counts as far as the ready replicas do not work it off meanwhile",
        ),
        pytest.param(
            [Demand(STANDARD, 3.9, 0, 0), Demand(NIGHTLY, 50.0, 600.0, 7000.0)],
            5.0,
            id="work that is due in hours asks for nothing of its own",
        ),
        pytest.param(
            [Demand(STANDARD, 3.9, 0, 0), Demand(NIGHTLY, 50.0, 19_000.0, 2300.0)],
            (3.9 + 9.5) / 0.95,
            id="the same work asks for what it takes as its deadline nears",
        ),
    ],
)
def test_what_work_needs(demands: list[Demand], need: float) -> None:
    assert need_of(demands) == pytest.approx(need)


def trend_of(offered: Callable[[float], float], until_s: int) -> Trend:
    trend = Trend()
    for now in range(0, until_s, 10):
        trend.add(offered(now), now)
    return trend


@pytest.mark.parametrize(
    ("offered", "until_s", "ahead"),
    [
        pytest.param(lambda now: 10 + now / 100, 600, 15.9 + 3.0, id="a ramp goes on"),
        pytest.param(lambda now: 10 + now / 100, 300, 12.9, id="a few minutes are no ramp"),
        pytest.param(lambda now: 30.0 if now > 450 else 10.0, 600, 30.0, id="a step ends"),
        pytest.param(
            lambda now: 30.0 - 20.0 * 0.5 ** (max(0, now - 400) / 30.0),
            600,
            29.8,
            id="so does one that is told little by little",
        ),
        pytest.param(lambda now: 40.0 if now > 580 else 10.0, 600, 40.0, id="so does a burst"),
        pytest.param(lambda now: 20 - now / 100, 600, 14.1, id="what falls may stay"),
        pytest.param(
            lambda now: 1 + now, 600, 591 * 1.5, id="half as much again is the most to expect"
        ),
    ],
)
def test_a_trend_foresees(offered: Callable[[float], float], until_s: int, ahead: float) -> None:
    assert trend_of(offered, until_s).ahead(300.0) == pytest.approx(ahead, rel=0.01)


# ---- decisions over time


def test_a_step_is_answered_at_once_and_its_end_after_the_window_one_at_a_time() -> None:
    seen = film(lambda now: {"standard": 7.0 if 600 <= now < 3000 else 1.4}, 5400.0)
    grew = [(now, d.total) for now, before, d in seen if d.total > before]
    shrank = [(now, before - d.total) for now, before, d in seen if d.total < before]
    assert grew == [(600.0, 9)]
    assert shrank[0][0] >= 3000 + 600
    assert {count for _, count in shrank} == {1}
    assert min(b - a for (a, _), (b, _) in pairwise(shrank)) >= 60.0
    assert seen[-1][2].total == 2


def test_steady_work_that_fluctuates_changes_nothing() -> None:
    seen = film(
        lambda now: {"interactive": 2.9 + (0.15 if now % 40 else -0.15)}, 3600.0, replicas=4
    )
    assert {decision.total for _, _, decision in seen} == {4}


def test_there_are_never_two_reversals_within_ten_minutes() -> None:
    seen = film(lambda now: {"standard": 5.0 if now % 400 < 200 else 1.0}, 7200.0)
    turns: list[float] = []
    last = 0
    for now, before, decision in seen:
        way = (decision.total > before) - (decision.total < before)
        if way and last and way != last:
            turns.append(now)
        last = way or last
    assert all(b - a >= 600 for a, b in pairwise(turns))


def test_an_autoscaler_that_has_just_begun_shrinks_nothing() -> None:
    scaler, load = Autoscaler(), service({"standard": 0.1}, replicas=5)
    early = [scaler.decide(load, POLICY, now) for now in range(0, 600, 10)]
    assert {(each.total, each.reason) for each in early} == {(5, Verdict.WAITING)}
    assert scaler.decide(load, POLICY, 600.0).total == 4


def test_a_time_without_data_begins_the_window_anew() -> None:
    scaler, load = Autoscaler(), service({"standard": 0.1}, replicas=5)
    for now in range(0, 500, 10):
        scaler.decide(load, POLICY, now)
    assert scaler.decide(load, POLICY, 900.0).reason is Verdict.WAITING
    assert scaler.decide(load, POLICY, 905.0).total == 5


def test_a_number_that_would_soon_be_too_small_is_not_worth_a_change() -> None:
    tight, loose = service({"standard": 1.45}, replicas=3), service({"standard": 1.40}, replicas=3)
    assert shrinking(tight).reason is Verdict.STEADY
    assert shrinking(loose).total == 2


@pytest.mark.parametrize(
    ("now", "work", "total"),
    [
        pytest.param(700.0, 1.80, 2, id="the margin serves what comes back at once"),
        pytest.param(700.0, 2.00, 3, id="what it cannot serve turns it back"),
        pytest.param(1201.0, 1.80, 3, id="after ten minutes all is as usual"),
    ],
)
def test_what_has_begun_to_shrink_grows_again_for_a_reason(
    now: float, work: float, total: int
) -> None:
    scaler = Autoscaler()
    for earlier in range(0, 601, 30):
        decision = scaler.decide(service({"standard": 1.2}, replicas=3), POLICY, earlier)
    assert decision.total == 2
    for later in range(630, int(now), 30):
        scaler.decide(service({"standard": 1.2}, replicas=2), POLICY, later)
    assert scaler.decide(service({"standard": work}, replicas=2), POLICY, now).total == total


# ---- what is not known is not acted upon


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        pytest.param({"heard_s": None}, "gpu-1 could not be asked", id="silent"),
        pytest.param({"heard_s": 16.0}, "gpu-1 said is older than 15 s", id="old"),
    ],
)
def test_missing_data_holds_the_number(facts: dict[str, float | None], word: str) -> None:
    load = service({"standard": 40.0})
    lacking = replace(load.replicas[1], **facts)  # type: ignore[arg-type] # as above
    decision = Autoscaler().decide(replace(load, replicas=(load.replicas[0], lacking)), POLICY, 0.0)
    assert decision.reason is Verdict.DATA_MISSING
    assert word in decision.message
    assert decision.replicas == {"gpu": 2}
    assert decision.need is None


def test_replicas_that_start_or_leave_need_not_be_heard() -> None:
    load = service({"standard": 1.4})
    more = (
        replica("new", phase=Phase.STARTING, heard_s=None),
        replica("old", phase=Phase.DRAINING, heard_s=None),
    )
    decision = Autoscaler().decide(replace(load, replicas=load.replicas + more), POLICY, 0.0)
    assert decision.reason is Verdict.STEADY


def test_limits_hold_even_where_nothing_is_heard() -> None:
    nothing = ServiceLoad(CLASSES, (PoolFacts("gpu", 0),), ())
    decision = Autoscaler().decide(nothing, replace(POLICY, min_replicas=3), 0.0)
    assert (decision.total, decision.reason) == (3, Verdict.DATA_MISSING)
    many = ServiceLoad(CLASSES, (PoolFacts("gpu", 30),), ())
    assert Autoscaler().decide(many, POLICY, 0.0).total == 20


def test_the_most_replicas_are_said_to_be_too_few() -> None:
    decision = Autoscaler().decide(service({"standard": 40.0}, replicas=20), POLICY, 0.0)
    assert (decision.total, decision.reason) == (20, Verdict.AT_MOST)
    assert "the limits are 1 and 20" in decision.message


def test_a_decision_explains_itself() -> None:
    decision = Autoscaler().decide(service({"interactive": 1.0, "standard": 2.9}), POLICY, 0.0)
    assert decision.message == (
        "from 2 to 5 replicas: the work of class standard and above takes 3.90 replicas, 5.00 at "
        "a load of 0.78; a start takes 300 s; the limits are 1 and 20"
    )
    assert decision.inputs["need"] == pytest.approx(5.0)
    assert decision.inputs["offered:interactive"] == pytest.approx(1.0)
    assert decision.inputs["cold_start_seconds"] == 300.0


# ---- how long a start takes


def test_a_cold_start_is_learned_from_the_pods() -> None:
    scaler = Autoscaler()
    assert scaler.cold_start_s("gpu") is None
    load = service({"standard": 1.4})
    timed = tuple(
        replace(each, started_in_s=took_s)
        for each, took_s in zip(load.replicas, (50.0, 90.0), strict=True)
    )
    for now in (0.0, 10.0):
        decision = scaler.decide(replace(load, replicas=timed), POLICY, now)
    assert decision.inputs["cold_start_seconds"] == scaler.cold_start_s("gpu") == 90.0


# ---- bounds in HPA's words


@pytest.mark.parametrize(
    ("way", "reached"),
    [
        pytest.param(Direction(), 10, id="at once"),
        pytest.param(Direction(policies=(RatePolicy("Pods", 2),)), 4, id="pods"),
        pytest.param(Direction(policies=(RatePolicy("Percent", 50),)), 3, id="percent"),
        pytest.param(
            Direction(policies=(RatePolicy("Percent", 50), RatePolicy("Pods", 4))), 6, id="Max"
        ),
        pytest.param(
            Direction(policies=(RatePolicy("Percent", 50), RatePolicy("Pods", 4)), select="Min"),
            3,
            id="Min",
        ),
        pytest.param(Direction(select="Disabled"), 2, id="Disabled"),
    ],
)
def test_growth_keeps_to_its_rate(way: Direction, reached: int) -> None:
    policy = replace(POLICY, scale_up=way)
    scaler = Autoscaler()
    replicas = 2
    for now in (0.0, 20.0, 40.0):
        replicas = scaler.decide(service({"standard": 7.8}, replicas), policy, now).total
    assert replicas == reached


def test_growth_waits_for_a_stabilization_window() -> None:
    policy = replace(POLICY, scale_up=Direction(window_s=30.0))
    scaler = Autoscaler()
    assert scaler.decide(service({"standard": 1.0}), policy, 0.0).total == 2
    totals = [scaler.decide(service({"standard": 7.8}), policy, now).total for now in (10, 30, 31)]
    assert totals == [2, 2, 10]


# ---- what shrinks


def shrinking(load: ServiceLoad) -> Decision:
    """Return the decision on a load that has been there for a whole window."""
    scaler = Autoscaler()
    for now in range(0, 600, 30):
        scaler.decide(load, POLICY, now)
    return scaler.decide(load, POLICY, 600.0)


def test_the_replica_with_the_least_to_lose_goes_first() -> None:
    replicas = [
        replica("busy", running=9),
        replica("warm", running=1, cached_tokens=9000),
        replica("cold", running=1, cached_tokens=10),
        replica("nearly", phase=Phase.STARTING, since_s=250.0),
        replica("new", phase=Phase.STARTING, since_s=5.0),
        replica("leaving", phase=Phase.DRAINING),
        replica("elsewhere", pool="other"),
    ]
    assert victims_of(replicas, "gpu") == ("new", "nearly", "cold", "warm", "busy")


def test_where_the_highest_number_goes_first_its_running_requests_count() -> None:
    replicas = [replica("gpu-0", running=0), replica("gpu-1", running=9, ordinal=1)]
    assert victims_of(replicas, "gpu") == ("gpu-1", "gpu-0")


@pytest.mark.parametrize(
    ("change", "total"),
    [
        pytest.param({}, 2, id="nothing is in the way"),
        pytest.param({"drain_s": 500.0}, 3, id="its answers would take long"),
        pytest.param({"phase": Phase.DRAINING}, 3, id="one is leaving already"),
    ],
)
def test_one_goes_only_if_it_goes_soon(change: dict[str, object], total: int) -> None:
    load = service({"standard": 0.1}, replicas=3)
    first = tuple(replace(one, **change) for one in load.replicas[:1])  # type: ignore[arg-type]
    others = tuple(replace(one, running=5) for one in load.replicas[1:])
    assert shrinking(replace(load, replicas=first + others)).total == total


def test_a_ready_replica_does_not_go_while_its_work_has_no_place() -> None:
    load = service({"standard": 1.4}, replicas=3)
    starting = [replace(one, phase=Phase.STARTING, running=0) for one in load.replicas[:1]]
    # Whoever starts goes first; it does none of the work.
    assert shrinking(replace(load, replicas=(*starting, *load.replicas[1:]))).total == 2
    cheap = PoolFacts("cheap", 2, cost=0.1)
    dear = PoolFacts("dear", 2)
    pair = service({"standard": 1.4}, pools=[cheap, dear])
    unready = tuple(
        replace(one, phase=Phase.STARTING, work=()) if one.pool == "cheap" else one
        for one in pair.replicas
    )
    assert shrinking(pair).replicas == {"cheap": 2, "dear": 1}
    doubled = tuple(
        replace(one, work=tuple(replace(w, offered=2 * w.offered) for w in one.work))
        for one in unready
    )
    assert shrinking(replace(pair, replicas=doubled)).replicas == {"cheap": 2, "dear": 2}


# ---- several pools

BIG = PoolFacts("big", 0, speed=4.0, cost=8.0)
SMALL = PoolFacts("small", 0, speed=1.0, cost=1.0, max_replicas=3)
SPOT = PoolFacts("spot", 0, speed=1.0, cost=1.0, spot=True, max_replicas=2)


@pytest.mark.parametrize(
    ("work", "pools", "counts"),
    [
        pytest.param(1.4, [BIG, SMALL], {"big": 0, "small": 2}, id="the cheapest per work"),
        pytest.param(3.9, [BIG, SMALL], {"big": 1, "small": 3}, id="the next when it is full"),
        pytest.param(
            2.34, [SMALL, SPOT], {"small": 1, "spot": 2}, id="of equal cost the spot pool first"
        ),
        pytest.param(
            1.4,
            [replace(SMALL, unfit=frozenset({"standard"})), BIG],
            {"small": 0, "big": 1},
            id="none on hardware that cannot meet its targets",
        ),
        pytest.param(
            0.1,
            [SMALL, replace(BIG, min_replicas=1)],
            {"small": 0, "big": 1},
            id="the least of a pool is used first",
        ),
    ],
)
def test_the_cheapest_pools_serve(
    work: float, pools: list[PoolFacts], counts: dict[str, int]
) -> None:
    found = needs([Demand(STANDARD, work, 0, 0)], {"standard": work}, 0.0, 300.0, POLICY)
    assert place(found, pools, POLICY) == counts


def test_lower_classes_use_the_pool_that_a_higher_one_cannot() -> None:
    slow = PoolFacts("slow", 0, speed=0.5, cost=0.1, unfit=frozenset({"interactive"}))
    demands = [Demand(INTERACTIVE, 0.78, 0, 0), Demand(STANDARD, 0.78, 0, 0)]
    found = needs(demands, {"interactive": 0.78, "standard": 0.78}, 0.0, 300.0, POLICY)
    assert place(found, [slow, replace(BIG, speed=1.0)], POLICY) == {"slow": 2, "big": 1}


_POOLS = st.lists(
    st.builds(
        PoolFacts,
        name=st.sampled_from("abcdef"),
        replicas=st.integers(0, 30),
        speed=st.floats(0.1, 10.0),
        cost=st.floats(0.1, 10.0),
        min_replicas=st.integers(0, 2),
        max_replicas=st.none() | st.integers(2, 12),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda pool: pool.name,
)


@given(_POOLS, st.floats(0.0, 100.0), st.integers(0, 5))
def test_no_bound_is_ever_broken(pools: list[PoolFacts], work: float, least: int) -> None:
    policy = ScalingPolicy(least, 20)
    found = needs([Demand(STANDARD, work, 0, 0)], {"standard": work}, 0.0, 300.0, policy)
    for counts in (
        place(found, pools, policy),
        {pool.name: pool.replicas for pool in bounded(pools, policy)},
    ):
        assert sum(counts.values()) <= 20
        for pool in pools:
            most = 20 if pool.max_replicas is None else pool.max_replicas
            assert pool.min_replicas <= counts[pool.name] <= most
        room = any((pool.max_replicas or 20) > counts[pool.name] for pool in pools)
        assert sum(counts.values()) >= least or not room
