"""What is measured: the cells, how long each is, and in which order they come."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar

T = TypeVar("T")
Kind = Literal["plain", "stream"]

TOKENS_PER_STREAM = 100


@dataclass(frozen=True, slots=True)
class Cell:
    """One load.

    Attributes:
        kind: Plain requests, or streams.
        body_bytes: Size of the request body.
        concurrency: Requests in flight.
    """

    kind: Kind
    body_bytes: int
    concurrency: int

    @property
    def name(self) -> str:
        """A short name, such as `stream 400 B x64`."""
        size = (
            f"{self.body_bytes // 1000} kB" if self.body_bytes >= 1000 else f"{self.body_bytes} B"
        )
        return f"{self.kind} {size} x{self.concurrency}"

    @property
    def engine_time_us(self) -> int:
        """The engine's time per plain answer, or between two tokens of a stream.

        It grows with the concurrency, so that the rate stays one that every relay and two
        cores can hold (at most 500 requests or 6,400 chunks a second): a saturated relay
        merges chunks and would look cheaper than it is, and its latency would be its queue.
        """
        if self.kind == "plain":
            return max(2_000, self.concurrency * 2_000)
        return max(2_000, self.concurrency * 1_000_000 // 6_400)

    @property
    def warmup_s(self) -> float:
        """Long enough to connect and, for plain requests, to answer each connection once."""
        return 0.5 + self.concurrency / 400


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the benchmark."""

    cells: tuple[Cell, ...]
    repetitions: int
    window_s: float

    def schedule(self, targets: Sequence[T], rng: random.Random) -> list[tuple[Cell, T]]:
        """Return every measurement: per repetition all cells, shuffled with their targets.

        The targets of one cell follow each other in random order, so that what they are
        compared on happened within seconds.
        """
        order: list[tuple[Cell, T]] = []
        for _ in range(self.repetitions):
            for cell in rng.sample(self.cells, len(self.cells)):
                order.extend((cell, target) for target in rng.sample(targets, len(targets)))
        return order

    def bound_s(self, targets: int) -> float:
        """Return about how long the measurements take together."""
        once = sum(cell.warmup_s + self.window_s + 0.1 for cell in self.cells)
        return once * targets * self.repetitions


def plan_of(kinds: Sequence[Kind], *, repetitions: int, window_s: float, quick: bool) -> Plan:
    """Return the plan for the kinds asked for.

    40 kB streams run at one level only: a body's size costs per request, not per chunk.
    """
    cells: list[Cell] = []
    if "plain" in kinds:
        cells += [Cell("plain", size, n) for size, n in product((400, 40_000), (1, 64, 512))]
    if "stream" in kinds:
        cells += [Cell("stream", 400, n) for n in (1, 64, 512)] + [Cell("stream", 40_000, 64)]
    if quick:
        cells = [cell for cell in cells if cell.body_bytes == 400 and cell.concurrency != 1]
    return Plan(tuple(cells), repetitions, window_s)
