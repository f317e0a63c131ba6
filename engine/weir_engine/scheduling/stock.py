"""vLLM's scheduler as our mixins see it, for the type checker only; `contract` checks the real one.

vLLM comes without types here, and which of its schedulers lies below (synchronous, asynchronous)
is chosen at start, so the mixins are written against this outline.
"""

from __future__ import annotations

from typing import Any


class Stock:
    """The methods and attributes of vLLM's scheduler that our mixins use."""

    running: list[Any]
    """Requests in the batch."""
    waiting: Any
    kv_holding_waiting: Any
    requests: dict[str, Any]
    max_num_running_reqs: int
    """Slots."""
    max_num_active_reqs: int
    max_num_scheduled_tokens: int
    """Most tokens of the next step."""
    max_model_len: int
    num_spec_tokens: int
    num_prefill_lookahead: int
    num_waiting_for_streaming_input: int
    current_step: int
    """Counts calls of `schedule`."""
    use_pp: bool
    """Whether stages of a pipeline compute several steps at a time."""
    block_size: int
    """Tokens of a KV block."""
    is_encoder_decoder: bool
    need_mamba_block_aligned_split: bool
    kv_cache_manager: Any
    cache_config: Any
    lora_config: Any
    requires_kv_delivery: bool
    scheduler_config: Any
    vllm_config: Any
    prev_step_scheduled_req_ids: set[str]
    finished_recving_kv_req_ids: set[str]
    """Requests whose KV blocks have come from elsewhere."""
    _pause_state: Any
    _inflight_prefills: set[Any]
    """Requests whose prompt is computed in part."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Form the next step."""
        raise NotImplementedError

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in what a step computed."""
        raise NotImplementedError

    def add_request(self, request: Any) -> None:
        """Queue a request."""
        raise NotImplementedError

    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any:
        """Let go of a request that has ended."""
        raise NotImplementedError

    def _reserve_prefill_lookahead(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Return how many of `num_new_tokens` the request gets in this step."""
        raise NotImplementedError

    def _try_schedule_encoder_inputs(
        self,
        request: Any,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """Choose a step's images; return them, the tokens that remain, and the encoder's budget."""
        raise NotImplementedError

    def _preempt_request(
        self, request: Any, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        """Free a request's KV blocks and put it back into the queue."""
        raise NotImplementedError

    def _request_blocks_can_be_freed(self, request: Any) -> bool:
        """Whether its blocks would be free at once."""
        raise NotImplementedError
