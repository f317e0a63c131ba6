"""INV-10 inside a simulated engine: what of docs/invariants.md does not hold of a formed step.

The scheduler's own part of the invariant is in `weir_core.sched.audit`. Here it is about the
engine: once a request of the highest rank is there, it waits for the step that runs, and then
every step computes its prompt before any prompt of a lower rank.
"""

from __future__ import annotations

from collections.abc import Iterator

from weir_sim.engine_model import EngineModel


def step_violations(engine: EngineModel, rank: int) -> Iterator[str]:
    """Yield a sentence for each prompt of `rank` that the step just formed puts behind lower ones.

    A prompt that lacks a slot or KV room waits for that, and not for prompts.
    """
    lower = sum(tokens for job, tokens in engine.chunks if job.rank < rank)
    if not lower:
        return
    got = {job.request_id: tokens for job, tokens in engine.chunks}
    for job in engine.prompts():
        left = job.target - job.computed - got.get(job.request_id, 0)
        if job.rank >= rank and left > 0 and engine.could_compute(job):
            yield (
                f"INV-10: {job.request_id} has {left} prompt tokens left, and the step computes "
                f"{lower} of lower ranks"
            )
