"""How much work comes in, in seconds of this engine: what the autoscaler counts.

The work that is offered is not the work that is served: a replica that is full serves what it can,
whatever comes. So every request counts on arrival, also one that is then rejected for want of
room; not one that its tenant's limits keep out, which more replicas would not let in.

A request's seconds are its share of steps of a batch as full as the engine can hold it: the time of
such a step, which the step-time model knows, over its decodes. The batch is bounded by slots, by KV
room and by the tightest target per output token that is served. Without a step log it is what the
engine was seen to do while requests waited.
"""

from __future__ import annotations

import math
from typing import Final

from weir_core.sched.estimate import Estimator
from weir_core.sched.rates import FadingRate
from weir_core.sched.tickets import OUTPUT_WEIGHT, Ticket
from weir_core.sched.types import EngineFacts

_HALF_LIFE_S: Final = 30.0
_TARGET_PART: Final = 0.85
"""Of a target per output token, what a step may take: the engine's scheduler plans by it."""
_KV_PART: Final = 0.95
_KEPT_S: Final = 0.5
_TRICKLE: Final = 0.01
"""Part of the requests below which a class does not shape the batch."""


class ClassFlow:
    """What arrives of one class, in tokens per second."""

    def __init__(self) -> None:
        self.requests = FadingRate(_HALF_LIFE_S)
        self.prompts = FadingRate(_HALF_LIFE_S)
        self.outputs = FadingRate(_HALF_LIFE_S)
        self.tpot_target_s: float | None = None


class Price:
    """Seconds of an engine that one token takes, a cached prompt token none."""

    def __init__(self, prompt_s: float, output_s: float) -> None:
        self.prompt_s = prompt_s
        self.output_s = output_s

    def of(self, prompts: float, outputs: float) -> float:
        """Return the seconds of so many tokens."""
        return prompts * self.prompt_s + outputs * self.output_s


class WorkRate:
    """The work of one class.

    Attributes:
        offered: Seconds of it that arrive per second.
        cost_s: Seconds of one unit of a request's cost (`Ticket.cost`).
    """

    def __init__(self, offered: float, cost_s: float) -> None:
        self.offered = offered
        self.cost_s = cost_s


_NO_WORK: Final = WorkRate(0.0, 0.0)


class WorkMeter:
    """Counts arrivals by class and says how many seconds of an engine they are.

    Loads are asked for at every decision of the router, so rates are computed now and then, upon
    arrivals, and only fade in between.
    """

    def __init__(self) -> None:
        self._flows: dict[str, ClassFlow] = {}
        self._rates: dict[str, WorkRate] = {}
        self._rated_s = float("-inf")

    def arrived(self, ticket: Ticket, now: float) -> bool:
        """Count the work of a request, its prompt's cached part left out; tell if `rate` is due."""
        if ticket.request.is_counted:
            return False
        name = ticket.policy.name
        flow = self._flows.get(name)
        if flow is None:
            flow = self._flows[name] = ClassFlow()
        flow.tpot_target_s = ticket.policy.tpot_target_s
        flow.requests.add(float(ticket.sequences), now)
        flow.prompts.add(float(ticket.new_tokens), now)
        flow.outputs.add(float(ticket.output_estimate), now)
        return name not in self._rates or now >= self._rated_s + _KEPT_S

    def of(self, class_name: str, now: float) -> WorkRate:
        """Return the work of a class."""
        rate = self._rates.get(class_name)
        if rate is None:
            return _NO_WORK
        faded = math.pow(2.0, -max(0.0, now - self._rated_s) / _HALF_LIFE_S)
        return WorkRate(rate.offered * faded, rate.cost_s)

    def rate(
        self, estimator: Estimator, engine: EngineFacts, drain_rate: float | None, now: float
    ) -> None:
        """Compute the rates of all classes."""
        self._rated_s = now
        price = self._price(estimator, engine, drain_rate, now)
        for name, flow in self._flows.items():
            prompts, outputs = flow.prompts.per_second(now), flow.outputs.per_second(now)
            offered, cost = price.of(prompts, outputs), prompts + OUTPUT_WEIGHT * outputs
            self._rates[name] = WorkRate(offered, offered / cost if cost > 0.0 else price.prompt_s)

    def _price(
        self, estimator: Estimator, engine: EngineFacts, drain_rate: float | None, now: float
    ) -> Price:
        """Return what tokens cost, in a full batch of the present mix."""
        flows = list(self._flows.values())
        outputs = sum([flow.outputs.per_second(now) for flow in flows])
        steps = estimator.steps
        if not steps.trained or outputs <= 0.0:
            token_s = 1.0 / drain_rate if drain_rate else estimator.token_s
            return Price(token_s, OUTPUT_WEIGHT * token_s)
        sequences = sum([flow.requests.per_second(now) for flow in flows])
        prompts = sum([flow.prompts.per_second(now) for flow in flows])
        prompt_s = steps.prompt_token_s(prompts / sequences)
        decode_s = steps.decode_s((prompts + outputs / 2.0) / sequences)
        room = _KV_PART * engine.kv_capacity_tokens * sequences / (prompts + outputs)
        decodes = min(float(engine.max_num_seqs), room)
        step_s = self._longest_step_s(steps.fixed_s, sequences, now) - steps.fixed_s
        share_s = decode_s + prompt_s * prompts / outputs
        decodes = max(1.0, min(decodes, step_s / share_s))
        return Price(prompt_s, decode_s + steps.fixed_s / decodes)

    def _longest_step_s(self, fixed_s: float, sequences: float, now: float) -> float:
        """Return the longest step that keeps to the targets of classes that are no trickle.

        A target that leaves a step little time beside what it takes empty is not kept by a smaller
        batch, and does not shape it.
        """
        longest_s = float("inf")
        for flow in self._flows.values():
            if flow.tpot_target_s and flow.requests.per_second(now) > _TRICKLE * sequences:
                step_s = _TARGET_PART * flow.tpot_target_s
                if step_s > 2.0 * fixed_s:
                    longest_s = min(longest_s, step_s)
        return longest_s
