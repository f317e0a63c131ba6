"""When the engine may be given the next request: as late as possible, never too late.

A request that is in the engine can no longer be overtaken by one that matters more, so the
engine is kept at about one step of prefill *of this class or higher*: enough that it never runs
dry, little enough that the order is decided late. Counting lower classes too would let their
prompts keep a higher class out (in the first model: p99 TTFT 1.79 s instead of 0.27 s).

Three kinds of engine want three depths. Weir's engine scheduler reorders at every step. Stock
priority does not interrupt a prefill it began, and plain FCFS reorders nothing, so those get
less ahead of time.

Decodes take room too: the longer they make every step, the less prefill fits beside them, and
the time to a first token grows for everybody. Past the point where a batch is large enough to be
efficient, more decodes gain nothing. So lower ranks are let in while the decodes alone take no
more than a part of the tightest TPOT target among the classes served lately (known from the step
log; without one this rule sleeps). A fleet of batch work alone has lax targets and fills up.

A request that goes before a higher rank on its minimum share is let in where that rank's own next
request would be, and counts under its own class from then on, so that it keeps nobody of the
higher rank out. One more bound holds for it: of its class the engine has no more than a step of
prefill to compute, so that shares do not pile up there.

A request also needs a slot for each of its sequences, and room in the KV cache. vLLM computes in
waves what does not fit at once. Such a request claims three quarters of the engine and is the last
of its class inside it, so that its neighbours wait for one wave and not for all. While it has no
neighbours its waves fill every slot. It waits until what it claims is free, and what would be
served after it does not pass it meanwhile.

Slots are held back for higher ranks only while these have recently used them, up to a share of the
batch. An empty engine takes any request: it never idles while one waits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from enum import Enum
from typing import Final

from weir_core.sched.engine_load import EngineLoad
from weir_core.sched.estimate import Estimator
from weir_core.sched.tickets import Ticket
from weir_core.sched.types import EngineFacts, EngineKind

_MOST_OF_ENGINE: Final = 0.75
"""What one request may claim that comes in waves; the rest is for others."""


class Block(Enum):
    """What a request waits for."""

    ENGINE = "engine"
    """There is none."""
    PREFILL = "prefill"
    SLOT = "slot"
    KV = "kv"
    DECODES = "decodes"


class Gate(ABC):
    """Says whether the engine may be given a request now."""

    @abstractmethod
    def shut(self, rank: int, engine_load: EngineLoad, now: float) -> Block | None:
        """Return what stands in the way of any request that competes at `rank`, or None."""

    @abstractmethod
    def block(self, ticket: Ticket, rank: int, engine_load: EngineLoad, now: float) -> Block | None:
        """Return what stands in the way of dispatching `ticket` at `rank`, or None."""

    @abstractmethod
    def lack(self, ticket: Ticket, rank: int, engine_load: EngineLoad, now: float) -> Block | None:
        """Return what `ticket` itself lacks where its rank is not shut out, or None."""

    @abstractmethod
    def has_room_for_share(self, ticket: Ticket, engine_load: EngineLoad) -> bool:
        """Return whether `ticket` may go before a higher rank, which is not shut out itself."""

    @abstractmethod
    def set_claim(self, ticket: Ticket) -> None:
        """Set the slots and the tokens of KV room that `ticket` needs; done before all else."""

    @abstractmethod
    def shortfall(
        self, ticket: Ticket, rank: int, block: Block, engine_load: EngineLoad, now: float
    ) -> int:
        """Return how many slots or tokens of KV room `ticket` lacks, as `block` says."""

    @abstractmethod
    def dispatched(self, ticket: Ticket, engine_load: EngineLoad, now: float) -> None:
        """Note that `ticket` has just joined what runs."""

    @abstractmethod
    def next_change(self, rank: int, now: float) -> float | None:
        """Return when time alone may open the gate for `rank` next, or None."""

    def forget_above(self, rank: int) -> None:  # noqa: B027 - most remember nothing
        """Forget what was noted of higher ranks than `rank`: their classes are gone."""


DEPTH_STEPS: Final = {EngineKind.WEIR: 1.0, EngineKind.PRIORITY: 0.5, EngineKind.FCFS: 0.5}
"""Steps of prefill to keep in the engine, by kind."""

MAX_DEPTH_TOKENS: Final = 4096
"""Above this a deeper queue in the engine only delays decisions."""
_ROUNDING_S: Final = 1e-6
"""By so much later than computed a peak has faded, however the computation was rounded."""


def step_tokens(engine: EngineFacts) -> int:
    """Return the prefill of one step, as far as depths and bounds reckon with it."""
    return min(engine.max_num_batched_tokens, MAX_DEPTH_TOKENS)


class _Target:
    """A TPOT target: which rank has it, and when one of that class was dispatched last."""

    def __init__(self, target_s: float, rank: int, seen_s: float) -> None:
        self.target_s = target_s
        self.rank = rank
        self.seen_s = seen_s


class _Peak:
    """So many slots were in use, at an instant from which that is forgotten."""

    def __init__(self, slots: int, seen_s: float) -> None:
        self.slots = slots
        self.seen_s = seen_s


class ClassAwareGate(Gate):
    """Counts, for each class, what the engine holds of it and of higher ranks.

    Args:
        reserve_share: Most of the slots that may be held back for higher ranks, 0 to 1.
        kv_share: Fraction of the KV cache to plan with; the rest absorbs wrong estimates.
        decode_share: Most of the tightest TPOT target that decodes alone may take before lower
            ranks have to wait.
        memory_s: Half-life of the memory of how many slots higher ranks used, and how long a
            TPOT target counts after its class was last served.
    """

    def __init__(
        self,
        engine: EngineFacts,
        estimator: Estimator,
        reserve_share: float = 0.1,
        kv_share: float = 0.95,
        decode_share: float = 0.28,
        memory_s: float = 10.0,
    ) -> None:
        self._estimator = estimator
        self._decode_share = decode_share
        self._targets: list[_Target] = []
        self._slots = engine.max_num_seqs
        self._kv_tokens = int(engine.kv_capacity_tokens * kv_share)
        self._step_tokens = step_tokens(engine)
        self.depth_tokens = max(1, int(self._step_tokens * DEPTH_STEPS[engine.kind]))
        self._reserve_slots = int(engine.max_num_seqs * reserve_share)
        self._widest = max(1, self._slots - self._reserve_slots)
        self._wave = max(1, int(self._slots * _MOST_OF_ENGINE))
        self._memory_s = memory_s
        # rank -> most slots that ranks above this one had at once.
        self._peaks: dict[int, _Peak] = {}

    def block(self, ticket: Ticket, rank: int, engine_load: EngineLoad, now: float) -> Block | None:
        """Return what shuts the gate for `rank`, else whether `ticket` lacks slots or KV room."""
        shut = self.shut(rank, engine_load, now)
        return self.lack(ticket, rank, engine_load, now) if shut is None else shut

    def lack(self, ticket: Ticket, rank: int, engine_load: EngineLoad, now: float) -> Block | None:
        """Return whether slots or KV room are too few for `ticket` itself."""
        if not engine_load.running:
            return None
        if ticket.sequences > 1 and self.shortfall(ticket, rank, Block.SLOT, engine_load, now) > 0:
            return Block.SLOT
        lacks_room = engine_load.kv_tokens + ticket.kv_tokens > self._kv_tokens
        return Block.KV if lacks_room else None

    def has_room_for_share(self, ticket: Ticket, engine_load: EngineLoad) -> bool:
        """Return whether little enough of its class is left to compute.

        Where the engine runs it before the higher rank, its whole prompt stands in the way.
        """
        if ticket.engine_rank == ticket.policy.rank:
            return True
        raised_tokens = engine_load.of_rank(ticket.policy.rank).raised_tokens
        return raised_tokens + ticket.new_tokens <= self._step_tokens

    def shut(self, rank: int, engine_load: EngineLoad, now: float) -> Block | None:
        """Return the first of engine, slot, prefill and decodes that is lacking.

        An empty engine takes anything.
        """
        if engine_load.engine is None:
            return Block.ENGINE
        if engine_load.running == 0:
            return None
        free = self._slots - engine_load.slots
        if free <= self._reserve_slots and free <= self._held_back(rank, engine_load, now):
            return Block.SLOT
        if self._prefill(rank, engine_load) >= self.depth_tokens:
            return Block.PREFILL
        if self._decodes_are_enough(rank, engine_load, now):
            return Block.DECODES
        return None

    def set_claim(self, ticket: Ticket) -> None:
        """Set what it needs at once, or as much as one request may have where that is less."""
        output_tokens, most_tokens = ticket.output_estimate, self._kv_tokens
        ticket.slots = ticket.sequences
        if ticket.sequences > self._widest:
            ticket.slots = self._wave
            output_tokens = output_tokens * self._wave // ticket.sequences
            most_tokens = int(most_tokens * _MOST_OF_ENGINE)
        ticket.kv_tokens = min(ticket.prompt_tokens + output_tokens, most_tokens)

    def shortfall(
        self, ticket: Ticket, rank: int, block: Block, engine_load: EngineLoad, now: float
    ) -> int:
        """Return how many slots or tokens of KV room `ticket` lacks; 0 or less is none."""
        if block is Block.SLOT:
            free = self._slots - engine_load.slots - self._held_back(rank, engine_load, now)
            return ticket.slots - max(0, free)
        return engine_load.kv_tokens + ticket.kv_tokens - self._kv_tokens

    def dispatched(self, ticket: Ticket, engine_load: EngineLoad, now: float) -> None:
        """Remember the target, and for each lower rank the slots that its betters use."""
        target_s = ticket.policy.tpot_target_s
        if target_s is not None:
            self._note_target(target_s, ticket.load_rank, now)
        above = 0
        for load in engine_load.loads:
            if load.rank < ticket.load_rank:
                self._note_peak(load.rank, above, now)
            above += load.slots

    def next_change(self, rank: int, now: float) -> float | None:
        """Return when a class's target is forgotten next, or one slot less is held back."""
        instants = [each.seen_s + self._memory_s for each in self._targets if each.rank > rank]
        peak = self._peaks.get(rank)
        if peak is not None:
            slots = round(self._faded(peak, now))
            if slots > 0:
                fades_s = self._memory_s * math.log2(peak.slots / (slots - 0.5))
                instants.append(peak.seen_s + fades_s + _ROUNDING_S)
        return min((at for at in instants if at > now), default=None)

    def _prefill(self, rank: int, engine_load: EngineLoad) -> int:
        return engine_load.prefill_at_or_above(rank)

    def forget_above(self, rank: int) -> None:
        """Forget the targets of classes that are gone: nothing of them runs or will come."""
        self._targets = [target for target in self._targets if target.rank <= rank]

    def _decodes_are_enough(self, rank: int, engine_load: EngineLoad, now: float) -> bool:
        tightest_s = float("inf")
        for target in self._targets:
            if target.rank > rank and now < target.seen_s + self._memory_s:
                tightest_s = min(tightest_s, target.target_s)
        if tightest_s == float("inf"):
            return False
        step_s = self._estimator.decode_step_s(engine_load.slots, engine_load.kv_tokens)
        return step_s is not None and step_s > self._decode_share * tightest_s

    def _held_back(self, rank: int, engine_load: EngineLoad, now: float) -> int:
        peak = self._peaks.get(rank)
        if peak is None:
            return 0
        missing = round(self._faded(peak, now)) - engine_load.slots_above(rank)
        return max(0, min(missing, self._reserve_slots))

    def _faded(self, peak: _Peak, now: float) -> float:
        return peak.slots * math.pow(0.5, (now - peak.seen_s) / self._memory_s)

    def _note_target(self, target_s: float, rank: int, now: float) -> None:
        for target in self._targets:
            if target.target_s == target_s:
                target.rank, target.seen_s = rank, now
                return
        self._targets.append(_Target(target_s, rank, now))

    def _note_peak(self, rank: int, slots: int, now: float) -> None:
        peak = self._peaks.get(rank)
        if peak is None:
            self._peaks[rank] = _Peak(slots, now)
        elif slots >= peak.slots or slots >= self._faded(peak, now):
            peak.slots, peak.seen_s = slots, now


class ClassBlindGate(ClassAwareGate):
    """Counts the prefill of all classes alike. For comparison."""

    def _prefill(self, rank: int, engine_load: EngineLoad) -> int:  # noqa: ARG002
        return engine_load.prefill_of_all()


class OpenGate(Gate):
    """Everything goes to the engine at once. For comparison: the pool decides nothing."""

    def __init__(self, engine: EngineFacts, estimator: Estimator) -> None:  # noqa: ARG002
        self.depth_tokens = engine.max_num_batched_tokens

    def shut(self, rank: int, engine_load: EngineLoad, now: float) -> Block | None:  # noqa: ARG002
        """Nothing stands in the way but the lack of an engine."""
        return Block.ENGINE if engine_load.engine is None else None

    def next_change(self, rank: int, now: float) -> float | None:  # noqa: ARG002
        """Time changes nothing."""
        return None

    def block(self, ticket: Ticket, rank: int, engine_load: EngineLoad, now: float) -> Block | None:  # noqa: ARG002
        """Nothing stands in the way but the lack of an engine."""
        return self.shut(rank, engine_load, now)

    def lack(self, ticket: Ticket, rank: int, engine_load: EngineLoad, now: float) -> Block | None:  # noqa: ARG002
        """Nothing."""
        return None

    def has_room_for_share(self, ticket: Ticket, engine_load: EngineLoad) -> bool:  # noqa: ARG002
        """Nothing stands in the way."""
        return True

    def set_claim(self, ticket: Ticket) -> None:
        """Set what it needs."""
        ticket.slots = ticket.sequences
        ticket.kv_tokens = ticket.prompt_tokens + ticket.output_estimate

    def shortfall(
        self,
        ticket: Ticket,  # noqa: ARG002
        rank: int,  # noqa: ARG002
        block: Block,  # noqa: ARG002
        engine_load: EngineLoad,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> int:
        """Room is the engine's affair."""
        return 0

    def dispatched(self, ticket: Ticket, engine_load: EngineLoad, now: float) -> None:
        """Nothing to remember."""
