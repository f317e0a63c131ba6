"""The three effects: what a high class meets in a busy engine, and what long prompts do to decodes.

A fourth scene shows what they cost where there is nothing to order.

Each scene runs on both engines and returns what can be compared; nothing is tuned, classes and
targets are the built-in ones.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Final

from bench.engine.engines import Engine

INTERACTIVE: Final = 100
BATCH: Final = -100
DECODES: Final = 4
LONG_PROMPT: Final = 7000


@dataclass(frozen=True)
class Inversion:
    """A short high request behind three long low prompts.

    Attributes:
        steps: Steps after its arrival that computed lower prompts and not all of its own.
    """

    ttft_s: float
    steps: int


@dataclass(frozen=True)
class Slot:
    """A high request when low decodes hold every slot.

    Attributes:
        steps: Until its first token.
    """

    ttft_s: float
    steps: int
    preempted: int


@dataclass(frozen=True)
class Light:
    """Four streams and nothing else.

    Attributes:
        tokens_per_s: Output tokens of all.
        tokens_per_cpu_s: The same over the process's CPU time, which what else runs on the machine
            disturbs less.
    """

    tokens_per_s: float
    tokens_per_cpu_s: float


@dataclass(frozen=True)
class Gap:
    """Two long low prompts arriving into four streams.

    Attributes:
        p99_s: Of the gaps between the streams' tokens while the prompts are computed.
        tokens_per_s: Prompt and output tokens of all, over the time until the last ended.
        tokens_per_cpu_s: The same over the process's CPU time.
    """

    p50_s: float
    p99_s: float
    tokens_per_s: float
    tokens_per_cpu_s: float


def inversion(engine: Engine) -> Inversion:
    """Send three prompts of 7,500 tokens, and a short one of the high class into the first."""
    engine.clear()
    for index in range(3):
        engine.add(f"low{index}", 7500, 4, BATCH)
    engine.run_steps(1)
    high = engine.add("high", 50, 8, INTERACTIVE)
    before = len(engine.formed)
    while not high.times_s:
        engine.step()
    steps = sum(
        any(name != "high" for name in formed.prompts) and formed.chunks.get("high", 0) < 50
        for formed in engine.formed[before:]
    )
    engine.run()
    return Inversion(high.ttft_s, steps)


def slot(engine: Engine) -> Slot:
    """Fill every slot with low decodes of 200 tokens, then send a high request."""
    engine.clear()
    slots = engine.scheduler.max_num_running_reqs
    for index in range(slots):
        engine.add(f"low{index}", 32, 200, BATCH)
    while len(engine.scheduler.running) < slots or engine.scheduler._inflight_prefills:
        engine.step()
    requests = list(engine.scheduler.running)
    high = engine.add("high", 50, 8, INTERACTIVE)
    before = len(engine.formed)
    while not high.times_s:
        engine.step()
    steps = len(engine.formed) - before
    engine.run()
    return Slot(high.ttft_s, steps, sum(request.num_preemptions for request in requests))


def light(engine: Engine) -> Light:
    """Run four streams of 400 tokens from their first token on."""
    engine.clear()
    for index in range(DECODES):
        engine.add(f"stream{index}", 100, 401, INTERACTIVE)
    engine.run_steps(1)
    begin, cpu = engine.clock(), time.process_time()
    engine.run()
    took, cpu = engine.clock() - begin, time.process_time() - cpu
    return Light(DECODES * 400 / took, DECODES * 400 / cpu)


def gap(engine: Engine) -> Gap:
    """Send two prompts of 7,000 tokens into four streams of the high class."""
    engine.clear()
    begin, cpu = engine.clock(), time.process_time()
    streams = [engine.add(f"stream{n}", 100, 400, INTERACTIVE) for n in range(DECODES)]
    engine.run_steps(20)
    arrival = engine.clock()
    prompts = [engine.add(f"long{n}", LONG_PROMPT, 4, BATCH) for n in range(2)]
    engine.run()
    took, cpu = engine.clock() - begin, time.process_time() - cpu
    until = max(prompt.times_s[0] for prompt in prompts)
    gaps = sorted(
        gap_s
        for stream in streams
        for gap_s, end in zip(stream.gaps_s, stream.times_s[1:], strict=True)
        if arrival < end and end - gap_s < until
    )
    tokens = sum(sum(formed.chunks.values()) for formed in engine.formed)
    return Gap(statistics.median(gaps), quantile(gaps, 0.99), tokens / took, tokens / cpu)


def quantile(ordered: list[float], part: float) -> float:
    """Return the value that `part` of the values do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
