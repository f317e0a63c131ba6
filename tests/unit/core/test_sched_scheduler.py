"""The scheduler's story: literal times, one engine, what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec import structs

from weir_core.sched.audit import violations
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    Action,
    ClassPolicy,
    Dispatch,
    EngineFacts,
    EngineKind,
    PoolLimits,
    Reason,
    Reject,
    Request,
    Requeue,
    RequeueReason,
    StepRecord,
    TenantPolicy,
)


def scheduler(
    *,
    slots: int = 2,
    step_tokens: int = 1000,
    kv_tokens: int = 100_000,
    kind: EngineKind = EngineKind.WEIR,
    limits: PoolLimits | None = None,
    tenants: Sequence[TenantPolicy] = (),
    classes: Sequence[ClassPolicy] = BUILT_IN_CLASSES,
) -> Scheduler:
    facts = EngineFacts(kind, slots, step_tokens, kv_tokens)
    settings = SchedulerSettings(facts, limits=limits or PoolLimits())
    return Scheduler(settings, classes, tenants)


def request(
    name: str,
    class_name: str = "standard",
    arrival_s: float = 0.0,
    *,
    tenant: str = "t",
    tokens: int = 100,
    output: int | None = 50,
    body_bytes: int = 400,
) -> Request:
    return Request(
        name,
        tenant,
        class_name,
        arrival_s,
        body_bytes,
        prompt_tokens=tokens,
        max_output_tokens=output,
    )


def dispatched(actions: Sequence[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Dispatch)]


def rejected(actions: Sequence[Action]) -> list[tuple[str, Reason]]:
    return [(action.request_id, action.reason) for action in actions if isinstance(action, Reject)]


def requeued(actions: Sequence[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Requeue)]


def fill(s: Scheduler, names: Sequence[str], class_name: str, now: float = 0.0) -> None:
    """Let requests run that have had their first token: nobody can take their places."""
    for name in names:
        assert dispatched(s.on_arrival(request(name, class_name, now), now)) == [name]
        s.on_first_token(name, now)


def test_an_idle_engine_takes_a_request_at_once() -> None:
    actions = scheduler().on_arrival(request("a"), 0.0)
    assert actions == [Dispatch("a", rank=0, waited_s=0.0)]


def test_what_woke_a_service_waits_as_long_as_its_class_may() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    woke = structs.replace(request("woke", "standard"), may_be_late=True)
    s.on_arrival(woke, 0.0)
    s.on_arrival(request("usual", "standard"), 0.0)
    assert rejected(s.on_tick(6.0)) == [("usual", Reason.TTL_EXPIRED)]
    late = structs.replace(woke, request_id="late")
    assert rejected(s.on_arrival(late, 20.0)) == []  # as another sidecar forwards it
    assert dispatched(s.on_finish("running", 29.0)) == ["woke"]
    assert rejected(s.on_tick(31.0)) == [("late", Reason.TTL_EXPIRED)]


def test_a_request_too_large_for_the_engine_is_for_the_engine_to_refuse() -> None:
    s = scheduler(kv_tokens=10)
    assert dispatched(s.on_arrival(request("a", tokens=50_000), 0.0)) == ["a"]


def test_the_higher_rank_goes_first_however_late_it_came() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    s.on_arrival(request("batch", "batch", 1.0), 1.0)
    s.on_arrival(request("standard", "standard", 2.0), 2.0)
    s.on_arrival(request("interactive", "interactive", 2.1), 2.1)
    assert dispatched(s.on_finish("running", 2.2)) == ["interactive"]
    s.on_first_token("interactive", 2.3)
    assert dispatched(s.on_finish("interactive", 2.4)) == ["standard"]
    s.on_first_token("standard", 2.5)
    assert dispatched(s.on_finish("standard", 2.6)) == ["batch"]


def test_no_more_than_a_step_of_prefill_is_in_the_engine() -> None:
    s = scheduler(slots=100, step_tokens=1000)
    sent = [
        name
        for name in ("a", "b", "c", "d")
        if dispatched(s.on_arrival(request(name, tokens=400), 0.0))
    ]
    assert sent == ["a", "b", "c"]
    assert dispatched(s.on_step(StepRecord(0.01, 400, 0), 0.01)) == ["d"]


def test_prefill_of_a_lower_rank_does_not_keep_a_higher_one_out() -> None:
    s = scheduler(slots=100, step_tokens=1000)
    assert dispatched(s.on_arrival(request("book", "batch", tokens=90_000), 0.0)) == ["book"]
    assert dispatched(s.on_arrival(request("batch", "batch"), 0.0)) == []
    assert dispatched(s.on_arrival(request("chat", "interactive"), 0.0)) == ["chat"]


def test_inside_a_class_tenants_take_turns_by_tokens() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    for serial in range(3):
        s.on_arrival(request(f"greedy-{serial}", tenant="greedy", tokens=900), 0.0)
    s.on_arrival(request("modest", tenant="modest", tokens=900), 0.1)
    order: list[str] = []
    turn = dispatched(s.on_finish("running", 0.2))
    while turn:
        order += turn
        s.on_first_token(turn[0], 0.2)
        turn = dispatched(s.on_finish(turn[0], 0.2))
    assert order == ["greedy-0", "modest", "greedy-1", "greedy-2"]


def test_a_long_prompt_lets_later_short_ones_of_its_tenant_pass() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    s.on_arrival(request("long", "batch", 0.0, tokens=5000), 0.0)
    s.on_arrival(request("short", "batch", 3.0, tokens=10), 3.0)
    assert dispatched(s.on_finish("running", 4.0)) == ["short"]


def test_a_class_that_is_owed_its_minimum_share_goes_before_a_higher_rank() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    s.on_arrival(request("batch", "batch", 0.0), 0.0)
    running, now = "running", 0.0
    for serial in range(12):
        now += 0.5
        s.on_arrival(request(f"chat-{serial}", "interactive", now), now)
        actions = s.on_finish(running, now)
        if dispatched(actions) == ["batch"]:
            break
        running = dispatched(actions)[0]
        s.on_first_token(running, now)
    assert actions == [Dispatch("batch", rank=-100, waited_s=5.0, by_min_share=True)]


def share_turn(s: Scheduler, *asked: Request, ahead: int = 0) -> list[Action]:
    """Keep chats waiting for prefill until a lower class spends its share; return what it does."""
    running = "chat-0"
    s.on_arrival(request(running, "interactive", tokens=1000), 0.0)
    chats = [request(f"ahead-{n}", "interactive", tokens=1000) for n in range(ahead)]
    for one in (*chats, *asked):
        assert s.on_arrival(one, 0.0) == []
    for serial in range(1, 21):
        now = serial * 0.5
        s.on_arrival(request(f"chat-{serial}", "interactive", now, tokens=1000), now)
        actions = s.on_first_token(running, now)
        assert violations(s, actions, now) == []
        if any(isinstance(action, Dispatch) and action.by_min_share for action in actions):
            return actions
        (running,) = dispatched(actions)
    return []


def test_a_book_on_its_minimum_share_keeps_nobody_out_and_is_not_sent_back() -> None:
    s = scheduler(slots=12)
    actions = share_turn(s, request("book", "batch", tokens=50_000))
    assert actions[0] == Dispatch("book", rank=-100, waited_s=5.0, by_min_share=True)
    assert dispatched(actions) == ["book", "chat-10"]
    assert requeued(s.on_arrival(request("last", "interactive", 5.1), 5.1)) == []


def test_an_engine_that_does_not_reorder_gets_what_fits_into_a_step_on_a_minimum_share() -> None:
    s = scheduler(slots=50, kind=EngineKind.PRIORITY)
    book = request("book", "batch", tenant="books", tokens=50_000)
    short = request("short", "batch", tenant="other", tokens=900)
    actions = share_turn(s, book, short)
    assert actions[0] == Dispatch("short", rank=100, waited_s=5.0, by_min_share=True)


def test_a_class_that_waits_without_a_pause_shares_its_rank_with_what_fits_into_a_step() -> None:
    s = scheduler(slots=50)
    patient = ClassPolicy("interactive", rank=100, max_queue_wait_s=60.0)
    s.configure([patient, *BUILT_IN_CLASSES[1:]], (), 0.0)
    book = request("book", "batch", tokens=50_000)
    actions = share_turn(s, book, request("short", "batch", tokens=900), ahead=1)
    assert actions[0] == Dispatch("short", rank=100, waited_s=5.0, by_min_share=True)


def test_a_minimum_share_is_not_spent_before_its_class_has_waited() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    s.on_arrival(request("batch", "batch", 0.0), 0.0)
    s.on_arrival(request("chat-1", "interactive", 0.1), 0.1)
    s.on_arrival(request("chat-2", "interactive", 0.1), 0.1)
    assert dispatched(s.on_finish("running", 0.2)) == ["chat-1"]
    s.on_first_token("chat-1", 0.3)
    assert dispatched(s.on_finish("chat-1", 0.4)) == ["chat-2"]


def test_a_higher_rank_takes_the_slot_of_a_request_without_a_first_byte() -> None:
    s = scheduler(slots=1)
    s.on_arrival(request("batch", "batch"), 0.0)
    actions = s.on_arrival(request("chat", "interactive", 0.1), 0.1)
    assert actions == [
        Requeue("batch", RequeueReason.PREEMPTED, in_favour_of="chat"),
        Dispatch("chat", rank=100, waited_s=0.0),
    ]
    s.on_first_token("chat", 0.2)
    assert dispatched(s.on_finish("chat", 0.3)) == ["batch"]


def test_a_request_with_a_first_byte_keeps_its_slot() -> None:
    s = scheduler(slots=1)
    fill(s, ["batch"], "batch")
    assert s.on_arrival(request("chat", "interactive", 0.1), 0.1) == []


def test_equals_do_not_take_each_others_slots() -> None:
    s = scheduler(slots=1)
    s.on_arrival(request("first", "batch"), 0.0)
    assert s.on_arrival(request("second", "batch", 0.1), 0.1) == []


def test_a_request_is_sent_back_twice_and_then_stays() -> None:
    s = scheduler(slots=1)
    s.on_arrival(request("batch", "batch"), 0.0)
    for serial in range(2):
        actions = s.on_arrival(request(f"chat-{serial}", "interactive", 0.1), 0.1)
        assert requeued(actions) == ["batch"]
        s.on_first_token(f"chat-{serial}", 0.2)
        assert dispatched(s.on_finish(f"chat-{serial}", 0.2)) == ["batch"]
    assert s.on_arrival(request("chat-2", "interactive", 0.3), 0.3) == []


def test_a_request_that_was_sent_back_is_not_refused_for_being_late() -> None:
    s = scheduler(slots=1)
    s.on_arrival(request("standard"), 0.0)
    s.on_arrival(request("chat", "interactive", 4.9), 4.9)
    s.on_first_token("chat", 4.9)
    assert s.on_tick(6.0) == []
    assert dispatched(s.on_finish("chat", 6.5)) == ["standard"]


def test_a_request_that_is_sent_back_after_its_longest_wait_is_refused_at_once() -> None:
    s = scheduler(slots=1)
    s.on_arrival(request("standard"), 0.0)
    s.on_step(StepRecord(0.01, 1, 0), 29.0)
    actions = s.on_arrival(request("chat", "interactive", 30.0), 30.0)
    assert requeued(actions) == ["standard"]
    assert rejected(actions) == [("standard", Reason.TTL_EXPIRED)]
    assert dispatched(actions) == ["chat"]
    assert violations(s, actions, 30.0) == []


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        pytest.param(EngineKind.WEIR, [], id="an engine that reorders needs no help"),
        pytest.param(EngineKind.PRIORITY, ["book"], id="stock priority does not interrupt"),
        pytest.param(EngineKind.FCFS, ["book"], id="fcfs would finish the book first"),
    ],
)
def test_a_book_before_a_chat_inside_the_engine_is_taken_out(
    kind: EngineKind, want: list[str]
) -> None:
    s = scheduler(slots=10, kind=kind)
    s.on_arrival(request("book", "batch", tokens=90_000), 0.0)
    actions = s.on_arrival(request("chat", "interactive", 0.1), 0.1)
    assert requeued(actions) == want
    assert dispatched(actions)[0] == "chat"


def test_kv_room_is_made_only_when_what_is_freed_suffices() -> None:
    s = scheduler(slots=10, step_tokens=4000, kv_tokens=10_000)
    fill(s, ["old"], "standard")
    s.on_arrival(request("small", "batch", tokens=500), 0.0)
    assert s.on_arrival(request("huge", "interactive", tokens=9400), 0.0) == []
    assert requeued(s.on_arrival(request("big", "interactive", tokens=8900), 0.1)) == []
    s.on_abort("huge", 0.2)
    assert s.counts.requeued == 1


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize(("decode_s", "enters"), [(0.010, True), (0.020, False)])
def test_batch_waits_while_decodes_take_over_a_quarter_of_the_tightest_target(
    decode_s: float, enters: bool, spread: float
) -> None:
    """Interactive wants a token each 50 ms; steps that vary much do not make the rule stricter."""
    s = scheduler(slots=100, step_tokens=1000)
    fill(s, ["chat"], "interactive")
    for step in range(600):
        duration_s = decode_s * (1 + (spread if step % 2 else -spread))
        s.on_step(StepRecord(duration_s, 0, 1, 0, 150), 0.01 * step)
    assert dispatched(s.on_arrival(request("report", "batch", 6.0), 6.0)) == ["report"] * enters


def test_a_slot_is_held_for_a_higher_rank_that_used_it_lately_and_lent_when_it_did_not() -> None:
    s = scheduler(slots=10)
    for serial in range(9):
        fill(s, [f"batch-{serial}"], "batch")
    fill(s, ["chat"], "interactive", now=1.0)
    s.on_finish("chat", 1.5)
    assert s.on_arrival(request("more", "batch", 1.6), 1.6) == []
    assert dispatched(s.on_tick(60.0)) == ["more"]


def test_a_newcomer_that_cannot_be_on_time_is_refused_with_the_time_to_come_back() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "standard")
    # 1,000 VTC tokens a second, measured while something waits.
    s.on_arrival(request("queued", "standard", tokens=9000), 0.0)
    for second in range(1, 4):
        s.on_tokens("running", 500, float(second))
        s.on_tick(float(second))
    actions = s.on_arrival(request("late", "standard", 3.0), 3.0)
    assert rejected(actions) == [("late", Reason.SATURATED)]
    assert isinstance(actions[0], Reject)
    assert 1.0 <= actions[0].retry_after_s <= 10.0


def test_a_long_prompt_does_not_look_like_a_slow_engine() -> None:
    s = scheduler(slots=2, step_tokens=1000)
    s.on_arrival(request("book", "batch", tokens=30_000), 0.0)
    s.on_arrival(request("waits", "batch"), 0.0)
    for second in range(1, 31):
        s.on_step(StepRecord(1.0, 1000, 0), float(second))
        assert s.forecast.drain_rate == 1000
    s.on_first_token("book", 30.0)  # the steps have counted it
    s.on_step(StepRecord(1.0, 998, 1), 31.0)
    s.on_arrival(request("waits-too", "batch"), 31.0)
    assert s.forecast.drain_rate == pytest.approx(1000)


def test_a_class_that_never_sheds_waits_on_behind_those_that_can_be_on_time() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "batch")
    s.on_arrival(request("late", "batch", 0.0), 0.0)
    s.on_arrival(request("on-time", "batch", 30.0), 30.0)
    assert s.on_tick(61.0) == []
    assert dispatched(s.on_finish("running", 62.0)) == ["on-time"]


@pytest.mark.parametrize(
    ("class_name", "last_s"),
    [
        pytest.param("interactive", 1.0, id="sheds: at its target"),
        pytest.param("standard", 5.0, id="sheds: at its target, a longer one"),
        pytest.param("batch", 600.0, id="never sheds: at its longest wait"),
    ],
)
def test_nobody_waits_for_ever(class_name: str, last_s: float) -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    s.on_arrival(request("waiting", class_name), 0.0)
    assert s.on_tick(last_s - 0.001) == []
    assert rejected(s.on_tick(last_s)) == [("waiting", Reason.TTL_EXPIRED)]


def test_the_next_tick_is_when_somebody_runs_out_of_time() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    assert s.next_tick(0.0) is None
    s.on_arrival(request("waiting", "standard"), 0.0)
    assert s.next_tick(0.0) == 5.0


def test_who_came_last_is_still_the_newest_after_classes_changed() -> None:
    s = scheduler(slots=1, limits=PoolLimits(max_requests=3))
    for index, name in enumerate(("running", "first", "second", "third")):
        s.on_arrival(request(name, "batch", float(index)), now=float(index))
    s.configure(BUILT_IN_CLASSES, (), now=4.0)
    s.configure(BUILT_IN_CLASSES, (), now=5.0)
    assert rejected(s.on_arrival(request("urgent", "standard", 6.0), now=6.0)) == [
        ("third", Reason.QUEUE_FULL)
    ]


def test_a_full_pool_refuses_the_newest_of_the_lowest_rank_for_a_higher_one() -> None:
    s = scheduler(slots=1, limits=PoolLimits(max_requests=2))
    fill(s, ["running"], "interactive")
    s.on_arrival(request("old", "batch", 0.0), 0.0)
    s.on_arrival(request("new", "batch", 0.1), 0.1)
    assert rejected(s.on_arrival(request("third", "batch", 0.2), 0.2)) == [
        ("third", Reason.QUEUE_FULL)
    ]
    assert rejected(s.on_arrival(request("chat", "interactive", 0.3), 0.3)) == [
        ("new", Reason.QUEUE_FULL)
    ]


def test_nothing_leaves_for_a_newcomer_that_would_not_fit_even_so() -> None:
    s = scheduler(slots=1, limits=PoolLimits(max_bytes=1_000_000))
    fill(s, ["running"], "interactive")
    s.on_arrival(request("large", "interactive", body_bytes=950_000), 0.0)
    for serial in range(200):
        s.on_arrival(request(f"batch-{serial}", "batch", body_bytes=100), 0.0)
    newcomer = request("newcomer", "interactive", body_bytes=100_000)
    assert rejected(s.on_arrival(newcomer, 0.1)) == [("newcomer", Reason.MEMORY_FULL)]
    assert s.backlog() == 201


def test_only_those_leave_whose_place_is_needed() -> None:
    s = scheduler(slots=1, limits=PoolLimits(max_bytes=1_000))
    fill(s, ["running"], "interactive")
    for name, size in (("large", 700), ("small", 100), ("tiny", 50)):
        s.on_arrival(request(name, "batch", body_bytes=size), 0.0)
    actions = s.on_arrival(request("newcomer", "interactive", body_bytes=800), 0.1)
    assert rejected(actions) == [("large", Reason.QUEUE_FULL)]


def test_waiting_bodies_are_bounded_in_bytes() -> None:
    s = scheduler(slots=1, limits=PoolLimits(max_bytes=1000))
    fill(s, ["running"], "interactive")
    s.on_arrival(request("a", "batch", body_bytes=600), 0.0)
    assert rejected(s.on_arrival(request("b", "batch", body_bytes=600), 0.0)) == [
        ("b", Reason.MEMORY_FULL)
    ]
    assert rejected(s.on_arrival(request("c", "interactive", body_bytes=1001), 0.0)) == [
        ("c", Reason.MEMORY_FULL)
    ]


def test_a_tenant_has_no_more_in_flight_than_it_may() -> None:
    s = scheduler(slots=10, tenants=[TenantPolicy("t", max_requests=1)])
    s.on_arrival(request("a"), 0.0)
    assert rejected(s.on_arrival(request("b"), 0.0)) == [("b", Reason.TENANT_LIMIT)]
    s.on_first_token("a", 0.1)
    s.on_finish("a", 0.2)
    assert dispatched(s.on_arrival(request("c"), 0.3)) == ["c"]


def test_a_request_that_holds_its_place_counts_for_everything_but_its_tenants_requests() -> None:
    policy = TenantPolicy("t", max_requests=1, tokens_per_minute=600)
    s = scheduler(slots=10, tenants=[policy])
    held = [structs.replace(request(name, tokens=400), holds_place=True) for name in ("a", "b")]
    assert dispatched(s.on_arrival(held[0], 0.0) + s.on_arrival(held[1], 0.0)) == ["a", "b"]
    assert s.tenants.in_flight("t") == 0
    budget = s.tenants.budget("t")
    assert budget is not None
    assert budget.level(0.0) == -200
    for name in ("a", "b"):
        s.on_first_token(name, 60.0)
        s.on_finish(name, 60.0)
    assert s.tenants.in_flight("t") == 0


def test_an_upload_takes_the_place_of_a_request() -> None:
    s = scheduler(slots=10, tenants=[TenantPolicy("t", max_requests=2)])
    s.tenants.reserve("t")
    s.on_arrival(request("a"), 0.0)
    assert rejected(s.on_arrival(request("b"), 0.0)) == [("b", Reason.TENANT_LIMIT)]
    s.tenants.release("t")
    assert dispatched(s.on_arrival(request("b"), 0.0)) == ["b"]


def test_a_delegates_requests_count_against_its_own_limits_whomever_it_names() -> None:
    s = scheduler(slots=10, tenants=[TenantPolicy("gateway", max_requests=1)])
    s.on_arrival(structs.replace(request("a", tenant="ann"), payer="gateway"), 0.0)
    actions = s.on_arrival(structs.replace(request("b", tenant="bob"), payer="gateway"), 0.0)
    assert rejected(actions) == [("b", Reason.TENANT_LIMIT)]
    assert dispatched(s.on_arrival(request("c", tenant="ann"), 0.0)) == ["c"]


@pytest.mark.parametrize(("ran", "next_one"), [(True, []), (False, ["b"])])
def test_what_no_engine_took_is_not_charged(ran: bool, next_one: list[str]) -> None:
    s = scheduler(slots=10, tenants=[TenantPolicy("t", tokens_per_minute=600)])
    s.on_arrival(request("a", tokens=700), 0.0)
    s.on_abort("a", 0.1, ran=ran)
    assert dispatched(s.on_arrival(request("b"), 0.2)) == next_one


def test_a_tenant_that_used_its_minute_is_told_when_to_come_back() -> None:
    s = scheduler(slots=10, tenants=[TenantPolicy("t", tokens_per_minute=600)])
    s.on_arrival(request("a", tokens=300), 0.0)
    s.on_first_token("a", 0.0)
    s.on_tokens("a", 399, 0.0)
    actions = s.on_arrival(request("b"), 0.0)
    assert rejected(actions) == [("b", Reason.TENANT_LIMIT)]
    assert isinstance(actions[0], Reject)
    assert actions[0].retry_after_s >= 10.0
    assert dispatched(s.on_arrival(request("c", arrival_s=11.0), 11.0)) == ["c"]


def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "standard")
    s.on_arrival(request("a", "batch"), 0.0)
    s.on_arrival(request("b", "batch"), 0.0)
    assert s.on_abort("a", 0.1) == []
    assert dispatched(s.on_abort("running", 0.2)) == ["b"]


def test_a_silent_prompt_taken_to_be_done_makes_room_for_the_next() -> None:
    s = scheduler(slots=10, step_tokens=1000)
    s.on_arrival(request("silent", tokens=2000), 0.0)
    assert dispatched(s.on_arrival(request("next"), 0.0)) == []
    assert dispatched(s.on_prefilled("silent", 0.5)) == ["next"]
    assert s.on_prefilled("silent", 0.6) == []


def test_a_class_can_change_while_its_requests_wait() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    s.on_arrival(request("batch", "batch"), 0.0)
    s.on_arrival(request("standard", "standard"), 0.0)
    raised = [ClassPolicy("batch", rank=500), ClassPolicy("standard", rank=0)]
    assert s.configure(raised, [], 0.1) == []
    assert dispatched(s.on_finish("running", 0.2)) == ["batch"]


def test_a_class_that_vanishes_keeps_its_promises_to_those_who_wait() -> None:
    s = scheduler(slots=1)
    fill(s, ["running"], "interactive")
    s.on_arrival(request("batch", "batch"), 0.0)
    s.configure([ClassPolicy("only", rank=0)], [], 0.1)
    assert violations(s, [], 0.1) == []
    assert dispatched(s.on_finish("running", 0.2)) == ["batch"]
    s.on_first_token("batch", 0.3)
    s.on_tokens("batch", 5, 0.4)
    s.on_finish("batch", 0.5)
    assert s.counts.finished == 2


def test_a_request_of_an_unknown_class_gets_the_default_one() -> None:
    actions = scheduler().on_arrival(request("a", "no-such-class"), 0.0)
    assert actions == [Dispatch("a", rank=0, waited_s=0.0)]


def test_a_configuration_without_classes_is_refused_and_changes_nothing() -> None:
    s = scheduler()
    with pytest.raises(ValueError, match="at least one priority class"):
        s.configure([], [], 0.0)
    assert dispatched(s.on_arrival(request("a", "interactive"), 0.0)) == ["a"]


def test_the_same_id_twice_is_the_callers_mistake() -> None:
    s = scheduler()
    s.on_arrival(request("a"), 0.0)
    with pytest.raises(ValueError, match="already here"):
        s.on_arrival(request("a"), 0.1)


def test_events_about_requests_that_are_gone_change_nothing() -> None:
    s = scheduler()
    assert s.on_first_token("ghost", 0.0) == []
    assert s.on_tokens("ghost", 5, 0.0) == []
    assert s.on_finish("ghost", 0.0) == []
    assert s.on_abort("ghost", 0.0) == []
    assert s.on_prefilled("ghost", 0.0) == []
    assert s.counts.outcomes == 0


def test_the_same_events_give_the_same_actions() -> None:
    def history() -> list[Action]:
        s = scheduler(slots=3)
        actions: list[Action] = []
        for serial in range(200):
            name = ("interactive", "standard", "batch")[serial % 3]
            now = serial * 0.05
            arrival = request(f"r{serial}", name, now, tenant=f"t{serial % 7}", tokens=serial * 9)
            actions += s.on_arrival(arrival, now)
            if serial % 4 == 0:
                actions += s.on_first_token(f"r{serial // 2}", now)
                actions += s.on_finish(f"r{serial // 2}", now)
        return actions

    assert history() == history()


@pytest.mark.parametrize(("kv_tokens", "claimed"), [(131_072, 32_768), (16_384, 8_192), (0, 1)])
def test_a_body_nobody_counted_claims_at_most_half_of_the_cache(
    kv_tokens: int, claimed: int
) -> None:
    picture = structs.replace(request("picture", body_bytes=900_000), prompt_tokens=None)
    assert scheduler(kv_tokens=kv_tokens).estimator.prompt_tokens(picture) == claimed


def heavy_decodes(s: Scheduler) -> None:
    """Let the scheduler learn that decodes alone take longer than interactive can bear."""
    for _ in range(50):
        s.on_step(StepRecord(1.0, 0, 4, 0, 400), 0.0)


def test_the_gate_has_a_tick_for_when_a_target_is_forgotten() -> None:
    s = scheduler(slots=8)
    heavy_decodes(s)
    s.on_arrival(request("first", "interactive"), 0.0)
    s.on_first_token("first", 0.0)
    s.on_arrival(request("running", "batch"), 0.0)
    s.on_finish("first", 0.0)
    s.on_first_token("running", 0.0)
    heavy_decodes(s)
    assert dispatched(s.on_arrival(request("waiting", "batch"), 1.0)) == []
    due_s = s.next_tick(1.0)
    assert due_s == 10.0
    assert dispatched(s.on_tick(due_s)) == ["waiting"]


def test_the_target_of_a_class_that_is_gone_keeps_nothing_out() -> None:
    s = scheduler(slots=8)
    heavy_decodes(s)
    s.on_arrival(request("first", "interactive"), 0.0)
    s.on_first_token("first", 0.0)
    s.on_arrival(request("running", "batch"), 0.0)
    s.on_finish("first", 0.0)
    s.on_first_token("running", 0.0)
    heavy_decodes(s)
    assert dispatched(s.on_arrival(request("waiting", "batch"), 1.0)) == []
    assert dispatched(s.configure(BUILT_IN_CLASSES[2:], (), 1.0)) == ["waiting"]
    assert violations(s, [], 1.0) == []


def test_the_gate_has_a_tick_for_when_slots_are_no_longer_held_back() -> None:
    s = scheduler(slots=20)
    fill(s, [f"b{number}" for number in range(16)], "batch")
    fill(s, ["i1", "i2"], "interactive")
    for name in ("i1", "i2"):
        s.on_finish(name, 0.0)
    fill(s, ["b16", "b17"], "batch")
    waiting = s.on_arrival(request("b18", "batch"), 0.0)
    assert dispatched(waiting) == []
    due_s = s.next_tick(0.0)
    assert due_s is not None
    assert due_s == pytest.approx(4.15, abs=0.01)  # 2 fades to 1.5 in a half-life of 10 s
    assert dispatched(s.on_tick(due_s)) == ["b18"]
