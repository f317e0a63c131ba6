"""Engines to simulate: how long a step takes, and how much fits.

A step takes `base + max(weights, tokens) + sequences + attention`: reading the weights once is the
floor that makes small batches inefficient; each token costs compute; prefill chunks attend to
what came before them, and decodes read their KV cache. `h100-8b` is the model that the design's
figures were measured with; the other GPUs are derived from it by the ratio of their compute and
bandwidth, and say so. Only a calibration against a step log makes a profile a fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One model on one kind of machine.

    Attributes:
        base_s: Launching a step.
        weights_s: Reading the weights, the least time the matrix products take.
        token_s: Compute per token, prompt or output.
        sequence_s: Overhead per running sequence.
        prefill_context_s: Attention per prompt token and token before it.
        decode_context_s: KV cache read per token of context of a decode.
        max_num_seqs: Slots of the batch.
        max_num_batched_tokens: Token budget of a step.
        kv_blocks: Blocks of the KV cache.
        block_tokens: Tokens in a block.
        source: Where the numbers come from.
    """

    name: str
    base_s: float
    weights_s: float
    token_s: float
    sequence_s: float
    prefill_context_s: float
    decode_context_s: float
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_tokens: int
    source: str

    @property
    def kv_tokens(self) -> int:
        """Return the tokens that the KV cache holds."""
        return self.kv_blocks * self.block_tokens

    def step_s(
        self, prefill_tokens: int, decodes: int, prefill_context: int, decode_context: int
    ) -> float:
        """Return how long a step with this work takes."""
        return (
            self.base_s
            + max(self.weights_s, self.token_s * (prefill_tokens + decodes))
            + self.sequence_s * decodes
            + self.prefill_context_s * prefill_context
            + self.decode_context_s * decode_context
        )


def _gpu(name: str, compute: float, bandwidth: float, kv_tokens: int) -> EngineProfile:
    """Return an 8B model in bf16 on a GPU, relative to an H100."""
    return EngineProfile(
        name=name,
        base_s=1.2e-3,
        weights_s=6.7e-3 / bandwidth,
        token_s=33e-6 / compute,
        sequence_s=4e-6,
        prefill_context_s=1.0e-9 / compute,
        decode_context_s=7.6e-8 / bandwidth,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        kv_blocks=kv_tokens // 16,
        block_tokens=16,
        source="step model of an 8B model in bf16, H100 figures over the ratio of peak compute "
        "and memory bandwidth; not calibrated on the device",
    )


PROFILES: Mapping[str, EngineProfile] = {
    profile.name: profile
    for profile in (
        _gpu("h100-8b", compute=1.0, bandwidth=1.0, kv_tokens=396_000),
        _gpu("a100-8b", compute=0.315, bandwidth=0.6, kv_tokens=396_000),
        _gpu("l4-8b", compute=0.122, bandwidth=0.09, kv_tokens=40_000),
        EngineProfile(
            name="cpu-tiny",
            base_s=1.2e-3,
            weights_s=0.0,
            token_s=20e-6,
            sequence_s=45e-6,
            prefill_context_s=1.0e-9,
            decode_context_s=1.0e-8,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            kv_blocks=1024,
            block_tokens=128,
            source="the generated tiny model on two CPU cores: 770 output tokens/s for one "
            "stream, 12,000 for 64; the prefill and context terms are guesses",
        ),
    )
}


def slowed(profile: EngineProfile, speed: float) -> EngineProfile:
    """Return an engine that does everything at `speed` times a profile's pace."""
    return replace(
        profile,
        base_s=profile.base_s / speed,
        weights_s=profile.weights_s / speed,
        token_s=profile.token_s / speed,
        sequence_s=profile.sequence_s / speed,
        prefill_context_s=profile.prefill_context_s / speed,
        decode_context_s=profile.decode_context_s / speed,
    )
