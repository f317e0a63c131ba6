"""An engine that is not there yet, dies, comes back, or is another one than before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from weir_core.sched.audit import violations
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    Action,
    Dispatch,
    EngineFacts,
    EngineKind,
    Reason,
    Reject,
    Request,
    Requeue,
    RequeueReason,
    StepRecord,
    TenantPolicy,
)

ENGINE = EngineFacts(EngineKind.WEIR, 2, 1000, 100_000)


def scheduler(
    engine: EngineFacts | None = ENGINE, tenants: Sequence[TenantPolicy] = ()
) -> Scheduler:
    return Scheduler(SchedulerSettings(engine), tenants=tenants)


def request(
    name: str, class_name: str = "batch", arrival_s: float = 0.0, *, tokens: int | None = 100
) -> Request:
    return Request(name, "t", class_name, arrival_s, 400, tokens, max_output_tokens=50)


def dispatched(actions: Sequence[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Dispatch)]


def test_requests_wait_for_an_engine_that_is_not_there_yet() -> None:
    s = scheduler(None)
    assert s.on_arrival(request("batch"), 0.0) == []
    assert s.on_arrival(request("chat", "interactive", 0.5), 0.5) == []
    assert violations(s, [], 0.5) == []
    assert dispatched(s.on_engine_up(ENGINE, 0.9)) == ["chat", "batch"]


def test_who_waits_for_an_engine_waits_no_longer_than_its_class_may() -> None:
    s = scheduler(None)
    s.on_arrival(request("chat", "interactive"), 0.0)
    assert s.next_tick(0.0) == 1.0
    (action,) = s.on_tick(1.0)
    assert isinstance(action, Reject)
    assert action.reason is Reason.TTL_EXPIRED


def test_what_had_not_begun_waits_again_and_what_had_is_the_drivers_to_end() -> None:
    s = scheduler()
    s.on_arrival(request("begun"), 0.0)
    s.on_first_token("begun", 0.1)
    s.on_arrival(request("sent", arrival_s=0.2), 0.2)
    s.on_arrival(request("waits", arrival_s=0.3), 0.3)
    assert s.on_engine_gone(1.0) == [Requeue("sent", RequeueReason.ENGINE_GONE)]
    assert s.on_abort("begun", 1.0) == []
    assert violations(s, [], 1.0) == []
    assert s.on_arrival(request("later", arrival_s=2.0), 2.0) == []
    assert s.on_tick(3.0) == []
    actions = s.on_engine_up(ENGINE, 4.0)
    assert actions == [
        Dispatch("sent", rank=-100, waited_s=3.8),
        Dispatch("waits", rank=-100, waited_s=3.7),
    ]


def test_an_engine_that_keeps_dying_uses_up_nobodys_requeues() -> None:
    s = scheduler(EngineFacts(EngineKind.WEIR, 1, 1000, 100_000))
    s.on_arrival(request("batch"), 0.0)
    for death in range(1, 6):
        assert len(s.on_engine_gone(float(death))) == 1
        assert dispatched(s.on_engine_up(ENGINE, death + 0.5)) == ["batch"]
    assert s.tickets["batch"].requeues == 0


def test_a_request_that_an_engine_lost_is_not_refused_for_its_target_but_for_its_wait() -> None:
    s = scheduler()
    s.on_arrival(request("chat", "interactive"), 0.0)
    s.on_engine_gone(0.5)
    assert s.on_tick(9.9) == []
    (action,) = s.on_tick(10.0)
    assert isinstance(action, Reject)


def test_what_never_ran_costs_its_tenant_nothing() -> None:
    s = scheduler(tenants=[TenantPolicy("t", tokens_per_minute=600)])
    s.on_arrival(request("large", tokens=700), 0.0)
    s.on_engine_gone(0.1)
    s.on_abort("large", 0.2)
    s.on_engine_up(ENGINE, 0.3)
    assert dispatched(s.on_arrival(request("next", arrival_s=0.4), 0.4)) == ["next"]


def test_an_engine_with_other_limits_is_reckoned_with_at_once() -> None:
    s = scheduler()
    for name in ("a", "b", "c", "d"):
        s.on_arrival(request(name, tokens=10), 0.0)
    assert s.backlog() == 2
    larger = EngineFacts(EngineKind.FCFS, 3, 1000, 100_000)
    assert dispatched(s.on_engine_up(larger, 0.1)) == ["c"]
    assert s.engine == larger


@pytest.mark.parametrize("kv_tokens", [131_072, 16_384])
def test_what_waits_is_estimated_anew_for_the_engine_that_comes(kv_tokens: int) -> None:
    s = scheduler(None)
    picture = Request("picture", "t", "batch", 0.0, body_bytes=900_000)
    s.on_arrival(picture, 0.0)
    s.on_engine_up(EngineFacts(EngineKind.WEIR, 2, 1000, kv_tokens), 0.1)
    assert s.tickets["picture"].prompt_tokens == min(32_768, kv_tokens // 2)
    assert violations(s, [], 0.1) == []


def give_up_at(s: Scheduler, *, heard_at: Sequence[float] = ()) -> tuple[float, list[Action]]:
    """Follow the scheduler's own ticks until it acts, with steps heard at these instants."""
    steps = sorted(heard_at)
    while (at := s.next_tick(0.0)) is not None:
        while steps and steps[0] < at:
            s.on_step(StepRecord(0.1, 10, 0), steps.pop(0))
        if actions := s.on_tick(at):
            return at, actions
    raise AssertionError("no tick is due")


@pytest.mark.parametrize(
    ("class_name", "tokens", "heard_at", "want_s"),
    [
        pytest.param("interactive", 100, (), 10.0, id="as long as its class may wait"),
        pytest.param("standard", 100, (), 30.0, id="another class"),
        pytest.param("interactive", 100, (3.0, 8.0), 18.0, id="as long from the last progress"),
        pytest.param("interactive", 100, range(60), 40.0, id="the engine works, only not on it"),
        pytest.param("interactive", 50_000, (), 100.0, id="an unknown engine may be slow"),
    ],
)
def test_what_the_engine_does_not_begin_is_taken_back_and_refused(
    class_name: str, tokens: int, heard_at: Sequence[float], want_s: float
) -> None:
    s = scheduler()
    s.on_arrival(request("silent", class_name, tokens=tokens), 0.0)
    at, actions = give_up_at(s, heard_at=heard_at)
    assert at == pytest.approx(want_s, abs=0.1)
    (action,) = actions
    assert isinstance(action, Reject)
    assert action.reason is Reason.TTL_EXPIRED
    assert action.retry_after_s >= 1.0
    assert s.tickets == {}
    assert violations(s, actions, at) == []


def test_a_long_prompt_that_is_being_computed_is_left_alone() -> None:
    s = scheduler()
    for step in range(100):
        s.on_step(StepRecord(1.0 + 0.01 * (step % 2), 1000, 0), float(step))
    s.on_arrival(request("book", "interactive", 100.0, tokens=100_000), 100.0)
    for step in range(1, 150):
        assert s.on_step(StepRecord(1.0 + 0.01 * (step % 2), 1000, 0), 100.0 + step) == []
        assert s.on_tick(100.0 + step) == []
    s.on_first_token("book", 250.0)
    assert s.on_tick(10_000.0) == []


@pytest.mark.parametrize("sign", ["token", "tokens", "end"])
def test_others_tokens_are_signs_of_life(sign: str) -> None:
    s = scheduler()
    s.on_arrival(request("other"), 0.0)
    if sign != "token":
        s.on_first_token("other", 0.0)
    s.on_arrival(request("chat", "interactive"), 0.0)
    if sign == "token":
        s.on_first_token("other", 9.0)
    elif sign == "tokens":
        s.on_tokens("other", 1, 9.0)
    else:
        s.on_finish("other", 9.0)
    assert s.on_tick(18.9) == []
    assert len(s.on_tick(19.1)) == 1


def test_what_was_taken_back_from_a_silent_engine_costs_nothing() -> None:
    s = scheduler(tenants=[TenantPolicy("t", tokens_per_minute=600)])
    s.on_arrival(request("silent", "interactive", tokens=700), 0.0)
    assert len(s.on_tick(10.0)) == 1
    assert dispatched(s.on_arrival(request("next", arrival_s=10.0), 10.0)) == ["next"]


def test_time_without_an_engine_does_not_make_it_look_slow() -> None:
    s = scheduler(EngineFacts(EngineKind.WEIR, 1, 1000, 100_000))
    s.on_arrival(request("begun"), 0.0)
    s.on_first_token("begun", 0.0)
    s.on_arrival(request("waits"), 0.0)
    s.on_tokens("begun", 500, 1.0)
    s.on_tick(1.0)
    assert s.forecast.drain_rate == 1000
    s.on_engine_gone(1.0)
    s.on_tick(60.0)
    assert s.forecast.drain_rate == 1000
