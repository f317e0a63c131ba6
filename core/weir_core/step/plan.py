"""Forms one step: the time it may take, the prompt tokens that fit, and whose they are.

The engine asks for a plan before it forms a step, is told what each prompt with a slot gets, and
then asks once for each waiting request it is about to admit (`Plan.admit`), because only it
knows which of them find KV blocks and what of their prompt is in the prefix cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from weir_core.sched.types import StepRecord
from weir_core.step.budget import Budget, Budgeter
from weir_core.step.mode import Mode
from weir_core.step.order import Prompt, divide, give_back, serve
from weir_core.step.pace import Pace
from weir_core.step.shares import Shares

STEPS_PER_LESSON: Final = 4
"""Of steps that only decode, and of all once many were seen, one in so many is learned from."""
MANY_STEPS: Final = 256


@dataclass(slots=True)
class Plan:
    """One step's division.

    Attributes:
        chunks: Request to its tokens; those of waiting ones are what they may expect.
        budget: What is left for requests that are admitted in this step.
        grants: With mode `custom`: rank to what it may still have of that.
        shares: Who keeps account of what ranks got, with mode `custom`.
    """

    chunks: dict[str, int]
    budget: Budget
    grants: dict[int, int] | None = None
    shares: Shares | None = None

    def admit(self, rank: int, left: int, done: int) -> int:
        """Return how many of its `left` tokens a request admitted now gets; 0 is not now."""
        if self.grants is None or self.shares is None:
            return self.budget.take(left, done)
        chunk = self.budget.take(min(left, self.grants.get(rank, 0)), done)
        self.grants[rank] = self.grants.get(rank, 0) - chunk
        self.shares.served(rank, chunk)
        return chunk


class Planner:
    """Plans the steps of one engine.

    Args:
        max_tokens: Most tokens one step may hold.
        stages: Steps that compute at a time, each in one stage of a pipeline. A decode waits for
            all of them between two of its tokens, so each gets its part of that time.
    """

    def __init__(self, max_tokens: int, mode: Mode | None = None, stages: int = 1) -> None:
        self.mode = mode or Mode()
        self._stages = stages
        self.budgeter = Budgeter(max_tokens)
        self.pace = Pace(self.mode.tpot_s)
        self._shares = Shares(self.mode.shares)
        self._last: Plan | None = None
        self._steps = 0

    def change(self, mode: Mode) -> None:
        """Divide steps by another mode from the next one on."""
        self.mode = mode
        self.pace.retarget(mode.tpot_s)
        self._shares = Shares(mode.shares)

    def plan(
        self,
        now: float,
        decode_tokens: int,
        decode_context: int,
        prompts: Iterable[Prompt],
        others: int = 0,
    ) -> Plan:
        """Return the next step's plan.

        Args:
            now: In seconds, on the clock of `pace`.
            decode_tokens: Tokens its decodes take.
            decode_context: Tokens they attend to, all together.
            prompts: Those with slots, and the waiting ones that could be admitted now.
            others: Decodes that are not in this step because an earlier one still computes them.
        """
        if self._last is not None:
            self.budgeter.cut(self._last.budget)
        allowance_s = self._allowance_s(now) if decode_tokens or others else math.inf
        budget = self.budgeter.budget(allowance_s, decode_tokens, decode_context)
        if self.mode.kind == "custom":
            self._last = self._by_shares(list(prompts), budget)
        else:
            self._last = Plan(divide(prompts, budget), budget)
        return self._last

    def stepped(
        self,
        record: StepRecord,
        decoding: Iterable[tuple[str, int]],
        now: float,
        part: float = 1.0,
    ) -> None:
        """Take in a step that ended.

        Args:
            record: What it computed and how long it took; its decodes as `plan` counts them.
            decoding: Requests that decode from now on, with their ranks.
            now: When it ended, in seconds, on the clock of `pace`.
            part: The part of all decodes that it served, 0 to 1.
        """
        self.pace.stepped(part)
        for request_id, rank in decoding:
            self.pace.joined(request_id, rank, now)
        self._steps += 1
        is_new = record.prefill_tokens and self._steps < MANY_STEPS
        if is_new or self._steps % STEPS_PER_LESSON == 0:
            self.budgeter.learn(record)

    def _allowance_s(self, now: float) -> float:
        if self.mode.kind == "throughput":
            return math.inf
        return max(self.pace.allowance_s(now), self.mode.tpot_floor_s) / self._stages

    def _by_shares(self, prompts: list[Prompt], budget: Budget) -> Plan:
        left: dict[int, int] = {}
        for prompt in prompts:
            left[prompt.rank] = left.get(prompt.rank, 0) + prompt.left
        done = sum(prompt.done for prompt in prompts) // max(1, len(prompts))
        grants = self._shares.divide(budget.fitting(done), left)
        chunks: dict[str, int] = {}
        waiting: list[tuple[int, int]] = []
        for rank, grant in grants.items():
            part = replace(budget, tokens=min(grant, budget.tokens))
            of_rank = [prompt for prompt in prompts if prompt.rank == rank]
            got, set_aside = serve(of_rank, part)
            chunks |= got
            waiting += set_aside
            budget = replace(part, tokens=budget.tokens - sum(got.values()))
            used = sum(got[one.request_id] for one in of_rank if not one.waits)
            self._shares.served(rank, used)
            grants[rank] = grant - used
        give_back(waiting, budget)
        return Plan(chunks, budget, grants, self._shares)
