"""What the scheduler is told and what it answers: plain values, no behaviour.

Every instant and every duration in this package is a float in seconds on the caller's own
monotonic clock; every amount of work is in tokens. A higher rank is more important; whoever
speaks to an engine that counts the other way negates it there, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

import msgspec


class EngineKind(Enum):
    """How the engine orders what it was given, which decides how much it may be given."""

    WEIR = "weir"
    """Weir's scheduler class: priority order in every step; lower prefills step aside."""
    PRIORITY = "priority"
    """vLLM with `--scheduling-policy priority`: waiting requests in order, prefills run on."""
    FCFS = "fcfs"
    """Plain vLLM: first come, first served."""


class Reason(Enum):
    """Why a request was rejected; the values are the stable codes clients see."""

    SATURATED = "rejected-saturated"
    """It could not be on time behind what already waits."""
    TTL_EXPIRED = "rejected-ttl-expired"
    """It waited as long as it may."""
    QUEUE_FULL = "rejected-queue-full"
    """The pool holds as many requests as it may."""
    MEMORY_FULL = "rejected-memory-full"
    """The bodies of waiting requests take as much memory as they may."""
    TENANT_LIMIT = "rejected-tenant-limit"
    """Its tenant has as much in flight, or sent as much this minute, as it may."""
    TOO_LARGE = "request-too-large"
    """It becomes more sequences than its tenant may have in flight: never, not later."""
    SHUTTING_DOWN = "rejected-shutting-down"
    """The replica drains."""


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """How important a request is and what it is promised; one InferencePriorityClass.

    Attributes:
        rank: Importance; higher goes first.
        weight: Share among classes of equal rank.
        min_share: Fraction of the served tokens the class is never starved below, 0 to 1.
        preemptible: Whether a higher rank may take its engine slot before its first token.
        ttft_target_s: Target from arrival to first token; None promises nothing.
        tpot_target_s: Target for the mean time per output token; None promises nothing.
        max_queue_wait_s: Longest wait in the pool; after it the request is rejected.
        shed: `predictive` rejects early what cannot be on time, `never` lets it wait behind
            what can.
    """

    name: str
    rank: int
    weight: float = 1.0
    min_share: float = 0.0
    preemptible: bool = False
    ttft_target_s: float | None = None
    tpot_target_s: float | None = None
    max_queue_wait_s: float = 60.0
    shed: Literal["never", "predictive"] = "predictive"


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """A tenant's share and bounds; one InferenceTenant. None is no limit.

    Attributes:
        max_requests: In flight at a time; one that becomes several sequences counts as so many.
    """

    name: str
    weight: float = 1.0
    max_requests: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds on what one replica holds for requests that wait.

    Attributes:
        max_requests: Waiting requests.
        max_bytes: Bodies of waiting requests, in bytes.
    """

    max_requests: int = 20_000
    max_bytes: int = 512 << 20


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine said about itself at start-up.

    Attributes:
        max_num_seqs: Slots of the running batch.
        max_num_batched_tokens: Most tokens one step may hold.
        kv_capacity_tokens: Tokens the KV cache holds.
    """

    kind: EngineKind
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: int


class Request(msgspec.Struct, frozen=True, gc=False):
    """One client call as the scheduler sees it.

    Attributes:
        arrival_s: When it reached the first Weir process; a request that comes back from a
            failed engine keeps it.
        body_bytes: Size of its body, which waits in memory with it.
        prompt_tokens: Exact count where someone knows it (`/tokenize`), else None; of all its
            prompts together, each of which the engine computes once.
        cached_tokens: Of these, prompt tokens the engine is believed to hold in its prefix cache.
        max_output_tokens: The client's bound on each sequence, where it gave one.
        endpoint: The API path; answers of different endpoints differ in length.
        ttft_target_s: The client's own target, which replaces its class's.
        payer: The tenant whose limits it counts against, where that is another one than `tenant`.
        sequences: What it becomes in the engine, all told: prompts of a list or documents, times
            answers to each (`n`, `best_of`, beams). Body and prompt tokens are those of the whole
            request; each sequence has an output of its own.
        holds_place: It is counted among its payer's requests already, by the sidecar that its
            client reached.
        is_counted: Its work is counted already, by a sidecar at which it was before.
        may_be_late: It came when no replica took requests: its target does not end its wait.
    """

    request_id: str
    tenant: str
    class_name: str
    arrival_s: float
    body_bytes: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    max_output_tokens: int | None = None
    endpoint: str = "/v1/chat/completions"
    ttft_target_s: float | None = None
    payer: str = ""
    sequences: int = 1
    holds_place: bool = False
    is_counted: bool = False
    may_be_late: bool = False


class Served(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Tokens (prompt + 2 x output) that a tenant was served in one class."""

    class_name: str
    tenant: str
    tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class ServedLately(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a replica tells of the tokens that it served.

    Attributes:
        number: Higher with each change.
        sums: Of those that were served within the last seconds, since each is told of.
    """

    number: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    sums: tuple[Served, ...] = ()


class End(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How one answer ended inside the engine, and what was computed for it.

    Attributes:
        request: Its `x-request-id`. With several prompts or answers each has a record of its own.
        reason: vLLM's word: stop, length, abort, error, repetition; empty where it has none.
        prompt_tokens: Of the prompt, once a token of the answer was put out; 0 before. The second
            and further answers to one prompt have 0.
        cached_tokens: Of these, found in the prefix cache; 0 where vLLM did not look.
        output_tokens: That were put out.
        prefill_tokens: That its prefills computed: the prompt's without the cached ones, and those
            that were computed again after a preemption.
        prefills: Prefills that came to their end, each with one token of the answer.
    """

    request: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    prefill_tokens: int
    prefills: int


class StepRecord(msgspec.Struct, frozen=True, gc=False):
    """One engine step, as the step log reports it.

    Attributes:
        duration_s: From the start of the forward pass to its sampled tokens.
        prefill_tokens: Prompt tokens the step computed.
        decodes: Sequences that got one token each.
        prefill_context: Sum over prefill chunks of chunk tokens x tokens before them.
        decode_context: Sum over decodes of the tokens they attend to.
    """

    duration_s: float
    prefill_tokens: int
    decodes: int
    prefill_context: int = 0
    decode_context: int = 0


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """Send this request to the engine now.

    Attributes:
        rank: For the engine's own order: its class's rank, or that of the class it went before
            on its minimum share where the engine would undo that otherwise (`pick`).
        waited_s: From arrival to this decision.
        by_min_share: It went before a higher rank because its class was owed its minimum.
    """

    request_id: str
    rank: int
    waited_s: float
    by_min_share: bool = False


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Reject this request; the client may try again after `retry_after_s`.

    One that was dispatched and has not begun is to be aborted in the engine.
    """

    request_id: str
    reason: Reason
    retry_after_s: float


class RequeueReason(Enum):
    """Why a request that was sent to the engine waits again."""

    PREEMPTED = "preempted"
    """A request of a higher rank gets its place."""
    ENGINE_GONE = "engine-gone"
    """The engine it was sent to is gone."""


class Requeue(msgspec.Struct, frozen=True, gc=False):
    """Abort this request in the engine, unseen by its client; it waits again.

    Attributes:
        in_favour_of: The request that gets its place, where it was preempted.
    """

    request_id: str
    reason: RequeueReason
    in_favour_of: str = ""


Action = Dispatch | Reject | Requeue


BUILT_IN_CLASSES: tuple[ClassPolicy, ...] = (
    ClassPolicy(
        "interactive", rank=100, ttft_target_s=1.0, tpot_target_s=0.05, max_queue_wait_s=10.0
    ),
    ClassPolicy(
        "standard",
        rank=0,
        min_share=0.1,
        preemptible=True,
        ttft_target_s=5.0,
        tpot_target_s=0.1,
        max_queue_wait_s=30.0,
    ),
    ClassPolicy(
        "batch",
        rank=-100,
        min_share=0.05,
        preemptible=True,
        ttft_target_s=60.0,
        tpot_target_s=0.5,
        max_queue_wait_s=600.0,
        shed="never",
    ),
)
"""Used when the cluster has no InferencePriorityClass."""
