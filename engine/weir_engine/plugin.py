"""What vLLM loads of ours into each of its processes, before it does anything else.

vLLM calls every `vllm.general_plugins` entry point in the API server, the engine core and the
workers. Three things can only be done there.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from typing import Any, Final

from weir_engine.aliases import forget_unknown_names, serve_aliases
from weir_engine.scheduling.request_ids import carry_response_ids

STREAMS_END_WITHIN_S: Final = 2
"""After SIGTERM, longest wait of the API server for streams, in seconds. By then the sidecar has
drained, or the engine core that fed them is dead."""


def register() -> None:
    """Make this process of vLLM fit for a pod."""
    allow_matrix_tiles()
    bound_shutdown()
    if _computes_on_a_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        rewind_cut_prompts(CPUModelRunner)


def allow_matrix_tiles() -> None:
    """Ask the kernel for Intel's matrix tiles, where the CPU has them.

    vLLM chooses its AMX kernels by what the CPU can do, but a process may use the tiles only
    after it asked; without that, the first bfloat16 step dies of an illegal instruction.
    """
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def bound_shutdown() -> None:
    """Let the API server end although streams are open.

    At SIGTERM vLLM first stops the engine core (after `launch.DRAINS_FOR_S`), then waits for open
    responses without a limit: streams whose tokens will never come. It offers no setting for
    uvicorn's limit, so the configuration object gets it when it is loaded. Clients see their
    streams break off, which the sidecar turns into an error they can read.
    """
    import uvicorn

    load = uvicorn.Config.load

    def load_with_limit(self: uvicorn.Config) -> None:
        if self.timeout_graceful_shutdown is None:
            self.timeout_graceful_shutdown = STREAMS_END_WITHIN_S
        # The application is complete by now, in the one process that has one.
        carry_response_ids()
        serve_aliases(self.app)
        forget_unknown_names(self.app)
        load(self)

    uvicorn.Config.load = load_with_limit  # type: ignore[method-assign]


def rewind_cut_prompts(runner: Any) -> None:
    """Let a prompt with a `seed` be cut on a CPU.

    A cut prompt's step samples a token that is thrown away, and takes its draw from the random
    numbers. vLLM gives it back by an offset that only a GPU's generator has; a CPU's ends the
    engine, and here gets back the whole state it had before.
    """
    sample, bookkeep = runner._sample, runner._bookkeeping_sync

    def cut(self: Any) -> dict[int, Any]:
        generators = self.input_batch.generators
        return {one: generators[one] for one in generators if self.discard_request_mask.np[one]}

    @functools.wraps(sample)
    def sample_and_rewind(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in cut(self).values()]
        sampled = sample(self, *args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return sampled

    @functools.wraps(bookkeep)
    def bookkeep_without(self: Any, *args: Any, **kwargs: Any) -> Any:
        rewound = cut(self)
        for one in rewound:
            del self.input_batch.generators[one]
        try:
            return bookkeep(self, *args, **kwargs)
        finally:
            self.input_batch.generators.update(rewound)

    runner._sample, runner._bookkeeping_sync = sample_and_rewind, bookkeep_without


def _computes_on_a_cpu() -> bool:
    """Whether a model runs here; an API server that only talks to one need not load its code."""
    from vllm.platforms import current_platform

    alone = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
    return current_platform.is_cpu() and (
        alone or multiprocessing.current_process().name != "MainProcess"
    )
