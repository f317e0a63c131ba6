"""Workloads: the same seed gives the same requests."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from weir_sim.kv import SHARED_TOKENS
from weir_sim.traces import read_trace
from weir_sim.workload import (
    ADVERSARIAL_MIX,
    STANDARD_MIX,
    LengthModel,
    WorkloadSpec,
    generate,
    replay,
)

TRACES = Path(__file__).parent / "traces"
SPEC = WorkloadSpec(rate=20.0, duration_s=200.0)


def test_the_same_seed_gives_the_same_requests() -> None:
    assert generate(SPEC, 3) == generate(SPEC, 3)
    assert generate(SPEC, 3) != generate(SPEC, 4)


@pytest.mark.parametrize("turns", [1, 4])
def test_requests_come_in_order_with_ids_of_their_own(turns: int) -> None:
    requests = generate(replace(SPEC, turns=turns), 0)
    arrivals = [request.arrival_s for request in requests]
    assert arrivals == sorted(arrivals)
    assert len({request.request_id for request in requests}) == len(requests)


def test_the_rate_and_the_mix_are_what_was_asked_for() -> None:
    requests = generate(SPEC, 0)
    assert len(requests) == pytest.approx(4000, rel=0.1)
    batch = sum(request.class_name == "batch" for request in requests)
    assert batch / len(requests) == pytest.approx(0.3, abs=0.03)


def test_lengths_follow_the_azure_trace() -> None:
    requests = generate(replace(SPEC, duration_s=500.0), 0)
    prompts = sorted(request.prompt_tokens for request in requests)
    outputs = sorted(request.output_tokens for request in requests)
    assert prompts[len(prompts) // 2] == pytest.approx(1020, rel=0.1)
    assert outputs[int(len(outputs) * 0.99)] == pytest.approx(601, rel=0.15)


def test_bursts_vary_more_than_poisson() -> None:
    def variation(burstiness: float) -> float:
        arrivals = [r.arrival_s for r in generate(replace(SPEC, burstiness=burstiness), 0)]
        gaps = [b - a for a, b in pairwise(arrivals)]
        mean = sum(gaps) / len(gaps)
        return float((sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean)

    assert variation(1.0) == pytest.approx(1.0, abs=0.15)
    assert variation(4.0) > 2.5


def test_the_turns_of_a_conversation_share_their_prefix() -> None:
    requests = generate(replace(SPEC, turns=5), 0)
    sessions: dict[str, list[tuple[int, ...]]] = {}
    for request in requests:
        assert len(request.hash_ids) <= request.prompt_tokens // SHARED_TOKENS
        sessions.setdefault(request.session, []).append(request.hash_ids)
    for chains in sessions.values():
        for earlier, later in pairwise(chains):
            assert later[: len(earlier)] == earlier


def test_the_adversarial_mix_holds_books() -> None:
    requests = generate(replace(SPEC, streams=ADVERSARIAL_MIX), 0)
    books = [request for request in requests if request.tenant == "books"]
    assert books
    assert min(request.prompt_tokens for request in books) > 10_000


def test_a_length_is_never_zero_nor_over_its_bound() -> None:
    lengths = LengthModel(prompt_median=1.0, prompt_p99=1e9, most_prompt_tokens=500)
    requests = generate(replace(SPEC, lengths=lengths), 0)
    assert {1, 500} <= {request.prompt_tokens for request in requests}


def test_a_replay_keeps_the_trace_and_draws_the_classes() -> None:
    trace = read_trace(TRACES / "azure2023_conv_excerpt.csv")
    twice = replay(trace, STANDARD_MIX, seed=0, speed=2.0)
    assert [r.prompt_tokens for r in twice] == [r.prompt_tokens for r in trace]
    assert twice[-1].arrival_s == pytest.approx(trace[-1].arrival_s / 2)
    assert {r.class_name for r in twice} == {"interactive", "standard", "batch"}
    assert twice == replay(trace, STANDARD_MIX, seed=0, speed=2.0)
