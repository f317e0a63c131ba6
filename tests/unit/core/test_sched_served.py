"""Shares over a fleet: what replicas tell each other of tokens served, and what is made of it."""

from __future__ import annotations

import msgspec
import pytest

from weir_core.sched.fairness import MOST_IDLE, VirtualTokenCounter
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.served import MOST_HEARD, MOST_TOLD, ServedHere, ServedThere
from weir_core.sched.types import (
    ClassPolicy,
    Dispatch,
    EngineFacts,
    EngineKind,
    Request,
    Served,
    ServedLately,
)

ENGINE = EngineFacts(EngineKind.WEIR, 1, 2048, 10**9)
CLASSES = (
    ClassPolicy("gold", rank=0, max_queue_wait_s=1e9, shed="never"),
    ClassPolicy("silver", rank=0, max_queue_wait_s=1e9, shed="never"),
)


def said(number: int, **tokens: int) -> ServedLately:
    return ServedLately(number, tuple(Served("gold", name, sum_) for name, sum_ in tokens.items()))


# ---- what is told


def test_sums_are_told_with_a_number_that_is_higher_after_each_change() -> None:
    here = ServedHere()
    assert here.lately(0.0) == said(0)
    here.note("gold", "ada", 100)
    here.note("gold", "ada", 20.5)
    here.note("gold", "bob", 1)
    first = here.lately(0.1)
    assert first == said(1, ada=120, bob=1)
    assert here.lately(0.2) is first
    here.note("gold", "ada", -20.5)
    assert here.lately(0.3) == said(2, ada=100, bob=1)


def test_a_pair_is_told_for_five_seconds_and_begins_at_0_again() -> None:
    here = ServedHere()
    here.note("gold", "ada", 100)
    here.lately(0.0)
    assert here.lately(4.9) == said(1, ada=100)
    assert here.lately(5.1) == said(2)
    here.note("gold", "ada", 7)
    assert here.lately(5.3) == said(3, ada=7)


def test_absurd_usage_is_told_as_what_the_others_take() -> None:
    here = ServedHere()
    here.note("gold", "ada", 1e30)
    here.note("gold", "bob", -1e30)
    told = here.lately(0.0)
    body = msgspec.msgpack.encode(told)
    assert msgspec.msgpack.decode(body, type=ServedLately) == told


def test_of_many_tenants_the_most_active_are_told_and_memory_is_bounded() -> None:
    here = ServedHere()
    for serial in range(5000):
        here.note("gold", f"t{serial}", 1 + serial % 900)
    told = here.lately(0.0)
    assert len(told.sums) == MOST_TOLD
    assert min(each.tokens for each in told.sums) > 900 - MOST_TOLD
    here.note("gold", "newcomer", 10_000)
    told = here.lately(0.2)
    assert len(told.sums) == MOST_TOLD
    assert Served("gold", "newcomer", 10_000) in told.sums


# ---- what is heard


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([said(5, a=900)], [], id="the first sums are where counting begins"),
        pytest.param([said(5, a=900), said(6, a=950)], [("a", 50)], id="a difference"),
        pytest.param([said(5, a=900), said(5, a=900)], [], id="twice the same"),
        pytest.param([said(5, a=1), said(6, a=2, b=30)], [("a", 1), ("b", 30)], id="a new pair"),
        pytest.param([said(5, a=9), said(6), said(7, a=4)], [("a", 4)], id="a pair begins again"),
        pytest.param([said(5), said(7, a=90), said(6, a=50)], [("a", 90)], id="overtaken"),
        pytest.param(
            [said(5, a=0), said(6, a=90), said(7, a=50), said(8, a=100)],
            [("a", 90), ("a", 10)],
            id="a charge that is returned counts once",
        ),
    ],
)
def test_what_is_new_is_the_difference_from_what_was_heard_last(
    messages: list[ServedLately], expected: list[tuple[str, int]]
) -> None:
    there = ServedThere()
    news = [each for message in messages for each in there.news(message)]
    assert news == [Served("gold", tenant, tokens) for tenant, tokens in expected]


def test_a_new_process_counts_from_0_and_a_lost_replica_from_where_it_is_found() -> None:
    there = ServedThere()
    there.news(said(5, a=900))
    there.restarted()
    assert there.news(said(1, a=30)) == [Served("gold", "a", 30)]
    there.lost()
    assert there.news(said(90, a=5000)) == []
    assert there.news(said(91, a=5001)) == [Served("gold", "a", 1)]


@pytest.mark.parametrize(
    "tokens", [-1, 1 << 54, float("nan"), float("inf"), -float("inf"), 0.5, "9", None]
)
def test_what_is_no_sum_of_tokens_is_refused(tokens: object) -> None:
    body = msgspec.msgpack.encode([1, [["gold", "a", tokens]]])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(body, type=ServedLately)


def test_a_later_version_may_say_more() -> None:
    body = msgspec.msgpack.encode([1, [["gold", f"t{n}", 5, "more"] for n in range(1000)], "more"])
    told = msgspec.msgpack.decode(body, type=ServedLately)
    assert told.sums[0] == Served("gold", "t0", 5)
    there = ServedThere()
    assert there.news(ServedLately(0)) == []
    assert len(there.news(told)) == MOST_HEARD


# ---- what becomes of turns


def test_a_tenant_that_was_served_elsewhere_lets_the_other_go_first() -> None:
    turns = VirtualTokenCounter()
    turns.enter("a")
    turns.enter("b")
    turns.charge_elsewhere("a", 100, 1000)
    turns.charge("b", 99)
    assert turns.next() == "b"
    turns.charge("b", 2)
    assert turns.next() == "a"


def test_the_weight_divides_what_was_served_elsewhere() -> None:
    turns = VirtualTokenCounter()
    turns.reweigh({"a": 4.0})
    turns.enter("a")
    turns.enter("b")
    turns.charge_elsewhere("a", 400, 1000)
    assert turns.counter("a") == 100


def test_no_more_is_held_against_a_tenant_than_the_bound() -> None:
    turns = VirtualTokenCounter()
    turns.enter("a")
    turns.enter("b")
    for _ in range(3):
        turns.charge_elsewhere("a", float(1 << 53), 1000)
    assert turns.counter("a") == 1000
    turns.charge("b", 400)
    turns.charge_elsewhere("a", 1.0, 10)
    assert turns.counter("a") == 1000


def test_while_nobody_waits_here_nothing_is_held_against_a_tenant() -> None:
    turns = VirtualTokenCounter()
    turns.charge_elsewhere("a", 100, 1000)
    turns.enter("b")
    turns.enter("a")
    assert turns.counter("a") == turns.counter("b") == 0


def test_a_tenant_that_does_not_wait_here_is_charged_from_the_present_turn() -> None:
    turns = VirtualTokenCounter()
    turns.enter("b")
    turns.charge("b", 5000)
    turns.charge_elsewhere("a", 100, 1000)
    turns.enter("a")
    assert turns.counter("a") == 5100


def test_names_that_only_other_replicas_know_are_forgotten() -> None:
    turns = VirtualTokenCounter()
    turns.enter("b")
    for serial in range(5000):
        turns.charge_elsewhere(f"t{serial}", 10, 1000)
    assert turns.remembered() <= 2 * (MOST_IDLE + 1)
    assert turns.trims < 10


def asks(serial: int, tenant: str, class_name: str = "gold") -> Request:
    return Request(f"r{serial}", tenant, class_name, 0.0, prompt_tokens=100)


def dispatched(scheduler: Scheduler, ended: str) -> str:
    actions = scheduler.on_finish(ended, 1.0, 100, 1)
    return next(each.request_id for each in actions if isinstance(each, Dispatch))


def test_a_scheduler_tells_what_it_charged_and_takes_back_what_never_ran() -> None:
    scheduler = Scheduler(SchedulerSettings(ENGINE), CLASSES)
    scheduler.on_arrival(asks(0, "ada"), 0.0)
    assert scheduler.served_lately(0.0).sums == (Served("gold", "ada", 100),)
    scheduler.on_first_token("r0", 0.5)
    scheduler.on_tokens("r0", 4, 0.6)
    assert scheduler.served_lately(0.7).sums == (Served("gold", "ada", 110),)
    scheduler.on_finish("r0", 1.0, 100, 5)
    scheduler.on_arrival(asks(1, "ada"), 1.0)
    scheduler.on_abort("r1", 1.1, ran=False)
    assert scheduler.served_lately(1.2).sums == (Served("gold", "ada", 110),)


def test_what_was_served_elsewhere_changes_turns_of_tenants_but_not_of_classes() -> None:
    scheduler = Scheduler(SchedulerSettings(ENGINE), CLASSES)
    scheduler.on_arrival(asks(0, "ada"), 0.0)
    for serial, (tenant, class_name) in enumerate(
        [("ada", "gold"), ("bob", "gold"), ("ada", "silver")], start=1
    ):
        scheduler.on_arrival(asks(serial, tenant, class_name), 0.0)
    # Silver has its turn, because gold was served here.
    scheduler.on_served_elsewhere("silver", "ada", 1e6)
    scheduler.on_served_elsewhere("gold", "ada", 1e6)
    scheduler.on_served_elsewhere("of another document", "ada", 1e6)
    assert dispatched(scheduler, "r0") == "r3"
    assert dispatched(scheduler, "r3") == "r2"
    told = {(each.class_name, each.tenant) for each in scheduler.served_lately(1.0).sums}
    assert told == {("gold", "ada"), ("gold", "bob"), ("silver", "ada")}
    # Only what was served here is told on.
    assert max(each.tokens for each in scheduler.served_lately(1.0).sums) < 1000
