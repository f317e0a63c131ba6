"""What sidecars of one service tell each other over the peer port.

Times are durations and ages, never instants. A reader ignores fields that it does not know, and
every field that came later has a default, so sidecars of neighbouring versions work beside each
other in both directions. A heartbeat and the loads in it go as arrays, without names of fields: a
new field comes last in its struct, and none is taken out.
"""

from __future__ import annotations

from typing import Final

import msgspec

from weir_core.route.types import Candidate, DigestUpdate, LoadVector
from weir_core.sched.types import ServedLately
from weir_core.wire.policies import PeerEntry

PROTOCOL: Final = 1
"""Raised where an older reader would misunderstand; such a peer gets no requests."""
HELLO_PATH: Final = "/weir/hello"
HEARTBEAT_PATH: Final = "/weir/heartbeat"
PLACES_PATH: Final = "/weir/places"
"""`weir_core.route.places.Message`, answered with an `Answer`."""
FORWARDED_HEADER: Final = b"x-weir-forwarded"
"""On a request that comes over the peer port: `Forwarded` as JSON."""
RETURNED_HEADER: Final = b"x-weir-returned"
"""On an answer: the request was not begun here, and why; whoever forwarded it routes it again."""


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """What a sidecar says of itself, in a heartbeat as in the answer to one.

    Attributes:
        name: Of the replica.
        address: Where its peer port is reached, HOST:PORT.
        epoch: A number that is higher after each start of the sidecar.
        load: None where it has no engine, as a gateway.
        age_s: Age of the load.
        received: The highest number of a request that the reader, in its present epoch, has
            forwarded and the writer has taken; it is in the load.
        peers: The sidecars that the writer knows, in the answer to one that asks for them.
        digest: What has changed in the prefixes that its engine has cached.
        digest_seq: The reader's digest that the writer has: base of the next update to it.
        protocol: `PROTOCOL` of the writer.
        asks_peers: The writer has not heard yet which sidecars the reader knows.
        served: What tenants were served at the writer; None from one that does not tell it.
    """

    name: str
    address: str
    epoch: int
    load: LoadVector | None = None
    age_s: float = 0.0
    received: int = 0
    peers: tuple[PeerEntry, ...] = ()
    digest: DigestUpdate | None = None
    digest_seq: int = 0
    protocol: int = PROTOCOL
    asks_peers: bool = False
    served: ServedLately | None = None


class Forwarded(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the sidecar that a client reached says of the request that it forwards.

    It has checked the key, the class and the tenant; the receiver trusts it for them.

    Attributes:
        class_name: The request's class.
        tenant: Who is accounted for it.
        payer: Whose limits it counts against.
        age_s: Time since it arrived at the first sidecar: it keeps its place by it.
        number: Counts what the sender has forwarded to the reader, from 1.
        hops: How often it was forwarded, this time included.
        ttft_target_s: The target that its client set, as far as its class lets it.
        prompt_tokens: Counted by an engine's tokenizer; None is not counted.
        may_return: The sender has other replicas left for it.
        explains: Its client asked for an explanation.
        reason: Why it was forwarded; for the explanation, as the next.
        candidates: What was compared.
        protocol: `PROTOCOL` of the sender.
        holds_place: It is counted among its payer's requests.
        is_counted: Its work is counted, by the sender or by a replica at which it was before.
        may_be_late: It came when no replica took requests: its target does not end its wait.
    """

    class_name: str
    tenant: str
    payer: str
    age_s: float
    number: int
    hops: int = 1
    ttft_target_s: float | None = None
    prompt_tokens: int | None = None
    may_return: bool = False
    explains: bool = False
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()
    protocol: int = PROTOCOL
    holds_place: bool = False
    is_counted: bool = False
    may_be_late: bool = False
