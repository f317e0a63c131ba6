"""What an engine tells its sidecar about itself: once at start, and after every step.

The facts are a file beside the engine's socket, written by our plug-in inside vLLM when its
scheduler is made. The steps are datagrams to a socket the sidecar binds; the engine never waits
for a reader, so some may be lost, and nothing may depend on having all of them.

Engine and sidecar are updated one after the other, so each reads what an older or a newer one
writes: fields are only ever added, with a default, and unknown ones are passed over.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from weir_core.sched.types import End

NOT_LOOKED_UP: Final = -1
"""In place of cached tokens: vLLM did not look into the prefix cache, as with `prompt_logprobs`."""


class Facts(msgspec.Struct, frozen=True):
    """What the engine is.

    Attributes:
        kind: How it orders requests; see `sched.types.EngineKind`.
        max_num_seqs: Slots of the running batch.
        max_num_batched_tokens: Most tokens one step may hold.
        kv_capacity_tokens: Tokens the KV cache holds.
        vllm: Its version.
        fallback: Why Weir's scheduler is not in use although it was wanted, else empty.
        block_tokens: Tokens of a KV block, in which prefix-cache hits are counted; 0 is unknown.
        prefix_caching: Whether it keeps the KV blocks of prompts for those that begin alike.
        tells_ends: Its steps tell how requests ended (`Step.ended`).
    """

    kind: Literal["weir", "priority", "fcfs"]
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: int
    vllm: str = ""
    fallback: str = ""
    block_tokens: int = 0
    prefix_caching: bool = True
    tells_ends: bool = False

    def encode(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Facts:
        """Read the file.

        Raises:
            ValueError: It does not hold facts.
        """
        return msgspec.json.decode(data, type=cls)


class Step(msgspec.Struct, frozen=True, gc=False):
    """One step of the engine; one datagram.

    Attributes:
        seq: Counts the steps of this data-parallel rank, from 1; a gap is a lost datagram.
        duration_s: From the start of scheduling to the sampled tokens. 0 in a record of no step,
            which an engine without work sends for `ended`.
        schedule_s: The part of it that scheduling took.
        prefill_tokens: Prompt tokens the step computed.
        decodes: Sequences that got one token each.
        prefill_context: Sum over prefill chunks of chunk tokens x tokens before them.
        decode_context: Sum over decodes of the tokens they attend to.
        running: Sequences in the batch afterwards.
        waiting: Requests the engine holds outside the batch.
        kv_free_tokens: Room left in the KV cache.
        prefill_left: Prompt tokens still to compute by rank.
        started: The `x-request-id` of requests whose prompt this step completed.
        preempted: Sequences that lost their KV in this step.
        engine: The data-parallel rank that computed it.
        mode: How Weir's scheduler divides its steps now; empty where vLLM's own divides them.
        prompts: For each of `started`, the tokens of its prompt and how many of them were found
            in the prefix cache when it was first scheduled: `NOT_LOOKED_UP` where vLLM did not
            look. Of several prompts or answers under one id, the first that the step completed.
            Empty where the engine does not tell.
        ended: Answers that ended since the last record. It is sent before the last piece of an
            answer leaves the engine, and after the last step that computed for one.
    """

    seq: int
    duration_s: float
    schedule_s: float = 0.0
    prefill_tokens: int = 0
    decodes: int = 0
    prefill_context: int = 0
    decode_context: int = 0
    running: int = 0
    waiting: int = 0
    kv_free_tokens: int = 0
    prefill_left: dict[int, int] = {}
    started: tuple[str, ...] = ()
    preempted: int = 0
    engine: int = 0
    mode: str = ""
    prompts: tuple[tuple[int, int], ...] = ()
    ended: tuple[End, ...] = ()


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Step)


def encode_step(step: Step) -> bytes:
    """Return one datagram."""
    return _ENCODER.encode(step)


def decode_step(datagram: bytes) -> Step:
    """Read one datagram.

    Raises:
        ValueError: It is not one.
    """
    return _DECODER.decode(datagram)
