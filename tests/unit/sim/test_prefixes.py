"""The evaluation of prefix knowledge: its cache is vLLM's, and its tables say what they should."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from weir_core.route.prefix import Chain
from weir_sim.prefixes import (
    BlockCache,
    Prompt,
    Setup,
    accuracy,
    prompts_of_conversations,
    prompts_of_trace,
    table,
)
from weir_sim.traces import read_trace
from weir_sim.workload import WorkloadSpec, generate

EXCERPT = Path(__file__).parent / "traces" / "mooncake_conversation_excerpt.jsonl"
CHATS = prompts_of_conversations(generate(WorkloadSpec(4.0, 300.0, turns=6), 0), 128)
SETUP = Setup()


def prompt_of(tokens: int, *blocks: int) -> Prompt:
    return Prompt(0.0, "", tokens, 1, blocks, Chain([], 0, tokens * 4))


@pytest.mark.parametrize(
    ("tokens", "want"),
    [
        pytest.param(128, 0, id="one block: its last token is computed, and so all of it"),
        pytest.param(129, 128, id="one token more"),
        pytest.param(256, 128, id="two blocks"),
        pytest.param(257, 256, id="two blocks and a token"),
    ],
)
def test_the_same_prompt_again_hits_what_it_hits_in_vllm(tokens: int, want: int) -> None:
    cache = BlockCache(10_000, 128)
    prompt = prompt_of(tokens, 1, 2, 3)
    cache.insert(prompt)
    assert cache.cached_tokens(prompt) == want


def test_the_end_of_the_oldest_prompt_is_evicted_first() -> None:
    cache = BlockCache(512, 128)
    cache.insert(prompt_of(257, 1, 2, 3))
    cache.insert(prompt_of(257, 4, 5))
    assert cache.cached_tokens(prompt_of(1000, 1, 2, 3)) == 256


def test_conversations_share_their_system_prompt_and_go_on_with_their_answers() -> None:
    sessions: dict[str, list[Prompt]] = {}
    for prompt in CHATS:
        sessions.setdefault(prompt.session, []).append(prompt)
    beginnings = {prompts[0].chain.hashes[0] for prompts in sessions.values()}
    assert 1 < len(beginnings) <= 4
    for prompts in sessions.values():
        for before, after in pairwise(prompts):
            said = (before.prompt_tokens + before.output_tokens) // 128
            assert after.blocks[:said] == before.blocks[:said]
            assert after.chain.hashes[: len(before.chain.hashes)] == before.chain.hashes


@pytest.mark.parametrize("capacity", [30_000, 1_000_000], ids=["a full cache", "room for all"])
def test_predictions_on_conversations_are_less_than_two_blocks_off(capacity: int) -> None:
    found = accuracy(CHATS, replace(SETUP, capacity_tokens=capacity), learns=True)
    assert found.error_tokens < 256
    assert found.predicted_ratio == pytest.approx(found.actual_ratio, abs=0.05)
    assert found.actual_ratio > 0.1


def test_predictions_on_a_trace_whose_chunks_are_the_engines_blocks_are_right() -> None:
    prompts = prompts_of_trace(read_trace(EXCERPT), 128)
    found = accuracy(prompts, SETUP, learns=True)
    assert found.actual_ratio > 0.01
    assert found.predicted_ratio == pytest.approx(found.actual_ratio, abs=0.01)


def test_the_engines_word_does_not_make_predictions_worse() -> None:
    small = replace(SETUP, capacity_tokens=30_000)
    told, untold = (accuracy(CHATS, small, learns=learns) for learns in (True, False))
    assert told.error_tokens <= untold.error_tokens


def test_equal_seeds_give_equal_tables() -> None:
    prompts = CHATS[:100]
    lines = list(table(prompts, SETUP))
    assert lines == list(table(prompts, SETUP))
    assert [line.split()[0] for line in lines] == ["one", "by", "and"]
