"""LoRA adapters for the generated models, generated too: the same to the byte everywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

from weir_engine.tiny.model import SIZES
from weir_engine.tiny.numbers import Numbers
from weir_engine.tiny.weights import CLASS_DIMENSIONS, Tensor, safetensors

RANK: Final = 8


def write_adapter(directory: Path, name: str, size: str = "") -> Path:
    """Write the adapter that `name` stands for, in PEFT's form, and return where it is.

    It changes what the attention of each layer looks for and what it says, strongly enough that
    answers differ, but like the model itself leaves the word classes alone.
    """
    shape, numbers = SIZES[size], Numbers(f"adapter {name} {size}")
    attention = shape.heads * shape.head_size
    tensors: dict[str, Tensor] = {}
    for layer in range(shape.layers):
        for module, out, into in (
            ("q_proj", attention, shape.hidden),
            ("o_proj", shape.hidden, attention),
        ):
            down = numbers.uniform((RANK, into), deviation=2 / math.sqrt(into))
            up = numbers.uniform((out, RANK), deviation=2 / math.sqrt(RANK))
            if module == "o_proj":
                up[:CLASS_DIMENSIONS] = 0
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "target_modules": ["q_proj", "o_proj"],
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    path = directory / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    return path
