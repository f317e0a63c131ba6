"""Estimators: they learn, they are biased to the safe side, and nonsense does not harm them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from weir_core.sched.estimate import Estimator
from weir_core.sched.lazyheap import LazyHeap
from weir_core.sched.limits import TokenBudget
from weir_core.sched.quantiles import StreamingQuantile
from weir_core.sched.rates import DrainRate, FadingRate
from weir_core.sched.steptime import StepTimeModel
from weir_core.sched.tickets import Ticket
from weir_core.sched.types import BUILT_IN_CLASSES, Request, StepRecord


def ask(tenant: str = "t", body_bytes: int = 4000, most: int | None = None) -> Request:
    return Request("r", tenant, "standard", 0.0, body_bytes, max_output_tokens=most)


def true_step_s(p: int, d: int, pc: int, ctx: int) -> float:
    return 1.2e-3 + 33e-6 * (p + d) + 4e-6 * d + 1e-9 * pc + 7.6e-8 * ctx


def steps(count: int, seed: int = 1, noise: float = 0.02) -> list[StepRecord]:
    rng = random.Random(seed)
    records = []
    for _ in range(count):
        p, d = rng.choice([0, 0, rng.randint(1, 4000)]), rng.randint(0, 200)
        pc, ctx = p * rng.randint(0, 8000), d * rng.randint(50, 3000)
        duration_s = true_step_s(p, d, pc, ctx) * rng.gauss(1.0, noise)
        records.append(StepRecord(duration_s, p, d, pc, ctx))
    return records


def test_step_times_are_learned_within_a_few_percent_of_unseen_steps() -> None:
    model = StepTimeModel()
    for record in steps(500):
        model.update(record)
    unseen = steps(200, seed=2)
    errors = [abs(model.unbiased_s(r) - r.duration_s) / r.duration_s for r in unseen]
    assert sum(errors) / len(errors) < 0.05


def test_step_times_are_predicted_too_long_rather_than_too_short() -> None:
    model = StepTimeModel()
    for record in steps(500):
        model.update(record)
    unseen = steps(200, seed=2)
    short = sum(model.predict_s(r) < r.duration_s for r in unseen)
    assert short / len(unseen) < 0.1


def test_step_times_follow_an_engine_that_slows_down() -> None:
    model = StepTimeModel()
    for record in steps(500):
        model.update(record)
    slowed = [structs.replace(r, duration_s=2 * r.duration_s) for r in steps(3000, seed=3)]
    for record in slowed[:-200]:
        model.update(record)
    errors = [abs(model.unbiased_s(r) - r.duration_s) / r.duration_s for r in slowed[-200:]]
    assert sum(errors) / len(errors) < 0.1


@pytest.mark.parametrize("alike", [False, True])
def test_step_times_are_still_known_after_tens_of_thousands_of_steps(alike: bool) -> None:
    model = StepTimeModel()
    many = [StepRecord(true_step_s(0, 64, 0, 64_000), 0, 64, 0, 64_000)] * 40_000
    for record in steps(500) + (many if alike else steps(40_000, seed=3)):
        model.update(record)
    unseen = steps(200, seed=2)
    errors = [abs(model.unbiased_s(r) - r.duration_s) / r.duration_s for r in unseen]
    assert sum(errors) / len(errors) < 0.05


@given(
    st.lists(
        st.tuples(
            st.floats(-1, 1e9), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**12)
        ),
        max_size=60,
    )
)
def test_absurd_steps_leave_a_prediction_that_is_not_negative(
    drawn: list[tuple[float, int, int, int]],
) -> None:
    estimator = Estimator(2048)
    for duration_s, prefill, decodes, context in drawn:
        estimator.learn_step(StepRecord(duration_s, prefill, decodes, context, context))
    assert estimator.first_token_s(1000) >= 0


def test_bytes_per_token_are_learned_per_tenant() -> None:
    estimator = Estimator(2048)
    for _ in range(50):
        estimator.learn_prompt(ask("dense"), 2000)
    assert estimator.prompt_tokens(ask("dense")) == pytest.approx(2000, rel=0.05)
    assert estimator.prompt_tokens(ask("other")) == 1000


IMAGE_BYTES = 5_000_000


def test_an_image_is_not_taken_for_a_text_of_its_size() -> None:
    assert Estimator(2048).prompt_tokens(ask(body_bytes=IMAGE_BYTES)) == 32_768
    small = Estimator(2048, longest_guess_tokens=1000)
    assert small.prompt_tokens(ask(body_bytes=IMAGE_BYTES)) == 1000
    assert small.prompt_tokens(ask(body_bytes=3200)) == 800


def test_a_count_is_believed_however_long_the_prompt() -> None:
    exact = Request("r", "t", "standard", 0.0, IMAGE_BYTES, prompt_tokens=1_250_000)
    assert Estimator(2048).prompt_tokens(exact) == 1_250_000


def test_bodies_too_large_for_a_text_hold_what_the_tenants_earlier_ones_did() -> None:
    estimator = Estimator(2048)
    for size in (IMAGE_BYTES, 500_000, 20_000_000):
        estimator.learn_prompt(ask("images", size), 1200)
        estimator.learn_prompt(ask("books", size), 250_000)
    assert estimator.prompt_tokens(ask("images", IMAGE_BYTES)) == pytest.approx(1200)
    assert estimator.prompt_tokens(ask("books", IMAGE_BYTES)) == pytest.approx(250_000)
    assert estimator.prompt_tokens(ask("images", 4000)) == 1000


def test_short_bodies_with_long_templates_do_not_make_the_next_one_endless() -> None:
    estimator = Estimator(2048)
    estimator.learn_prompt(ask(body_bytes=200), 2000)
    assert estimator.prompt_tokens(ask(body_bytes=200)) == 2000
    assert estimator.prompt_tokens(ask(body_bytes=100_000)) == 32_768


def test_ever_new_tenants_do_not_fill_the_memory() -> None:
    estimator = Estimator(2048)
    for serial in range(3000):
        estimator.learn_prompt(ask(f"t{serial}", IMAGE_BYTES), 1200)
        estimator.learn_prompt(ask(f"t{serial}"), 2000)
    assert estimator.prompt_tokens(ask("t0", IMAGE_BYTES)) == 1200
    assert estimator.prompt_tokens(ask("t2999", IMAGE_BYTES)) == 32_768
    assert estimator.prompt_tokens(ask("t2999")) == 1000


def test_answers_are_expected_as_long_as_the_tenants_earlier_ones() -> None:
    estimator = Estimator(2048)
    for _ in range(100):
        estimator.learn_output(ask("short"), 10)
        estimator.learn_output(ask("long"), 1000)
    assert estimator.output_tokens(ask("short")) == pytest.approx(10, rel=0.1)
    assert estimator.output_tokens(ask("long")) == pytest.approx(1000, rel=0.1)


def test_no_answer_is_expected_longer_than_the_client_allows() -> None:
    assert Estimator(2048).output_tokens(ask(most=7)) == 7


def test_a_first_token_that_comes_late_raises_the_next_expectation_quickly() -> None:
    estimator = Estimator(2048)
    before = estimator.first_token_s(1000)
    for _ in range(10):
        estimator.learn_first_token(expected_s=0.1, took_s=0.2)
    raised = estimator.first_token_s(1000)
    for _ in range(10):
        estimator.learn_first_token(expected_s=0.2, took_s=0.1)
    assert raised > 1.5 * before
    assert estimator.first_token_s(1000) > before


def test_a_light_step_that_was_seen_counts_and_not_what_the_model_infers_of_full_ones() -> None:
    """A cold model infers anything; a replica that seems too slow gets nothing to learn from."""
    estimator = Estimator(2048)
    for number in range(40):
        estimator.learn_step(StepRecord(0.2 + 0.01 * (number % 2), 2000, 16, 10**7, 16_000))
    estimator.learn_step(StepRecord(0.012, 0, 3, 0, 5000))
    assert estimator.light_step_s == 0.012
    for _ in range(99):
        estimator.learn_step(StepRecord(0.014, 0, 3, 0, 5000))
        estimator.learn_step(StepRecord(0.2, 2000, 16, 10**7, 16_000))
    assert estimator.light_step_s == pytest.approx(0.014, rel=0.01)


def test_prompts_that_wait_for_each_other_say_nothing_of_a_step() -> None:
    estimator = Estimator(2048)
    for record in steps(500):
        estimator.learn_step(record)
    before = estimator.step_s
    for _ in range(50):
        estimator.learn_first_token(expected_s=0.1, took_s=0.4)
    assert estimator.step_s == before
    assert estimator.first_token_s(0) > 2 * before


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9, 0.99])
def test_a_quantile_is_right_within_a_tenth(quantile: float) -> None:
    rng = random.Random(4)
    values = [max(1, round(rng.lognormvariate(5, 1))) for _ in range(1500)]
    sketch = StreamingQuantile(quantile)
    for value in values:
        sketch.observe(value)
    exact = sorted(values)[int(quantile * len(values))]
    assert sketch.value() == pytest.approx(exact, rel=0.12)


def test_a_quantile_forgets_what_is_no_longer_so() -> None:
    sketch = StreamingQuantile(0.5, memory=256)
    for _ in range(1000):
        sketch.observe(10)
    for _ in range(1000):
        sketch.observe(1000)
    assert sketch.value() == pytest.approx(1000, rel=0.1)


def test_an_empty_sketch_knows_nothing() -> None:
    assert StreamingQuantile(0.5).value() is None


def test_the_drain_rate_counts_only_time_in_which_something_waited() -> None:
    drain = DrainRate()
    drain.observe(0.0, backlogged=False)
    drain.served(5)
    drain.observe(100.0, backlogged=False)
    assert drain.value() is None
    drain.observe(100.0, backlogged=True)
    drain.served(2000)
    drain.observe(101.0, backlogged=True)
    assert drain.value() == 2000


@pytest.mark.parametrize(
    ("computed", "of_first", "want"),
    [
        pytest.param(0, 300, 500, id="no step log: all at the first token"),
        pytest.param(300, 300, 500, id="all of it counted by steps"),
        pytest.param(100, 300, 500, id="a part of it"),
        pytest.param(450, 300, 500, id="and some of the next prompt"),
    ],
)
def test_prompt_tokens_are_counted_once(computed: int, of_first: int, want: int) -> None:
    drain = DrainRate()
    drain.observe(0.0, backlogged=True)
    drain.prefilled(computed)
    drain.prompt_done(of_first, is_last=False)
    drain.prompt_done(200, is_last=True)
    drain.observe(1.0, backlogged=True)
    assert drain.value() == want


def test_what_was_computed_of_prompts_that_left_is_not_the_next_ones() -> None:
    drain = DrainRate()
    drain.observe(0.0, backlogged=True)
    drain.prefilled(400)
    drain.prompt_done(100, is_last=True)
    drain.prompt_done(250, is_last=True)
    drain.observe(1.0, backlogged=True)
    assert drain.value() == 650


def test_a_fading_rate_tells_the_present_rate() -> None:
    rate = FadingRate(half_life_s=10.0)
    for tenth in range(1000):
        rate.add(5.0, tenth / 10)
    assert rate.per_second(100.0) == pytest.approx(50, rel=0.05)
    assert rate.per_second(110.0) == pytest.approx(25, rel=0.05)


def test_a_token_budget_refills_over_its_minute() -> None:
    budget = TokenBudget(600, now=0.0)
    budget.spend(700, 0.0)
    assert budget.wait_s(0.0) == pytest.approx(10.1)
    assert budget.wait_s(10.2) == 0.0


def ticket(seq: int) -> Ticket:
    return Ticket(ask(), BUILT_IN_CLASSES[1], seq)


def test_a_heap_gives_the_smallest_living_ticket_ties_in_order_of_arrival() -> None:
    heap = LazyHeap()
    tickets = [ticket(seq) for seq in range(4)]
    for key, one in zip((2.0, 1.0, 1.0, 3.0), tickets, strict=True):
        heap.push(key, one)
    assert heap.first() is tickets[1]
    tickets[1].epoch += 1
    heap.forget()
    assert heap.first() is tickets[2]
    assert len(heap) == 3


def test_a_heap_remembers_no_more_than_a_multiple_of_the_living() -> None:
    heap = LazyHeap()
    heap.push(0.0, ticket(0))
    for seq in range(1, 10_000):
        one = ticket(seq)
        heap.push(1.0, one)
        one.epoch += 1
        heap.forget()
    assert heap.entries <= 2 * len(heap) + 65
