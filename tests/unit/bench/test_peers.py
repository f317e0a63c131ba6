"""bench/peers counts every request once, and compares equal requests."""

from __future__ import annotations

import json

import pytest

from bench.peers.load import Answer, Ask, body_of
from bench.peers.plan import Load, requests
from bench.peers.report import Row, row, table
from weir_sim.step_engine import parse

GOOD = Answer("interactive", 200, 0.2, 1.2, 26, complete=True)


@pytest.mark.parametrize(
    ("answer", "column"),
    [
        pytest.param(GOOD, "finished", id="a stream with its end"),
        pytest.param(Answer("batch", 429, retry_after=True), "refused", id="too many requests"),
        pytest.param(Answer("batch", 408), "refused", id="timed out in a queue"),
        pytest.param(Answer("batch", 200), "cut", id="an empty 200"),
        pytest.param(Answer("batch", 200, 0.1, 1.0, 9), "cut", id="a stream without an end"),
        pytest.param(Answer("batch", 200, 0.1, closed=True), "unfinished", id="still running"),
        pytest.param(Answer("batch", 500), "failed", id="a server error"),
        pytest.param(Answer("batch", error="ClientOSError"), "failed", id="a broken connection"),
    ],
)
def test_every_answer_is_counted_in_exactly_one_column(answer: Answer, column: str) -> None:
    found = row("weir", 2.0, 0, 10.0, [answer])
    columns = ("finished", "refused", "cut", "unfinished", "failed")
    assert {name: getattr(found, name) for name in columns} == {
        name: int(name == column) for name in columns
    }


def test_goodput_counts_unbroken_answers_whose_first_token_was_in_time() -> None:
    late = Answer("interactive", 200, 1.1, 2.0, 26, complete=True)
    slow = Answer("interactive", 200, 0.2, 9.2, 26, complete=True)
    broken = Answer("interactive", 200, 0.2, 1.0, 9)
    found = row("weir", 2.0, 0, 10.0, [GOOD, late, slow, broken])
    assert (found.goodput, found.tpot_goodput) == (0.2, 0.1)
    assert found.met == (0.5, 1.0, 1.0)


def test_a_stream_that_outlives_the_run_counts_by_what_it_did_so_far() -> None:
    fast = Answer("interactive", 200, 0.2, 0.6, 21, closed=True)
    slow = Answer("interactive", 200, 0.2, 2.2, 21, closed=True)
    waiting = Answer("interactive", 200, closed=True)
    found = row("weir", 2.0, 0, 10.0, [fast, slow, waiting])
    assert (found.goodput, found.tpot_goodput) == (0.2, 0.1)
    assert (found.unfinished, found.streaming) == (3, 2)


def test_a_refusal_without_a_retry_after_is_a_silent_one() -> None:
    answers = [Answer("batch", 429, retry_after=True), Answer("batch", 408)]
    found = row("smg", 2.0, 0, 10.0, answers)
    assert (found.refused, found.silent) == (2, 1)


def test_ratios_are_to_the_best_target_that_is_not_weir() -> None:
    def runs(target: str, met: int) -> list[Row]:
        return [row(target, 2.0, seed, 1.0, [GOOD] * met) for seed in range(3)]

    lines = table([*runs("weir", 6), *runs("smg", 4), *runs("bare", 2)])
    assert [line[1:4] for line in lines] == [
        ("weir", "6.0 (6.0 to 6.0)", "1.50"),
        ("smg", "4.0 (4.0 to 4.0)", "1.00"),
        ("bare", "2.0 (2.0 to 2.0)", "0.50"),
    ]


def test_a_body_holds_its_prompt_and_only_the_engine_learns_the_answers_length() -> None:
    body = body_of(Ask(0.0, "standard", prompt_tokens=900, output_tokens=77))
    wanted = parse("chat", body)
    assert wanted.prompt_tokens == pytest.approx(900, rel=0.01)
    assert (wanted.output_tokens, wanted.priority) == (77, 1)
    assert json.loads(body)["max_tokens"] > 1000


def test_equal_loads_and_seeds_are_equal_requests() -> None:
    load = Load(2.0, 3.0, 1.0)
    assert requests(load, 1, 15.0) == requests(load, 1, 15.0)
    assert requests(load, 1, 15.0) != requests(load, 2, 15.0)
