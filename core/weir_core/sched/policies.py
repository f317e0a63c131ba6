"""Every rule of the scheduler by name, so that a comparison can swap one and keep the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weir_core.sched.estimate import Estimator
from weir_core.sched.fairness import Fairness, OneQueue, VirtualTokenCounter
from weir_core.sched.forecast import Forecast
from weir_core.sched.gate import ClassAwareGate, ClassBlindGate, Gate, OpenGate
from weir_core.sched.order import Fifo, Lifo, Order, SizeAwareFifo
from weir_core.sched.pick import ByRank, ByRankWithMinShare, Pick
from weir_core.sched.preempt import BeforeFirstByte, Never, Preempt
from weir_core.sched.shed import ExpireOnly, Predictive, Shed
from weir_core.sched.types import EngineFacts

PICKS: Mapping[str, Callable[[EngineFacts], Pick]] = {
    "rank-min-share": ByRankWithMinShare,
    "rank": ByRank,
}
FAIRNESS: Mapping[str, Callable[[], Fairness]] = {"vtc": VirtualTokenCounter, "none": OneQueue}
ORDERS: Mapping[str, Callable[[], Order]] = {
    "size-aware": SizeAwareFifo,
    "fifo": Fifo,
    "lifo": Lifo,
}
GATES: Mapping[str, Callable[[EngineFacts, Estimator], Gate]] = {
    "class-aware": ClassAwareGate,
    "class-blind": ClassBlindGate,
    "any-decodes": lambda engine, estimator: ClassAwareGate(
        engine, estimator, decode_share=float("inf")
    ),
    "open": OpenGate,
}
SHEDS: Mapping[str, Callable[[Estimator, Forecast], Shed]] = {
    "predictive": Predictive,
    "expire-only": lambda _estimator, _forecast: ExpireOnly(),
}
PREEMPTS: Mapping[str, Callable[[EngineFacts], Preempt]] = {
    "before-first-byte": lambda engine: BeforeFirstByte(
        engine.kind, passage_tokens=engine.max_num_batched_tokens
    ),
    "never": lambda _engine: Never(),
}

POLICIES: Mapping[str, tuple[str, ...]] = {
    "pick": tuple(PICKS),
    "fairness": tuple(FAIRNESS),
    "order": tuple(ORDERS),
    "gate": tuple(GATES),
    "shed": tuple(SHEDS),
    "preempt": tuple(PREEMPTS),
}
"""The names of each rule's variants; the first one ships as the default."""


@dataclass(frozen=True, slots=True)
class RuleNames:
    """Which variant of each rule to use."""

    pick: str = "rank-min-share"
    fairness: str = "vtc"
    order: str = "size-aware"
    gate: str = "class-aware"
    shed: str = "predictive"
    preempt: str = "before-first-byte"


class Rules:
    """One variant of each rule, fitted to one engine.

    Raises:
        KeyError: A name is not in `POLICIES`.
    """

    def __init__(
        self, names: RuleNames, engine: EngineFacts, estimator: Estimator, forecast: Forecast
    ) -> None:
        self._names = names
        self._estimator = estimator
        self.make_fairness = FAIRNESS[names.fairness]
        self.order = ORDERS[names.order]()
        self.shed = SHEDS[names.shed](estimator, forecast)
        self.fit(engine)

    def fit(self, engine: EngineFacts) -> None:
        """Make the rules that depend on the engine anew for this one."""
        self.pick = PICKS[self._names.pick](engine)
        self.gate = GATES[self._names.gate](engine, self._estimator)
        self.preempt = PREEMPTS[self._names.preempt](engine)
