"""The parts of a page `/state` that the console shows, and the types that they must have.

The page is that of a sidecar of another version, or of a process in a pod that is no sidecar. What
is wrong in it is found here, so that neither the console nor its page in the browser meets it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Time = Annotated[float, Meta(ge=-1e12, le=1e12)]


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request; sidecars of an earlier version tell the client's id alone."""

    id: str
    class_name: str = msgspec.field(name="class")
    tenant: str
    key: str | None = None


class _InFlight(_Request, frozen=True, kw_only=True):
    waited_s: _Time
    prompt_tokens: _Count | None = None
    preempted: _Count = 0
    first_token_in_s: _Time | None = None
    due_in_s: _Time | None = None


class Waiting(_InFlight, frozen=True, kw_only=True):
    """A request in the pool."""

    position: _Count
    blocked_by: str = ""
    given_up_in_s: _Time | None = None


class Running(_InFlight, frozen=True, kw_only=True):
    """A request in the engine."""

    age_s: _Time
    began: bool
    output_tokens: _Count = 0
    by_min_share: bool = False


class Over(_Request, frozen=True, kw_only=True):
    """A request that has ended."""

    outcome: str
    ago_s: _Time
    age_s: _Time
    ttft_s: _Time | None = None
    sent_to: str = ""


class PoolOfClass(msgspec.Struct, frozen=True):
    """How many requests of a class wait."""

    name: str
    waiting: _Count


class Counts(msgspec.Struct, frozen=True):
    """Requests by how the scheduler treated them since it started."""

    dispatched: _Count
    finished: _Count
    preempted: _Count
    rejected: dict[str, _Count]


class Pool(msgspec.Struct, frozen=True):
    """The requests that wait at a gateway."""

    waiting: _Count
    classes: tuple[PoolOfClass, ...]
    counts: Counts
    queue: tuple[Waiting, ...]


class Engine(msgspec.Struct, frozen=True):
    """The bounds of an engine."""

    max_num_seqs: _Count
    kv_capacity_tokens: _Count = 0


class Scheduling(Pool, frozen=True):
    """The requests that wait at a replica, and those in its engine."""

    engine: Engine
    at_engine: _Count
    kv_tokens: _Count
    batch: tuple[Running, ...]


class Told(msgspec.Struct, frozen=True):
    """A replica, or a gateway.

    Attributes:
        scheduling: Of a replica; None before it met an engine.
        held: By a gateway.
    """

    phase: str
    engine: str = ""
    ended: tuple[Over, ...] = ()
    scheduling: Scheduling | None = None
    held: Pool | None = None


def read(state: Any) -> Told:
    """Return what is shown of a page.

    Raises:
        ValueError: It has other types; the message says where.
    """
    try:
        # Written and read again: a text that is no Unicode is found as well.
        return msgspec.json.decode(msgspec.json.encode(state), type=Told)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its page /state is not one that this console knows: {error}") from error
