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

from weir_core.api.labels import (
    ENV_ENGINE_CONFIG,
    ENV_RUN_DIR,
    FACTS_FILE,
    MODE_SOCKET,
    STEPS_SOCKET,
)
from weir_core.wire.engine import EngineConfig
from weir_core.wire.steps import Facts
from weir_engine.scheduling import contract
from weir_engine.scheduling.log import StepLog, tokens_in
from weir_engine.scheduling.ordered import StepOrder
from weir_engine.scheduling.telling import ModeReader, StepSender, write_facts

EngineKind = Literal["weir", "priority", "fcfs"]

_log = logging.getLogger("vllm.weir")  # below vLLM's own logger, so that its handlers show it


def make_scheduler(**arguments: Any) -> Any:
    """Return a scheduler for vLLM's `arguments`, and tell the sidecar what it is."""
    config = arguments["vllm_config"]
    stock, version = stock_scheduler(config), _vllm_version()
    by_priority = config.scheduler_config.policy == "priority"
    kind: EngineKind = "priority" if by_priority else "fcfs"
    fallback = contract.objection(version, _missing_in(stock, order=True)) or _unfit(config)
    # An embeddings engine has no decodes to protect, so vLLM's own order is all that is wanted.
    wanted = by_priority and config.model_config.runner_type != "pooling"
    scheduler = _scheduler_class(stock, wanted and not fallback)(**arguments)
    if missing := contract.missing_attributes(scheduler, contract.FACTS_ATTRIBUTES):
        raise RuntimeError(contract.objection(version, missing))
    if isinstance(scheduler, StepLog) and scheduler.missing:
        fallback = fallback or contract.objection(version, scheduler.missing)
    if isinstance(scheduler, StepOrder):
        fallback = fallback or _unfit_model(scheduler)
        scheduler.orders = not fallback
        kind = "priority" if fallback else "weir"
    if fallback:
        _log.warning("%s; vLLM's own %s policy serves instead", fallback, kind)
    run_dir = os.environ.get(ENV_RUN_DIR)
    if run_dir:
        _connect(scheduler, Path(run_dir), facts_of(scheduler, kind, version, fallback))
    return scheduler


def facts_of(scheduler: Any, kind: EngineKind, version: str, fallback: str) -> Facts:
    """Return what the sidecar is told of this engine, all of its data-parallel ranks together."""
    ranks = _ranks(scheduler.vllm_config.parallel_config)
    # One block holds nothing: vLLM points to it where a table has no block.
    blocks = max(0, scheduler.cache_config.num_gpu_blocks - 1)
    return Facts(
        kind=kind,
        max_num_seqs=ranks * scheduler.scheduler_config.max_num_seqs,
        max_num_batched_tokens=scheduler.scheduler_config.max_num_batched_tokens,
        kv_capacity_tokens=ranks * tokens_in(scheduler, blocks),
        vllm=version,
        fallback=fallback,
        block_tokens=scheduler.block_size,
        prefix_caching=scheduler.cache_config.enable_prefix_caching,
        tells_ends=isinstance(scheduler, StepLog) and not scheduler.missing,
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


def _scheduler_class(stock: type, ordered: bool) -> type:
    """Return the most of ours that this vLLM can carry."""
    if _missing_in(stock, order=False):
        return stock
    ours = StepOrder if ordered else StepLog
    return type("WeirScheduler" if ordered else "LoggedScheduler", (ours, stock), {})


def _missing_in(stock: type, *, order: bool) -> list[str]:
    """Return what vLLM's scheduler, requests and steps lack for the log, or for the order too."""
    request, output = _samples()
    missing = [
        *contract.missing_methods(stock, contract.LOG_METHODS),
        *contract.missing_attributes(request, contract.LOG_REQUEST),
        *contract.missing_attributes(output, contract.LOG_OUTPUT),
    ]
    if order:
        missing += contract.missing_methods(stock, contract.ORDER_METHODS)
        missing += contract.missing_attributes(request, contract.ORDER_REQUEST)
        missing += contract.missing_attributes(output, contract.ORDER_OUTPUT)
    return missing


def _samples() -> tuple[Any, Any]:
    """Return a request and a formed step of this vLLM, to look at."""
    try:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.sched.output import SchedulerOutput
        from vllm.v1.request import Request

        request = Request("sample", [0], SamplingParams(max_tokens=1), None)
        return request, SchedulerOutput.make_empty()
    except (ImportError, AttributeError, TypeError):
        return None, None  # they are made otherwise, so nothing is known of what they have


def _unfit(config: Any) -> str:
    """Return why this configuration leaves nothing to order, or an empty text."""
    if config.model_config.is_diffusion:
        return "a diffusion model is not computed in prefill chunks"
    if not config.scheduler_config.enable_chunked_prefill:
        return "chunked prefill is off"
    return ""


def _unfit_model(scheduler: Any) -> str:
    """Return why this engine's prompts cannot be cut freely, or an empty text."""
    if scheduler.is_encoder_decoder:
        return "an encoder-decoder model takes its prompt whole"
    if scheduler.need_mamba_block_aligned_split:
        return "this model's state is cached at fixed places, where its prompts must be cut"
    if getattr(scheduler, "local_prefill_interval", 1) > 1:  # from vLLM 0.33 on
        return "--prefill-schedule-interval holds all prompts back for some steps"
    return ""


def _connect(scheduler: Any, run_dir: Path, facts: Facts) -> None:
    parallel = scheduler.vllm_config.parallel_config
    rank = parallel.data_parallel_index
    if rank == 0:
        write_facts(facts, run_dir / FACTS_FILE)
    if isinstance(scheduler, StepLog):
        scheduler.sender = StepSender(run_dir / STEPS_SOCKET)
        scheduler.engine_index = rank
    if isinstance(scheduler, StepOrder) and scheduler.orders:
        paths = [run_dir / MODE_SOCKET]
        paths += [run_dir / f"{MODE_SOCKET}.{one}" for one in range(1, _ranks(parallel))]
        # The sidecar knows the first rank's socket; that rank tells the others.
        scheduler.modes = ModeReader(paths[rank], tuple(paths[1:]) if rank == 0 else ())


def _ranks(parallel: Any) -> int:
    """Return the schedulers of this engine, one for each data-parallel rank.

    vLLM tells the ranks of a model without experts that each is the only one, and keeps nothing
    of the others but its own number: how many there are is known from what we asked for.
    """
    text = os.environ.get(ENV_ENGINE_CONFIG)
    asked_for = EngineConfig.model_validate_json(text).parallelism.data if text else 1
    return max(asked_for, int(parallel.data_parallel_size))


def _vllm_version() -> str:
    from vllm.version import __version__

    return str(__version__)
