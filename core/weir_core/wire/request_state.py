"""What a sidecar says of the requests of one id, for `weir explain NAME --request ID`."""

from __future__ import annotations

from typing import Final

import msgspec

from weir_core.route.types import Candidate

REQUESTS_PATH: Final = "/requests"
"""With the id in the query, `/requests?id=ID`: on the admin socket, and on the admin port for what
holds a key of the service."""


class Waits(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request in the pool.

    Attributes:
        waited_s: So far.
        position: By rank and arrival; 1 is the first. Inside a class, tenants share by tokens.
        ahead: How many wait before it, by class.
        blocked_by: What the engine lacks for it now (`weir_core.sched.gate.Block`); empty where
            only those ahead of it do.
        first_token_in_s: Predicted; None before the engine's rate was measured.
        given_up_in_s: Time until its class's longest wait, or its target, is over.
    """

    waited_s: float
    position: int
    ahead: dict[str, int] = {}
    blocked_by: str = ""
    first_token_in_s: float | None = None
    given_up_in_s: float | None = None


class Runs(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request in the engine.

    Attributes:
        waited_s: In the pool, before it was dispatched.
        rank: At which the engine was asked to order it.
        by_min_share: It went before a higher class, because its own was owed its minimum share.
        began: Its first token is there.
        first_token_in_s: Predicted; negative is late. None once it began, or where it is unknown.
        output_tokens: So far, as its stream was last counted.
    """

    waited_s: float
    rank: int
    by_min_share: bool = False
    began: bool = False
    first_token_in_s: float | None = None
    output_tokens: int = 0


class RequestState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request in flight.

    Attributes:
        class_name: Its class; `none` before that is known.
        tenant: To which it is accounted.
        age_s: Since its head came.
        forwarded_to: The replica that it was sent to; it knows the rest.
        was_forwarded: Another sidecar sent it here.
        tried: Replicas that it came back from.
        requeues: How often it lost its place, and waited again.
        waits: Where it is in the pool here.
        runs: Where the engine here has it.
        routed: Why it is where it is, as this sidecar decided last; empty where it decided nothing.
        candidates: The replicas that were compared then.
    """

    class_name: str
    tenant: str
    age_s: float
    forwarded_to: str = ""
    was_forwarded: bool = False
    tried: tuple[str, ...] = ()
    requeues: int = 0
    waits: Waits | None = None
    runs: Runs | None = None
    routed: str = ""
    candidates: tuple[Candidate, ...] = ()


class EndedState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request that has ended.

    Attributes:
        class_name: Its class.
        tenant: To which it was accounted.
        outcome: How it ended (`weir_sidecar.outcomes.Outcome`).
        ago_s: Time since then.
        age_s: From its head to its end.
        ttft_s: From its head to the first byte of its answer; None where none came.
        forwarded_to: The replica that had it last; empty where it stayed.
        was_forwarded: Another sidecar sent it here; that one knows what its client got.
        routed: Why it was served where it was; empty where this sidecar did not decide it.
        candidates: The replicas that were compared then.
    """

    class_name: str
    tenant: str
    outcome: str
    ago_s: float
    age_s: float
    ttft_s: float | None = None
    forwarded_to: str = ""
    was_forwarded: bool = False
    routed: str = ""
    candidates: tuple[Candidate, ...] = ()


class RequestReport(msgspec.Struct, frozen=True):
    """The requests of one id at one sidecar: clients may use an id twice.

    Attributes:
        pod: Whose sidecar it is.
        requests: Those in flight.
        ended: Those among the last that ended, the newest first.
    """

    pod: str
    requests: tuple[RequestState, ...] = ()
    ended: tuple[EndedState, ...] = ()

    def encode(self) -> bytes:
        """Return the page."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, page: bytes) -> RequestReport:
        """Read the page.

        Raises:
            ValueError: It is not one.
        """
        return msgspec.json.decode(page, type=cls)
