"""Offered work: in seconds of the engine, by class, whether it is served or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from weir_core.route.load import load_of
from weir_core.route.types import ClassLoad
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    Action,
    EngineFacts,
    EngineKind,
    Reject,
    Request,
    StepRecord,
    TenantPolicy,
)
from weir_sim.baselines import Front
from weir_sim.experiments import capacity_per_s
from weir_sim.profiles import PROFILES, EngineProfile
from weir_sim.run import SYSTEMS, SimConfig, simulate
from weir_sim.workload import LengthModel, WorkloadSpec, generate

H100 = PROFILES["h100-8b"]
ENGINE = EngineFacts(EngineKind.WEIR, 100, 8192, 1_000_000)


def request(serial: int, class_name: str = "standard", **facts: object) -> Request:
    made = Request(f"q{serial}", "t", class_name, 0.0, 4000, 1000)
    return Request(**({name: getattr(made, name) for name in made.__struct_fields__} | facts))


def trained(engine: EngineFacts = ENGINE, tenants: Sequence[TenantPolicy] = ()) -> Scheduler:
    """Return a scheduler that has learned steps of 10 ms, 20 us a prompt token, 100 us a decode."""
    scheduler = Scheduler(SchedulerSettings(engine), tenants=tenants)
    for serial in range(400):
        prefill, decodes = 500 * (serial % 3), 10 * (serial % 7)
        took_s = 0.01 + 20e-6 * prefill + 1e-4 * decodes
        scheduler.on_step(StepRecord(took_s, prefill, decodes), 0.0)
    return scheduler


def offered(scheduler: Scheduler, now: float) -> dict[str, float]:
    return {each.name: each.offered for each in load_of(scheduler, now).classes}


def answered(scheduler: Scheduler, until_s: int, class_name: str = "batch") -> None:
    """Let a request of 1000 tokens and as many as estimated come, and end, each second."""
    for second in range(until_s):
        scheduler.on_arrival(request(second, class_name, arrival_s=float(second)), float(second))
        scheduler.on_first_token(f"q{second}", second + 0.1)
        scheduler.on_finish(f"q{second}", second + 0.2)


def test_work_is_the_share_of_a_full_batch() -> None:
    scheduler = trained()
    answered(scheduler, 300)
    outputs = scheduler.estimator.output_tokens(request(0))
    # 100 slots, and batch's 500 ms a token allow them all: each output token costs a decode and
    # its part of the step's 10 ms.
    expected = 1000 * 20e-6 + outputs * (1e-4 + 0.01 / 100)
    assert offered(scheduler, 300.0)["batch"] == pytest.approx(expected, rel=0.1)
    assert offered(scheduler, 300.0)["standard"] == 0.0


@pytest.mark.parametrize(
    ("engine", "decodes"),
    [
        pytest.param(replace(ENGINE, max_num_seqs=10), 10, id="by its slots"),
        pytest.param(replace(ENGINE, kv_capacity_tokens=10_570), 10, id="by its KV room"),
    ],
)
def test_a_small_batch_makes_work_dearer(engine: EngineFacts, decodes: int) -> None:
    scheduler = trained(engine)
    for second in range(300):
        scheduler.on_arrival(request(second, "batch", max_output_tokens=4), float(second))
        scheduler.on_finish(f"q{second}", second + 0.2)
    expected = 1000 * 20e-6 + 4 * (1e-4 + 0.01 / decodes)
    assert offered(scheduler, 300.0)["batch"] == pytest.approx(expected, rel=0.1)


def test_a_tight_target_makes_work_dearer_and_a_trickle_of_it_does_not() -> None:
    loose, tight, trickle = trained(), trained(), trained()
    answered(loose, 300, "batch")
    answered(tight, 300, "interactive")
    trickle.on_arrival(request(999, "interactive", max_output_tokens=1), 0.0)
    answered(trickle, 300, "batch")
    dear = offered(tight, 300.0)["interactive"]
    assert dear > 1.02 * offered(loose, 300.0)["batch"]
    assert offered(trickle, 300.0)["batch"] == pytest.approx(
        offered(loose, 300.0)["batch"], rel=1e-3
    )


def test_rejected_work_counts_and_work_that_a_limit_keeps_out_does_not() -> None:
    limited = TenantPolicy("limited", max_requests=1)
    scheduler = trained(tenants=[limited])
    rejected = 0
    for serial in range(600):
        actions = scheduler.on_arrival(request(serial, arrival_s=serial / 100), serial / 100)
        rejected += any(isinstance(action, Reject) for action in actions)
    before = offered(scheduler, 6.0)["standard"]
    assert before > 1.0
    assert scheduler.counts.arrived == 600
    for serial in range(1000, 1100):
        scheduler.on_arrival(request(serial, tenant="limited", payer="limited"), 6.0)
    assert offered(scheduler, 6.6)["standard"] < 1.1 * before


def test_work_that_another_sidecar_has_counted_does_not_count_again() -> None:
    scheduler = trained()
    scheduler.on_arrival(request(1, is_counted=True), 0.0)
    assert offered(scheduler, 1.0)["standard"] == 0.0


def test_a_cached_prompt_is_no_work() -> None:
    plain, cached = trained(), trained()
    plain.on_arrival(request(1, max_output_tokens=1), 0.0)
    cached.on_arrival(request(1, max_output_tokens=1, cached_tokens=900), 0.0)
    assert offered(cached, 1.0)["standard"] < 0.2 * offered(plain, 1.0)["standard"]


def test_what_waits_is_told_with_the_time_that_is_left() -> None:
    scheduler = trained(replace(ENGINE, max_num_seqs=1))
    for serial in range(3):
        scheduler.on_arrival(request(serial, "batch", arrival_s=float(serial)), float(serial))
    batch = load_of(scheduler, 12.0).classes[-1]
    # Two wait, come after 1 and 2 s; their first tokens are due 60 s after that.
    assert batch.slack_s == pytest.approx(61.5 - 12.0)
    assert batch.backlog_s > 0.0
    assert load_of(scheduler, 100.0).classes[-1].slack_s == pytest.approx(61.5 - 100.0)


def test_a_replica_that_says_nothing_of_its_work_is_understood() -> None:
    assert ClassLoad("standard", 0.0, 0).offered == 0.0


@pytest.mark.parametrize(
    ("profile", "lengths"),
    [
        pytest.param(H100, LengthModel(), id="chat"),
        pytest.param(H100, LengthModel(8000, 40_000, 200, 600), id="long prompts"),
        pytest.param(PROFILES["l4-8b"], LengthModel(300, 900, 60, 200), id="a slow engine"),
    ],
)
@pytest.mark.parametrize("load", [0.6, 1.3])
def test_offered_work_is_the_load_that_is_offered(
    profile: EngineProfile, lengths: LengthModel, load: float
) -> None:
    """Load 1 is what one saturated plain engine completes, as a simulation finds it."""
    spec = WorkloadSpec(rate=1.0, duration_s=1.0, lengths=lengths)
    rate = load * capacity_per_s(profile, spec)
    requests = generate(replace(spec, rate=rate, duration_s=900 / rate), 0)
    start_s, end_s = requests[300].arrival_s, requests[-1].arrival_s
    seen: list[float] = []

    def look(front: Front, now: float, _actions: list[Action]) -> None:
        assert isinstance(front, Scheduler)
        if start_s <= now <= end_s:
            seen.append(sum(front.work_of(queue, now).offered for queue in front.pool.classes))

    simulate(SimConfig(profile, SYSTEMS["weir"]), requests, look)
    assert sum(seen) / len(seen) == pytest.approx(load, rel=0.2)
