"""Fleets in simulated time: every request has one outcome, and stale knowledge does no harm."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from weir_cli.simulate import app
from weir_core.route.router import HOP_LIMIT
from weir_sim.fleet import ROUTINGS, FleetConfig, FleetResult, Slowdown, simulate_fleet
from weir_sim.fleet_peers import Messages
from weir_sim.fleet_report import FleetReport, fleet_report
from weir_sim.profiles import PROFILES, slowed
from weir_sim.run import RequestTooLong
from weir_sim.workload import SimRequest, WorkloadSpec, generate

H100 = PROFILES["h100-8b"]
PER_REPLICA = 15.6
"""Requests per second that one saturated engine of the profile completes."""
BAD = Messages(heartbeat_s=1.0, age_s=0.3, loss=0.4, jitter_s=1.5)
"""Vectors that are old, of which many get lost and some overtake others."""


def workload(load: float, speeds: list[float], duration_s: float = 12.0) -> list[SimRequest]:
    return generate(WorkloadSpec(PER_REPLICA * load * sum(speeds), duration_s), seed=0)


def run(
    routing: str,
    speeds: list[float],
    load: float,
    messages: Messages | None = None,
    **other: object,
) -> FleetResult:
    config = FleetConfig(H100, speeds, routing, messages=messages or Messages(), **other)  # type: ignore[arg-type]
    return simulate_fleet(config, workload(load, speeds))


def shown(
    routing: str,
    speeds: list[float],
    load: float,
    messages: Messages | None = None,
    **other: object,
) -> FleetReport:
    return fleet_report(run(routing, speeds, load, messages, **other))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("load", [0.7, 2.0])
def test_every_request_has_one_outcome(routing: str, load: float) -> None:
    result = run(routing, [1.0, 0.5, 0.25], load, BAD)
    assert [trip.outcomes for trip in result.trips] == [1] * len(result.trips)
    assert all((trip.finished_s >= 0) != (trip.rejected is not None) for trip in result.trips)


def test_the_same_seed_gives_the_same_bytes() -> None:
    once, again = (shown("weir", [1.0] * 4, 0.8, BAD).to_json() for _ in range(2))
    assert once == again


def test_a_forwarded_request_pays_its_hops() -> None:
    slow_net = Messages(hop_s=0.2)
    requests = [
        SimRequest("q0", 1.0, "t", "batch", 20_000, 8),
        SimRequest("q1", 1.1, "t", "batch", 20_000, 8),
    ]
    config = FleetConfig(H100, [1.0, 1.0], "weir", "one", slow_net)
    first, second = simulate_fleet(config, requests).trips
    assert (first.hops, second.hops) == (0, 1)
    there_s = first.first_token_s - first.request.arrival_s
    took_s = second.first_token_s - second.request.arrival_s
    assert took_s - there_s == pytest.approx(0.4, abs=0.02)


def test_vectors_a_second_old_do_not_make_replicas_herd() -> None:
    old = Messages(heartbeat_s=1.0, age_s=1.0, loss=0.2)
    weir, central = shown("weir", [1.0] * 12, 0.8, old), shown("central", [1.0] * 12, 0.8)
    assert weir.attainment_ratio > 0.99
    assert weir.ttft_p99_s is not None
    assert central.ttft_p99_s is not None
    assert weir.ttft_p99_s < 2.5 * central.ttft_p99_s
    assert weir.ttft_p99_s < (shown("random", [1.0] * 12, 0.8).ttft_p99_s or 0.0)


def test_all_requests_at_one_replica_spread_over_the_fleet() -> None:
    result = run("weir", [1.0] * 8, 0.8, ingress="one")
    served = [0] * 8
    for trip in result.trips:
        served[trip.replica] += 1
    assert min(served) > len(result.trips) / 8 / 2
    assert fleet_report(result).attainment_ratio > 0.99


def test_without_any_vector_but_the_first_requests_are_still_served() -> None:
    assert shown("weir", [1.0] * 4, 0.7, Messages(loss=1.0)).attainment_ratio > 0.95


def test_unequal_replicas_need_no_configuration() -> None:
    speeds = [1.0, 0.5, 0.25]
    weir, counts = shown("weir", speeds, 0.75), shown("least-request", speeds, 0.75)
    assert weir.attainment_ratio >= 0.99
    assert weir.attainment_ratio > counts.attainment_ratio
    assert weir.served["1"] > weir.served["0.5"] > weir.served["0.25"]


def test_what_a_replica_returns_is_tried_elsewhere_within_the_hop_limit() -> None:
    result = run("weir", [1.0, 1.0, 0.25], 3.0, replace(BAD, age_s=2.0))
    returned = [trip for trip in result.trips if trip.tried]
    assert returned
    assert max(trip.hops for trip in result.trips) <= 2
    for trip in returned:
        assert len(set(trip.tried)) == len(trip.tried)


@pytest.mark.parametrize("ingress", ["random", "one"])
def test_what_waits_is_moved_within_the_hop_limit_and_none_is_lost(ingress: str) -> None:
    slow = [Slowdown(0, 5.0, 12.0, 0.1)]
    result = run("weir", [1.0] * 4, 1.2, BAD, ingress=ingress, slowdowns=slow)
    assert [trip.outcomes for trip in result.trips] == [1] * len(result.trips)
    moved = [trip for trip in result.trips if trip.moves]
    assert moved
    for trip in moved:
        assert trip.moves <= trip.hops + 1
        assert trip.hops <= HOP_LIMIT
    assert not any(scheduler.tickets for scheduler in result.schedulers)


def test_moving_what_waits_shortens_the_longest_waits() -> None:
    bursts = generate(WorkloadSpec(PER_REPLICA * 0.85 * 8, 12.0, burstiness=6.0), seed=0)
    config = FleetConfig(H100, [1.0] * 8, messages=Messages(heartbeat_s=0.2))
    moving, early = (
        fleet_report(simulate_fleet(replace(config, routing=routing), bursts))
        for routing in ("weir", "weir-early")
    )
    assert moving.moved > early.moved == 0
    assert moving.ttft_p99_s is not None
    assert early.ttft_p99_s is not None
    assert moving.ttft_p99_s < early.ttft_p99_s


def test_a_request_that_no_engine_could_hold_is_an_error() -> None:
    with pytest.raises(RequestTooLong, match="500000 tokens"):
        simulate_fleet(FleetConfig(H100, [1.0]), [SimRequest("q0", 0.0, "t", "batch", 499_999, 1)])


def test_half_the_speed_takes_twice_the_time() -> None:
    work = (1000, 20, 5000, 40_000)
    assert slowed(H100, 0.5).step_s(*work) == pytest.approx(2 * H100.step_s(*work))


def test_the_command_prints_a_row_for_each_routing() -> None:
    arguments = ["fleet", "--replicas", "3", "--speeds", "1,0.5", "--duration", "5"]
    done = CliRunner().invoke(app, [*arguments, "--routings", "weir,central", "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["routing"], row["replicas"]) for row in rows] == [("weir", 3), ("central", 3)]
    table = CliRunner().invoke(app, [*arguments, "--routings", "weir"])
    assert "0.5: " in table.stdout


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--routings", "weir,guess", "'guess' is none of"),
        ("--speeds", "1,none", "write numbers"),
    ],
)
def test_wrong_options_are_named(option: str, value: str, complaint: str) -> None:
    done = CliRunner().invoke(app, ["fleet", option, value])
    assert done.exit_code == 2
    assert complaint in done.output
