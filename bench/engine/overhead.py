"""What scheduling a step costs, by sequences and chunk size.

Time of vLLM's `schedule` and `update_from_output`, ours or not, for steps that each hold so many
decodes and one prefill chunk. Without a model thousands of steps take seconds, and what remains
is scheduling alone; with one, fewer steps show what part of a step's time it is.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final

from bench.engine.effects import BATCH, INTERACTIVE, quantile
from bench.engine.engines import Engine
from weir_core.step.mode import Mode

SEQUENCES: Final = (1, 64, 256)
CHUNKS: Final = (64, 256, 1024, 8192)
STEPS: Final = 400
LONGEST_S: Final = 8.0
"""Time for one kind of step, where the model makes them slow."""


@dataclass(frozen=True)
class Cost:
    """Scheduling one kind of step.

    Attributes:
        share: Part of the steps' time, 0 to 1.
        steps: That were measured.
    """

    p50_s: float
    p99_s: float
    share: float
    steps: int


def measure(engine: Engine, sequences: int, chunk: int) -> Cost:
    """Measure steps of `sequences` decodes and one chunk of a low prompt."""
    engine.set_mode(Mode("throughput"))
    scheduler = engine.scheduler
    full = scheduler.max_num_scheduled_tokens
    engine.clear()
    for index in range(sequences):
        engine.add(f"decode{index}", 16, 4 * STEPS, INTERACTIVE)
    engine.run_steps(3 + sequences * 16 // full)
    scheduler.max_num_scheduled_tokens = chunk + sequences
    number = 0
    seen: list[float] = []
    took_s = 0.0
    while len(seen) < STEPS and took_s < LONGEST_S:
        if not scheduler.waiting and len(scheduler._inflight_prefills) < 2:
            engine.add(f"low{number}", 8000, 1, BATCH)
            number += 1
        step_s = engine.step()
        if engine.formed[-1].prompts:
            seen.append(engine.formed[-1].scheduling_s)
            took_s += step_s
    scheduler.max_num_scheduled_tokens = full
    engine.llm.abort_request(list(engine.answers))
    engine.run()
    seen.sort()
    return Cost(statistics.median(seen), quantile(seen, 0.99), sum(seen) / took_s, len(seen))
