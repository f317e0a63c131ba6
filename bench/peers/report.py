"""What the answers are worth: per target and load, and as ratios to the best peer.

An answer meets its class's target when its first token came in time (1, 5 and 60 seconds) and its
stream did not break; goodput is those per second of arrivals. One that still streams when the run
ends counts by what it did so far, so that a slow engine is not blamed for a short run. The TPOT
target (50, 100, 500 ms) is counted on top of it, apart, because a stock engine's step of 2048
tokens misses 50 ms whatever stands before it. Every request is counted in exactly one column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from bench.peers.load import Answer
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy

CLASSES: Final = {policy.name: policy for policy in BUILT_IN_CLASSES}


@dataclass(frozen=True, slots=True)
class Row:
    """One target under one load and seed.

    Attributes:
        met: Part of each class's requests that met the TTFT target, in the order of `CLASSES`.
        ttft_p99_s: Of the interactive requests that were answered.
        tpot_goodput: Goodput by both targets.
        refused: Answered with an honest status before the first byte; `silent` of them without
            a Retry-After.
        cut: Streams that began with 200 and did not end with `[DONE]`.
        unfinished: Still open when the run ended; `streaming` of them had begun.
        failed: Broken connections and everything else; `failures` says which.
    """

    target: str
    load: float
    seed: int
    requests: int
    goodput: float
    tpot_goodput: float
    met: tuple[float, ...]
    ttft_p99_s: float | None
    finished: int
    refused: int
    silent: int
    cut: int
    unfinished: int
    streaming: int
    failed: int
    failures: dict[str, int]


def row(target: str, load: float, seed: int, window_s: float, answers: Sequence[Answer]) -> Row:
    """Return what one run came to."""
    kinds = [kind_of(answer) for answer in answers]
    met = [met_ttft(answer) for answer in answers]
    both = sum(ok and met_tpot(answer) for ok, answer in zip(met, answers, strict=True))
    first = sorted(
        answer.first_s
        for answer in answers
        if answer.class_name == "interactive" and answer.first_s is not None
    )
    silent = sum(
        kind == "refused" and not answer.retry_after
        for kind, answer in zip(kinds, answers, strict=True)
    )
    return Row(
        target=target,
        load=load,
        seed=seed,
        requests=len(answers),
        goodput=sum(met) / window_s,
        tpot_goodput=both / window_s,
        met=tuple(
            _part(ok for ok, answer in zip(met, answers, strict=True) if answer.class_name == name)
            for name in CLASSES
        ),
        ttft_p99_s=first[min(len(first) - 1, int(0.99 * len(first)))] if first else None,
        finished=kinds.count("finished"),
        refused=kinds.count("refused"),
        silent=silent,
        cut=kinds.count("cut"),
        unfinished=kinds.count("unfinished"),
        streaming=sum(answer.closed and answer.tokens > 0 for answer in answers),
        failed=kinds.count("failed"),
        failures=dict(
            Counter(
                answer.error or f"status {answer.status}"
                for kind, answer in zip(kinds, answers, strict=True)
                if kind == "failed"
            )
        ),
    )


COLUMNS: Final = (
    "load", "target", "goodput/s", "x best peer", "and TPOT", "on TTFT target: interactive",
    "standard", "batch", "TTFT p99 s", "finished", "refused (silent)", "cut",
    "unfinished (streaming)", "failed",
)  # fmt: skip


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return one line per load and target: the median over seeds, with least and most."""
    lines = []
    for load in sorted({each.load for each in rows}):
        here = [each for each in rows if each.load == load]
        targets = list(dict.fromkeys(each.target for each in here))
        goodput = {
            name: median(each.goodput for each in here if each.target == name) for name in targets
        }
        peers = [goodput[name] for name in targets if not name.startswith("weir")]
        best = max(peers, default=0.0)
        for name in targets:
            runs = [each for each in here if each.target == name]
            ratio = f"{goodput[name] / best:.2f}" if best else "-"
            spread = _spread([each.goodput for each in runs], 1)
            lines.append((f"{load:g}x", name, spread, ratio, *_rest(runs)))
    return lines


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for a document."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *table(rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [asdict(each) for each in rows]


def _rest(runs: Sequence[Row]) -> tuple[str, ...]:
    p99 = [each.ttft_p99_s for each in runs if each.ttft_p99_s is not None]
    refused = sum(each.refused for each in runs)
    silent = sum(each.silent for each in runs)
    return (
        _spread([each.tpot_goodput for each in runs], 1),
        *(f"{100 * median(each.met[index] for each in runs):.0f} %" for index in range(3)),
        _spread(p99, 2) if p99 else "-",
        str(sum(each.finished for each in runs)),
        f"{refused} ({silent})",
        str(sum(each.cut for each in runs)),
        f"{sum(each.unfinished for each in runs)} ({sum(each.streaming for each in runs)})",
        str(sum(each.failed for each in runs)),
    )


def _spread(values: Sequence[float], digits: int) -> str:
    middle = f"{median(values):.{digits}f}"
    if len(values) < 2:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def kind_of(answer: Answer) -> str:
    """Return the one column that an answer is counted in."""
    if answer.complete:
        return "finished"
    if answer.closed:
        return "unfinished"
    if answer.status == 200:
        return "cut"
    if answer.status in (408, 429, 503):
        return "refused"
    return "failed"


def met_ttft(answer: Answer) -> bool:
    """Return whether its first token came in time, and its stream did not break."""
    target_s = _policy(answer).ttft_target_s
    if answer.first_s is None or not (answer.complete or answer.closed):
        return False
    return target_s is None or answer.first_s <= target_s


def met_tpot(answer: Answer) -> bool:
    """Return whether its tokens came in time, so far as they came."""
    target_s = _policy(answer).tpot_target_s
    if target_s is None or answer.tokens < 2 or answer.first_s is None:
        return True
    return (answer.last_s - answer.first_s) / (answer.tokens - 1) <= target_s


def _policy(answer: Answer) -> ClassPolicy:
    return CLASSES[answer.class_name]


def _part(flags: Iterable[bool]) -> float:
    counted = list(flags)
    return sum(counted) / len(counted) if counted else 1.0
