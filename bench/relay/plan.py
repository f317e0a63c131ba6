"""What is measured: the loads, how long each is, and in which order they come.

A paced load leaves the relay time between requests, so that what each costs is decided by cold
caches and wake-ups. A saturated one never lets it wait, so that the work decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

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
        paced: The engine takes its time; else it answers at once, and streams go as fast as
            they are read.
    """

    kind: Kind
    body_bytes: int
    concurrency: int
    paced: bool = True

    @property
    def name(self) -> str:
        """A short name, such as `stream-64` or `plain-32-saturated`."""
        size = "" if self.body_bytes < 1000 else f"-{self.body_bytes // 1000}kB"
        return f"{self.kind}-{self.concurrency}{size}" + ("" if self.paced else "-saturated")

    @property
    def title(self) -> str:
        """The head of its column in the summary."""
        unit = "plain request" if self.kind == "plain" else "chunk"
        size = "" if self.body_bytes < 1000 else f" of {self.body_bytes // 1000} kB"
        return f"{unit}{size}, {self.concurrency} " + ("paced" if self.paced else "saturated")

    @property
    def engine_time_us(self) -> int:
        """The engine's time per plain answer, or between two tokens of a stream.

        Where it keeps a pace this grows with the concurrency, so that the rate stays one that
        every relay and two cores can hold (at most 500 requests or 6,400 chunks a second).
        """
        if not self.paced:
            return 0
        if self.kind == "plain":
            return max(2_000, self.concurrency * 2_000)
        return max(2_000, self.concurrency * 1_000_000 // 6_400)

    @property
    def warmup_s(self) -> float:
        """Long enough to connect and, for plain requests, to answer each connection once.

        Connections come slower than the sidecar lets prompts into an engine of such steps.
        """
        return 0.5 + self.concurrency / 320


PUBLISHED: Final = (
    Cell("plain", 400, 64),
    Cell("stream", 400, 64),
    Cell("stream", 400, 512),
    Cell("plain", 400, 32, paced=False),
    Cell("stream", 400, 64, paced=False),
)
"""The columns of the summary."""

FURTHER: Final = (
    Cell("plain", 400, 1),
    Cell("plain", 400, 512),
    Cell("plain", 40_000, 1),
    Cell("stream", 400, 1),
    Cell("stream", 40_000, 64),
)
"""Loads to be asked for by name. 40 kB are about 10,000 tokens: many such prompts at once would
wait in the sidecar's queue, as they should, and say nothing of the relay."""

CELLS: Final = {cell.name: cell for cell in (*PUBLISHED, *FURTHER)}


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
