"""Fairness between tenants (INV-6): the bound of the virtual token counter, and its corners."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir_core.sched.fairness import MOST_IDLE, OneQueue, VirtualTokenCounter
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.tickets import OUTPUT_WEIGHT
from weir_core.sched.types import (
    ClassPolicy,
    Dispatch,
    EngineFacts,
    EngineKind,
    Request,
    TenantPolicy,
)

ONE_CLASS = (ClassPolicy("only", rank=0, max_queue_wait_s=1e9, shed="never"),)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 400)), min_size=60, max_size=60),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3),
    slots=st.integers(1, 8),
    guess=st.integers(1, 5000),
)
def test_backlogged_tenants_never_drift_apart_by_more_than_what_one_has_in_the_engine(
    sizes: list[tuple[int, int]], weights: tuple[float, ...], slots: int, guess: int
) -> None:
    # The theorem of the VTC paper: while two tenants both wait, the difference of the service
    # over weight they got since is bounded by what one can have in the engine at once, twice.
    # `guess` is what the scheduler believes of each output: fairness does not depend on it.
    names = ["a", "b", "c"]
    facts = EngineFacts(EngineKind.WEIR, slots, 2048, 10**9)
    tenants = [TenantPolicy(name, weight) for name, weight in zip(names, weights, strict=True)]
    scheduler = Scheduler(SchedulerSettings(facts), ONE_CLASS, tenants)
    outputs: dict[str, tuple[str, int, int]] = {}
    running: list[str] = []
    for serial, (prompt, output) in enumerate(sizes * 3):
        request_id, tenant = f"r{serial}", names[serial % 3]
        outputs[request_id] = (tenant, prompt, output)
        request = Request(
            request_id, tenant, "only", 0.0, prompt_tokens=prompt, max_output_tokens=guess
        )
        actions = scheduler.on_arrival(request, 0.0)
        running += [action.request_id for action in actions if isinstance(action, Dispatch)]

    served = dict.fromkeys(names, 0.0)
    weight_of = dict(zip(names, weights, strict=True))
    largest = max(prompt + OUTPUT_WEIGHT * output for prompt, output in sizes)
    bound = 2 * (slots + 1) * largest / min(weights)
    now = 0.0
    while all(scheduler.pool.named("only").tenant_cost(name) for name in names):  # type: ignore[union-attr]
        now += 1.0
        request_id = running.pop(0)
        tenant, prompt, output = outputs[request_id]
        actions = scheduler.on_first_token(request_id, now)
        scheduler.on_tokens(request_id, output - 1, now)
        actions += scheduler.on_finish(request_id, now)
        served[tenant] += (prompt + OUTPUT_WEIGHT * output) / weight_of[tenant]
        running += [action.request_id for action in actions if isinstance(action, Dispatch)]
        assert max(served.values()) - min(served.values()) <= bound


def test_the_smallest_counter_goes_first_and_ties_go_by_name() -> None:
    turns = VirtualTokenCounter()
    turns.enter("b")
    turns.enter("a")
    assert turns.next() == "a"
    turns.charge("a", 10)
    assert turns.next() == "b"
    turns.charge("b", 30)
    assert turns.next() == "a"


def test_a_weight_divides_what_is_charged() -> None:
    turns = VirtualTokenCounter()
    turns.reweigh({"heavy": 4.0})
    turns.enter("heavy")
    turns.enter("light")
    turns.charge("heavy", 30)
    turns.charge("light", 10)
    assert turns.next() == "heavy"


def test_a_tenant_that_returns_has_earned_nothing_by_its_absence() -> None:
    turns = VirtualTokenCounter()
    turns.enter("busy")
    turns.charge("busy", 1000)
    turns.enter("newcomer")
    assert turns.counter("newcomer") == turns.counter("busy") == 1000


def test_a_tenant_that_returns_to_an_empty_pool_starts_where_the_last_one_left() -> None:
    turns = VirtualTokenCounter()
    turns.enter("first")
    turns.charge("first", 500)
    turns.leave("first")
    turns.enter("second")
    assert turns.counter("second") == 500


def test_a_charge_that_is_taken_back_moves_the_tenant_forward_again() -> None:
    turns = VirtualTokenCounter()
    turns.enter("a")
    turns.enter("b")
    turns.charge("a", 100)
    assert turns.next() == "b"
    turns.charge("a", -100)
    assert turns.next() == "a"


def test_counters_of_tenants_that_left_are_forgotten() -> None:
    turns = VirtualTokenCounter()
    for serial in range(5000):
        turns.enter(f"t{serial}")
        turns.charge(f"t{serial}", 1.0)
        turns.leave(f"t{serial}")
    assert turns.remembered() <= 2 * MOST_IDLE


NEW_NAMES = 100_000


@pytest.mark.parametrize("others", [[], ["backlogged"]], ids=["alone", "beside one that waits"])
def test_ever_new_names_cost_neither_memory_nor_time(others: list[str]) -> None:
    # Each is charged after it left the queue, as it is when it never had to wait.
    turns = VirtualTokenCounter()
    for name in others:
        turns.enter(name)
    most = 0
    for serial in range(NEW_NAMES):
        name = f"t{serial}"
        turns.enter(name)
        turns.leave(name)
        turns.charge(name, 100.0)
        most = max(most, turns.remembered())
    assert most <= 2 * (MOST_IDLE + 1) + 1
    assert turns.trims * most <= 4 * NEW_NAMES  # counters that were looked at, all in all


def test_to_pass_by_is_to_enter_and_leave_where_nobody_waits() -> None:
    one, other = VirtualTokenCounter(), VirtualTokenCounter()
    for number in range(3 * MOST_IDLE):
        name = f"t{number if number % 3 else number % 99}"
        one.pass_by(name)
        other.enter(name)
        other.leave(name)
        assert one.counter(name) == other.counter(name)
        for turns in (one, other):
            turns.charge(name, number % 7)
    assert one.remembered() == other.remembered()
    assert one.trims == other.trims > 0


def test_a_tenant_that_comes_and_goes_leaves_nothing_in_the_heap() -> None:
    turns = VirtualTokenCounter()
    turns.enter("light")
    turns.enter("heavy")
    turns.charge("heavy", 1e9)
    turns.leave("heavy")
    for _ in range(10_000):
        turns.enter("heavy")
        turns.leave("heavy")
        assert turns.next() == "light"
        assert turns.entries() <= 2 * 2 + 64
    turns.charge("light", 2e9)
    turns.enter("heavy")
    assert turns.next() == "heavy"


def test_a_crowd_that_leaves_is_forgotten_at_a_constant_cost_for_each() -> None:
    turns = VirtualTokenCounter()
    crowd = [f"t{serial}" for serial in range(NEW_NAMES)]
    for name in crowd:
        turns.enter(name)
        turns.charge(name, 100.0)
    turns.enter("free")  # keeps the floor low, so that none is forgotten for being below it
    for name in crowd:
        turns.leave(name)
        turns.charge(name, 100.0)
        assert turns.remembered() <= 2 * (NEW_NAMES + MOST_IDLE)
    assert turns.remembered() <= 2 * (MOST_IDLE + 1) + 1
    assert turns.trims <= 20  # half as many are left each time


def test_who_was_served_most_and_who_waits_are_remembered_longest() -> None:
    turns = VirtualTokenCounter()
    turns.enter("waits")
    turns.charge("waits", 1.0)
    turns.enter("greedy")
    turns.leave("greedy")
    turns.charge("greedy", 1e9)
    for serial in range(4 * MOST_IDLE):
        turns.enter(f"t{serial}")
        turns.leave(f"t{serial}")
        turns.charge(f"t{serial}", 100.0 + serial)
    assert turns.trims > 0
    assert turns.counter("waits") == 1.0
    assert turns.counter("greedy") >= 1e9
    assert turns.counter("t0") == 0.0
    turns.enter("t0")
    assert turns.counter("t0") == 1.0  # forgotten, and yet not before one that waits


@settings(max_examples=15, deadline=None)
@given(
    stretches=st.lists(
        st.lists(st.integers(1, 500), min_size=1, max_size=12), min_size=2, max_size=5
    )
)
def test_the_bound_holds_for_one_that_was_forgotten_while_it_was_away(
    stretches: list[list[int]],
) -> None:
    # One request at a time, of at most 500 tokens: what each got since "c" came back differs by
    # at most twice that, though thousands came and went while it was away.
    turns = VirtualTokenCounter()
    turns.enter("a")
    turns.enter("b")
    serial = 0
    for stretch in stretches:
        turns.enter("c")
        served = dict.fromkeys("abc", 0)
        for tokens in stretch:
            name = turns.next()
            assert name is not None
            turns.charge(name, tokens)
            served[name] += tokens
            assert max(served.values()) - min(served.values()) <= 2 * 500
        turns.leave("c")
        trims = turns.trims
        while turns.trims == trims:
            serial += 1
            turns.enter(f"t{serial}")
            turns.leave(f"t{serial}")
            turns.charge(f"t{serial}", 500.0)


def test_without_fairness_all_tenants_share_one_queue() -> None:
    turns = OneQueue()
    assert turns.key("a") == turns.key("b")


def test_the_share_of_a_tenant_follows_the_weights_that_wait() -> None:
    turns = VirtualTokenCounter()
    turns.reweigh({"a": 3.0})
    assert turns.share_of("a") == 1.0
    turns.enter("b")
    assert turns.share_of("a") == 0.75
    turns.enter("a")
    assert turns.share_of("a") == 0.75
