"""How much prefill fits into a step, and how it is kept steady."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.sched.types import StepRecord
from weir_core.step.budget import FIRST_TOKENS, LEAST_TOKENS, Budget, Budgeter, steady
from weir_core.step.pace import Pace

TOKEN_S, CONTEXT_S, DECODE_S, STEP_S = 20e-6, 2e-9, 50e-6, 5e-3


def took(prefill: int, context: int, decodes: int = 8) -> StepRecord:
    """Return a step of an engine that takes exactly this long."""
    duration_s = STEP_S + TOKEN_S * prefill + CONTEXT_S * context + DECODE_S * decodes
    return StepRecord(duration_s, prefill, decodes, context, 0)


def trained(largest: int = 4096) -> Budgeter:
    budgeter = Budgeter(max_tokens=8192)
    for index in range(200):
        size = (0, 64, 512, largest)[index % 4]
        done = (0, 1000, 6000)[index % 3]
        budgeter.learn(took(size, size * done, decodes=index % 16))
    return budgeter


def test_everything_when_no_decode_runs() -> None:
    budget = Budgeter(8192).budget(math.inf, 0, 0)
    assert budget.take(10_000, 0) == 8192


def test_little_before_the_model_knows_the_machine() -> None:
    assert Budgeter(8192).budget(0.05, 4, 4000).take(10_000, 0) == FIRST_TOKENS


@pytest.mark.parametrize("done", [0, 2000, 6000])
def test_a_chunk_takes_what_the_target_leaves_and_late_ones_are_smaller(done: int) -> None:
    budget = trained().budget(0.05, 8, 0)
    chunk = budget.take(100_000, done)
    seconds = took(chunk, chunk * (done + chunk // 2)).duration_s
    assert 0.6 * 0.05 < seconds <= 0.85 * 0.05


def test_a_decode_that_is_late_already_still_leaves_prefills_a_little() -> None:
    assert trained().budget(0.001, 8, 0).take(10_000, 0) == LEAST_TOKENS


def test_it_grows_at_most_twofold_over_what_was_tried() -> None:
    chunk = trained(largest=512).budget(10.0, 8, 0).take(10_000, 0)
    assert 512 <= chunk <= 1024


def test_a_full_batch_leaves_no_room() -> None:
    assert trained().budget(0.05, 8192, 0).take(100, 0) == 0


@pytest.mark.parametrize(
    ("chunk", "last", "want"),
    [
        pytest.param(1000, 0, 960, id="a round size"),
        pytest.param(1000, 960, 960, id="the last size, when it is near"),
        pytest.param(1000, 700, 960, id="not when much more fits"),
        pytest.param(900, 960, 896, id="not when it no longer fits"),
        pytest.param(9, 0, 9, id="a few tokens are as they are"),
    ],
)
def test_sizes_are_kept(chunk: int, last: int, want: int) -> None:
    assert steady(chunk, last) == want


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_a_kept_size_fits_and_loses_at_most_a_fifth(chunk: int, last: int) -> None:
    kept = steady(chunk, last)
    assert 0 < kept <= chunk
    assert kept >= chunk * 0.8 or chunk - kept < 16


@given(
    st.integers(0, 8192),
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9000)), max_size=6),
)
def test_chunks_never_exceed_tokens_nor_time_beyond_the_least(
    tokens: int, seconds: float, prompts: list[tuple[int, int]]
) -> None:
    budget = Budget(tokens, seconds, TOKEN_S, CONTEXT_S, least=min(tokens, LEAST_TOKENS))
    chunks = [(budget.take(left, done), done) for left, done in prompts]
    assert sum(chunk for chunk, _ in chunks) <= tokens
    spent = sum(TOKEN_S * n + CONTEXT_S * n * (done + n / 2) for n, done in chunks)
    least = LEAST_TOKENS * (TOKEN_S + CONTEXT_S * 10_000)
    assert spent <= seconds + least + 1e-9


def test_returned_tokens_are_there_again() -> None:
    budget = Budget(1000, 0.05, TOKEN_S, CONTEXT_S)
    chunk = budget.take(500, 100)
    budget.spend(-chunk, 100)
    assert budget.tokens == 1000
    assert budget.seconds == pytest.approx(0.05)


def test_pace_is_the_tightest_decodes() -> None:
    pace = Pace({100: 0.05, 0: 0.1})
    assert pace.allowance_s(now=0.0) == math.inf
    pace.joined("standard", 0, now=0.0)
    assert pace.allowance_s(now=0.0) == pytest.approx(0.1)
    pace.joined("interactive", 100, now=0.0)
    assert pace.allowance_s(now=0.0) == pytest.approx(0.05)
    pace.gone("interactive")
    assert pace.allowance_s(now=0.0) == pytest.approx(0.1)


def test_early_tokens_are_slack_and_late_ones_are_debt() -> None:
    pace = Pace({0: 0.1})
    pace.joined("a", 0, now=0.0)
    for _ in range(4):
        pace.stepped()
    assert pace.allowance_s(now=0.2) == pytest.approx(0.1 + 0.25 * 0.2)
    assert pace.allowance_s(now=0.0) == pytest.approx(0.15)  # bounded, however early
    assert pace.allowance_s(now=9.0) == pytest.approx(0.05)  # and however late


def test_a_step_that_serves_a_part_of_the_decodes_counts_for_that_part_of_a_token() -> None:
    pace = Pace({0: 0.1})
    pace.joined("a", 0, now=0.0)
    for _ in range(4):
        pace.stepped(0.5)
    assert pace.allowance_s(now=0.2) == pytest.approx(0.1)


def test_a_class_without_a_target_bounds_nothing() -> None:
    pace = Pace({100: 0.05})
    pace.joined("batch", -100, now=0.0)
    assert pace.allowance_s(now=5.0) == math.inf


def test_new_targets_hold_for_decodes_that_run() -> None:
    pace = Pace({0: 0.1})
    pace.joined("a", 0, now=0.0)
    pace.retarget({0: 0.4})
    assert pace.allowance_s(now=0.0) == pytest.approx(0.4)


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "step"]), st.integers(0, 5))))
def test_pace_equals_looking_at_every_decode(events: list[tuple[str, int]]) -> None:
    targets = {0: 0.1, 1: 0.05}
    pace, decodes, steps, now = Pace(targets), dict[str, tuple[int, float, int]](), 0, 0.0
    for event, number in events:
        now += 0.03
        match event:
            case "join":
                decodes[f"r{number}"] = (number % 3, now, steps)
                pace.joined(f"r{number}", number % 3, now)
            case "leave":
                decodes.pop(f"r{number}", None)
                pace.gone(f"r{number}")
            case _:
                steps += 1
                pace.stepped()
    want = math.inf
    for rank, first_s, step in decodes.values():
        if rank in targets:
            lead = first_s + targets[rank] * (steps - step) - now
            spent = targets[rank] + 0.25 * lead
            want = min(want, max(0.5 * targets[rank], min(1.5 * targets[rank], spent)))
    assert pace.allowance_s(now) == pytest.approx(want)
