"""A profile fitted to a step log predicts steps it has not seen."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from weir_core.wire.steps import Facts, Step
from weir_sim.calibrate import (
    BadStepLog,
    calibrate,
    read_profile,
    read_steps,
    write_profile,
)
from weir_sim.profiles import PROFILES

FACTS = Facts("weir", max_num_seqs=64, max_num_batched_tokens=4096, kv_capacity_tokens=32_000)


def steps_of(profile_name: str, count: int, noise: float = 0.0) -> list[Step]:
    rng = random.Random(1)
    steps = []
    for seq in range(count):
        prefill, decodes = rng.choice([0, rng.randint(1, 2048)]), rng.randint(0, 200)
        prefill_context, decode_context = prefill * rng.randint(0, 4000), decodes * 900
        duration_s = PROFILES[profile_name].step_s(
            prefill, decodes, prefill_context, decode_context
        ) * (1 + rng.uniform(-noise, noise))
        steps.append(
            Step(
                seq,
                duration_s,
                prefill_tokens=prefill,
                decodes=decodes,
                prefill_context=prefill_context,
                decode_context=decode_context,
            )
        )
    return steps


@pytest.mark.parametrize("name", ["h100-8b", "cpu-tiny"])
def test_finds_the_profile_that_made_the_steps(name: str) -> None:
    found = calibrate(steps_of(name, 1000, noise=0.05), "mine", FACTS, block_tokens=16)
    assert found.median_error_ratio < 0.05
    assert found.p95_error_ratio < 0.12
    assert abs(found.bias_ratio) < 0.02
    assert found.profile.token_s == pytest.approx(PROFILES[name].token_s, rel=0.1)


def test_takes_slots_and_room_from_the_engines_own_facts() -> None:
    profile = calibrate(steps_of("h100-8b", 200), "mine", FACTS, block_tokens=16).profile
    assert (profile.max_num_seqs, profile.max_num_batched_tokens) == (64, 4096)
    assert profile.kv_tokens == FACTS.kv_capacity_tokens


def test_a_step_log_and_a_profile_survive_their_files(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    steps = steps_of("h100-8b", 60)
    log.write_bytes(b"\n".join(msgspec.json.encode(step) for step in steps))
    assert read_steps(log) == steps
    profile = calibrate(read_steps(log), "mine", FACTS, block_tokens=16).profile
    write_profile(profile, tmp_path / "mine.json")
    assert read_profile(tmp_path / "mine.json") == profile


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param('{"seq": 1, "duration_s": 0.1}\nnonsense', ":2:", id="a line is no step"),
        pytest.param('{"seq": 1, "duration_s": 0.1}', "50 are needed", id="too few"),
    ],
)
def test_says_what_is_wrong_with_a_step_log(tmp_path: Path, text: str, why: str) -> None:
    log = tmp_path / "steps.jsonl"
    log.write_text(text)
    with pytest.raises(BadStepLog, match=why):
        read_steps(log)
