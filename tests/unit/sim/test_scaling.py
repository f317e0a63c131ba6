"""Scaling over hours: the fluid against requests, the scalers' rules, and what is reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from weir_core.scale.types import Phase, ReplicaLoad, ScalingPolicy
from weir_core.sched.types import BUILT_IN_CLASSES
from weir_sim.profiles import PROFILES
from weir_sim.scalers import OTHERS, SCALERS, View, make_scaler, reversals
from weir_sim.scaling import (
    ScalingReport,
    ScalingScene,
    compare_scalers,
    knob_at_cost,
    simulate_scaling,
)
from weir_sim.scaling_fluid import ClassFluid, Fluid, flows
from weir_sim.scaling_load import (
    CURVES,
    Curve,
    Engine,
    Lengths,
    curve_named,
    curve_of_rates,
    curve_of_requests,
)
from weir_sim.scaling_report import json_of, row_of
from weir_sim.scaling_requests import RequestService, requests_of
from weir_sim.traces import BadTrace
from weir_sim.workload import LengthModel, SimRequest

INTERACTIVE, STANDARD, BATCH = BUILT_IN_CLASSES
LENGTHS = Lengths(1000.0, 200.0, 0.5)
ENGINE = Engine(PROFILES["h100-8b"], LENGTHS)
POLICY = ScalingPolicy(1, 1)


def curve(*work: float, bin_s: float = 600.0) -> Curve:
    return Curve("made", bin_s, np.array(work))


def scene(*work: float, cold_start_s: float = 60.0, bin_s: float = 600.0) -> ScalingScene:
    return ScalingScene(curve(*work, bin_s=bin_s), lengths=LENGTHS, cold_start_s=cold_start_s)


# ---- the fluid


def test_work_is_served_by_rank_and_what_sheds_is_dropped_when_it_is_late() -> None:
    fluid = Fluid(BUILT_IN_CLASSES)
    arrivals = np.tile([0.5, 0.6, 0.0], (600, 1))
    for second, flow in enumerate(flows(arrivals, 1, 30.0)):
        fluid.run(second, flow, 1.0)
    interactive, standard, _ = fluid.classes
    assert interactive.attainment == 1.0
    assert standard.attainment == pytest.approx(0.5 / 0.6, abs=0.01)
    assert standard.backlog_s <= 0.6 * 5
    assert fluid.served == pytest.approx(600.0)


def test_a_class_that_has_waited_gets_its_minimum_share() -> None:
    fluid = Fluid(BUILT_IN_CLASSES)
    for second, flow in enumerate(flows(np.tile([2.0, 0.5, 0.0], (100, 1)), 1, 30.0)):
        fluid.run(second, flow, 1.0)
    assert fluid.classes[1].met == pytest.approx(0.0, abs=1e-9)  # 5 s are too late for it
    fluid = Fluid(BUILT_IN_CLASSES)
    for second, flow in enumerate(flows(np.tile([2.0, 0.0, 0.5], (100, 1)), 1, 30.0)):
        fluid.run(second, flow, 1.0)
    assert fluid.classes[2].met == pytest.approx(0.05 * 95)


def test_what_never_sheds_waits_behind_what_can_be_on_time() -> None:
    batch = ClassFluid(BATCH)
    batch.add(0, 5.0)
    for second in range(61):
        batch.age(second)
    assert (batch.missed, batch.backlog_s) == (5.0, 5.0)
    batch.add(61, 1.0)
    assert batch.slack_s(61) == pytest.approx((5 * (60 - 61) + 1 * 60) / 6)
    assert batch.serve(2.0) == 2.0
    assert (batch.met, batch.missed, batch.backlog_s) == (1.0, 5.0, 4.0)
    batch.age(600)
    assert batch.backlog_s == 0.0


@pytest.mark.parametrize("capacity", [3.0, 0.7])
def test_no_work_appears_or_is_lost(capacity: float) -> None:
    arrivals = curve(1.0, 0.2).arrivals((0.2, 0.5, 0.3), ENGINE, 1.5, 0)
    fluid = Fluid(BUILT_IN_CLASSES)
    for number, flow in enumerate(flows(arrivals, 15, 30.0)):
        fluid.run(number * 15, flow, capacity)
    for index, each in enumerate(fluid.classes):
        waits = sum(work for _, work in each.waits)
        assert each.met + each.missed + waits == pytest.approx(arrivals[:, index].sum())


# ---- what is offered


def test_arrivals_have_the_mean_of_the_curve_and_the_variance_of_requests() -> None:
    arrivals = Curve("flat", 20_000.0, np.array([10.0])).arrivals((1.0,), ENGINE, 1.5, 3)
    assert arrivals.mean() == pytest.approx(10.0, rel=0.01)
    assert arrivals.var() == pytest.approx(10.0 * ENGINE.request_s * 1.5, rel=0.05)
    assert not curve(0.0, 0.0).arrivals((1.0,), ENGINE, 1.5, 0).any()


def test_two_weeks_of_a_real_service_need_forty_replicas_at_their_peak() -> None:
    weeks = curve_named("two-weeks", 40)
    assert weeks.duration_s == 14 * 86_400
    assert weeks.static_peak == 40
    assert weeks.work.mean() / weeks.work.max() == pytest.approx(0.303, abs=0.001)


@pytest.mark.parametrize("name", CURVES)
def test_every_curve_has_the_peak_that_is_asked_for(name: str) -> None:
    assert curve_named(name, 7).static_peak == 7


def test_rates_of_a_file_are_work_by_the_time_that_a_request_takes() -> None:
    made = curve_of_rates("second,requests_per_second\n0,10\n60,20\n", ENGINE, "mine")
    assert made.bin_s == 60.0
    assert made.work == pytest.approx([10 * ENGINE.request_s, 20 * ENGINE.request_s])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a,b\n1,2\n", "needs the columns"),
        ("second,requests_per_second\n0,1\n", "two rows or more"),
        ("second,requests_per_second\n0,1\n60,1\n90,1\n", "equally far"),
        ("second,requests_per_second\n0,1\n60,-1\n", "from 0 up"),
        ("second,requests_per_second\n0,0\n60,0\n", "not all 0"),
        ("second,requests_per_second\n0,x\n60,0\n", "needs the columns"),
    ],
)
def test_a_file_that_holds_no_rates_is_refused(text: str, word: str) -> None:
    with pytest.raises(BadTrace, match=word):
        curve_of_rates(text, ENGINE, "mine")


def test_a_trace_is_a_curve_of_its_own_work() -> None:
    trace = [
        SimRequest(f"r{at}", float(at), "t", "standard", 1000 if at < 60 else 3000, 200)
        for at in range(120)
    ]
    made = curve_of_requests(trace, ENGINE, Lengths.of_requests(trace), "trace")
    assert len(made.work) == 2
    assert made.work[1] / made.work[0] == pytest.approx(4200 / 2200)
    assert made.work.mean() == pytest.approx(ENGINE.request_s, rel=0.01)


def test_more_load_means_a_larger_batch_up_to_a_full_one() -> None:
    batches = [ENGINE.running(load / 10) for load in range(1, 13)]
    assert all(a <= b for a, b in pairwise(batches))
    assert batches[-1] == batches[9] <= 256
    assert ENGINE.kv_ratio(0.5) < ENGINE.kv_ratio(1.0) <= 0.95


# ---- the scalers' own rules


def view(**facts: float) -> View:
    made = View(0.0, 4, 4, 0, 2.0, 0.0, 40.0, 0.3, replicas=list)
    return replace(made, **facts)  # type: ignore[arg-type] # the fields of the test


@pytest.mark.parametrize(
    ("name", "knob", "facts", "wanted"),
    [
        pytest.param("static", 7.0, {}, 7, id="static"),
        pytest.param("hpa-queue", 5.0, {"waiting": 30.0}, 6, id="the queue over its target"),
        pytest.param("hpa-queue", 5.0, {"waiting": 21.0}, 4, id="within the tolerance"),
        pytest.param("hpa-queue", 5.0, {"waiting": 900.0}, 8, id="at most double in a period"),
        pytest.param("keda-running", 8.0, {}, 5, id="running requests over their target"),
        pytest.param("wva-p90", 0.4, {}, 5, id="the served rate over the load"),
        pytest.param("wva-saturation", 0.8, {"kv_ratio": 0.75}, 5, id="little KV room to spare"),
        pytest.param(
            "wva-saturation", 0.8, {"kv_ratio": 0.75, "starting": 1}, 4, id="one is starting"
        ),
        pytest.param("wva-saturation", 0.8, {"kv_ratio": 0.2}, 3, id="the rest would have enough"),
        pytest.param("wva-saturation", 0.8, {"kv_ratio": 0.6}, 4, id="the rest would not"),
    ],
)
def test_what_a_scaler_wants(name: str, knob: float, facts: dict[str, float], wanted: int) -> None:
    assert make_scaler(name, POLICY, 20, knob).wanted(view(**facts)) == wanted


def test_an_hpa_shrinks_to_the_highest_wish_of_five_minutes() -> None:
    scaler = make_scaler("keda-running", POLICY, 20, 10.0)
    assert scaler.wanted(view(now=0.0)) == 4
    assert scaler.wanted(view(now=290.0, running=10.0)) == 4
    assert scaler.wanted(view(now=310.0, running=10.0)) == 1


def test_others_let_the_unready_and_then_the_newest_go() -> None:
    pods = [
        ReplicaLoad("old", "gpu", Phase.READY, 900.0),
        ReplicaLoad("new", "gpu", Phase.READY, 10.0),
        ReplicaLoad("unready", "gpu", Phase.STARTING, 50.0),
        ReplicaLoad("leaving", "gpu", Phase.DRAINING, 5.0),
    ]
    found = view(replicas=lambda: pods)  # type: ignore[arg-type] # no number
    assert make_scaler("static", POLICY, 4).victims(found) == ["unready", "new", "old"]


@pytest.mark.parametrize(
    ("changes", "worst"),
    [
        ([(0.0, 1), (10.0, 2)], 0),
        ([(0.0, 1), (10.0, -1)], 1),
        ([(0.0, 1), (10.0, -1), (20.0, 1)], 2),
        ([(0.0, 1), (10.0, -1), (700.0, 1)], 1),
    ],
)
def test_changes_of_direction_are_counted(changes: list[tuple[float, int]], worst: int) -> None:
    assert reversals(changes, 600.0) == worst


# ---- whole runs


def test_weir_follows_a_step_and_comes_back() -> None:
    made = scene(*[2.0] * 3, *[6.0] * 3, *[2.0] * 9)
    found = simulate_scaling(made, "weir", 0)
    wanted = [point.wanted for point in found.timeline]
    # 2 over 0.85, which is more than what may be on time alone over 0.78, and 6 likewise.
    assert wanted[100] == 3
    assert max(wanted) in {8, 9}
    assert wanted[-1] == 3
    assert found.most_reversals <= 1
    assert found.attainment["interactive"] == 1.0
    assert found.worst > 0.97
    assert found.cost_ratio < 0.8


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    made = scene(2.0, 5.0, 2.0)
    first, again, other = (json_of(simulate_scaling(made, "weir", seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert json.loads(first)["scaler"] == "weir"


def test_a_static_fleet_costs_what_it_is() -> None:
    found = simulate_scaling(scene(2.0, 6.0, 2.0), "static", 0)
    assert (found.cost_ratio, found.changes) == (1.0, 0)
    assert found.worst == 1.0
    half = simulate_scaling(scene(2.0, 6.0, 2.0), "static", 0, 4.0)
    assert half.cost_ratio == 0.5
    assert half.worst < 0.9


@pytest.mark.parametrize("name", OTHERS)
def test_a_knob_is_found_at_which_another_costs_as_much(name: str) -> None:
    made = scene(2.0, 4.0, 6.0, 6.0, 4.0, 2.0, 2.0, 2.0)
    wanted = 0.6
    knob = knob_at_cost(made, name, 0, wanted)
    kind = OTHERS[name]
    assert kind.least < knob < kind.most
    middle = (kind.least * kind.most) ** 0.5
    gaps = [abs(simulate_scaling(made, name, 0, at).cost_ratio - wanted) for at in (knob, middle)]
    assert gaps[0] <= gaps[1]


def test_a_comparison_has_static_twice_and_every_seed() -> None:
    said: list[str] = []
    made = scene(1.0, 2.0, 1.0)
    found = compare_scalers(made, ["static", "weir", "keda-running"], range(2), said.append)
    assert [report.scaler for report in found] == ["weir"] * 2 + ["static"] * 4 + [
        "keda-running"
    ] * 2
    assert [report.seed for report in found] == [0, 1] * 4
    assert said == ["weir", "static", "keda-running"]
    assert len({len(row_of(report)) for report in found}) == 1


def by_requests(name: str, made: ScalingScene, knob: float | None = None) -> ScalingReport:
    return RequestService(made, name, requests_of(made, 0), 0, knob).run()


def test_requests_of_a_scene_have_its_rates_classes_and_lengths() -> None:
    made = scene(0.5, 1.5, bin_s=60.0)
    requests = requests_of(made, 0)
    second = [each for each in requests if each.arrival_s >= 60.0]
    assert len(second) / len(requests) == pytest.approx(0.75, abs=0.05)
    assert {each.class_name for each in requests} == {"interactive", "standard", "batch"}
    trace = [SimRequest("r", 0.0, "t", "standard", 17, 5)]
    assert {each.prompt_tokens for each in requests_of(made, 0, trace)} == {17}


@pytest.mark.parametrize(
    ("name", "grows"), [("weir", True), ("static", False), ("keda-running", True)]
)
def test_request_by_request_replicas_come_and_go_and_all_requests_end(
    name: str, *, grows: bool
) -> None:
    quiet, busy, rest = [0.5] * 3, [2.0] * 5, [0.3] * 20
    made = replace(
        scene(*quiet, *busy, *rest, cold_start_s=30.0, bin_s=60.0),
        lengths=Lengths.of_model(LengthModel()),
        policy=replace(POLICY, scale_down=replace(POLICY.scale_down, window_s=120.0)),
    )
    found = by_requests(name, made, 40.0 if name == "keda-running" else None)
    wanted: Sequence[int] = [point.wanted for point in found.timeline]
    assert (max(wanted) > wanted[0]) == grows
    assert (wanted[-1] < max(wanted)) == grows
    assert found.attainment["interactive"] > 0.95
    assert found.scene == "made, requests"


def test_every_scaler_has_a_name_that_the_command_knows() -> None:
    assert SCALERS == ("weir", "static", "hpa-queue", "keda-running", "wva-p90", "wva-saturation")
    with pytest.raises(KeyError):
        make_scaler("none", POLICY, 4)
