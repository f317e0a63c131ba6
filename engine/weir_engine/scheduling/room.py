"""Room for a waiting request of a higher class: slots and KV blocks, free or to be preempted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from weir_core.step.victim import Holder, Need, Preemptions
from weir_core.wire.priority import rank_of

if TYPE_CHECKING:
    from weir_engine.scheduling.stock import Stock


class Room:
    """The room in one scheduler's batch and cache."""

    def __init__(self, scheduler: Stock, preemptions: Preemptions) -> None:
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

    def make(self) -> None:
        """Preempt for the most urgent waiting request what it lacks, if lower classes have it."""
        stock = self._scheduler
        # Who holds KV blocks already goes first, unless it is a session that waits for input.
        before = len(stock.kv_holding_waiting) - stock.num_waiting_for_streaming_input
        if not stock.waiting or before > 0:
            return
        head = stock.waiting.peek_request()
        need = Need(
            rank_of(head.priority),
            slots=0 if self.free_slots() > 0 else 1,
            blocks=max(0, self._blocks(head) - self.free_blocks()),
        )
        if (need.slots or need.blocks) and self._is_worth_a_look(head):
            victims = self.preemptions.choose(need, self._holders(need))
            self.preemptions.looked(head.request_id, victims)
            for victim in victims:
                self._preempt(stock.requests[victim.request_id])

    def _is_worth_a_look(self, head: Any) -> bool:
        is_ready = head.status.name in {"WAITING", "PREEMPTED"}
        return is_ready and self.preemptions.is_worth_a_look(head.request_id)

    def _holders(self, need: Need) -> list[Holder]:
        stock = self._scheduler
        return [
            Holder(
                request.request_id,
                rank_of(request.priority),
                request.num_computed_tokens,
                self._freed_by(request) if need.blocks else 0,
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
        stock = self._scheduler
        groups = len(stock.kv_cache_config.kv_cache_groups)
        whole = int(groups * -(-request.num_tokens // stock.block_size))
        if whole <= self.free_blocks():
            return whole
        shared = stock.kv_cache_manager.get_computed_blocks(request)[0].blocks
        return whole - sum(1 for group in shared for block in group if block.ref_cnt)

    def _freed_by(self, request: Any) -> int:
        held = self._scheduler.kv_cache_manager.get_blocks(request.request_id).blocks
        return sum(block.ref_cnt == 1 and not block.is_null for group in held for block in group)
