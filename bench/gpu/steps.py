"""How long the steps of an 8B-shaped transformer take here, in the form of an engine's step log.

PyTorch alone is needed, so the file can be copied to any machine with a GPU:

    python steps.py --out steps.jsonl
    weir simulate calibrate steps.jsonl --out h100-8b.json

A step computes a prompt's chunk, which attends to what came before it, and decodes of one token
each, as vLLM's steps do: the matrix products over all tokens at once, attention apart. Weights are
random; their values change no time. Kernels are PyTorch's own, launched one by one, so that an
engine with fused kernels and CUDA graphs is faster, mostly in small steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as nn
from torch.nn.attention.bias import causal_lower_right

CHUNKS = (0, 16, 64, 256, 512, 1024, 2048, 4096)
DECODES = (0, 1, 4, 16, 64, 128, 256)
CONTEXTS = (128, 512, 2048, 8192)
LEAST_STEPS = 100
"""However slow the machine is: from fewer, no profile can be fitted."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer; by default those of Llama 3.1 8B."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    inner: int = 14336
    vocabulary: int = 128256

    @property
    def head(self) -> int:
        """Return the size of a head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class Work:
    """What a step computes.

    Attributes:
        chunk: Tokens of a prompt.
        decodes: Sequences that get one token each.
        context: Tokens before the chunk, and of each of the sequences.
    """

    chunk: int
    decodes: int
    context: int

    @property
    def kv_tokens(self) -> int:
        """Return the tokens whose keys and values the longer part of it attends to."""
        return max((self.chunk + self.context) * bool(self.chunk), self.decodes * self.context)


class Layer:
    """One layer, its weights and its part of the KV cache.

    Args:
        shape: Of the transformer.
        kv_tokens: Size of the KV cache.
        like: Gives device and type.
    """

    def __init__(self, shape: Shape, kv_tokens: int, like: torch.Tensor) -> None:
        self._shape = shape
        kv = shape.kv_heads * shape.head
        made = like.new_empty
        self._norm = made(shape.hidden).fill_(1.0)
        self._qkv = made(shape.hidden + 2 * kv, shape.hidden).normal_(std=0.02)
        self._out = made(shape.hidden, shape.hidden).normal_(std=0.02)
        self._up = made(2 * shape.inner, shape.hidden).normal_(std=0.02)
        self._down = made(shape.hidden, shape.inner).normal_(std=0.02)
        self._keys = made(kv_tokens * kv).normal_()
        self._values = made(kv_tokens * kv).normal_()

    def forward(self, hidden: torch.Tensor, work: Work) -> torch.Tensor:
        """Compute the layer for the tokens of a step, the chunk's first."""
        shape = self._shape
        normed = nn.rms_norm(hidden, (shape.hidden,), self._norm)
        queries = nn.linear(normed, self._qkv)[:, : shape.hidden]
        parts = []
        if work.chunk:
            parts.append(self._prefill(queries[: work.chunk], work))
        if work.decodes:
            parts.append(self._decode(queries[work.chunk :], work))
        hidden = hidden + nn.linear(torch.cat(parts), self._out)
        gate, up = nn.linear(nn.rms_norm(hidden, (shape.hidden,), self._norm), self._up).chunk(2, 1)
        return hidden + nn.linear(nn.silu(gate) * up, self._down)

    def _prefill(self, queries: torch.Tensor, work: Work) -> torch.Tensor:
        shape, tokens = self._shape, work.context + work.chunk
        asked = queries.view(1, work.chunk, shape.heads, shape.head).transpose(1, 2)
        group = shape.heads // shape.kv_heads
        keys, values = (
            cached.repeat_interleave(group, dim=1) for cached in self._cached(1, tokens)
        )
        mask = causal_lower_right(work.chunk, tokens)
        found = nn.scaled_dot_product_attention(asked, keys, values, attn_mask=mask)
        return found.transpose(1, 2).reshape(work.chunk, shape.hidden)

    def _decode(self, queries: torch.Tensor, work: Work) -> torch.Tensor:
        # The queries that share a head of keys are one sequence of queries: none is masked.
        shape = self._shape
        asked = queries.reshape(work.decodes, shape.kv_heads, -1, shape.head)
        found = nn.scaled_dot_product_attention(asked, *self._cached(work.decodes, work.context))
        return found.reshape(work.decodes, shape.hidden)

    def _cached(self, sequences: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = (sequences, self._shape.kv_heads, tokens, self._shape.head)
        count = sequences * tokens * self._shape.kv_heads * self._shape.head
        return self._keys[:count].view(size), self._values[:count].view(size)


class Transformer:
    """The layers, and the choice of the next tokens."""

    def __init__(self, shape: Shape, kv_tokens: int, device: str) -> None:
        self._like = torch.empty(0, dtype=torch.bfloat16, device=device)
        self._shape = shape
        self._layers = [Layer(shape, kv_tokens, self._like) for _ in range(shape.layers)]
        self._head = self._like.new_empty(shape.vocabulary, shape.hidden).normal_(std=0.02)

    def step_s(self, work: Work) -> float:
        """Compute a step and return how long it took."""
        tokens = work.chunk + work.decodes
        hidden = self._like.new_empty(tokens, self._shape.hidden).normal_()
        self._wait()
        begin = time.perf_counter()
        for layer in self._layers:
            hidden = layer.forward(hidden, work)
        answering = hidden[max(0, work.chunk - 1) :]  # the chunk's last token, and the decodes
        nn.linear(answering, self._head).argmax(dim=-1)
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._like.is_cuda:
            torch.cuda.synchronize()


def record(seq: int, work: Work, duration_s: float) -> dict[str, float]:
    """Return a step as a step log has it."""
    return {
        "seq": seq,
        "duration_s": duration_s,
        "prefill_tokens": work.chunk,
        "decodes": work.decodes,
        "prefill_context": work.chunk * (work.context + work.chunk // 2),
        "decode_context": work.decodes * work.context,
    }


def works(kv_tokens: int, most_chunk: int, chance: random.Random) -> list[Work]:
    """Return the steps that fit, in an order without a pattern."""
    grid = (Work(*each) for each in itertools.product(CHUNKS, DECODES, CONTEXTS))
    fitting = [
        work
        for work in grid
        if work.chunk + work.decodes and work.chunk <= most_chunk and work.kv_tokens <= kv_tokens
    ]
    chance.shuffle(fitting)
    return fitting


def measure(options: argparse.Namespace) -> int:
    """Write a log of steps until the time is over; return how many."""
    shape = Shape(
        options.layers, options.hidden, options.heads, options.kv_heads, options.inner,
        options.vocabulary,
    )  # fmt: skip
    until = time.monotonic() + options.seconds
    transformer = Transformer(shape, options.kv_tokens, options.device)
    chance, seq = random.Random(0), 0
    steps = works(options.kv_tokens, options.most_chunk, chance)
    with torch.inference_mode(), options.out.open("w") as out:
        while True:
            for work in steps:
                if time.monotonic() > until and seq >= LEAST_STEPS:
                    return seq
                transformer.step_s(work)  # chooses kernels, and takes memory
                for _ in range(options.repeats):
                    seq += 1
                    out.write(json.dumps(record(seq, work, transformer.step_s(work))) + "\n")


def main() -> None:
    """Measure, and say what to do with the result."""
    options = _options()
    where = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    steps = measure(options)
    print(f"{steps} steps on {where}, PyTorch {torch.__version__}: {options.out}")
    print(f"next: weir simulate calibrate {options.out} --out PROFILE.json")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    of = Shape()
    parser.add_argument("--out", type=Path, required=True, help="where the step log goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=300.0, help="of measuring; 300")
    parser.add_argument("--repeats", type=int, default=3, help="of each step in a row; 3")
    parser.add_argument(
        "--kv-tokens", type=int, default=131_072, help="of the KV cache: 16 GiB with the 8B shape"
    )
    parser.add_argument("--most-chunk", type=int, default=max(CHUNKS), help="most prompt tokens")
    for name in ("layers", "hidden", "heads", "kv_heads", "inner", "vocabulary"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(of, name), help="of the shape")
    return parser.parse_args()


if __name__ == "__main__":
    main()
