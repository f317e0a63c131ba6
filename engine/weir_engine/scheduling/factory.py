"""Makes the scheduler that vLLM asks for, and writes down what it became.

vLLM takes a name for `--scheduler-cls` and calls what it finds there; a function serves as well
as a class and can look at the configuration first: asynchronous or not, which policy, and whether
this vLLM is one that Weir knows.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Any, Literal

from weir_core.api.labels import ENV_RUN_DIR, FACTS_FILE, STEPS_SOCKET
from weir_core.wire.steps import Facts
from weir_engine.scheduling import contract
from weir_engine.scheduling.log import StepLog
from weir_engine.scheduling.telling import StepSender, write_facts

_log = logging.getLogger("vllm.weir")  # below vLLM's own logger, so that its handlers show it


def make_scheduler(**arguments: Any) -> Any:
    """Return a scheduler for vLLM's `arguments`, and tell the sidecar what it is."""
    config = arguments["vllm_config"]
    stock, version = stock_scheduler(config), _vllm_version()
    missing = contract.missing_methods(stock, contract.LOG_METHODS)
    scheduler = _logged(stock)(**arguments) if not missing else stock(**arguments)
    missing += contract.missing_attributes(scheduler, contract.LOG_ATTRIBUTES)
    fallback = contract.objection(version, missing)
    kind: Literal["priority", "fcfs"] = (
        "priority" if config.scheduler_config.policy == "priority" else "fcfs"
    )
    if fallback:
        _log.warning("%s; vLLM's own %s policy serves instead", fallback, kind)
    run_dir = os.environ.get(ENV_RUN_DIR)
    if run_dir:
        _tell(scheduler, Path(run_dir), facts_of(scheduler, kind, version, fallback))
    return scheduler


def facts_of(
    scheduler: Any, kind: Literal["weir", "priority", "fcfs"], version: str, fallback: str
) -> Facts:
    """Return what the sidecar is told of this engine, all of its data-parallel ranks together."""
    ranks = scheduler.vllm_config.parallel_config.data_parallel_size
    groups = max(1, len(scheduler.kv_cache_config.kv_cache_groups))
    # One block holds nothing: vLLM points to it where a table has no block.
    blocks = max(0, scheduler.cache_config.num_gpu_blocks - 1)
    return Facts(
        kind=kind,
        max_num_seqs=ranks * scheduler.scheduler_config.max_num_seqs,
        max_num_batched_tokens=scheduler.scheduler_config.max_num_batched_tokens,
        kv_capacity_tokens=ranks * blocks * scheduler.block_size // groups,
        vllm=version,
        fallback=fallback,
    )


def stock_scheduler(config: Any) -> type:
    """Return the scheduler that vLLM would take by itself."""
    asynchronous = config.scheduler_config.async_scheduling
    if config.model_config.is_diffusion:
        where, name = "diffusion_scheduler", "Diffusion{}Scheduler"
    elif asynchronous:
        where, name = "async_scheduler", "{}Scheduler"
    else:
        where, name = "scheduler", "{}Scheduler"
    module = importlib.import_module(f"vllm.v1.core.sched.{where}")
    chosen: type = getattr(module, name.format("Async" if asynchronous else ""))
    return chosen


def _logged(stock: type) -> type:
    return type("LoggedScheduler", (StepLog, stock), {})


def _tell(scheduler: Any, run_dir: Path, facts: Facts) -> None:
    if scheduler.vllm_config.parallel_config.data_parallel_index == 0:
        write_facts(facts, run_dir / FACTS_FILE)
    if isinstance(scheduler, StepLog):
        scheduler.sender = StepSender(run_dir / STEPS_SOCKET)


def _vllm_version() -> str:
    from vllm.version import __version__

    return str(__version__)
