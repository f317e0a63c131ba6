"""Tables of the answers, per target and load, with ratios to the best of the others.

Requests, goodput and ends are counted as in bench/peers. A time to first token is from sending to
the first event with a token; a request without one when the run ended counts with the time that it
had waited by then, which is the least that it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from typing import Final

import msgspec

from bench.fleet.chats import Load
from bench.fleet.load import Answers, Sent
from bench.peers.report import CLASSES, kind_of, met_tpot, met_ttft
from bench.relay.stats import percentile

WEIR: Final = "weir"
STOCK: Final = "weir, stock engines"
ALONE: Final = "weir alone"
GATEWAY: Final = "weir-gateway"
WEIRS: Final = (WEIR, STOCK, ALONE, GATEWAY)
LATER_GOAL: Final = 0.8
GOODPUT_GOAL: Final = 1.6


class Used(msgspec.Struct, frozen=True):
    """The resources that a run used, beside the answers.

    Attributes:
        cpu_s: Before the engines, from the first request to the last.
        idle_cpu_s: The same without requests, in as long a time.
        looked_up_tokens: Prompt tokens for which engines looked in their caches.
        cached_tokens: Those that they found.
        predicted_tokens: Those that Weir's sidecars believed to be there.
        forwards: Forwards between Weir's sidecars.
        busy_s: Time that each engine computed.
        behind_s: How late the engine models were at worst.
    """

    cpu_s: float
    idle_cpu_s: float
    looked_up_tokens: float
    cached_tokens: float
    predicted_tokens: float
    forwards: float
    busy_s: list[float]
    behind_s: float


class Row(msgspec.Struct, frozen=True):
    """One target under one load, at one set of speeds, with one seed.

    Attributes:
        chunks: Tokens that came, each in an event of its own.
        goodput: Requests a second whose first token came in time, with no broken stream.
        tpot_goodput: Of those, the ones whose tokens came in time, too.
        ttft_p99_s: Of each class, None where it has no request.
        first_s: Mean time to first token of first turns; None without any.
        later_s: Of later turns.
        refused: Answered with an honest status before the first byte; `silent` of them without
            a Retry-After.
        cut: Streams that began with 200 and did not end with `[DONE]`.
        unfinished: Still open when the run ended.
    """

    target: str
    load: str
    speeds: str
    seed: int
    requests: int
    chunks: int
    goodput: float
    tpot_goodput: float
    ttft_p99_s: dict[str, float | None]
    first_s: float | None
    later_s: float | None
    refused: int
    silent: int
    cut: int
    unfinished: int
    failed: int
    late_s: float
    used: Used

    @property
    def hit_ratio(self) -> float:
        """The part of prompt tokens that the engines had cached."""
        return self.used.cached_tokens / max(1.0, self.used.looked_up_tokens)

    @property
    def cpu_s(self) -> float:
        """CPU time for the requests."""
        return self.used.cpu_s - self.used.idle_cpu_s


def row(target: str, load: Load, speeds: str, seed: int, answers: Answers, used: Used) -> Row:
    """Return what one run came to."""
    counted = [each for each in answers.sent if each.at_s >= load.warm_s]
    kinds = [kind_of(each.answer) for each in counted]
    in_time = [each for each in counted if met_ttft(each.answer)]
    span_s = max([load.window_s, *(each.at_s for each in counted)]) - load.warm_s
    return Row(
        target=target,
        load=load.name,
        speeds=speeds,
        seed=seed,
        requests=len(counted),
        chunks=sum(each.answer.tokens for each in answers.sent),
        goodput=len(in_time) / span_s,
        tpot_goodput=sum(met_tpot(each.answer) for each in in_time) / span_s,
        ttft_p99_s={
            name: _p99(_ttfts(each for each in counted if each.answer.class_name == name))
            for name in CLASSES
        },
        first_s=_mean(_ttfts(each for each in counted if not each.turn)),
        later_s=_mean(_ttfts(each for each in counted if each.turn)),
        refused=kinds.count("refused"),
        silent=sum(
            kind == "refused" and not each.answer.retry_after
            for kind, each in zip(kinds, counted, strict=True)
        ),
        cut=kinds.count("cut"),
        unfinished=kinds.count("unfinished"),
        failed=kinds.count("failed"),
        late_s=answers.late_s,
        used=used,
    )


def _ttfts(sent: Iterable[Sent]) -> list[float]:
    found = []
    for each in sent:
        answer = each.answer
        if answer.first_s is not None:
            found.append(answer.first_s)
        elif answer.closed:
            found.append(answer.last_s)
    return sorted(found)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _p99(values: Sequence[float]) -> float | None:
    return percentile(values, 0.99) if values else None


# ---- tables

CHATS: Final = (
    "speeds", "load", "target", "later turns: mean TTFT s", "x best other", "first turns",
    "TTFT p99 s", "hit rate", "goodput/s", "and TPOT", "refused", "cut", "unfinished",
    "forwards", "CPU ms",
)  # fmt: skip
MIX: Final = (
    "speeds", "load", "target", "goodput/s", "x best other", "and TPOT",
    *(f"TTFT p99 s: {name}" if not number else name for number, name in enumerate(CLASSES)),
    "refused (silent)", "cut", "unfinished", "failed", "forwards", "CPU ms",
)  # fmt: skip
COST: Final = ("target", "speeds", "CPU us a request of one chunk", "a further chunk", "forwards")


def chats(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return one line per load and target: the median over seeds, with least and most."""
    lines: list[tuple[str, ...]] = []
    for here in _groups(rows):
        best = _best(here, lambda each: each.later_s, min)
        for name, runs in _targets(here):
            later = [each.later_s for each in runs if each.later_s is not None]
            lines.append(
                (
                    here[0].speeds,
                    here[0].load,
                    name,
                    _spread(later, 3),
                    _ratio(later, best),
                    _spread([each.first_s for each in runs], 2),
                    _spread([each.ttft_p99_s["standard"] for each in runs], 2),
                    f"{100 * median(each.hit_ratio for each in runs):.0f} %",
                    _spread([each.goodput for each in runs], 1),
                    _spread([each.tpot_goodput for each in runs], 1),
                    str(sum(each.refused for each in runs)),
                    str(sum(each.cut + each.failed for each in runs)),
                    str(sum(each.unfinished for each in runs)),
                    *_spent(runs),
                )
            )
    return lines


def mix(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return one line per load and target: the median over seeds, with least and most."""
    lines = []
    for here in _groups(rows):
        best = _best(here, lambda each: each.goodput, max)
        for name, runs in _targets(here):
            goodput = [each.goodput for each in runs]
            silent = sum(each.silent for each in runs)
            lines.append(
                (
                    here[0].speeds,
                    here[0].load,
                    name,
                    _spread(goodput, 1),
                    _ratio(goodput, best),
                    _spread([each.tpot_goodput for each in runs], 1),
                    *(_spread([each.ttft_p99_s[one] for each in runs], 2) for one in CLASSES),
                    f"{sum(each.refused for each in runs)} ({silent})",
                    str(sum(each.cut for each in runs)),
                    str(sum(each.unfinished for each in runs)),
                    str(sum(each.failed for each in runs)),
                    *_spent(runs),
                )
            )
    return lines


def cost(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return what a request and a chunk cost before the engines, by two lengths of answers."""
    lines: list[tuple[str, ...]] = []
    for speeds in dict.fromkeys(each.speeds for each in rows):
        for name, runs in _targets([each for each in rows if each.speeds == speeds]):
            costs = [found for found in map(_cost, _pairs(runs)) if found is not None]
            if not costs:
                continue
            share = sum(each.used.forwards for each in runs) / sum(each.requests for each in runs)
            lines.append(
                (
                    name,
                    speeds,
                    _spread([request for request, _ in costs], 0),
                    _spread([chunk for _, chunk in costs], 1),
                    "100 %"
                    if name == GATEWAY
                    else f"{100 * share:.0f} %"
                    if name in WEIRS
                    else "-",
                )
            )
    return lines


def _pairs(runs: Sequence[Row]) -> list[list[Row]]:
    return [
        sorted((each for each in runs if each.seed == seed), key=lambda each: each.chunks)
        for seed in dict.fromkeys(each.seed for each in runs)
    ]


def _cost(pair: Sequence[Row]) -> tuple[float, float] | None:
    if len(pair) != 2:
        return None
    short, long = pair
    request = short.cpu_s / short.requests
    chunk = (long.cpu_s / long.requests - request) / (
        long.chunks / long.requests - short.chunks / short.requests
    )
    return 1e6 * request, 1e6 * chunk


def missed(rows: Sequence[Row]) -> list[str]:
    """Return which goals Weir misses, in words."""
    lines = []
    for here in _groups(rows):
        runs = [each for each in here if each.target == WEIR]
        where = f"{here[0].speeds}, {here[0].load}"
        later = [each.later_s for each in runs if each.later_s is not None]
        best = _best(here, lambda each: each.later_s, min)
        if later and best and median(later) > LATER_GOAL * best:
            lines.append(f"missed: {where}: later turns {_ratio(later, best)}x, not {LATER_GOAL}x")
        goodput = [each.goodput for each in runs]
        best = _best(here, lambda each: each.goodput, max)
        if here[0].load == "mix 2x" and runs and best and median(goodput) < GOODPUT_GOAL * best:
            lines.append(f"missed: {where}: goodput {_ratio(goodput, best)}x, not {GOODPUT_GOAL}x")
    return lines


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table for a document."""
    all_lines = [columns, ("---",) * len(columns), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in all_lines)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    keys = dict.fromkeys((each.speeds, each.load) for each in rows)
    return [[each for each in rows if (each.speeds, each.load) == key] for key in sorted(keys)]


def _targets(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = sorted({each.target for each in rows}, key=lambda name: (name not in WEIRS, name))
    return [(name, [each for each in rows if each.target == name]) for name in names]


def _best(
    rows: Sequence[Row],
    value: Callable[[Row], float | None],
    better: Callable[[list[float]], float],
) -> float | None:
    """Return the best median of those that are not Weir's."""
    medians = []
    for name, runs in _targets(rows):
        known = [found for found in map(value, runs) if found is not None]
        if name not in WEIRS and known:
            medians.append(median(known))
    return better(medians) if medians else None


def _ratio(values: Sequence[float], best: float | None) -> str:
    return f"{median(values) / best:.2f}" if values and best else "-"


def _spent(runs: Sequence[Row]) -> tuple[str, str]:
    forwards = sum(each.used.forwards for each in runs) / sum(each.requests for each in runs)
    cpu_ms = median(1e3 * each.used.cpu_s / max(1, each.requests) for each in runs)
    return (f"{100 * forwards:.0f} %" if runs[0].target in WEIRS else "-", f"{cpu_ms:.1f}")


def _spread(values: Iterable[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = f"{median(known):.{digits}f}"
    if len(known) < 2:
        return middle
    return f"{middle} ({min(known):.{digits}f} to {max(known):.{digits}f})"
