"""What is read of bodies, as msgspec reads it.

These classes are apart from the code that uses them: that is compiled by mypyc, and msgspec makes
its classes at run time.
"""

from __future__ import annotations

from typing import Final

import msgspec

NOTHING: Final = msgspec.Raw(b"")
"""Stands for a field that is not there."""


class RequestBody(msgspec.Struct, frozen=True, gc=False):
    """What Weir keeps of a body; it holds nothing of the body's bytes.

    Attributes:
        model: The model named, or None.
        streams: The answer is to be a stream of events.
        prompts: Prompts that the engine computes, one at least.
        sequences: Answers that the engine computes: prompts times `n`.
        max_output_tokens: The most tokens of one answer, or None where the client did not say.
        searches_beams: vLLM runs each step of each sequence as a request of its own.
        priority: The client's own wish, in vLLM's polarity.
        service_tier: OpenAI's wish.
        temperature: For traces.
        top_p: For traces.
    """

    model: str | None = None
    streams: bool = False
    prompts: int = 1
    sequences: int = 1
    max_output_tokens: int | None = None
    searches_beams: bool = False
    priority: int | None = None
    service_tier: str | None = None
    temperature: float | None = None
    top_p: float | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of one answer, as the engine reported them."""

    prompt_tokens: int
    output_tokens: int


class TokenCount(msgspec.Struct, frozen=True, gc=False):
    """The answer of vLLM's /tokenize, as far as it is read."""

    count: int


class Extra(msgspec.Struct, frozen=True, gc=False):
    """The keys of `vllm_xargs` and `extra_args` that are refused."""

    kv_cache_report_mode: msgspec.Raw = NOTHING
    kv_transfer_params: msgspec.Raw = NOTHING
    ec_transfer_params: msgspec.Raw = NOTHING


class Sampling(msgspec.Struct, frozen=True, gc=False):
    """What of `sampling_params` counts."""

    n: int | None = None
    max_tokens: int | None = None
    extra_args: Extra | None = None


class Body(msgspec.Struct, frozen=True, gc=False):
    """The fields that are read, in the order in which clients mostly write them."""

    model: str | None = None
    messages: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING
    input: msgspec.Raw = NOTHING
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    priority: int | None = None
    service_tier: str | None = None
    use_beam_search: bool | None = None
    background: bool | None = None
    vllm_xargs: Extra | None = None
    kv_transfer_params: msgspec.Raw = NOTHING
    ec_transfer_params: msgspec.Raw = NOTHING
    sampling_params: Sampling | None = None
    prompt_embeds: msgspec.Raw = NOTHING
    query: msgspec.Raw = NOTHING
    queries: msgspec.Raw = NOTHING
    documents: msgspec.Raw = NOTHING
    items: msgspec.Raw = NOTHING
    data_1: msgspec.Raw = NOTHING
    data_2: msgspec.Raw = NOTHING
    text_1: msgspec.Raw = NOTHING
    text_2: msgspec.Raw = NOTHING
    texts: msgspec.Raw = NOTHING
    images: msgspec.Raw = NOTHING
    inputs: msgspec.Raw = NOTHING
    questions: msgspec.Raw = NOTHING


class PromptFields(msgspec.Struct, frozen=True, gc=False):
    """The fields that prompts are rendered from, or that set their KV blocks apart."""

    messages: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING
    input: msgspec.Raw = NOTHING
    system: msgspec.Raw = NOTHING
    instructions: msgspec.Raw = NOTHING
    tools: msgspec.Raw = NOTHING
    documents: msgspec.Raw = NOTHING
    previous_response_id: msgspec.Raw = NOTHING
    cache_salt: str | None = None
