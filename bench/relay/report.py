"""From outcomes to rows, from rows to tables, and from outcomes to the lines of the raw runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec

from bench.relay.load import Outcome
from bench.relay.plan import Cell
from bench.relay.processes import Memory
from bench.relay.stats import Spread, best, ratio

_US: Final = 1e6
_MS: Final = 1e3
_MIB: Final = 1 << 20
MISSING: Final = "-"

COLUMNS: Final = (
    "load",
    "relay",
    "CPU us",
    "x best router",
    "a second of one core",
    "added p50 ms",
    "added p99 ms",
    "added p50 ms, chunk",
    "failures",
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One outcome, with what was measured."""

    cell: Cell
    target: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Row:
    """One target under one load, over all repetitions.

    Attributes:
        cpu_us: CPU of the relay per request, or per chunk of a stream; None for direct.
        cpu_ratio: That over the best router's.
        added_p50_ms: Request in plus first token out, over a direct connection's. A saturated
            relay has no latencies: they would be the length of its queue.
        added_p99_ms: The same at the 99th percentile.
        chunk_added_p50_ms: One later chunk, over a direct connection's; streams only.
        failures: What went wrong, and how often.
    """

    cell: Cell
    target: str
    cpu_us: Spread | None
    cpu_ratio: float | None
    added_p50_ms: Spread | None
    added_p99_ms: Spread | None
    chunk_added_p50_ms: Spread | None
    failures: dict[str, int]

    @property
    def of_core(self) -> float | None:
        """Requests or chunks that a second of one core is enough for."""
        return None if self.cpu_us is None else _US / self.cpu_us.median

    @property
    def failed(self) -> str:
        """What went wrong, in words."""
        return ", ".join(f"{n}x {what}" for what, n in sorted(self.failures.items())) or "0"


def rows(measurements: Sequence[Measurement], *, direct: str, routers: Sequence[str]) -> list[Row]:
    """Return a row per cell and target: direct first, the routers last."""
    cells = sorted(
        {each.cell for each in measurements},
        key=lambda cell: (not cell.paced, cell.kind, cell.body_bytes, cell.concurrency),
    )
    targets = sorted(
        {each.target for each in measurements},
        key=lambda name: (name != direct, name in routers, name),
    )
    found: list[Row] = []
    for cell in cells:
        of_cell = [each for each in measurements if each.cell == cell]
        by_target = {t: [m.outcome for m in of_cell if m.target == t] for t in targets}
        cpu = {t: Spread.of(_cpu_us(cell, o) for o in by_target[t]) for t in targets}
        reference = best(_median(cpu.get(name)) for name in routers)
        base = by_target.get(direct, [])
        found += [
            _row(cell, t, by_target[t], base if t != direct else None, (cpu[t], reference))
            for t in targets
        ]
    return found


def _row(
    cell: Cell,
    target: str,
    outcomes: Sequence[Outcome],
    direct: Sequence[Outcome] | None,
    cpu: tuple[Spread | None, float | None],
) -> Row:
    def added(of: Callable[[Outcome], float | None]) -> Spread | None:
        base = _median(Spread.of(of(each) for each in direct)) if direct is not None else 0.0
        if base is None or not cell.paced:
            return None
        return Spread.of(
            None if (value := of(each)) is None else (value - base) * _MS for each in outcomes
        )

    own = cpu[0] if direct is not None else None
    failures: Counter[str] = Counter()
    for each in outcomes:
        failures.update(each.failures)
    return Row(
        cell=cell,
        target=target,
        cpu_us=own,
        cpu_ratio=ratio(_median(own), cpu[1]),
        added_p50_ms=added(lambda each: each.answer.p50_s),
        added_p99_ms=added(lambda each: each.answer.p99_s),
        chunk_added_p50_ms=added(lambda each: each.event.p50_s),
        failures=dict(failures),
    )


def _units(cell: Cell, outcome: Outcome) -> int:
    return outcome.requests if cell.kind == "plain" else outcome.events


def _cpu_us(cell: Cell, outcome: Outcome) -> float | None:
    units = _units(cell, outcome)
    return outcome.cpu_s / units * _US if units else None


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


def table(found: Iterable[Row]) -> list[list[str]]:
    """Return the cells of the table under `COLUMNS`; direct shows its own latency."""
    return [
        [
            row.cell.name,
            row.target,
            show(row.cpu_us, _digits(row.cell)),
            MISSING if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}",
            MISSING if row.of_core is None else f"{row.of_core:,.0f}",
            show(row.added_p50_ms, 2),
            show(row.added_p99_ms, 2),
            show(row.chunk_added_p50_ms, 2),
            row.failed,
        ]
        for row in found
    ]


def summary(
    found: Sequence[Row], used: Mapping[str, Memory]
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the header and the lines of a table with a line per relay and a column per load."""
    cells = list(dict.fromkeys(row.cell for row in found))
    by_place = {(row.target, row.cell): row for row in found}
    header = ("CPU", *(cell.title for cell in cells), "PSS MiB")
    lines = [
        [
            target,
            *(_in_short(by_place.get((target, cell))) for cell in cells),
            f"{memory.pss / _MIB:.0f}",
        ]
        for target, memory in used.items()
    ]
    return header, lines


def _in_short(row: Row | None) -> str:
    if row is None or row.cpu_us is None:
        return row.failed if row is not None and row.failures else MISSING
    text = f"{row.cpu_us.median:.{_digits(row.cell)}f} us"
    if row.cpu_ratio is not None:
        text += f", {row.cpu_ratio:.2f}x"
    if not row.cell.paced:
        text += f", {row.of_core:,.0f}/s"
    return f"{text}, failed: {row.failed}" if row.failures else text


def compared(found: Iterable[Row], target: str, other: str) -> dict[str, float]:
    """Return CPU of `target` over that of `other`, by load, where both were measured."""
    cpu = {(row.target, row.cell): _median(row.cpu_us) for row in found}
    ratios = {
        cell.name: ratio(value, cpu.get((other, cell)))
        for (name, cell), value in cpu.items()
        if name == target
    }
    return {name: value for name, value in ratios.items() if value is not None}


def _digits(cell: Cell) -> int:
    return 0 if cell.kind == "plain" else 1


def show(spread: Spread | None, digits: int) -> str:
    """Return `median (low-high)`."""
    if spread is None:
        return MISSING
    middle, low, high = (f"{v:.{digits}f}" for v in (spread.median, spread.low, spread.high))
    return f"{middle} ({low} to {high})"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def raw(
    about: Mapping[str, Any], measurements: Iterable[Measurement], used: Mapping[str, Memory]
) -> str:
    """Return JSON lines: what was run, every measurement in its order, memory by relay."""
    lines: list[Mapping[str, Any]] = [about]
    lines += [
        {"load": each.cell.name, "relay": each.target, **msgspec.structs.asdict(each.outcome)}
        for each in measurements
    ]
    lines += [{"relay": name, **asdict(memory)} for name, memory in used.items()]
    return "".join(msgspec.json.encode(line).decode() + "\n" for line in lines)
