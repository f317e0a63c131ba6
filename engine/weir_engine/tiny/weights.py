"""Weights that speak the grammar, written down instead of learned.

A token's embedding says which word class it is, in a dimension of its own; the output layer holds
for each token its log-probability after each class. Between the two, attention and feed-forward
layers are random and may not touch the class dimensions: they only shift the odds *within* a
class, by everything that was said before. Computed in exactly rounded steps, so that the file is
the same wherever it is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weir_engine.tiny.grammar import FOLLOWERS, WordClass
from weir_engine.tiny.numbers import Numbers

Tensor = NDArray[np.float32]

CLASS_DIMENSIONS: Final = 24
"""Leading dimensions that carry the word class; 0 is unused, so that indices are classes."""

CLASS_WEIGHT: Final = 16.0
"""Size of the class in an embedding, beside 0.5 for each random dimension."""

REST: Final = 2.0
"""Root mean square, after all layers, of the dimensions that are not classes: measured."""

FOCUS: Final = 2.0
"""Factor on queries and keys: above 1, attention looks at a few tokens, not at their average."""

UNLIKELY: Final = -20.0
"""Log-odds of a token outside the grammar: never drawn, unless a JSON schema leaves no other."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one tiny model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int = 4096
    head_size: int = 32
    max_length: int = 16384
    """Longest prompt plus answer, in tokens."""


def tensors(shape: Shape, classes: Sequence[WordClass]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a Llama of `shape`; `classes` holds the class of each token."""
    numbers = Numbers(f"weights {shape}")
    yield "lm_head.weight", _output_layer(shape, classes, numbers)
    yield "model.embed_tokens.weight", _embeddings(shape, classes, numbers)
    for layer in range(shape.layers):
        for name, tensor in _layer(shape, numbers):
            yield f"model.layers.{layer}.{name}.weight", tensor
    yield "model.norm.weight", np.ones(shape.hidden, np.float32)


def safetensors(named: Mapping[str, Tensor]) -> bytes:
    """Return a safetensors file that holds the tensors as bfloat16, sorted by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in sorted(named.items()):
        parts.append(_bfloat16(tensor))
        end = offset + len(parts[-1])
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join([len(encoded).to_bytes(8, "little"), encoded, *parts])


def _embeddings(shape: Shape, classes: Sequence[WordClass], numbers: Numbers) -> Tensor:
    table = numbers.uniform((shape.vocabulary, shape.hidden), deviation=0.5)
    table[:, :CLASS_DIMENSIONS] = 0
    table[np.arange(len(classes)), list(classes)] = CLASS_WEIGHT
    return table


def _output_layer(shape: Shape, classes: Sequence[WordClass], numbers: Numbers) -> Tensor:
    """Return the layer whose product with a normed hidden state is the log-odds of each token."""
    # The final norm divides by the root mean square of everything.
    squares = CLASS_WEIGHT**2 + REST**2 * (shape.hidden - CLASS_DIMENSIONS)
    seen_class = CLASS_WEIGHT / math.sqrt(squares / shape.hidden)
    table = numbers.uniform((shape.vocabulary, shape.hidden), 1.2 / math.sqrt(shape.hidden))
    table[:, :CLASS_DIMENSIONS] = 0
    population = {one: list(classes).count(one) for one in WordClass}
    for last in WordClass:
        table[:, last] = UNLIKELY / seen_class
        for token, now in enumerate(classes):
            share = FOLLOWERS[last].get(now, 0.0)
            if share:
                table[token, last] = math.log(share / population[now]) / seen_class
    return table


def _layer(shape: Shape, numbers: Numbers) -> Iterator[tuple[str, Tensor]]:
    attention, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sizes = {
        "self_attn.q_proj": (attention, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.o_proj": (shape.hidden, attention),
        "mlp.gate_proj": (shape.feed_forward, shape.hidden),
        "mlp.up_proj": (shape.feed_forward, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.feed_forward),
    }
    for name, size in sizes.items():
        focus = FOCUS if name in {"self_attn.q_proj", "self_attn.k_proj"} else 1.0
        tensor = numbers.uniform(size, deviation=focus / math.sqrt(size[1]))
        if name in {"self_attn.o_proj", "mlp.down_proj"}:
            tensor[:CLASS_DIMENSIONS] = 0
        yield name, tensor
    yield "input_layernorm", np.ones(shape.hidden, np.float32)
    yield "post_attention_layernorm", np.ones(shape.hidden, np.float32)


def _bfloat16(tensor: Tensor) -> bytes:
    """Round to the nearest bfloat16, ties to even, and return the little-endian bytes."""
    bits = np.ascontiguousarray(tensor, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()
