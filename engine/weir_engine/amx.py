"""Asks the kernel for Intel's matrix tiles before vLLM's kernels use them.

vLLM chooses its AMX kernels by what the CPU can do, but a process may use the tiles only after
it asked; without that, the first bfloat16 step dies of an illegal instruction. vLLM calls every
`vllm.general_plugins` entry point in each of its processes before the first step, so that is
where the question is asked.
"""

from __future__ import annotations


def register() -> None:
    """Ask, where there are tiles to ask for."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
