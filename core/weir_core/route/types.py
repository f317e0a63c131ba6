"""What replicas tell each other of their load, what a request asks, and what the router answers.

Plain values, no behaviour. What goes from one replica to another holds durations and ages, never
instants: clocks of two machines agree on nothing else.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_Time = Annotated[float, Meta(ge=0.0, le=1e12)]
_Slack = Annotated[float, Meta(ge=-1e12, le=1e12)]
_Count = Annotated[int, Meta(ge=0, le=1 << 53)]
"""What a replica may say of itself. Sums of these stay numbers: a lie costs a hop, no failure."""


class ClassLoad(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a newcomer of one class finds before it at a replica.

    Attributes:
        wait_s: Predicted time in the request pool.
        ahead_tokens: Prompt tokens that the engine computes before the newcomer's.
        waiting: Requests in the request pool of its class and of higher ranks.
        waiting_tokens: KV room that they will take.
        offered: Seconds of this engine's work that arrive per second, in its class alone, what was
            rejected included; for the autoscaler, as the next two.
        backlog_s: Seconds of work that wait in its class alone.
        slack_s: Time until that work is due, the mean over it; below 0 it is late.
    """

    name: str
    wait_s: _Time
    ahead_tokens: _Count
    waiting: _Count = 0
    waiting_tokens: _Count = 0
    offered: _Time = 0.0
    backlog_s: _Time = 0.0
    slack_s: _Slack = 0.0


class LoadVector(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One replica's load, in the replica's own speed.

    Attributes:
        classes: The highest rank first.
        token_s: Time for one more prompt token.
        step_s: Time of a step that computes no prompt, with the present decodes.
        light_step_s: Time of a step with few decodes and no prompt: how fast it is at best.
        step_tokens: Most prompt tokens of a step.
        sequences_left: Free slots of the running batch.
        kv_tokens_left: Free KV room.
        draining: It takes nothing new, because it leaves or has no engine.
        sequences: Those that run.
        overdue_s: Time for which its engine has shown no progress beyond what its prompts explain.
    """

    classes: tuple[ClassLoad, ...]
    token_s: _Time
    step_s: _Time
    light_step_s: _Time
    step_tokens: _Count
    sequences_left: _Count
    kv_tokens_left: _Count
    draining: bool = False
    sequences: _Count = 0
    overdue_s: _Time = 0.0


class DigestUpdate(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A change of what a replica advertises of its prefix cache.

    Attributes:
        version: `VERSION` of the writer.
        epoch: A number that is higher after each start of the writer.
        base: The update applies to the digest of this number; 0 is the empty digest, and an
            update of it a snapshot.
        seq: Number of the digest that it makes; equal to `base` if nothing has changed.
        added: Keys, four bytes each, little-endian.
        removed: Keys, in the same way.
    """

    version: int
    epoch: int
    base: int
    seq: int
    added: bytes = b""
    removed: bytes = b""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What one request asks of a replica.

    Attributes:
        prompt_tokens: All of them, cached or not.
        output_tokens: Expected, of all its sequences.
        left_s: Time until its first token is due; None where nothing is due.
        ttft_target_s: The whole target, which says how urgent it is; None promises nothing.
        tpot_target_s: Target for the mean time per output token; None promises nothing.
        session_replica: The replica that served the session's earlier turns, where it is known.
        hops: How often it was forwarded already.
        tried: Replicas that returned it.
        is_lowest: Whether no request of a lower rank came by of late.
    """

    request_id: str
    class_name: str
    rank: int
    prompt_tokens: int
    output_tokens: int
    sequences: int = 1
    left_s: float | None = None
    ttft_target_s: float | None = None
    tpot_target_s: float | None = None
    session_replica: str = ""
    hops: int = 0
    tried: tuple[str, ...] = ()
    is_lowest: bool = False


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One replica as it was judged for one request, for `x-weir-explain`.

    Attributes:
        score_ms: The sum of the five parts that follow; the lowest is chosen.
        wait_ms: From its arrival there to its first token.
        recompute_ms: Charge for cached prefix tokens that another replica has and this one lacks.
        decode_ms: Charge for the decodes beside which it would run.
        room_ms: Charge for scarce slots or KV room.
        hop_ms: The way there and back.
        feasible: Whether it is expected to meet its targets there.
        age_ms: Age of what is known of the replica.
        cached_tokens: Prompt tokens that it is believed to have cached.
    """

    replica: str
    score_ms: float
    wait_ms: float
    recompute_ms: float
    decode_ms: float
    room_ms: float
    hop_ms: float
    feasible: bool
    age_ms: float
    cached_tokens: int = 0


class Keep(msgspec.Struct, frozen=True, gc=False):
    """Serve this request here.

    Attributes:
        reason: Stable code: `best`, `alone`, `hop-limit`.
        candidates: What was compared.
    """

    request_id: str
    reason: str
    candidates: tuple[Candidate, ...] = ()


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Send this request to another replica.

    Attributes:
        hops: How often it was forwarded, this time included.
        reason: Stable code: `best`, or `no-engine-here` where this sidecar serves nothing.
        candidates: What was compared.
    """

    request_id: str
    replica: str
    hops: int
    reason: str
    candidates: tuple[Candidate, ...] = ()


class Nowhere(msgspec.Struct, frozen=True, gc=False):
    """This sidecar has no engine, and there is no other replica that may get the request."""

    request_id: str


Route = Keep | Forward | Nowhere


class Move(msgspec.Struct, frozen=True, gc=False):
    """Give this waiting request up: it would begin sooner at another replica.

    The ingress of the request forwards it there. Any other sidecar returns it to its ingress,
    which routes it again with `replica` among the candidates.
    """

    request_id: str
    replica: str
