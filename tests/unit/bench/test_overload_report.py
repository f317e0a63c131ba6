"""The table of an overload run: every request accounted for, by class."""

from __future__ import annotations

from bench.overload.__main__ import missed
from bench.overload.load import Result
from bench.overload.report import markdown


def answered(name: str, sent_s: float, ttft_s: float) -> Result:
    end_s = sent_s + ttft_s + 0.1
    return Result(name, sent_s, 1.0, 200, sent_s + ttft_s, end_s, whole=True)


CALM = [answered("interactive", 1.0, 0.1)]


def test_what_was_refused_is_neither_whole_nor_failed() -> None:
    results = [
        answered("interactive", 1.0, 0.1),
        Result("interactive", 2.0, 1.0, 429, retry_after="1"),
        Result("interactive", 3.0, 1.0),
    ]
    (line,) = [
        each for each in markdown([("weir", results, 10.0)]).splitlines() if "interactive" in each
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:6] == ["3", "1", "1", "1"]
    assert cells[8] == "33.3%"


def test_a_promise_that_does_not_hold_is_named() -> None:
    late = [answered("interactive", 1.0, 0.3), Result("batch", 1.0, 60.0)]
    growing = [answered("interactive", 0.1, 1.0), answered("interactive", 9.0, 9.0)]
    stages = [("0.2x", CALM, 10.0), ("2x", late, 10.0), ("vLLM fcfs, 2x", growing, 10.0)]
    first, batch, failed = missed(stages)
    assert "over 2.5x" in first
    assert "batch: 0 of 1" in batch
    assert "1 requests ended in neither" in failed


def test_a_stock_priority_engine_may_hold_its_interactive_latency() -> None:
    good = [answered("interactive", 1.0, 0.1), answered("batch", 1.0, 20.0)]
    stages = [("0.2x", CALM, 10.0), ("2x", good, 10.0), ("vLLM priority, 2x", CALM, 10.0)]
    assert missed(stages) == []
