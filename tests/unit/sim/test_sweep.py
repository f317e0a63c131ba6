"""Many simulations at once, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from weir_sim.experiments import Scenario
from weir_sim.profiles import PROFILES
from weir_sim.run import SYSTEMS
from weir_sim.sweep import Done, Job, distribution, run_job, run_jobs
from weir_sim.workload import WorkloadSpec

SPEC = WorkloadSpec(rate=1.0, duration_s=1.0)


def job(system: str = "weir", load: float = 2.0, seed: int = 0, retries: int = 0) -> Job:
    scenario = Scenario(PROFILES["h100-8b"], load, duration_s=20.0, spec=SPEC)
    return Job(scenario, SYSTEMS[system], seed, retries)


@pytest.fixture(scope="module")
def results() -> Sequence[Done]:
    return run_jobs([job(), job("fcfs"), job(load=1.0), job("fcfs", load=1.0)], workers=2)


def test_results_come_in_the_order_of_the_jobs_and_equal_those_of_one_process(
    results: Sequence[Done],
) -> None:
    assert [done.job.system.name for done in results] == ["weir", "fcfs", "weir", "fcfs"]
    assert results[1] == run_job(job("fcfs"))


def test_a_timeline_shows_the_backlog_where_the_system_keeps_it(results: Sequence[Done]) -> None:
    weir, fcfs = results[0].curves.timeline, results[1].curves.timeline
    assert any(moment.waiting for moment in weir)
    assert not any(moment.waiting for moment in fcfs)
    assert any(moment.engine_waiting for moment in fcfs)


def test_a_timeline_counts_the_refusals_of_a_minute(results: Sequence[Done]) -> None:
    done = results[0]
    refused = {row.name: row.refusals for row in done.report.classes if row.refusals}
    most = {
        name: max(moment.rejected.get(name, 0) for moment in done.curves.timeline)
        for name in refused
    }
    assert refused
    assert all(most[name] >= number for name, number in refused.items())


def test_a_distribution_rises_to_one() -> None:
    points = distribution([3.0, 1.0, 2.0])
    assert points == ((1.0, 1 / 3), (2.0, 2 / 3), (3.0, 1.0))


def test_clients_that_come_back_are_counted_once_and_refused_more_often() -> None:
    once, again = run_job(job()).report, run_job(job(retries=3)).report
    refusals = sum(row.refusals for row in again.classes)
    rejected = sum(row.rejected for row in again.classes)
    assert refusals > rejected
    assert rejected < sum(row.rejected for row in once.classes)
    assert sum(row.requests for row in once.classes) == sum(row.requests for row in again.classes)
    assert again.unfinished == 0
