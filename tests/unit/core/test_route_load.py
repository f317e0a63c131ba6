"""A load vector says what the next request of a class would meet, and asking changes nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weir_core.route.load import ask_of, drain_s_of, load_of
from weir_core.route.router import Router
from weir_core.route.score import suits
from weir_core.route.types import Ask, ClassLoad, LoadVector
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    EngineFacts,
    EngineKind,
    Request,
    StepRecord,
)

ENGINE = EngineFacts(EngineKind.WEIR, 8, 2048, 100_000)
INTERACTIVE = BUILT_IN_CLASSES[0]


def request(number: int, class_name: str = "standard", tokens: int = 1000) -> Request:
    return Request(f"q{number}", "t", class_name, 0.0, prompt_tokens=tokens, max_output_tokens=100)


def scheduler(*requests: Request, engine: EngineFacts | None = ENGINE) -> Scheduler:
    made = Scheduler(SchedulerSettings(engine))
    for each in requests:
        made.on_arrival(each, 0.0)
    return made


def of_class(load: LoadVector, name: str) -> ClassLoad:
    return next(each for each in load.classes if each.name == name)


def trained(made: Scheduler, step_s: float) -> Scheduler:
    """Have it learn an engine whose steps take `step_s` and 40 us for each prompt token."""
    for number in range(80):
        prompt = 400 * (number % 5)
        made.on_step(
            StepRecord(step_s + 40e-6 * prompt, prompt, number % 8, 0, 1000 * (number % 8)), 0.0
        )
    return made


def test_a_class_with_nothing_below_it_may_have_a_slow_replica_for_itself() -> None:
    router = Router("a")
    slow = LoadVector((), 0.0001, 0.04, 0.034, 2048, 100, 100_000)
    asked = Ask("1", "interactive", 100, 500, 100, tpot_target_s=0.1)
    assert router.is_lowest(100, now=0.0)
    assert suits(msgspec.structs.replace(asked, is_lowest=True), slow)
    assert not suits(asked, slow)
    assert router.is_lowest(0, now=1.0)
    assert not router.is_lowest(100, now=2.0)
    assert router.is_lowest(100, now=62.0)


def test_an_idle_replica_has_all_its_room_and_nothing_to_wait_for() -> None:
    load = load_of(scheduler(), 0.0)
    assert [(each.name, each.wait_s, each.ahead_tokens) for each in load.classes] == [
        ("interactive", 0.0, 0),
        ("standard", 0.0, 0),
        ("batch", 0.0, 0),
    ]
    assert (load.sequences_left, load.kv_tokens_left, load.draining) == (8, 100_000, False)


def test_a_prompt_in_the_engine_is_ahead_of_its_own_class_and_lower_ones_only() -> None:
    load = load_of(scheduler(request(1, tokens=1500)), 0.0)
    ahead = {each.name: each.ahead_tokens for each in load.classes}
    assert ahead == {"interactive": 0, "standard": 1500, "batch": 1500}
    assert load.sequences_left == 7
    assert load.kv_tokens_left == 100_000 - 1600


def test_what_waits_delays_its_own_class_before_any_drain_rate_was_measured() -> None:
    made = scheduler(*(request(number, tokens=2000) for number in range(6)))
    assert made.backlog() > 0
    load = load_of(made, 0.0)
    assert of_class(load, "standard").wait_s > 0.2
    assert of_class(load, "interactive").wait_s == 0.0


def test_slots_are_counted_by_sequences() -> None:
    made = scheduler(Request("q", "t", "standard", 0.0, prompt_tokens=10, sequences=3))
    load = load_of(made, 0.0)
    assert (load.sequences, load.sequences_left) == (3, 5)


def test_what_waits_takes_room_from_its_own_class_and_lower_ones_only() -> None:
    made = scheduler(*(request(number, tokens=2000) for number in range(6)))
    load = load_of(made, 0.0)
    assert made.backlog() == 4
    assert (load.sequences, load.sequences_left) == (2, 6)
    waiting = {each.name: each.waiting for each in load.classes}
    assert waiting == {"interactive": 0, "standard": 4, "batch": 4}
    tokens = {each.name: each.waiting_tokens for each in load.classes}
    assert tokens["interactive"] == 0
    assert tokens["standard"] == tokens["batch"] >= 4 * 2000


@pytest.mark.parametrize("step_s", [0.01, 0.04], ids=["fast", "a quarter of its speed"])
def test_speeds_are_what_the_steps_showed(step_s: float) -> None:
    load = load_of(trained(scheduler(), step_s), 0.0)
    assert load.step_s == pytest.approx(step_s, rel=0.2)
    assert load.light_step_s == pytest.approx(step_s, rel=0.2)
    assert load.token_s == pytest.approx(40e-6, rel=0.2)


def test_late_first_tokens_of_an_engine_without_a_step_log_make_it_unfit_for_no_class() -> None:
    made = scheduler()
    for number in range(40):
        asked = Request(f"q{number}", "t", "interactive", float(number), prompt_tokens=10)
        made.on_arrival(asked, float(number))
        made.on_first_token(f"q{number}", number + 0.5)
        made.on_finish(f"q{number}", number + 0.6)
    load = load_of(made, 50.0)
    asked = Request("q", "t", "interactive", 50.0, prompt_tokens=10)
    assert load.step_s > 0.05
    assert suits(ask_of(asked, INTERACTIVE, made.estimator, now=50.0), load)


def test_a_replica_without_an_engine_takes_nothing() -> None:
    load = load_of(scheduler(request(1), engine=None), 0.0)
    assert load.draining
    assert load.sequences_left == 0


def test_an_engine_that_shows_nothing_is_overdue_until_it_moves() -> None:
    made = trained(scheduler(), 0.01)
    made.on_arrival(request(1), 1.0)
    assert load_of(made, 1.02).overdue_s == 0.0  # its prompt takes 0.05 s
    assert load_of(made, 4.0).overdue_s == pytest.approx(2.95, abs=0.05)
    made.on_step(StepRecord(0.01, 0, 1), 4.0)
    assert load_of(made, 4.0).overdue_s == 0.0
    made.on_first_token("q1", 4.0)
    assert load_of(made, 9.0).overdue_s == 0.0  # no prompt is left


def test_a_replica_that_leaves_says_so() -> None:
    assert load_of(scheduler(), 0.0, draining=True).draining


def test_looking_changes_nothing() -> None:
    made = scheduler(*(request(number) for number in range(4)))
    other = scheduler(*(request(number) for number in range(4)))
    for _ in range(3):
        load_of(made, 0.5)
    last = request(9)
    assert made.on_arrival(last, 0.6) == other.on_arrival(last, 0.6)
    assert load_of(made, 0.6) == load_of(other, 0.6)


def test_a_request_asks_with_what_is_left_of_its_time() -> None:
    estimator = scheduler().estimator
    asked = Request(
        "q", "t", "interactive", 10.0, prompt_tokens=700, max_output_tokens=50, sequences=2
    )
    ask = ask_of(asked, INTERACTIVE, estimator, now=10.25)
    assert (ask.class_name, ask.rank, ask.prompt_tokens) == ("interactive", 100, 700)
    assert (ask.output_tokens, ask.sequences) == (100, 2)
    assert ask.left_s == pytest.approx(0.75)
    assert (ask.ttft_target_s, ask.tpot_target_s) == (1.0, 0.05)


def test_a_requests_own_target_replaces_its_classs() -> None:
    asked = Request("q", "t", "interactive", 0.0, ttft_target_s=3.0)
    ask = ask_of(asked, INTERACTIVE, scheduler().estimator, now=0.0)
    assert (ask.left_s, ask.ttft_target_s) == (3.0, 3.0)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"token_s": float("nan")}, id="no number"),
        pytest.param({"step_s": float("inf")}, id="no end"),
        pytest.param({"light_step_s": -1.0}, id="before its time"),
        pytest.param({"sequences_left": -1}, id="less than none"),
        pytest.param({"kv_tokens_left": 1 << 62}, id="more than there can be"),
        pytest.param({"classes": (ClassLoad("a", float("inf"), 0),)}, id="an endless wait"),
    ],
)
def test_what_no_replica_can_have_is_not_read(changed: dict[str, Any]) -> None:
    """Sums of it would be no numbers, and a request that is routed by it would fail."""
    load = load_of(scheduler(), 0.0)
    written = msgspec.msgpack.encode(msgspec.structs.replace(load, **changed))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(written, type=LoadVector)


@pytest.mark.parametrize("learned_s", [-1e-4, float("inf"), float("nan"), 1e300])
def test_what_a_replica_tells_can_be_read_whatever_it_has_learned(learned_s: float) -> None:
    made = scheduler(request(1))
    made.estimator.light_step_s = learned_s
    made.pool.classes[0].cost = -1e-12  # as sums of floats end
    load = load_of(made, 0.0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(load), type=LoadVector) == load


def test_a_drain_lasts_as_long_as_the_longest_request_that_runs() -> None:
    made = scheduler()
    assert drain_s_of(made, 0.0) == 0.0
    made.on_arrival(request(1), 0.0)
    made.on_first_token("q1", 0.5)
    made.on_tokens("q1", 9, 1.0)
    begun_s = drain_s_of(made, 1.0)
    # 90 of 100 tokens are left, at 0.1 s each; the first one counts, too.
    assert 8.0 < begun_s < 10.0
    made.on_tokens("q1", 80, 9.0)
    assert 1.0 < drain_s_of(made, 9.0) < 3.0
    made.on_tokens("q1", 1000, 100.0)  # it goes on beyond what was expected of it
    assert 20.0 < drain_s_of(made, 100.0) < 30.0
    made.on_finish("q1", 101.0)
    assert drain_s_of(made, 101.0) == 0.0
