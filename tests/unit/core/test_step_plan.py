"""Whose prompt tokens a step computes, in each mode."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from weir_core.sched.types import StepRecord
from weir_core.step.budget import Budget
from weir_core.step.mode import BUILT_IN_TPOT_S, Mode
from weir_core.step.order import Prompt, divide
from weir_core.step.plan import Planner
from weir_core.step.shares import Shares
from weir_core.wire.policies import EngineMode, PolicyDocument
from weir_core.wire.priority import engine_priority

INTERACTIVE, STANDARD, BATCH = 100, 0, -100


def prompt(
    name: str, rank: int, left: int, due_s: float = 9.0, done: int = 0, waits: bool = False
) -> Prompt:
    return Prompt(name, rank, engine_priority(rank, due_s), left, done, waits)


@pytest.mark.parametrize(
    ("prompts", "tokens", "chunks", "rest"),
    [
        pytest.param(
            [prompt("batch", BATCH, 7000), prompt("high", INTERACTIVE, 300)],
            1000, {"high": 300, "batch": 700}, 0, id="the higher class first, then the other",
        ),
        pytest.param(
            [prompt("batch", BATCH, 7000, done=500), prompt("new", INTERACTIVE, 2000, waits=True)],
            1000, {"new": 1000, "batch": 0}, 1000,
            id="a higher waiter before a prompt that was begun",
        ),
        pytest.param(
            [prompt("batch", BATCH, 7000, done=500), prompt("new", INTERACTIVE, 200, waits=True)],
            1000, {"new": 200, "batch": 800}, 200,
            id="a short one leaves the lower prompt the rest",
        ),
        pytest.param(
            [prompt("begun", STANDARD, 900), prompt("waits", STANDARD, 100, waits=True)],
            500, {"begun": 500, "waits": 0}, 0, id="of equals, what was begun first",
        ),
        pytest.param(
            [prompt("late", STANDARD, 400, due_s=8), prompt("soon", STANDARD, 400, due_s=2)],
            500, {"soon": 400, "late": 100}, 0, id="in a class, the nearest deadline",
        ),
        pytest.param(
            [prompt("long", STANDARD, 4000), prompt("short", STANDARD, 100)],
            500, {"short": 100, "long": 400}, 0, id="of equal deadlines, what is done soonest",
        ),
    ],
)  # fmt: skip
def test_divides_a_step(
    prompts: list[Prompt], tokens: int, chunks: dict[str, int], rest: int
) -> None:
    budget = Budget(tokens)
    assert divide(prompts, budget) == chunks
    assert budget.tokens == rest


PROMPTS = st.lists(
    st.builds(
        Prompt,
        request_id=st.uuids().map(str),
        rank=st.sampled_from([INTERACTIVE, STANDARD, BATCH]),
        urgency=st.integers(-5, 5),
        left=st.integers(1, 9000),
        done=st.integers(0, 9000),
        waits=st.booleans(),
    ),
    max_size=8,
)


@given(PROMPTS, st.integers(0, 8192))
def test_no_token_is_given_twice_and_none_goes_before_a_more_urgent_prompt(
    prompts: list[Prompt], tokens: int
) -> None:
    budget = Budget(tokens)
    chunks = divide(prompts, budget)
    assert sum(chunks.values()) <= tokens
    taken = sum(chunks[one.request_id] for one in prompts if not one.waits)
    assert taken + budget.tokens <= tokens
    short = [one for one in prompts if chunks[one.request_id] < one.left]
    if short:
        first = min(short, key=lambda one: one.key)
        behind = [one for one in prompts if one.key > first.key]
        assert sum(chunks[one.request_id] for one in behind) == 0


def test_throughput_gives_prefills_all_that_a_step_holds() -> None:
    planner = Planner(4096, Mode("throughput"))
    planner.pace.joined("decode", INTERACTIVE, now=0.0)
    plan = planner.plan(0.0, 1, 500, [prompt("batch", BATCH, 9000)])
    assert plan.chunks == {"batch": 4095}


def test_latency_holds_back_for_a_decode_and_gives_all_without_one() -> None:
    planner = Planner(4096)
    planner.pace.joined("decode", INTERACTIVE, now=0.0)
    held_back = planner.plan(0.0, 1, 500, [prompt("batch", BATCH, 9000)])
    assert held_back.chunks == {"batch": 512}
    planner.pace.gone("decode")
    assert planner.plan(0.0, 0, 0, [prompt("batch", BATCH, 9000)]).chunks == {"batch": 4096}


def test_a_floor_keeps_steps_from_becoming_tiny() -> None:
    planner = Planner(4096, Mode(tpot_floor_s=float("inf")))
    planner.pace.joined("decode", INTERACTIVE, now=0.0)
    assert planner.plan(0.0, 1, 500, [prompt("batch", BATCH, 9000)]).chunks == {"batch": 4095}


def test_custom_serves_waiting_requests_within_their_classes_part() -> None:
    planner = Planner(1000, Mode("custom", shares={INTERACTIVE: 0.6, BATCH: 0.4}))
    waiting = [prompt("i", INTERACTIVE, 5000, waits=True), prompt("b", BATCH, 5000, waits=True)]
    plan = planner.plan(0.0, 0, 0, waiting)
    assert plan.admit(INTERACTIVE, 5000, 0) == 600
    assert plan.admit(BATCH, 5000, 0) == 400
    assert plan.admit(STANDARD, 5000, 0) == 0


@given(
    st.lists(st.integers(100, 2000), min_size=60, max_size=60),
    st.lists(st.integers(1, 99), min_size=2, max_size=3),
)
@example([100] * 60, [1, 99, 99])
def test_backlogged_classes_get_their_parts_over_time(steps: list[int], weights: list[int]) -> None:
    parts = {rank: weight / sum(weights) for rank, weight in enumerate(weights)}
    shares, got = Shares(parts), dict.fromkeys(parts, 0)
    for tokens in steps:
        grants = shares.divide(tokens, dict.fromkeys(parts, 100_000))
        assert sum(grants.values()) == tokens
        for rank, grant in grants.items():
            got[rank] += grant
            shares.served(rank, grant)
    total = sum(max(part, 0.01) for part in parts.values())
    for rank, part in parts.items():
        assert got[rank] / sum(steps) == pytest.approx(max(part, 0.01) / total, abs=0.05)


def test_a_class_without_prompts_lends_its_part() -> None:
    shares = Shares({INTERACTIVE: 0.7, BATCH: 0.3})
    assert shares.divide(1000, {INTERACTIVE: 0, BATCH: 5000}) == {BATCH: 1000}
    shares.served(BATCH, 1000)
    assert shares.divide(1000, {INTERACTIVE: 100, BATCH: 5000}) == {INTERACTIVE: 100, BATCH: 900}


def test_the_message_to_the_engine_carries_ranks_and_targets_of_the_classes() -> None:
    engine = EngineMode("custom", {"interactive": 0.7, "gone": 0.2}, 0.02)
    message = PolicyDocument(engine=engine).mode_message()
    mode = msgspec.json.decode(message, type=EngineMode).for_steps()
    assert mode == Mode("custom", dict(BUILT_IN_TPOT_S), {INTERACTIVE: 0.7}, 0.02)


def test_an_engine_without_a_sidecar_serves_by_latency_with_the_built_in_targets() -> None:
    assert EngineMode(mode="unheard-of").for_steps() == Mode("latency", BUILT_IN_TPOT_S)


def test_custom_shares_hold_while_time_bounds_the_steps_and_prompts_come_and_go() -> None:
    planner = Planner(2048, Mode("custom", {INTERACTIVE: 0.05}, {100: 0.5, 0: 0.3, -100: 0.2}))
    ranks = (INTERACTIVE, STANDARD, BATCH)
    left = {(rank, number): 2000 for rank in ranks for number in range(40)}
    begun: set[tuple[int, int]] = set()
    got, now = dict.fromkeys(ranks, 0), 0.0
    planner.pace.joined("decode", INTERACTIVE, now)
    while sum(got.values()) < 60_000:
        waiting = [key for key in left if key not in begun]
        shown = [key for rank in ranks for key in [k for k in waiting if k[0] == rank][:4]]
        plan = planner.plan(now, 4, 2000, [
            prompt(f"{rank}/{n}", rank, left[rank, n], n, 2000 - left[rank, n], (rank, n) in shown)
            for rank, n in [*begun, *shown]
        ])  # fmt: skip
        chunks = {key: plan.chunks[f"{key[0]}/{key[1]}"] for key in begun}
        for key in shown:
            if plan.chunks[f"{key[0]}/{key[1]}"]:
                if not (chunk := plan.admit(key[0], 2000, 0)):
                    break
                chunks[key] = chunk
                begun.add(key)
        context = sum(n * (2000 - left[key] + n // 2) for key, n in chunks.items())
        for key, chunk in chunks.items():
            got[key[0]] += chunk
            left[key] -= chunk
            if not left[key]:
                del left[key]
                begun.discard(key)
        duration_s = 0.004 + 1.1e-4 * sum(chunks.values()) + 5e-8 * context
        planner.stepped(StepRecord(duration_s, sum(chunks.values()), 4, context, 2000), (), now)
        now += duration_s
    parts = [got[rank] / sum(got.values()) for rank in ranks]
    assert parts == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_a_decodes_target_holds_over_all_the_steps_that_a_pipeline_computes_at_a_time(
    stages: int,
) -> None:
    planner = Planner(2048, Mode("latency", {INTERACTIVE: 0.2}), stages)
    planner.pace.joined("decode", INTERACTIVE, 0.0)
    now, tokens_at = 0.0, [0.0]
    for number in range(stages * 200):
        decodes = 0 if number % stages else 4
        plan = planner.plan(
            now, decodes, 500 * decodes, [prompt("low", BATCH, 9000)], others=4 - decodes
        )
        prefill = plan.chunks["low"]
        record = StepRecord(0.004 + 1e-4 * prefill, prefill, decodes, 0, 500 * decodes)
        now += record.duration_s
        planner.stepped(record, (), now, part=decodes / 4)
        if decodes:
            tokens_at.append(now)
    gaps = [late - early for early, late in pairwise(tokens_at[50:])]
    assert sum(gaps) / len(gaps) == pytest.approx(0.2, rel=0.15)
    assert max(gaps) < 1.3 * 0.2
