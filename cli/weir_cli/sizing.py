"""How many GPUs, how much memory and how much disk a replica needs for weights of a size; pure.

The figures are for a start: what a replica needs to load and to have a KV cache of some size. A
longer context or more requests at once take more.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

from weir_core.errors import InvalidSpec

GIB: Final = 2**30
WEIGHTS_SHARE: Final = 0.75
"""Of the GPUs' memory; the rest is for the KV cache, activations and CUDA graphs."""
MOST_GPUS: Final = 8
"""Of one node, as a rule; a replica is one pod."""
PROCESS_GIB: Final = 4
"""Memory of the node for each GPU's process of vLLM, without weights."""
LARGEST_FILE_GIB: Final = 5
"""Files of weights are rarely larger."""
CPU_SHARE_KV: Final = 0.25
"""Of the memory limit, where vLLM runs on the CPU (docs/engine.md)."""
DISK_BESIDE_GIB: Final = 2
"""Tokenizer, compiled kernels, logs."""
CPU_CORES: Final = 4

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B?", re.IGNORECASE)


class Weights(NamedTuple):
    """Weights of a model.

    Attributes:
        size: In bytes.
        largest: The largest file of them, in bytes.
        restricted: They are downloaded with a token only.
    """

    size: int
    largest: int
    restricted: bool = False


class Needs(NamedTuple):
    """What one replica needs; memory and disk are of the node, in GiB."""

    gpus: int
    cpus: int
    memory_gib: int
    disk_gib: int


def parse_size(option: str, text: str) -> int:
    """Return the bytes of a size like `16GiB`, `16Gi` or `16GB`.

    Raises:
        InvalidSpec: It is none; the error names the option.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise InvalidSpec(option, f"{text!r} is not a size; write it like 16GiB")
    power = "KMGT".index(found[2].upper()) + 1
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def by_hand(size: int) -> Weights:
    """Return weights of which only the size is known."""
    return Weights(size, min(size, LARGEST_FILE_GIB * GIB))


def needs_with_gpus(weights: Weights, gpu_bytes: int, *, fetched: bool) -> Needs:
    """Return what a replica on GPUs of `gpu_bytes` each needs.

    Raises:
        InvalidSpec: It does not fit on one node.
    """
    gpus = 1
    while weights.size > gpus * gpu_bytes * WEIGHTS_SHARE:
        gpus *= 2
    if gpus > MOST_GPUS:
        raise InvalidSpec(
            "--gpu-memory",
            f"weights of {shown(weights.size)} take {gpus} GPUs of {shown(gpu_bytes)}, and a "
            f"replica is one pod on one node, of {MOST_GPUS} as a rule; write the size of larger "
            "GPUs, or choose a quantized model",
        )
    memory = gpus * (PROCESS_GIB + _gib(weights.largest))
    return Needs(gpus, gpus, memory, _disk(weights, fetched))


def needs_of_cpu(weights: Weights, *, fetched: bool) -> Needs:
    """Return what a replica without a GPU needs: weights and KV cache are in its memory."""
    beside_kv = weights.size / GIB + PROCESS_GIB
    return Needs(0, CPU_CORES, math.ceil(beside_kv / (1 - CPU_SHARE_KV)), _disk(weights, fetched))


def shown(size: int) -> str:
    """Return a size for people."""
    return f"{size / GIB:.3g} GiB"


def _disk(weights: Weights, fetched: bool) -> int:
    return DISK_BESIDE_GIB + (_gib(weights.size) if fetched else 0)


def _gib(size: int) -> int:
    return math.ceil(size / GIB)
