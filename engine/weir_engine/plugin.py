"""What vLLM loads of ours into each of its processes, before it does anything else.

vLLM calls every `vllm.general_plugins` entry point in the API server, the engine core and the
workers. Two things can only be done there.
"""

from __future__ import annotations

from typing import Final

from weir_engine.scheduling.request_ids import carry_response_ids

STREAMS_END_WITHIN_S: Final = 2
"""After SIGTERM, longest wait of the API server for streams, in seconds. By then the sidecar has
drained, or the engine core that fed them is dead."""


def register() -> None:
    """Make this process of vLLM fit for a pod."""
    allow_matrix_tiles()
    bound_shutdown()


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

    At SIGTERM vLLM first stops the engine core, then waits for open responses without a limit:
    streams whose tokens will never come. It offers no setting for uvicorn's limit, so the
    configuration object gets it when it is loaded. Clients see their streams break off, which
    the sidecar turns into an error they can read.
    """
    import uvicorn

    load = uvicorn.Config.load

    def load_with_limit(self: uvicorn.Config) -> None:
        if self.timeout_graceful_shutdown is None:
            self.timeout_graceful_shutdown = STREAMS_END_WITHIN_S
        # The application is complete by now, in the one process that has one.
        carry_response_ids()
        load(self)

    uvicorn.Config.load = load_with_limit  # type: ignore[method-assign]
