"""A scheduler shaped like vLLM's, small enough to read: what our mixins are tested over.

Requests and outputs carry the attributes that the mixins use, under vLLM's names; the forming of
a step follows vLLM's loop (running first, then the queue by priority) without its special cases.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

from weir_core.wire.priority import engine_priority
from weir_engine.scheduling.ordered import StepOrder

BLOCK = 16


class Status(Enum):
    WAITING = 1
    RUNNING = 2
    PREEMPTED = 3
    WAITING_FOR_STREAMING_REQ = 4
    WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR = 5
    WAITING_FOR_REMOTE_KVS = 6


class PauseState(Enum):
    UNPAUSED = 0
    PAUSED_NEW = 1


@dataclass(eq=False)
class Request:
    """One request, as vLLM's scheduler knows it."""

    request_id: str
    num_prompt_tokens: int
    priority: int
    max_tokens: int = 4
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    is_prefill_chunk: bool = False
    status: Status = Status.WAITING
    resumable: bool = False
    has_encoder_inputs: bool = False
    image_at: int = 0
    drafts: int = 0
    lora_request: Any = None
    num_output_placeholders: int = 0
    next_decode_eligible_step: int = 0
    structured_output_request: Any = None
    num_stale_output_tokens: int = 0
    drop_stale_output: bool = False
    cached: int = 0
    """Tokens of its prompt in the prefix cache."""
    skip_reading_prefix_cache: bool = False
    prefill_stats: Any = field(default_factory=lambda: SimpleNamespace(num_local_cached_tokens=0))

    reason: str = ""

    def get_finished_reason(self) -> str:
        return self.reason

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_tokens_with_spec(self) -> int:
        return self.num_tokens + self.drafts

    @property
    def blocks(self) -> int:
        return -(-self.num_computed_tokens // BLOCK)

    def __lt__(self, other: Request) -> bool:
        return (self.priority, self.request_id) < (other.priority, other.request_id)


class Queue:
    """vLLM's priority queue."""

    def __init__(self) -> None:
        self._heap: list[Request] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Any:
        return iter(sorted(self._heap))

    def peek_request(self) -> Request:
        return self._heap[0]

    def pop_request(self) -> Request:
        return heapq.heappop(self._heap)

    def prepend_requests(self, requests: Any) -> None:
        for request in requests:
            heapq.heappush(self._heap, request)

    def remove_requests(self, requests: Any) -> None:
        self._heap = [one for one in self._heap if one not in requests]
        heapq.heapify(self._heap)


@dataclass
class Output:
    """What a step computes."""

    num_scheduled_tokens: dict[str, int]
    scheduled_new_reqs: list[Any]
    scheduled_cached_reqs: Any
    finished_req_ids: set[str]
    preempted_req_ids: set[str]
    total_num_scheduled_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.total_num_scheduled_tokens = sum(self.num_scheduled_tokens.values())


class Scheduler:
    """vLLM's scheduler, in outline.

    Args:
        tokens: Most tokens of a step.
        blocks: Size of the KV cache.
        stages: Of the pipeline: steps that are formed before the first of them has ended.
        drafts: Most drafts of a decode.
        adapters: Places for adapters.

    Attributes:
        passes_over: Admits those behind a waiting request that gets nothing, as vLLM 0.33 does;
            0.32 stops there.
    """

    passes_over = False

    def __init__(
        self, tokens: int = 1000, slots: int = 8, blocks: int = 10_000, stages: int = 1,
        drafts: int = 0, adapters: int = 0,
    ) -> None:  # fmt: skip
        parallel = SimpleNamespace(pipeline_parallel_size=stages)
        self.vllm_config: Any = SimpleNamespace(parallel_config=parallel)
        self.use_pp = stages > 1
        self.lora_config = SimpleNamespace(max_loras=adapters) if adapters else None
        self.current_step = 0
        self.max_num_scheduled_tokens = tokens
        self.max_num_running_reqs = self.max_num_active_reqs = slots
        self.block_size, self._blocks = BLOCK, blocks
        self.max_model_len = 100_000
        self._pause_state = PauseState.UNPAUSED
        self.finished_recving_kv_req_ids: set[str] = set()
        self.waiting, self.kv_holding_waiting = Queue(), Queue()
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}
        self._inflight_prefills: set[Request] = set()
        self.prev_step_scheduled_req_ids: set[str] = set()
        self.finished: set[str] = set()
        self.preempted: set[str] = set()
        self.num_spec_tokens, self.num_waiting_for_streaming_input = drafts, 0
        self.num_prefill_lookahead = 0
        self.requires_kv_delivery = False
        self.scheduler_config = SimpleNamespace(disable_chunked_mm_input=False)
        self.image_places, self.images = 1, set[str]()
        self.is_encoder_decoder = self.need_mamba_block_aligned_split = False
        block = SimpleNamespace(block_id=1, ref_cnt=1, is_null=False)
        self.kv_cache_manager = SimpleNamespace(
            block_pool=SimpleNamespace(get_num_free_blocks=self._free),
            watermark_blocks=0,
            coordinator=SimpleNamespace(
                group_block_sizes=(BLOCK,), get_num_blocks_to_allocate=_to_allocate
            ),
            empty_kv_cache_blocks=SimpleNamespace(blocks=([],)),
            get_computed_blocks=_get_computed_blocks,
            get_blocks=lambda name: SimpleNamespace(blocks=([block] * self.requests[name].blocks,)),
        )

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting.prepend_requests([request])

    def schedule(self, throttle_prefills: bool = False) -> Output:
        assert not throttle_prefills
        self.current_step += 1
        budget = self.max_num_scheduled_tokens
        chunks: dict[str, int] = {}
        for request in self.running:
            wanted = min(request.num_tokens_with_spec - request.num_computed_tokens, budget)
            wanted = self._with_images(request, request.num_computed_tokens, wanted)
            chunk = self._reserve_prefill_lookahead(request, request.num_computed_tokens, wanted)
            if chunk:
                chunks[request.request_id] = chunk
                budget -= chunk
        new, resumed = self._admit(chunks, budget)
        output = Output(
            chunks, new, SimpleNamespace(resumed_req_ids=resumed), self.finished, self.preempted
        )
        self.finished, self.preempted = set(), set()
        for name, chunk in chunks.items():
            request = self.requests[name]
            request.num_computed_tokens += chunk
            request.is_prefill_chunk = request.num_computed_tokens < request.num_tokens
            change = self._inflight_prefills.add if request.is_prefill_chunk else None
            (change or self._inflight_prefills.discard)(request)
        return output

    def _admit(self, chunks: dict[str, int], budget: int) -> tuple[list[Any], set[str]]:
        """Admit waiting requests to a step; return the new ones, and who was there before."""
        new: list[str] = []
        resumed: list[str] = []
        skipped: list[tuple[Queue, Request]] = []
        while budget and len(self.running) < self.max_num_active_reqs:
            queue = self.kv_holding_waiting or self.waiting
            if not queue:
                break
            request = queue.peek_request()
            if self._is_blocked(request) or self._lacks_adapter(request, chunks):
                skipped.append((queue, queue.pop_request()))
                continue
            if -(-request.num_tokens // BLOCK) > self._free():
                break
            done = self._find_cached(request)
            wanted = self._with_images(request, done, min(request.num_tokens - done, budget))
            if not (chunk := self._reserve_prefill_lookahead(request, done, wanted)):
                if not self.passes_over:
                    break
                skipped.append((queue, queue.pop_request()))
                continue
            self.running.append(queue.pop_request())
            is_resumed = request.status is Status.PREEMPTED
            (resumed if is_resumed else new).append(request.request_id)
            request.status = Status.RUNNING
            chunks[request.request_id] = chunk
            budget -= chunk
        for queue, request in skipped:
            queue.prepend_requests([request])
        return [SimpleNamespace(req_id=name) for name in new], set(resumed)

    def update_from_output(self, scheduler_output: Output, model_runner_output: Any) -> None:
        assert model_runner_output is None
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is not None and not request.is_prefill_chunk:
                if request.num_output_tokens:  # drafts are always wrong here
                    request.num_computed_tokens -= request.drafts
                request.num_output_tokens += 1
                request.prefill_stats = None
                if request.num_output_tokens >= request.max_tokens:
                    self.running.remove(request)
                    request.reason = "length"
                    self._free_request(request)

    def wait_for_input(self, name: str) -> None:
        """Have a session wait for the next turn, with its KV blocks."""
        request = self.requests[name]
        self.running.remove(request)
        request.status = Status.WAITING_FOR_STREAMING_REQ
        self.num_waiting_for_streaming_input += 1
        self.kv_holding_waiting.prepend_requests([request])

    def go_on(self, name: str, tokens: int) -> None:
        """Give a session that waits for it its next turn."""
        request = self.requests[name]
        request.num_prompt_tokens += tokens
        request.max_tokens += 1
        request.status = Status.WAITING
        self.num_waiting_for_streaming_input -= 1

    def abort(self, name: str) -> None:
        """End a running request from outside."""
        request = self.requests[name]
        self.running.remove(request)
        self._inflight_prefills.discard(request)
        request.reason = "abort"
        self._free_request(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> None:
        assert not delay_free_blocks
        self.finished.add(request.request_id)
        del self.requests[request.request_id]

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        assert num_computed_tokens == request.num_computed_tokens
        return num_new_tokens

    def _with_images(self, request: Request, done: int, wanted: int) -> int:
        if not request.has_encoder_inputs:
            return wanted
        return self._try_schedule_encoder_inputs(request, done, wanted, 0)[1]

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int,
        encoder_compute_budget: int, shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:  # fmt: skip
        """Give the image a place, held while its prompt is begun; without one, stop before it."""
        assert not shift_computed_tokens
        self.images &= {one.request_id for one in self._inflight_prefills}
        end = num_computed_tokens + num_new_tokens
        if end > request.image_at and request.request_id not in self.images:
            if len(self.images) >= self.image_places:
                num_new_tokens = max(0, request.image_at - num_computed_tokens)
            else:
                self.images.add(request.request_id)
        return [], num_new_tokens, encoder_compute_budget, [], []

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        assert timestamp <= time.monotonic()
        assert not drop_stale_output
        self._inflight_prefills.discard(request)
        request.status, request.num_computed_tokens = Status.PREEMPTED, 0
        self.preempted.add(request.request_id)
        self.waiting.prepend_requests([request])

    def _request_blocks_can_be_freed(self, request: Request) -> bool:
        return request.request_id in self.requests

    def _is_blocked(self, request: Request) -> bool:
        if request.status is Status.WAITING_FOR_REMOTE_KVS:
            return request.request_id not in self.finished_recving_kv_req_ids
        if request.status is not Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            return request.status is Status.WAITING_FOR_STREAMING_REQ
        grammar = request.structured_output_request.grammar
        return grammar is None or isinstance(grammar, Exception)

    def _lacks_adapter(self, request: Request, chunks: dict[str, int]) -> bool:
        if self.lora_config is None or request.lora_request is None:
            return False
        loras = (self.requests[name].lora_request for name in chunks)
        held = {lora.lora_int_id for lora in loras if lora}
        is_held = request.lora_request.lora_int_id in held
        return not is_held and len(held) >= self.lora_config.max_loras

    def _find_cached(self, request: Request) -> int:
        """Have a request begin after what is cached of it, and note what was found at first."""
        if not request.num_computed_tokens and not request.skip_reading_prefix_cache:
            request.num_computed_tokens = request.cached
            if request.status is not Status.PREEMPTED:
                request.prefill_stats.num_local_cached_tokens = request.cached
        return request.num_computed_tokens

    def _free(self) -> int:
        return self._blocks - sum(request.blocks for request in self.running)


class WeirScheduler(StepOrder, Scheduler):
    """What `make_scheduler` makes, over the outline."""

    def step(self) -> dict[str, int]:
        """Run one step and return its chunks."""
        output: Output = self.schedule()
        self.update_from_output(output, None)
        return output.num_scheduled_tokens


def _to_allocate(*, num_tokens: int, new_computed_blocks: Any, **_: Any) -> int:
    held = [block for group in new_computed_blocks for block in group if block.ref_cnt]
    return -(-num_tokens // BLOCK) - len(held)


def _get_computed_blocks(request: Request) -> tuple[Any, int, int]:
    found = 0 if request.skip_reading_prefix_cache else request.cached
    return SimpleNamespace(blocks=([],)), found, 0


def request(name: str, rank: int, prompt: int, output: int = 4, due_s: float = 9.0) -> Request:
    return Request(name, prompt, engine_priority(rank, due_s), output)
