"""Many simulations at once: one process per core, results in the order they were asked for.

A job names everything it needs by value, so that a worker makes its own workload; what comes back
is small: the report, and the curves that plots are made of.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from weir_sim.experiments import Scenario
from weir_sim.report import Report, report, tpot, ttft
from weir_sim.run import SimConfig, SimResult, System, simulate
from weir_sim.timeline import Moment, timeline

_POINTS = 200
"""Points of a curve; more cannot be seen."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation.

    Attributes:
        retries: How often clients come back after a refusal.
    """

    scenario: Scenario
    system: System
    seed: int
    retries: int = 0

    @property
    def title(self) -> str:
        """Return what distinguishes it."""
        return f"{self.system.name}, load {self.scenario.load:g}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Curves:
    """What plots are made of.

    Attributes:
        ttft_s: Class name -> distribution of the time to first token.
        tpot_s: Class name -> distribution of the time per output token.
        timeline: The run over its time.
    """

    ttft_s: dict[str, Points] = field(default_factory=dict)
    tpot_s: dict[str, Points] = field(default_factory=dict)
    timeline: tuple[Moment, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """A job and what it showed."""

    job: Job
    report: Report
    curves: Curves


def run_job(job: Job) -> Done:
    """Simulate one job in this process."""
    scenario = job.scenario
    config = SimConfig(
        scenario.profile,
        job.system,
        scenario.replicas,
        seed=job.seed,
        retries=job.retries,
        sample_s=scenario.duration_s / _POINTS,
    )
    result = simulate(config, scenario.requests(job.seed))
    return Done(job, report(result), curves(result))


def run_jobs(
    jobs: Sequence[Job], workers: int | None = None, on_done: Callable[[Done], None] | None = None
) -> list[Done]:
    """Run all jobs and return their results in the order of `jobs`.

    Args:
        jobs: What to run.
        workers: Processes; None takes one for each core this process may use.
        on_done: Called after each job, in the order they end.
    """
    workers = min(len(jobs), workers or len(os.sched_getaffinity(0)))
    finished: dict[int, Done] = {}
    if workers <= 1:
        for index, job in enumerate(jobs):
            finished[index] = _note(run_job(job), on_done)
        return [finished[index] for index in range(len(jobs))]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: dict[Future[Done], int] = {
            pool.submit(run_job, job): index for index, job in enumerate(jobs)
        }
        for future in as_completed(futures):
            finished[futures[future]] = _note(future.result(), on_done)
    return [finished[index] for index in range(len(jobs))]


def curves(result: SimResult) -> Curves:
    """Return the curves of a run."""
    names = [policy.name for policy in result.config.classes]
    ttfts: dict[str, list[float]] = {name: [] for name in names}
    tpots: dict[str, list[float]] = {name: [] for name in names}
    for trip in result.trips:
        if trip.finished_s < 0:
            continue
        ttfts[trip.request.class_name].append(ttft(trip))
        if (per_token := tpot(trip)) is not None:
            tpots[trip.request.class_name].append(per_token)
    return Curves(
        {name: distribution(values) for name, values in ttfts.items() if values},
        {name: distribution(values) for name, values in tpots.items() if values},
        timeline(result),
    )


def shown(results: Sequence[Done]) -> list[Done]:
    """Return the runs that are drawn: of each system, the first seed at the highest load."""
    top = max(done.job.scenario.load for done in results)
    found: dict[str, Done] = {}
    for done in results:
        if done.job.scenario.load == top:
            found.setdefault(done.job.system.name, done)
    return list(found.values())


def distribution(values: Sequence[float]) -> Points:
    """Return value and the part of all values that are not above it."""
    ordered = sorted(values)
    count = len(ordered)
    ranks = sorted({max(1, round(count * point / _POINTS)) for point in range(1, _POINTS + 1)})
    return tuple((ordered[rank - 1], rank / count) for rank in ranks)


def _note(done: Done, on_done: Callable[[Done], None] | None) -> Done:
    if on_done is not None:
        on_done(done)
    return done
