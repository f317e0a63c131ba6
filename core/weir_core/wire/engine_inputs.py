"""What of a request acts on vLLM's scheduling, placement or caches, and what becomes of it.

vLLM takes such wishes from headers and from fields of bodies. Each one is passed, counted, bounded,
replaced, stripped or refused here on purpose. A test reads the sources of the pinned vLLM: a header
or a field that a newer version adds makes it fail, with the name, until it is decided about.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from weir_core.wire.paths import Endpoint, Priority


class Treatment(StrEnum):
    """What becomes of a header or a field."""

    PASSED = "passed"
    COUNTED = "counted"
    """Passed, and what the engine will run because of it is counted."""
    BOUNDED = "bounded"
    """Passed where the class of the request allows it; else refused with 400 or 403."""
    REPLACED = "replaced"
    """The sidecar's own value goes to the engine."""
    READ = "read"
    """Used by the sidecar, and not passed on."""
    STRIPPED = "stripped"
    REFUSED = "refused"
    """400."""


class Rule(NamedTuple):
    """One decision, as the documents say it."""

    treatment: Treatment
    reason: str


_PASSED: Final = Treatment.PASSED
_COUNTED: Final = Treatment.COUNTED
_STRIPPED: Final = Treatment.STRIPPED
_REFUSED: Final = Treatment.REFUSED

PRIORITY_HEADER: Final = b"x-vllm-priority"

HEADERS: Final[dict[str, Rule]] = {
    "x-vllm-priority": Rule(
        Treatment.REPLACED, "class and deadline go in it; it overrides the body's `priority`"
    ),
    "x-data-parallel-rank": Rule(_STRIPPED, "it pins a request to one rank of the engine"),
    "x-request-id": Rule(
        Treatment.REPLACED,
        "by itself if it is one plain word, else by a new one; names the request",
    ),
    "x-session-id": Rule(
        _PASSED, "names a candidate among the replicas; vLLM only repeats it in its KV cache events"
    ),
    "authorization": Rule(Treatment.READ, "the engine has no use for a client's key"),
    "x-api-key": Rule(Treatment.READ, "the engine has no use for a client's key"),
    "content-type": Rule(_PASSED, "decides how the body is read"),
    "traceparent": Rule(_PASSED, "or replaced, so that vLLM's span is below the sidecar's"),
    "tracestate": Rule(_PASSED, "goes with `traceparent`"),
    "endpoint-load-metrics-format": Rule(_PASSED, "asks for load in a header of the answer"),
    "x-amzn-sagemaker-adapter-identifier": Rule(
        _STRIPPED, "it overrides the body's `model` on /invocations"
    ),
    "x-amzn-sagemaker-adapter-alias": Rule(_STRIPPED, "it names adapters to load"),
    "x-amzn-sagemaker-session-id": Rule(_STRIPPED, "it opens sessions that nothing here closes"),
}
"""Every request header that vLLM, or SageMaker's package inside it, reads by name; lower case."""

STRIPPED_HEADERS: Final = frozenset(
    name.encode()
    for name, rule in HEADERS.items()
    if rule.treatment is _STRIPPED or name.encode() == PRIORITY_HEADER
)
"""A client's headers of these names never reach the engine."""

FIELDS: Final[dict[str, Rule]] = {
    "priority": Rule(
        Treatment.REPLACED, "a wish to be less important; the engine gets the class's own value"
    ),
    "service_tier": Rule(_PASSED, "a wish for a class, which ends at what the key allows"),
    "n": Rule(_COUNTED, "each answer is a sequence of the engine"),
    "best_of": Rule(_PASSED, "vLLM ignores it; what runs is `n`"),
    "prompt": Rule(_COUNTED, "each prompt of a list is a request of the engine"),
    "prompt_embeds": Rule(_COUNTED, "each is a request of the engine"),
    "input": Rule(_COUNTED, "each text of a list is a request, except on /v1/responses"),
    "inputs": Rule(_COUNTED, "each is a request of the engine"),
    "texts": Rule(_COUNTED, "each is a request of the engine"),
    "images": Rule(_COUNTED, "on /v2/embed each is a request of the engine"),
    "messages": Rule(_COUNTED, "a list of conversations is as many requests"),
    "documents": Rule(_COUNTED, "each is a request of the engine on the scoring paths"),
    "items": Rule(_COUNTED, "each is a request of the engine"),
    "queries": Rule(_COUNTED, "each is a request of the engine"),
    "data_1": Rule(_COUNTED, "each is a request of the engine"),
    "data_2": Rule(_COUNTED, "each is a request of the engine"),
    "text_1": Rule(_COUNTED, "each is a request of the engine"),
    "text_2": Rule(_COUNTED, "each is a request of the engine"),
    "questions": Rule(_COUNTED, "each is a request of the engine"),
    "max_tokens": Rule(_COUNTED, "the most an answer can take of the engine"),
    "max_completion_tokens": Rule(_COUNTED, "the most an answer can take of the engine"),
    "max_output_tokens": Rule(_COUNTED, "the most an answer can take of the engine"),
    "sampling_params": Rule(_COUNTED, "holds `n`, `max_tokens` and `extra_args` on /inference"),
    "use_beam_search": Rule(
        Treatment.BOUNDED,
        "vLLM runs each of its steps at priority 0, so only classes of a rank above 0 may use it; "
        "`n` beams are counted",
    ),
    "background": Rule(_REFUSED, "the engine would go on after the answer, counted by nothing"),
    "kv_transfer_params": Rule(_REFUSED, "it moves KV blocks between engines"),
    "ec_transfer_params": Rule(_REFUSED, "it moves encoder outputs between engines"),
    "vllm_xargs": Rule(
        Treatment.BOUNDED,
        "its keys `kv_cache_report_mode`, `kv_transfer_params` and `ec_transfer_params` are "
        "refused; refused as a whole in forms (audio)",
    ),
    "cache_salt": Rule(_PASSED, "keeps a prefix from being shared; vLLM bounds its length"),
    "session_id": Rule(_PASSED, "vLLM only repeats it in its KV cache events"),
    "prompt_cache_key": Rule(_PASSED, "vLLM does nothing with it"),
    "request_id": Rule(_PASSED, "the header `x-request-id` overrides it where requests are told"),
    "prompt_logprobs": Rule(_PASSED, "the prompt is computed without the prefix cache"),
    "truncate_prompt_tokens": Rule(_PASSED, "only makes prompts shorter"),
    "stream_interval": Rule(_PASSED, "fewer and larger chunks of a stream"),
    "features": Rule(_PASSED, "only with `--enable-scale-out`, for trusted clients"),
    "media_io_kwargs": Rule(_PASSED, "vLLM refuses it without `--trust-request-mm-kwargs`"),
    "mm_processor_kwargs": Rule(_PASSED, "vLLM refuses it without `--trust-request-mm-kwargs`"),
}
"""The fields of request bodies that act on scheduling, placement or caches."""

EXTRA_ARGS: Final = ("kv_cache_report_mode", "kv_transfer_params", "ec_transfer_params")
"""Keys of `vllm_xargs`, and of `extra_args` in `sampling_params`, that are refused."""


class SentPriority(NamedTuple):
    """How the priority of a request goes to the engine.

    Attributes:
        header: A header line, or nothing.
        field: The body's `priority`, or None where the body is left as it is.
    """

    header: bytes
    field: int | None


_HEEDS_HEADER: Final = frozenset({Priority.HEADER, Priority.BOTH})
_HEEDS_BODY: Final = frozenset({Priority.BODY, Priority.BOTH})


def sent_priority(
    endpoint: Endpoint, priority: int | None, *, is_in_body: bool = False
) -> SentPriority:
    """Return how a request's priority is sent, so that the client's own is never heeded.

    Args:
        endpoint: The path asked for.
        priority: vLLM's priority; None for an engine that schedules by arrival, which refuses
            any but 0.
        is_in_body: The client wrote a priority.
    """
    value = priority or 0
    header = b""
    if endpoint.priority in _HEEDS_HEADER:
        header = b"%b: %d\r\n" % (PRIORITY_HEADER, value)
    is_written = priority is not None or is_in_body
    return SentPriority(header, value if is_written and endpoint.priority in _HEEDS_BODY else None)


def may_search_beams(rank: int, *, by_priority: bool) -> bool:
    """Tell whether a class may use beam search, whose steps vLLM runs at priority 0.

    Weir's ranks are negated at the engine, so 0 is before every deadline of rank 0 and below.

    Args:
        rank: The class's rank.
        by_priority: The engine schedules by priority.
    """
    return rank > 0 or not by_priority


def bounded_target_s(asked_s: float | None, class_target_s: float | None) -> float | None:
    """Return the TTFT target that a request has of its own, or None where its class's holds.

    The deadline orders requests of one class, so one that asks for less than its class is promised
    would overtake all others of the class. A class without a target promises nothing.
    """
    if asked_s is None or class_target_s is None:
        return None
    return max(asked_s, class_target_s)
