"""What a stage came to, class by class, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from bench.overload.load import MIX, Result
from bench.relay.stats import percentile


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class in one stage; `goodput` is answers on time per second of arrivals."""

    sent: int
    whole: int
    refused: int
    failed: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    on_time_ratio: float
    goodput: float


def report_of(results: Sequence[Result], class_name: str, duration_s: float) -> ClassReport:
    """Return what came of the requests of one class."""
    own = [r for r in results if r.class_name == class_name]
    ttfts = sorted(r.ttft_s for r in own if r.ttft_s is not None)
    whole = sum(r.whole for r in own)
    refused = sum(r.status in (429, 503) for r in own)
    on_time = sum(r.on_time for r in own)
    return ClassReport(
        sent=len(own),
        whole=whole,
        refused=refused,
        failed=len(own) - whole - refused,
        ttft_p50_s=percentile(ttfts, 0.5) if ttfts else None,
        ttft_p99_s=percentile(ttfts, 0.99) if ttfts else None,
        on_time_ratio=on_time / len(own) if own else 0.0,
        goodput=on_time / duration_s,
    )


def growth(results: Sequence[Result], duration_s: float) -> float | None:
    """Return the median TTFT of the last third of arrivals over that of the first third."""
    thirds: list[list[float]] = [[], [], []]
    for result in results:
        if result.ttft_s is not None:
            thirds[min(2, int(3 * result.sent_s / duration_s))].append(result.ttft_s)
    if not thirds[0] or not thirds[2]:
        return None
    return percentile(sorted(thirds[2]), 0.5) / percentile(sorted(thirds[0]), 0.5)


Stages = Sequence[tuple[str, list[Result], float]]
"""Name, what came of its requests, and for how many seconds they arrived."""
COLUMNS: Final = (
    "stage", "class", "sent", "whole", "refused", "failed", "TTFT p50", "TTFT p99", "on time",
    "goodput/s", "growth",
)  # fmt: skip


def table(stages: Stages) -> Table:
    """Return one table of all stages."""
    shown = Table(title="overload on real vLLM, by class")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column in ("stage", "class") else "right")
    for line in _lines(stages):
        shown.add_row(*line)
    return shown


def markdown(stages: Stages) -> str:
    """Return the table for a document."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *_lines(stages)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _lines(stages: Stages) -> Iterator[tuple[str, ...]]:
    for name, results, duration_s in stages:
        for shape in MIX:
            own = report_of(results, shape.name, duration_s)
            mine = [r for r in results if r.class_name == shape.name]
            yield (
                name,
                shape.name,
                *(str(n) for n in (own.sent, own.whole, own.refused, own.failed)),
                *(_seconds(s) for s in (own.ttft_p50_s, own.ttft_p99_s)),
                f"{own.on_time_ratio:.1%}",
                f"{own.goodput:.2f}",
                _times(growth(mine, duration_s)),
            )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"
