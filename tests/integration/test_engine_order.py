"""Weir's order on real vLLM, stock beside it: the benchmark's scenes and proofs, once and small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In a process of its own: vLLM lives in it."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    command = [
        sys.executable, "-m", "bench.engine", "effects", "same", "fuzz", "session", "--runs", "1",
        "--prompts", "60", "--schedules", "60", "--real-schedules", "5", "--json", str(path),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(path.read_text())
    return answer


def test_no_step_computes_a_lower_prompt_while_a_higher_one_waits(results: dict[str, Any]) -> None:
    effects = results["effects"]
    assert effects["inversion weir"]["steps"] == 0
    assert effects["inversion stock"]["steps"] > 0


def test_a_high_request_takes_a_slot_instead_of_waiting_for_one(results: dict[str, Any]) -> None:
    effects = results["effects"]
    assert effects["slot weir"]["preempted"] == 1
    assert effects["slot stock"]["preempted"] == 0
    assert effects["slot weir"]["ttft_s"] < 0.5 * effects["slot stock"]["ttft_s"]


def test_long_prompts_hardly_interrupt_decodes(results: dict[str, Any]) -> None:
    effects = results["effects"]
    assert effects["gap weir"]["p99_s"] < 0.5 * effects["gap stock"]["p99_s"]


def test_greedy_answers_are_those_of_stock(results: dict[str, Any]) -> None:
    assert (results["same"]["different"], results["same"]["preempted"]) == ([], 0)


@pytest.mark.parametrize(
    "kind",
    [
        "with the model", "without", "without, steps overlapping", "without, in a pipeline",
        "with the model, speculating", "without, speculating",
        "without, speculating, steps overlapping",
    ],
)  # fmt: skip
def test_no_schedule_loses_a_request_or_a_block(results: dict[str, Any], kind: str) -> None:
    fuzz = results["fuzz"][kind]
    assert fuzz["faults"] == []
    assert fuzz["requests"] > fuzz["schedules"] > 0


def test_a_session_that_waits_for_input_holds_up_nobody(results: dict[str, Any]) -> None:
    session = results["session"]
    assert (session["bounding"], session["leaked_blocks"]) == (0, 0)
    assert session["preempted"] > 0
    assert session["tokens"] == 16
