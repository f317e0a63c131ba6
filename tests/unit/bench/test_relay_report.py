"""What bench/relay computes from its samples, in literal numbers."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence

import msgspec
import pytest

from bench.relay import report, wire
from bench.relay.load import Latency, Outcome
from bench.relay.plan import CELLS, FURTHER, PUBLISHED, Cell, Plan
from bench.relay.processes import Memory, cpu_seconds, tree
from bench.relay.report import Measurement
from bench.relay.stats import Spread, best, percentile, ratio

CELL = Cell("plain", 400, 64)
SATURATED = Cell("stream", 400, 64, paced=False)
ROUTERS = ("router-a", "router-b")


@pytest.mark.parametrize(
    ("samples", "fraction", "want"),
    [
        pytest.param([7.0], 0.5, 7.0, id="one sample is every percentile"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 0.5, 2.0, id="the median of an even number is a sample"),
        pytest.param([1.0, 2.0, 3.0], 0.99, 3.0, id="p99 of few samples is the largest"),
        pytest.param([float(n) for n in range(1, 201)], 0.99, 198.0, id="p99 of 200"),
        pytest.param([1.0, 2.0], 0.0, 1.0, id="p0 is the smallest"),
    ],
)
def test_percentile_is_by_nearest_rank(
    samples: Sequence[float], fraction: float, want: float
) -> None:
    assert percentile(samples, fraction) == want


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_a_spread_ignores_what_is_missing() -> None:
    assert Spread.of([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([None]) is None


@pytest.mark.parametrize(
    ("value", "reference", "want"),
    [(1.0, 2.0, 0.5), (None, 2.0, None), (1.0, None, None), (1.0, 0.0, None)],
)
def test_a_ratio_needs_both_numbers(
    value: float | None, reference: float | None, want: float | None
) -> None:
    assert ratio(value, reference) == want


def test_the_best_is_the_smallest_that_exists() -> None:
    assert best([None, 3.0, 2.0]) == 2.0
    assert best([None]) is None


def outcome(*, cpu_s: float, requests: int, p50_s: float | None, failures: int = 0) -> Outcome:
    return Outcome(
        wall_s=1.0,
        cpu_s=cpu_s,
        load_cpu_s=0.1,
        requests=requests,
        events=100 * requests,
        reads=100 * requests,
        answer=Latency(requests, p50_s, p50_s),
        event=Latency(0, None, None),
        failures={"status 503": failures} if failures else {},
    )


def measured(target: str, *outcomes: Outcome, cell: Cell = CELL) -> list[Measurement]:
    return [Measurement(cell, target, each) for each in outcomes]


def test_rows_compare_with_direct_and_with_the_best_router() -> None:
    found = report.rows(
        [
            *measured("weir", outcome(cpu_s=0.1, requests=1000, p50_s=0.003)),
            *measured("direct", outcome(cpu_s=0.0, requests=1000, p50_s=0.001)),
            *measured("router-a", outcome(cpu_s=0.4, requests=1000, p50_s=0.002)),
            *measured("router-b", outcome(cpu_s=0.2, requests=1000, p50_s=0.002, failures=3)),
        ],
        direct="direct",
        routers=ROUTERS,
    )
    by_target = {row.target: row for row in found}
    weir = by_target["weir"]
    assert found[0].target == "direct"
    assert by_target["direct"].cpu_us is None
    assert weir.cpu_us is not None
    assert weir.cpu_us.median == pytest.approx(100.0)
    assert weir.cpu_ratio == pytest.approx(0.5)
    assert weir.of_core == pytest.approx(10_000)
    assert weir.added_p50_ms is not None
    assert weir.added_p50_ms.median == pytest.approx(2.0)
    assert by_target["router-b"].failures == {"status 503": 3}


def test_a_relay_that_let_nothing_through_has_no_numbers_but_its_failures() -> None:
    broken = outcome(cpu_s=0.1, requests=0, p50_s=None, failures=9)
    row = report.rows(measured("router-a", broken), direct="direct", routers=ROUTERS)[0]
    assert (row.cpu_us, row.added_p50_ms) == (None, None)
    line = report.table([row])[0]
    assert line == ["plain-64", "router-a", *["-"] * 6, "9x status 503"]


def test_a_saturated_relay_has_no_latencies_because_they_are_its_queue() -> None:
    found = report.rows(
        [
            *measured("direct", outcome(cpu_s=0.0, requests=9, p50_s=0.01), cell=SATURATED),
            *measured("weir", outcome(cpu_s=0.1, requests=9, p50_s=0.02), cell=SATURATED),
        ],
        direct="direct",
        routers=ROUTERS,
    )
    assert [row.added_p50_ms for row in found] == [None, None]


def test_the_summary_has_a_line_per_relay_and_a_column_per_load() -> None:
    found = report.rows(
        [
            *measured("direct", outcome(cpu_s=0.0, requests=1000, p50_s=0.001)),
            *measured("weir", outcome(cpu_s=0.1, requests=1000, p50_s=0.003)),
            *measured("router-a", outcome(cpu_s=0.2, requests=1000, p50_s=0.002, failures=3)),
            *measured("weir", outcome(cpu_s=0.1, requests=100, p50_s=0.003), cell=SATURATED),
            *measured("router-a", outcome(cpu_s=0.1, requests=0, p50_s=None), cell=SATURATED),
        ],
        direct="direct",
        routers=ROUTERS,
    )
    used = {"weir": Memory(60 << 20, 40 << 20), "router-a": Memory(90 << 20, 80 << 20)}
    header, lines = report.summary(found, used)
    assert header == ("CPU", "plain request, 64 paced", "chunk, 64 saturated", "PSS MiB")
    assert lines == [
        ["weir", "100 us, 0.50x", "10.0 us, 100,000/s", "40"],
        ["router-a", "200 us, 1.00x, failed: 3x status 503", "-", "80"],
    ]


def test_two_builds_are_compared_where_both_were_measured() -> None:
    found = report.rows(
        [
            *measured("weir", outcome(cpu_s=0.1, requests=1000, p50_s=0.003)),
            *measured("before", outcome(cpu_s=0.2, requests=1000, p50_s=0.003)),
            *measured("weir", outcome(cpu_s=0.1, requests=100, p50_s=0.003), cell=SATURATED),
        ],
        direct="direct",
        routers=ROUTERS,
    )
    assert report.compared(found, "weir", "before") == pytest.approx({"plain-64": 0.5})
    assert report.compared(found, "weir", "another") == {}


def test_the_raw_runs_keep_every_measurement() -> None:
    runs = measured(
        "weir",
        outcome(cpu_s=0.1, requests=1000, p50_s=0.003),
        outcome(cpu_s=0.3, requests=1000, p50_s=None, failures=2),
    )
    text = report.raw({"machine": "m"}, runs, {"weir": Memory(2, 1)})
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0] == {"machine": "m"}
    assert [(line["load"], line["relay"], line["cpu_s"]) for line in lines[1:3]] == [
        ("plain-64", "weir", 0.1),
        ("plain-64", "weir", 0.3),
    ]
    assert lines[2]["failures"] == {"status 503": 2}
    assert lines[3:] == [{"relay": "weir", "peak_rss": 2, "pss": 1}]


def test_markdown_is_a_table() -> None:
    assert report.markdown(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_every_repetition_has_every_pair_once_and_targets_of_a_cell_together() -> None:
    plan = Plan(PUBLISHED, repetitions=2, window_s=1.0)
    order = plan.schedule(["a", "b", "c"], random.Random(0))
    assert len(order) == 2 * 3 * len(plan.cells)
    half = order[: len(order) // 2]
    assert len(set(half)) == len(half)
    for start in range(0, len(order), 3):
        assert len({cell for cell, _ in order[start : start + 3]}) == 1


def test_three_repetitions_of_all_relays_take_less_than_six_minutes() -> None:
    assert Plan(PUBLISHED, repetitions=3, window_s=1.5).bound_s(targets=9) < 360


def test_every_load_has_a_name_of_its_own_and_only_paced_ones_wait_for_the_engine() -> None:
    cells = PUBLISHED + FURTHER
    assert [CELLS[cell.name] for cell in cells] == list(cells)
    assert len(CELLS) == len(cells)
    assert all(cell.paced == (cell.engine_time_us > 0) for cell in cells)


def test_a_request_has_the_size_it_was_asked_for() -> None:
    body = wire.request_body(size=40_000, stream=True, tokens=9, engine_time_us=250)
    asked = msgspec.json.decode(body, type=wire.Ask)
    assert len(body) == 40_000
    assert (asked.stream, asked.tokens, asked.seed) == (True, 9, 250)
    with pytest.raises(ValueError, match="cannot be 10 bytes"):
        wire.request_body(size=10, stream=False, tokens=1, engine_time_us=0)


def test_the_newer_name_of_max_tokens_counts_too() -> None:
    assert msgspec.json.decode(b'{"max_completion_tokens": 7}', type=wire.Ask).tokens == 7
    assert msgspec.json.decode(b"{}", type=wire.Ask).tokens == 1


def test_stamps_survive_the_wire() -> None:
    first = wire.role_event() + wire.token_event(wire.stamp(5, 7))
    assert wire.read_stamps(first) == (5, 7)
    assert wire.read_stamps(wire.whole_answer(wire.stamp(1, 2), 100)) == (1, 2)
    assert wire.read_stamps(wire.role_event()) == ()
    assert wire.read_stamps(wire.token_event(wire.stamp(5))[:-90]) == ()


def test_the_cpu_clock_of_this_process_moves_and_its_tree_has_it() -> None:
    before = cpu_seconds([os.getpid()])
    sum(range(200_000))
    assert cpu_seconds([os.getpid()]) > before > 0
    assert os.getpid() in tree(os.getppid())
    assert cpu_seconds([2**22 + 1]) == 0  # above the largest pid there can be
