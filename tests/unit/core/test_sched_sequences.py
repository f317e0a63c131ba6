"""Cost is counted in sequences: what a request becomes in the engine, not how many calls it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from weir_core.sched.audit import violations
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    Action,
    ClassPolicy,
    Dispatch,
    EngineFacts,
    EngineKind,
    Reason,
    Reject,
    Request,
    Requeue,
    TenantPolicy,
)


def scheduler(
    slots: int = 8, kv_tokens: int = 1_000_000, tenants: Sequence[TenantPolicy] = ()
) -> Scheduler:
    engine = EngineFacts(EngineKind.WEIR, slots, 100_000, kv_tokens)
    return Scheduler(SchedulerSettings(engine), tenants=tenants)


def request(
    name: str, sequences: int, class_name: str = "batch", *, tenant: str = "t", output: int = 50
) -> Request:
    return Request(
        name,
        tenant,
        class_name,
        0.0,
        400,
        prompt_tokens=10,
        max_output_tokens=output,
        sequences=sequences,
    )


def dispatched(actions: Sequence[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Dispatch)]


def start(s: Scheduler, *requests: Request) -> None:
    """Let requests run that have had their first token."""
    for one in requests:
        assert dispatched(s.on_arrival(one, 0.0)) == [one.request_id]
        s.on_first_token(one.request_id, 0.0)


@pytest.mark.parametrize(
    ("sequences", "want", "slots"),
    [(1, 8, 8), (2, 4, 8), (3, 2, 6), (8, 1, 8), (64, 1, 6)],
)
def test_slots_hold_sequences(sequences: int, want: int, slots: int) -> None:
    s = scheduler()
    sent = [
        name
        for name in map(str, range(20))
        if dispatched(s.on_arrival(request(name, sequences), 0.0))
    ]
    assert len(sent) == want
    assert s.engine_load.slots == slots
    assert violations(s, [], 0.0) == []


def test_each_sequence_needs_kv_room_for_its_own_output() -> None:
    s = scheduler(kv_tokens=1000)
    start(s, request("four", 4, output=100))
    assert s.engine_load.kv_tokens == 10 + 4 * 100
    assert s.on_arrival(request("six", 6, output=100), 0.0) == []
    assert dispatched(s.on_arrival(request("two", 2, "interactive", output=100), 0.0)) == ["two"]


@pytest.mark.parametrize(
    ("output", "want"),
    [
        pytest.param(10, (15, 10 + 15 * 10), id="room for one wave"),
        pytest.param(100, (15, 712), id="three quarters of the room"),
    ],
)
def test_a_request_wider_than_the_engine_leaves_a_quarter_of_it(
    output: int, want: tuple[int, int]
) -> None:
    s = scheduler(slots=20, kv_tokens=1000)
    start(s, request("wide", 500, output=output))
    s.on_tokens("wide", 500 * output, 0.5)  # of waves that are done
    assert (s.engine_load.slots, s.engine_load.kv_tokens) == want
    s.on_finish("wide", 1.0)
    assert (s.engine_load.slots, s.engine_load.kv_tokens) == (0, 0)


def test_the_neighbours_of_a_request_in_waves_go_to_the_engine_and_before_its_waves_there() -> None:
    s = scheduler(slots=8)
    start(s, request("wide", 90, "standard"), request("neighbour", 1, "standard", tenant="n"))
    assert s.tickets["neighbour"].engine_due_s < s.tickets["wide"].engine_due_s
    assert s.on_arrival(request("as-wide", 90, "standard"), 0.0) == []


def test_one_that_the_engine_computes_at_once_has_its_deadline_there() -> None:
    s = scheduler(slots=8)
    start(s, request("list", 8, "standard"))
    assert s.tickets["list"].engine_due_s == s.tickets["list"].due_s == 5.0


def test_nothing_narrower_of_its_rank_or_below_passes_a_wide_request() -> None:
    s = scheduler(slots=4)
    start(s, *(request(f"running-{n}", 1, "standard") for n in range(4)))
    s.on_arrival(request("wide", 4, "standard"), 0.0)
    s.on_arrival(request("narrow", 1, "standard"), 0.0)
    s.on_arrival(request("lower", 1, "batch"), 0.0)
    for n in range(3):
        assert s.on_finish(f"running-{n}", 1.0) == []
    assert dispatched(s.on_finish("running-3", 1.0)) == ["wide"]


def test_a_wide_request_on_its_minimum_share_keeps_no_higher_rank_out() -> None:
    s = scheduler(slots=4)
    patient = ClassPolicy("interactive", rank=100, max_queue_wait_s=600.0, shed="never")
    batch = ClassPolicy("batch", rank=-100, min_share=0.5, max_queue_wait_s=600.0, shed="never")
    s.configure([patient, batch], (), 0.0)
    start(s, *(request(f"running-{n}", 1, "interactive") for n in range(4)))
    s.on_arrival(request("wide", 4), 0.0)
    for n in range(8):
        s.on_arrival(request(f"chat-{n}", 1, "interactive"), 0.0)
    for n in range(4):
        assert dispatched(s.on_finish(f"running-{n}", 10.0 + n)) == [f"chat-{n}"]


def test_as_many_lower_requests_leave_as_a_wide_one_needs_slots() -> None:
    s = scheduler(slots=6)
    for n in range(3):
        s.on_arrival(request(f"batch-{n}", 2), 0.0)
    actions = s.on_arrival(request("chat", 3, "interactive"), 0.1)
    assert [a.request_id for a in actions if isinstance(a, Requeue)] == ["batch-2", "batch-1"]
    assert dispatched(actions) == ["chat"]


def test_a_tenants_requests_in_flight_are_counted_in_sequences() -> None:
    s = scheduler(tenants=[TenantPolicy("t", max_requests=4)])
    start(s, request("three", 3))
    (busy,) = s.on_arrival(request("two", 2), 0.0)
    assert isinstance(busy, Reject)
    assert busy.reason is Reason.TENANT_LIMIT
    assert dispatched(s.on_arrival(request("one", 1), 0.0)) == ["one"]
    s.on_finish("three", 1.0)
    assert dispatched(s.on_arrival(request("three-more", 3), 1.0)) == ["three-more"]


def test_more_sequences_than_its_tenant_may_ever_have_are_refused_for_good() -> None:
    s = scheduler(tenants=[TenantPolicy("t", max_requests=4)])
    (action,) = s.on_arrival(request("five", 5), 0.0)
    assert isinstance(action, Reject)
    assert action.reason is Reason.TOO_LARGE


def test_fairness_counts_the_outputs_of_all_sequences() -> None:
    s = scheduler(slots=1)
    s.on_arrival(request("running", 1, "interactive"), 0.0)
    s.on_first_token("running", 0.0)
    s.on_arrival(request("wide", 8, tenant="wide"), 0.0)
    assert s.tickets["wide"].cost == 10 + 2 * 8 * 50
    s.on_finish("running", 0.1)
    s.on_first_token("wide", 0.2)
    s.on_finish("wide", 0.3, output_tokens=400)
    queue = s.pool.named("batch")
    assert queue is not None
    assert queue.fairness.counter("wide") == 10 + 2 * 400


def test_the_length_of_one_sequence_is_learned() -> None:
    s = scheduler()
    for n in range(30):
        start(s, request(f"four-{n}", 4))
        s.on_finish(f"four-{n}", 1.0, output_tokens=80)
    assert s.estimator.output_tokens(request("next", 4)) == pytest.approx(20, rel=0.1)
