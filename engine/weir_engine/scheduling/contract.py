"""What of vLLM the scheduler rests on; a vLLM that lacks it is refused, with the reason.

vLLM declares its scheduler's interface non-public. So every attribute that is read and every
method that is overridden stands in the tables below, and is looked for when an engine starts,
before anything is scheduled. An engine whose vLLM lacks one serves on with vLLM's own priority
policy and says why in its facts and its log.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Final

SUPPORTED: Final = ((0, 32), (0, 34))
"""From this version of vLLM on, and below that one."""

LOG_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "schedule": ("throttle_prefills",),
    "update_from_output": ("scheduler_output", "model_runner_output"),
    "add_request": ("request",),
    "_free_request": ("request", "delay_free_blocks"),
}
"""What the step log overrides, with the parameters it passes on."""

ORDER_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "_reserve_prefill_lookahead": ("request", "num_computed_tokens", "num_new_tokens"),
    "_try_schedule_encoder_inputs": (
        "request",
        "num_computed_tokens",
        "num_new_tokens",
        "encoder_compute_budget",
        "shift_computed_tokens",
    ),
    "_preempt_request": ("request", "timestamp"),
    "_request_blocks_can_be_freed": ("request",),
}
"""What Weir's order overrides or calls."""

FACTS_ATTRIBUTES: Final = (
    "block_size", "cache_config.enable_prefix_caching", "cache_config.num_gpu_blocks",
    "kv_cache_manager.coordinator.group_block_sizes",
    "scheduler_config.max_num_batched_tokens", "scheduler_config.max_num_seqs",
    "vllm_config.parallel_config.data_parallel_index",
)  # fmt: skip
"""What the sidecar must know of a scheduler that was made: nothing runs without these."""

LOG_ATTRIBUTES: Final = (
    "kv_cache_manager.block_pool", "kv_holding_waiting", "requests", "running", "use_pp",
    "waiting", "_inflight_prefills",
)  # fmt: skip
"""What the step log reads of it besides."""

ORDER_ATTRIBUTES: Final = (
    "current_step", "finished_recving_kv_req_ids", "is_encoder_decoder",
    "kv_cache_manager.coordinator.get_num_blocks_to_allocate",
    "kv_cache_manager.empty_kv_cache_blocks.blocks", "kv_cache_manager.get_blocks",
    "kv_cache_manager.get_computed_blocks", "kv_cache_manager.watermark_blocks",
    "kv_holding_waiting._heap", "lora_config", "max_model_len", "max_num_active_reqs",
    "max_num_scheduled_tokens", "need_mamba_block_aligned_split", "num_prefill_lookahead",
    "num_spec_tokens", "num_waiting_for_streaming_input",
    "prev_step_scheduled_req_ids", "requires_kv_delivery",
    "scheduler_config.disable_chunked_mm_input",
    "vllm_config.parallel_config.pipeline_parallel_size", "waiting._heap", "waiting.peek_request",
    "waiting.prepend_requests", "waiting.remove_requests", "_pause_state.name",
)  # fmt: skip
"""What Weir's order reads or sets besides."""

LOG_REQUEST: Final = (
    "get_finished_reason", "is_prefill_chunk", "num_computed_tokens", "num_output_tokens",
    "num_prompt_tokens", "num_tokens", "prefill_stats.num_local_cached_tokens", "priority",
    "request_id", "skip_reading_prefix_cache", "status.name",
)  # fmt: skip
"""What the step log reads of a request."""

ORDER_REQUEST: Final = (
    "drop_stale_output", "has_encoder_inputs", "lora_request", "next_decode_eligible_step",
    "num_output_placeholders", "num_stale_output_tokens", "num_tokens_with_spec", "resumable",
    "structured_output_request",
)  # fmt: skip
"""What Weir's order reads of one besides."""

LOG_OUTPUT: Final = (
    "num_scheduled_tokens", "preempted_req_ids", "scheduled_cached_reqs.resumed_req_ids",
    "scheduled_new_reqs", "total_num_scheduled_tokens",
)  # fmt: skip
"""What the step log reads of a step that vLLM formed."""

ORDER_OUTPUT: Final = ("finished_req_ids",)
"""What Weir's order reads of one besides."""


def version_objection(version: str) -> str:
    """Return why this version of vLLM is not supported, or an empty text."""
    low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and SUPPORTED[0] <= (int(numbers[1]), int(numbers[2])) < SUPPORTED[1]:
        return ""
    return f"Weir's scheduler is for vLLM >={low},<{high}; this is {version}"


def missing_methods(scheduler: type, wanted: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the methods that `scheduler` lacks or that take other parameters."""
    return [name for name, parameters in wanted.items() if not _takes(scheduler, name, parameters)]


def missing_attributes(owner: Any, wanted: tuple[str, ...]) -> list[str]:
    """Return the attributes, dotted ones included, that an object lacks."""
    return [path for path in wanted if not _has(owner, path)]


def objection(version: str, missing: list[str]) -> str:
    """Return the refusal of a vLLM, or an empty text if there is nothing against it."""
    about_version = version_objection(version)
    if not missing:
        return about_version
    low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
    return (
        f"vLLM {version} has no {', '.join(missing)} as Weir's scheduler needs; "
        f"install vLLM >={low},<{high}"
    )


def _takes(scheduler: type, name: str, parameters: tuple[str, ...]) -> bool:
    method = getattr(scheduler, name, None)
    return callable(method) and set(parameters) <= set(inspect.signature(method).parameters)


def _has(owner: Any, path: str) -> bool:
    value = owner
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True
