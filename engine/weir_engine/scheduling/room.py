"""Room for a waiting request of a higher class: slots and KV blocks, free or to be preempted."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from weir_core.step.victim import Holder, Need, Preemptions
from weir_core.wire.priority import rank_of

if TYPE_CHECKING:
    from weir_engine.scheduling.ordered import StepOrder

LOOKED_AT: Final = 4
"""Waiting requests that are looked at, in each class: more are rarely admitted at once."""


class Room:
    """The room in one scheduler's batch and cache."""

    def __init__(self, scheduler: StepOrder, preemptions: Preemptions) -> None:
        self._scheduler = scheduler
        self.preemptions = preemptions

    def free_slots(self) -> int:
        """Return how many requests could be admitted."""
        stock = self._scheduler
        taken = len(stock.running) + stock.num_waiting_for_streaming_input
        return int(stock.max_num_active_reqs - taken)

    def free_blocks(self) -> int:
        """Return the KV blocks that requests which are admitted may take."""
        cache = self._scheduler.kv_cache_manager
        return int(cache.block_pool.get_num_free_blocks() - cache.watermark_blocks)

    def fitting(self, requests: Iterable[Any]) -> list[Any]:
        """Return those, in order, that find KV blocks beside the ones before them."""
        free, found = self.free_blocks(), []
        for request in requests:
            free -= self._blocks(request)
            if free < 0:
                break
            found.append(request)
        return found

    def is_ready(self, request: Any) -> bool:
        """Return whether vLLM would admit a waiting request if there were room.

        vLLM itself finds out only in its admission loop, and that ends where no slot is free.
        """
        status = request.status.name
        if status == "WAITING_FOR_REMOTE_KVS":
            return request.request_id in self._scheduler.finished_recving_kv_req_ids
        if status == "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR":
            wanted = request.structured_output_request
            grammar = wanted.grammar if wanted else None
            return grammar is not None and not isinstance(grammar, Exception)
        if request.num_stale_output_tokens and not request.drop_stale_output:
            return False  # tokens of before its preemption are still to come
        return status in {"WAITING", "PREEMPTED"}

    def first(self, heap: list[Any], count: int) -> Iterator[Any]:
        """Yield, in order, those of a heap's first few that wait for nothing of their own."""
        return filter(self.is_ready, _smallest(heap, count))

    def ready(self, heap: list[Any], count: int) -> Iterator[Any]:
        """Yield those of them that lack nothing but slots and KV blocks."""
        return filter(self._scheduler._may_enter, self.first(heap, count))

    def make(self) -> None:
        """Preempt for the most urgent waiting request what it lacks, if lower classes have it."""
        stock = self._scheduler
        if not stock.waiting or stock._pause_state.name != "UNPAUSED":
            return
        # Who holds KV blocks already goes first; not a session or a load that still waits.
        if any(map(self.is_ready, stock.kv_holding_waiting._heap)):
            return
        head = next(self.ready(stock.waiting._heap, LOOKED_AT), None)
        if head is None:
            return
        need = Need(
            rank_of(head.priority),
            slots=0 if self.free_slots() > 0 else 1,
            blocks=max(0, self._blocks(head) - self.free_blocks()),
        )
        if (need.slots or need.blocks) and self.preemptions.is_worth_a_look(head.request_id):
            victims = self.preemptions.choose(need, self._holders(head, need))
            self.preemptions.looked(head.request_id, victims)
            for victim in victims:
                self._preempt(stock.requests[victim.request_id])

    def _holders(self, head: Any, need: Need) -> list[Holder]:
        stock = self._scheduler
        # What the head shares with a victim would be freed only to be taken by the head.
        hit = stock.kv_cache_manager.get_computed_blocks(head)[0].blocks if need.blocks else ()
        shared = {block.block_id for group in hit for block in group}
        return [
            Holder(
                request.request_id,
                rank_of(request.priority),
                request.num_computed_tokens,
                self._freed_by(request, shared) if need.blocks else 0,
            )
            for request in stock.running
            if rank_of(request.priority) < need.rank
            and not request.resumable
            and stock._request_blocks_can_be_freed(request)
        ]

    def _preempt(self, request: Any) -> None:
        stock = self._scheduler
        stock.running.remove(request)
        # If it is admitted again at once, the model runner needs its tokens anew.
        stock.prev_step_scheduled_req_ids.discard(request.request_id)
        stock._preempt_request(
            request, time.monotonic(), drop_stale_output=stock.requires_kv_delivery
        )

    def _blocks(self, request: Any) -> int:
        """Return the blocks a waiting request would take from the free ones."""
        cache = self._scheduler.kv_cache_manager
        whole = self._to_allocate(request, cache.empty_kv_cache_blocks.blocks, 0)
        if whole <= self.free_blocks():
            return whole
        found, tokens, *_ = cache.get_computed_blocks(request)
        return self._to_allocate(request, found.blocks, tokens)

    def _to_allocate(self, request: Any, found: Any, found_tokens: int) -> int:
        """Return what vLLM reckons when it admits: windows and states of any size included."""
        stock = self._scheduler
        tokens = min(request.num_tokens, stock.max_model_len)
        return int(
            stock.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=tokens,
                new_computed_blocks=found,
                num_encoder_tokens=0,
                total_computed_tokens=found_tokens,
                num_local_computed_tokens=found_tokens,
                num_tokens_main_model=tokens,
                apply_admission_cap=True,
                prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
            )
        )

    def _freed_by(self, request: Any, shared: set[int]) -> int:
        held = self._scheduler.kv_cache_manager.get_blocks(request.request_id).blocks
        return sum(
            block.ref_cnt == 1 and not block.is_null and block.block_id not in shared
            for group in held
            for block in group
        )


def _smallest(heap: list[Any], count: int) -> Iterator[Any]:
    """Yield the smallest of a heap, in order, without looking at all that wait."""
    reached = [(heap[0], 0)] if heap else []
    while reached and count:
        one, place = heapq.heappop(reached)
        yield one
        count -= 1
        for child in range(2 * place + 1, min(2 * place + 3, len(heap))):
            heapq.heappush(reached, (heap[child], child))
