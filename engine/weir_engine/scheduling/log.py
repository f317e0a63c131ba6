"""Measures every step and tells the sidecar of it.

With vLLM's asynchronous scheduling a step is formed while the one before it still computes, so a
step's time runs from the later of two instants, its own start and its predecessor's end, to the
arrival of its tokens. What a step holds is counted when it is formed, from vLLM's own set of
partial prefills, so that the cost does not grow with what merely decodes or waits.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from weir_core.sched.types import End
from weir_core.wire.priority import rank_of
from weir_core.wire.steps import NOT_LOOKED_UP, Step
from weir_engine.scheduling import contract
from weir_engine.scheduling.request_ids import is_further_answer, sent_id
from weir_engine.scheduling.telling import StepSender

if TYPE_CHECKING:
    from weir_engine.scheduling.stock import Stock
else:
    Stock = object


@dataclass(slots=True)
class FormedStep:
    """What is known of a step when it is formed; the rest comes with its tokens.

    Attributes:
        begin_s: When scheduling began, on the scheduler's clock.
        decode_tokens: Tokens of its decodes: with speculation each has its drafts besides.
        started: vLLM's names of the requests whose prompt it completes, with what `Step.prompts`
            says of each.
        decoding: Those that decode from now on, with their ranks: also after a preemption.
    """

    begin_s: float
    schedule_s: float
    prefill_tokens: int
    prefill_context: int
    decodes: int
    decode_tokens: int
    decode_context: int
    started: tuple[tuple[str, tuple[int, int]], ...]
    decoding: tuple[tuple[str, int], ...]
    preempted: int


@dataclass(slots=True)
class Work:
    """What the prefills of one request were.

    Attributes:
        tokens: That they computed.
        done: Prefills that came to their end: the first, and one after each preemption.
        cached: Tokens of the prompt that were found in the prefix cache.
    """

    tokens: int = 0
    done: int = 0
    cached: int = 0


_ENDS_AT_ONCE: Final = 64
"""Ends in one record, so that it fits into a datagram whatever clients put into their ids."""
_MOST_ENDS: Final = 1024
"""Ends that are kept while no record can be sent; the oldest are lost beyond."""


def tokens_in(scheduler: Any, blocks: int) -> int:
    """Return how many tokens find place in KV blocks, never more than really do in long sequences.

    A sequence takes blocks for each group of layers, and groups differ in how many tokens a block
    of theirs holds: that of a state holds the longest sequence. Where a group needs no further
    blocks from some length on, as with windows, there is place for more.
    """
    sizes = scheduler.kv_cache_manager.coordinator.group_block_sizes or (scheduler.block_size,)
    common = math.lcm(*sizes)
    return int(blocks * common // sum(common // size for size in sizes))


class StepLog(Stock):
    """A mixin over vLLM's scheduler; `sender` set to None keeps the steps to itself.

    Attributes:
        missing: What it needs and this vLLM lacks; then steps are vLLM's alone.
        clock: Steps are measured, and held to their targets, on this clock, in seconds.
    """

    sender: StepSender | None = None
    engine_index = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock: Callable[[], float] = time.perf_counter
        self.missing = contract.missing_attributes(self, contract.LOG_ATTRIBUTES)
        self._logs = not self.missing
        self._formed: dict[int, FormedStep] = {}
        self._last_end_s = 0.0
        self._seq = 0
        self._queue_changes = 0
        self._queue_state: tuple[int, int, int] | None = None
        self._queued_tokens: dict[int, int] = {}
        self.held_tokens = 0
        self._works: dict[str, Work] = {}
        # With the step that has to be told of first: one that computes for it is still in flight.
        self._ends: deque[tuple[int, End]] = deque(maxlen=_MOST_ENDS)
        self._is_updating = False

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Form the next step, as the classes below do, and note what it holds."""
        if not self._logs:
            return super().schedule(throttle_prefills)
        begin = self.clock()
        partial = tuple(self._inflight_prefills)
        output = self.form(throttle_prefills)
        if output.total_num_scheduled_tokens:
            formed = self._observe(output, partial, begin)
            formed.schedule_s = self.clock() - begin
            self._formed[id(output)] = formed
        elif self._ends and not self._formed:
            # No step will tell of these: nothing is left to compute, and none is in flight.
            self._tell(FormedStep(begin, 0.0, 0, 0, 0, 0, 0, (), (), 0), 0.0)
        return output

    def form(self, throttle_prefills: bool) -> Any:
        """Form the next step by vLLM's own rules; a class above may prepare them."""
        return super().schedule(throttle_prefills)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in the tokens, and tell of the step they end."""
        formed = self._formed.pop(id(scheduler_output), None)
        if formed is None:
            return super().update_from_output(scheduler_output, model_runner_output)
        end = self.clock()
        duration_s = end - max(formed.begin_s, self._last_end_s)
        self._last_end_s = end
        self._is_updating = True
        result = super().update_from_output(scheduler_output, model_runner_output)
        self._is_updating = False
        self.on_step(formed, duration_s)
        self._tell(formed, duration_s)
        return result

    def add_request(self, request: Any) -> None:
        """Queue a request."""
        self._queue_changes += 1
        super().add_request(request)

    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any:
        """Let go of a request that has ended, and note what is to be told of it."""
        if not self._logs:
            return super()._free_request(request, delay_free_blocks)
        work = self._works.pop(request.request_id, None) or Work()
        reason = request.get_finished_reason()
        # vLLM gives these away with the first output, before which a prompt does not count.
        is_counted = request.prefill_stats is None and not is_further_answer(request.request_id)
        end = End(
            request=sent_id(request.request_id),
            reason="" if reason is None else str(reason),
            prompt_tokens=request.num_prompt_tokens if is_counted else 0,
            cached_tokens=work.cached if is_counted else 0,
            output_tokens=request.num_output_tokens,
            prefill_tokens=work.tokens,
            prefills=work.done,
        )
        self._ends.append((self._seq + (0 if self._is_updating else len(self._formed)), end))
        return super()._free_request(request, delay_free_blocks)

    def on_step(self, formed: FormedStep, duration_s: float) -> None:
        """Hear of a step that ended; a class above may learn from it."""

    def mode_kind(self) -> str:
        """Return the mode that divides the steps; empty where vLLM divides them."""
        return ""

    def _observe(self, output: Any, partial: Iterable[Any], begin: float) -> FormedStep:
        scheduled = output.num_scheduled_tokens
        prefills = self._prefills(output, partial)
        tokens = context = done = 0
        started, decoding = [], []
        for request in prefills:
            chunk = scheduled[request.request_id]
            tokens += chunk
            context += chunk * (request.num_computed_tokens - chunk + chunk // 2)
            done += request.num_computed_tokens
            work = self._works.setdefault(request.request_id, Work())
            work.tokens += chunk
            if request.is_prefill_chunk:
                continue
            work.done += 1
            decoding.append((request.request_id, rank_of(request.priority)))
            if not request.num_output_tokens:
                found = _found(request)
                work.cached = max(0, found[1])
                started.append((request.request_id, found))
        preempted = len(output.preempted_req_ids or ())
        self._queue_changes += preempted
        held = self.held_tokens = sum([request.num_computed_tokens for request in self.running])
        held -= sum(r.num_computed_tokens for r in self._outside(scheduled))
        return FormedStep(
            begin, 0.0, tokens, context, len(scheduled) - len(prefills),
            output.total_num_scheduled_tokens - tokens, max(0, held - done),
            tuple(started), tuple(decoding), preempted,
        )  # fmt: skip

    def _outside(self, scheduled: dict[str, int]) -> list[Any]:
        """Return what is in the batch but not in the step that was formed."""
        if len(scheduled) == len(self.running):
            return []
        # Without a pipeline only prompts sit a step out, and of them there are few.
        among = self.running if self.use_pp else self._inflight_prefills
        return [
            request for request in among
            if request.request_id not in scheduled and request.status.name == "RUNNING"
        ]  # fmt: skip

    def _prefills(self, output: Any, partial: Iterable[Any]) -> list[Any]:
        """Return the requests of which this step computes prompt tokens."""
        scheduled = output.num_scheduled_tokens
        # Without repetition, and in one order whatever their names are.
        names = dict.fromkeys(request.request_id for request in partial)
        names |= dict.fromkeys(request.req_id for request in output.scheduled_new_reqs)
        names |= dict.fromkeys(output.scheduled_cached_reqs.resumed_req_ids)
        return [self.requests[name] for name in names if name in scheduled]

    def _tell(self, formed: FormedStep, duration_s: float) -> None:
        """Tell the sidecar of a step; what it could not be told of ends is told with the next."""
        self._seq += 1
        if self.sender is None:
            self._ends.clear()
            return
        due = [each for each in self._ends if each[0] <= self._seq] if self._ends else []
        told = due[:_ENDS_AT_ONCE]
        step = self._step(formed, duration_s, tuple(end for _, end in told))
        if self.sender.send(step) and told:
            left = [each for each in self._ends if each[0] > self._seq] + due[_ENDS_AT_ONCE:]
            self._ends = deque(left, _MOST_ENDS)

    def _step(self, formed: FormedStep, duration_s: float, ended: tuple[End, ...]) -> Step:
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        started: dict[str, tuple[int, int]] = {}
        for name, prompt in formed.started:
            started.setdefault(sent_id(name), prompt)
        return Step(
            seq=self._seq,
            duration_s=duration_s,
            schedule_s=formed.schedule_s,
            prefill_tokens=formed.prefill_tokens,
            decodes=formed.decodes,
            prefill_context=formed.prefill_context,
            decode_context=formed.decode_context,
            running=len(self.running),
            waiting=len(self.waiting) + len(self.kv_holding_waiting),
            kv_free_tokens=tokens_in(self, free),
            prefill_left=self._prefill_left(),
            started=tuple(started),
            preempted=formed.preempted,
            engine=self.engine_index,
            mode=self.mode_kind(),
            prompts=tuple(started.values()),
            ended=ended,
        )

    def _prefill_left(self) -> dict[int, int]:
        left = dict(self._queued())
        for request in self._inflight_prefills:
            rank = rank_of(request.priority)
            todo = request.num_tokens - request.num_computed_tokens
            left[rank] = left.get(rank, 0) + todo
        return left

    def _queued(self) -> dict[int, int]:
        """Return prompt tokens in the queue by rank, counted anew only when the queue changed."""
        state = (len(self.waiting), len(self.kv_holding_waiting), self._queue_changes)
        if state != self._queue_state:
            self._queue_state = state
            self._queued_tokens = {}
            # The heap itself: vLLM's own iteration sorts a copy of it.
            for request in getattr(self.waiting, "_heap", self.waiting):
                rank = rank_of(request.priority)
                self._queued_tokens[rank] = self._queued_tokens.get(rank, 0) + request.num_tokens
        return self._queued_tokens


def _found(request: Any) -> tuple[int, int]:
    """Return the tokens of a prompt, and how many of them were found in the prefix cache.

    vLLM notes the hit when it first schedules a request, and leaves it as it is when it schedules
    the request again after a preemption, which would find its own KV blocks. With the first output
    it gives the note away, so that a session's further turns have none.
    """
    stats = request.prefill_stats
    if stats is None or request.skip_reading_prefix_cache:
        return request.num_prompt_tokens, NOT_LOOKED_UP
    return request.num_prompt_tokens, stats.num_local_cached_tokens
