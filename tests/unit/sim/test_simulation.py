"""Whole simulations: invariants at every event, same seed same bytes, and the claims."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weir_cli.simulate import app
from weir_core.sched.audit import violations
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.types import Action, EngineFacts, EngineKind, Reject, Request
from weir_sim.baselines import ClassSlots, Front, ReplicaView, RoundRobin, WeightedScores
from weir_sim.decision_cost import measure
from weir_sim.experiments import (
    Scenario,
    ablations,
    capacity_per_s,
    fairness,
    replicas_needed,
)
from weir_sim.profiles import PROFILES
from weir_sim.report import Report, jain, report
from weir_sim.run import SYSTEMS, Outage, RequestTooLong, SimConfig, simulate
from weir_sim.workload import ADVERSARIAL_MIX, SimRequest, WorkloadSpec, generate

H100 = PROFILES["h100-8b"]
SMALL = replace(H100, max_num_seqs=12, kv_blocks=8_200)
"""So little room that every rule has to act."""


def run(system: str, rate: float, duration_s: float, seed: int = 0) -> Report:
    workload = generate(WorkloadSpec(rate=rate, duration_s=duration_s), seed)
    return report(simulate(SimConfig(H100, SYSTEMS[system], seed=seed), workload))


@pytest.mark.parametrize("system", ["weir", "weir-priority", "weir-fcfs"])
def test_the_invariants_hold_at_every_event(system: str) -> None:
    broken: list[str] = []

    def check(front: Front, now: float, actions: list[Action]) -> None:
        assert isinstance(front, Scheduler)
        broken.extend(violations(front, actions, now))

    spec = WorkloadSpec(rate=6.0, duration_s=40.0, streams=ADVERSARIAL_MIX)
    config = SimConfig(SMALL, SYSTEMS[system])
    result = simulate(config, generate(spec, 0), check)
    assert broken == []
    assert [trip.outcomes for trip in result.trips] == [1] * len(result.trips)
    for trip in result.trips:
        if trip.finished_s >= 0:
            instants = [
                trip.request.arrival_s,
                trip.dispatched_s,
                trip.first_token_s,
                trip.finished_s,
            ]
            assert instants == sorted(instants)


@pytest.mark.parametrize("system", ["weir", "weir-priority", "weir-fcfs"])
def test_an_engine_that_dies_loses_only_what_it_had_begun(system: str) -> None:
    broken: list[str] = []

    def check(front: Front, now: float, actions: list[Action]) -> None:
        assert isinstance(front, Scheduler)
        broken.extend(violations(front, actions, now))

    workload = generate(WorkloadSpec(rate=6.0, duration_s=40.0), 0)
    outages = [Outage(10.0, 14.0), Outage(25.0, 26.0)]
    result = simulate(SimConfig(SMALL, SYSTEMS[system], outages=outages), workload, check)
    assert broken == []
    assert [trip.outcomes for trip in result.trips] == [1] * len(workload)
    failed = [trip for trip in result.trips if trip.failed]
    assert 1 <= len(failed) <= 2 * SMALL.max_num_seqs
    assert all(any(trip.dispatched_s <= o.from_s for o in outages) for trip in failed)
    for trip in result.trips:
        assert not any(o.from_s < trip.dispatched_s < o.until_s for o in outages)
        if trip.rejected is not None:
            assert trip.request.class_name != "batch"
    assert any(trip.requeues and trip.finished_s > 0 for trip in result.trips)


@pytest.mark.parametrize("system", ["weir", "weir-priority", "weir-fcfs"])
def test_a_silent_engine_holds_no_interactive_request_for_long(system: str) -> None:
    workload = generate(WorkloadSpec(rate=4.0, duration_s=60.0), 0)
    asked = {request.request_id: request for request in workload}
    waits: list[float] = []
    taken_back = 0

    def check(front: Front, now: float, actions: list[Action]) -> None:
        nonlocal taken_back
        for action in actions:
            request = asked[action.request_id]
            if isinstance(action, Reject) and request.class_name == "interactive":
                waits.append(now - request.arrival_s)
                taken_back += now - request.arrival_s >= 10.0

    outages = [Outage(20.0, 300.0, is_silent=True)]
    result = simulate(SimConfig(H100, SYSTEMS[system], outages=outages), workload, check)
    assert [trip.outcomes for trip in result.trips] == [1] * len(workload)
    assert taken_back
    assert max(waits) < 20.0


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_system_gives_every_request_exactly_one_outcome(system: str) -> None:
    workload = generate(WorkloadSpec(rate=20.0, duration_s=20.0), 0)
    result = simulate(SimConfig(H100, SYSTEMS[system], replicas=2), workload)
    assert [trip.outcomes for trip in result.trips] == [1] * len(workload)


@pytest.mark.parametrize("system", ["weir", "llm-d", "class-slots"])
def test_the_same_seed_gives_the_same_bytes(system: str) -> None:
    def once() -> str:
        workload = generate(WorkloadSpec(rate=40.0, duration_s=15.0, turns=3), 7)
        return report(simulate(SimConfig(H100, SYSTEMS[system], 2, seed=7), workload)).to_json()

    assert once() == once()


def test_at_twice_the_capacity_the_high_class_holds_and_plain_vllm_does_not() -> None:
    weir, fcfs = run("weir", 30.0, 100.0), run("fcfs", 30.0, 100.0)
    assert weir.of("interactive").attainment_ratio >= 0.99
    assert fcfs.of("interactive").attainment_ratio < 0.2
    assert weir.goodput_per_s > 3 * fcfs.goodput_per_s
    assert weir.bubble_ratio <= 0.01
    assert weir.recomputed_ratio <= 0.05


def test_at_a_tenth_of_the_capacity_weir_changes_nothing() -> None:
    weir, fcfs = run("weir", 1.5, 100.0), run("fcfs", 1.5, 100.0)
    assert weir.attainment_ratio == fcfs.attainment_ratio == 1.0
    assert weir.of("batch").rejected == 0


def test_equal_tenants_are_served_equally_whatever_they_send() -> None:
    assert fairness(H100, SYSTEMS["weir"], seed=0, tenants=3).jain_index >= 0.95


def test_batch_is_never_starved_below_its_minimum_share() -> None:
    # The higher classes alone are more than the engine can do.
    spec = WorkloadSpec(rate=35.0, duration_s=120.0)
    workload = generate(spec, 0)
    result = simulate(SimConfig(H100, SYSTEMS["weir"], drain_s=0.0), workload)
    served = {"interactive": 0.0, "standard": 0.0, "batch": 0.0}
    for trip in result.trips:
        if 40 <= trip.first_token_s < 120:
            served[trip.request.class_name] += trip.request.prompt_tokens
    assert served["batch"] / sum(served.values()) >= 0.04


def test_capacity_is_found_by_trying() -> None:
    workload = generate(WorkloadSpec(rate=30.0, duration_s=40.0), 0)
    answer = replicas_needed(SimConfig(H100, SYSTEMS["weir"]), workload, 0.99)
    assert answer.replicas is not None
    assert answer.tried[answer.replicas] >= 0.99
    assert answer.tried[answer.replicas - 1] < 0.99


def test_a_capacity_that_is_out_of_reach_is_said() -> None:
    workload = generate(WorkloadSpec(rate=60.0, duration_s=20.0), 0)
    answer = replicas_needed(SimConfig(H100, SYSTEMS["weir"]), workload, 0.999, most=1)
    assert answer.replicas is None


def test_capacity_does_not_depend_on_the_targets() -> None:
    assert capacity_per_s(H100, WorkloadSpec(1.0, 1.0)) == pytest.approx(15.6, abs=0.5)


def test_an_ablation_changes_one_rule() -> None:
    systems = ablations()
    assert systems["weir"].rules.gate == "class-aware"
    assert systems["gate=open"].rules == replace(systems["weir"].rules, gate="open")


def test_a_request_that_can_never_fit_is_named_before_anything_runs() -> None:
    book = SimRequest("book", 0.0, "t", "batch", 50_000, 10)
    with pytest.raises(RequestTooLong, match=r"book.*50010.*l4-8b holds 40000"):
        simulate(SimConfig(PROFILES["l4-8b"], SYSTEMS["weir"]), [book])


def test_a_scenario_offers_a_multiple_of_the_capacity() -> None:
    requests = Scenario(H100, load=2.0, replicas=2, duration_s=60.0).requests(0)
    assert len(requests) == pytest.approx(4 * 15.6 * 60, rel=0.1)


@pytest.mark.parametrize(
    ("served", "want"),
    [
        pytest.param([1, 1, 1, 1], 1.0, id="equal"),
        pytest.param([1, 0, 0, 0], 0.25, id="all for one"),
        pytest.param([0, 0], 1.0, id="nothing at all"),
    ],
)
def test_jain(served: Sequence[float], want: float) -> None:
    assert jain(served) == want


def ask(name: str, class_name: str = "batch", arrival_s: float = 0.0) -> Request:
    return Request(name, "t", class_name, arrival_s)


def test_class_slots_are_not_lent() -> None:
    facts = EngineFacts(EngineKind.FCFS, 4, 1000, 1000)
    slots = ClassSlots((), facts, {"interactive": 1, "batch": 1}, queue_length=2, timeout_s=5.0)
    assert [len(slots.on_arrival(ask(f"b{i}"), 0.0)) for i in range(4)] == [1, 1, 0, 0]
    refused = slots.on_arrival(ask("b4"), 0.0)
    assert isinstance(refused[0], Reject)
    assert slots.next_tick(0.0) == 5.0
    assert len(slots.on_finish("b0", 1.0)) == 1
    assert len(slots.on_tick(5.0)) == 1
    assert slots.backlog() == 0


def simple(name: str, hash_ids: tuple[int, ...] = ()) -> SimRequest:
    return SimRequest(name, 0.0, "t", "standard", 2000, 10, hash_ids)


def test_weighted_scores_prefer_the_prefix_then_the_shorter_queue() -> None:
    router = WeightedScores(random.Random(0))
    views = [ReplicaView(scraped_queue=0), ReplicaView(scraped_queue=9)]
    assert router.choose(simple("a", (1, 2)), views) == 0
    views[0].scraped_queue, views[1].scraped_queue = 9, 8
    assert router.choose(simple("b", (1, 2)), views) == 0
    assert router.choose(simple("c"), views) == 1


def test_round_robin_goes_round() -> None:
    router = RoundRobin(random.Random(0))
    views = [ReplicaView(), ReplicaView()]
    assert [router.choose(simple("a"), views) for _ in range(3)] == [0, 1, 0]


def test_the_cost_of_a_decision_is_measured() -> None:
    costs = {cost.event: cost for cost in measure(waiting=200, tenants=10, decisions=50)}
    assert set(costs) == {"decision", "arrival", "tokens", "step", "lone", "lone, cold", "routed"}
    assert all(0 < cost.p50_us <= cost.p99_us for cost in costs.values())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["run", "--load", "1", "--duration", "5"], id="run"),
        pytest.param(["compare", "--systems", "weir,fcfs", "--duration", "5"], id="compare"),
    ],
)
def test_the_command_prints_json_lines(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["system"] == "weir"


def test_the_command_prints_a_table() -> None:
    result = CliRunner().invoke(app, ["run", "--duration", "5"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "interactive" in result.stdout


def test_the_command_answers_the_capacity_question() -> None:
    trace = Path(__file__).parent / "traces" / "azure2023_conv_excerpt.csv"
    result = CliRunner().invoke(app, ["capacity", "--trace", str(trace), "--speed", "10"])
    assert result.exit_code == 0, result.output
    assert "replicas reach 99%" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        pytest.param(["run", "--system", "magic"], "none of weir", id="system"),
        pytest.param(["run", "--profile", "abacus"], "none of h100-8b", id="profile"),
        pytest.param(["run", "--mix", "chat=1"], "CLASS=PART", id="mix"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], want: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert want in result.output
