"""Weir's order on real vLLM, stock beside it: the benchmark's scenes and proofs, once and small.

Steps take a set time for each of their tokens, so that results follow from what steps hold.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.conftest import bench_engine


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In processes of their own, because vLLM lives in them; both at once, on a core each."""
    directory = tmp_path_factory.mktemp("bench")
    with ThreadPoolExecutor() as threads:
        compared = threads.submit(
            bench_engine, directory / "compared.json",
            "effects", "same", "--set-steps", "--runs=1", "--prompts=60",
            "--scenes", "inversion", "slot", "gap",
        )  # fmt: skip
        checked = threads.submit(
            bench_engine, directory / "checked.json",
            "fuzz", "session", "--schedules=60", "--real-schedules=5",
        )  # fmt: skip
    return compared.result() | checked.result()


def test_no_step_computes_a_lower_prompt_while_a_higher_one_waits(results: dict[str, Any]) -> None:
    effects = results["effects"]
    assert effects["inversion weir"]["steps"] == 0
    assert effects["inversion stock"]["steps"] > 0


def test_a_high_request_takes_a_slot_instead_of_waiting_for_one(results: dict[str, Any]) -> None:
    effects = results["effects"]
    assert effects["slot weir"]["preempted"] == 1
    assert effects["slot stock"]["preempted"] == 0
    assert effects["slot weir"]["steps"] < 0.5 * effects["slot stock"]["steps"]


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
        "without, speculating, steps overlapping", "without, with adapters, in a pipeline",
    ],
)  # fmt: skip
def test_no_schedule_loses_a_request_or_a_block(results: dict[str, Any], kind: str) -> None:
    fuzz = results["fuzz"][kind]
    assert fuzz["faults"] == []
    assert fuzz["requests"] > fuzz["schedules"] > 0


def test_what_the_step_log_told_of_ended_requests_is_what_vllm_counted(
    results: dict[str, Any],
) -> None:
    """Each schedule of the fuzz compares the two; here, that there was something to compare."""
    runs = [run for name, run in results["fuzz"].items() if name.startswith("without")]
    assert all(run["output_tokens"] and run["aborted"] and run["preemptions"] for run in runs)


def test_requests_are_charged_for_the_time_of_the_steps_and_no_more(
    results: dict[str, Any],
) -> None:
    for kind, run in results["fuzz"].items():
        assert run["engine_s"] == pytest.approx(run["steps_s"], rel=0.02), kind


def test_a_session_that_waits_for_input_holds_up_nobody(results: dict[str, Any]) -> None:
    session = results["session"]
    assert (session["bounding"], session["leaked_blocks"]) == (0, 0)
    assert session["preempted"] > 0
    assert session["tokens"] == 16
