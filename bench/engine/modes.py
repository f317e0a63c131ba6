"""What each mode promises: latency its ITL, throughput its tokens, custom its shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.engine.effects import BATCH, INTERACTIVE, quantile
from bench.engine.engines import Engine
from weir_core.step.mode import Mode

STANDARD: Final = 0
SHARES: Final = {INTERACTIVE: 0.5, STANDARD: 0.3, BATCH: 0.2}
MODES: Final = {
    "latency": Mode(),
    "throughput": Mode("throughput"),
    "custom": Mode("custom", shares=SHARES),
}
BACKLOG: Final = 8
"""Prompts of 2,000 tokens in each class."""


@dataclass(frozen=True)
class ModeResult:
    """One mode's run.

    Attributes:
        p99_itl_s: Of the four streams, while prompts were computed.
        tokens_per_s: Prompt and output tokens of all.
        shares: Rank to its part of the prompt tokens, while every class had some left.
    """

    p99_itl_s: float
    tokens_per_s: float
    shares: dict[int, float]


def run_mode(engine: Engine, name: str) -> ModeResult:
    """Send a backlog of every class into four streams."""
    engine.set_mode(MODES[name])
    engine.clear()
    begin = engine.clock()
    streams = [engine.add(f"stream{n}", 100, 250, INTERACTIVE) for n in range(4)]
    engine.run_steps(10)
    arrival, first = engine.clock(), len(engine.formed)
    ranks: dict[str, int] = {}
    for index in range(BACKLOG):
        for rank in SHARES:
            ranks[prompt := f"{rank}/{index}"] = rank
            engine.add(prompt, 2000, 1, rank)
    engine.run()
    took = engine.clock() - begin
    until = max(engine.answers[prompt].times_s[0] for prompt in ranks)
    gaps = sorted(
        gap_s
        for stream in streams
        for gap_s, end in zip(stream.gaps_s, stream.times_s[1:], strict=True)
        if arrival < end and end - gap_s < until
    )
    tokens = sum(sum(formed.chunks.values()) for formed in engine.formed)
    return ModeResult(quantile(gaps, 0.99), tokens / took, _shares(engine, ranks, first))


def _shares(engine: Engine, ranks: dict[str, int], first: int) -> dict[int, float]:
    got = dict.fromkeys(SHARES, 0)
    for formed in engine.formed[first:]:
        for prompt in formed.prompts & ranks.keys():
            got[ranks[prompt]] += formed.chunks[prompt]
        if max(got.values()) >= 0.75 * BACKLOG * 2000:
            break
    total = max(1, sum(got.values()))
    return {rank: tokens / total for rank, tokens in got.items()}
