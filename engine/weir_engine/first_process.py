"""The first process of a container gets no signal that it does not handle.

The kernel protects it so, whatever its namespace's owner sends. Python does not handle SIGTERM, and
vLLM does only after an import of 10 s and more: a pod that was deleted in that time, or while it
fetched weights, held its GPU until its grace period was over.

    python -m weir_engine.first_process ARGUMENT...    vLLM's command line
"""

from __future__ import annotations

import os
import signal


def heed_sigterm() -> None:
    """End at once at SIGTERM, until somebody has a better handler."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))


def main() -> None:
    """Be vLLM's command line."""
    heed_sigterm()
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
