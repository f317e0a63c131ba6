"""Where the two servers differ on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.http.inputs import MAX_HEADER_BYTES
from bench.http.sides import Seen

REFUSED: Final = 400
"""Answers from this status on refuse, and end the connection."""
_SPOKEN: Final = frozenset({"1.0", "1.1"})
_SINGLE: Final = frozenset(
    (b"content-location", b"content-range", b"content-type", b"etag", b"max-forwards", b"server",
     b"user-agent"),
)  # fmt: skip
"""Headers of which aiohttp takes one, those left out that say where a request goes or ends."""
_TAB_BEHIND: Final = re.compile(rb"chunked *\t", re.IGNORECASE)
_SPACE_BYTES: Final = 32
"""White space that a head may hold and aiohttp does not show."""


@dataclass(frozen=True)
class Parting:
    """Where two records part: what both made of the requests before it is the same.

    Attributes:
        ours: What the sidecar's server handed over next, or None.
        theirs: What aiohttp's handed over next, or None.
        last: The last request of both, or None.
        our_status: What the sidecar's server answered instead of or to its next request, or None.
        their_status: What aiohttp's answered, likewise.
        closes: The sidecar's server has ended the connection.
        data: All that was sent.
    """

    ours: Seen | None
    theirs: Seen | None
    last: Seen | None
    our_status: int | None
    their_status: int | None
    closes: bool
    data: bytes

    @property
    def we_refuse(self) -> bool:
        """Whether the next request is refused unread by the sidecar's server."""
        return self.ours is None and (self.our_status or 0) >= REFUSED

    @property
    def they_refuse(self) -> bool:
        """Whether the next request is refused unread by aiohttp's."""
        return self.theirs is None and (self.their_status or 0) >= REFUSED

    @property
    def we_end(self) -> bool:
        """Whether the sidecar's server takes nothing more, and says no more."""
        return self.ours is None and self.our_status is None and self.closes


@dataclass(frozen=True)
class Difference:
    """A difference that was decided.

    Attributes:
        name: A few words.
        ours: What the sidecar's server does.
        theirs: What aiohttp's does.
        reason: Why the sidecar's does so.
        explains: Tells whether it is why two records part.
    """

    name: str
    ours: str
    theirs: str
    reason: str
    explains: Callable[[Parting], bool]


def _version(parting: Parting) -> bool:
    theirs = parting.theirs
    is_other = theirs is not None and theirs.version not in _SPOKEN
    return parting.our_status == 505 and parting.we_refuse and (is_other or parting.they_refuse)


def _coding(parting: Parting) -> bool:
    if not parting.we_refuse:
        return False
    codings = [] if parting.theirs is None else parting.theirs.values(b"transfer-encoding")
    if parting.our_status == 501:
        is_other = codings != [b"chunked"] or _TAB_BEHIND.search(parting.data) is not None
        return is_other or parting.they_refuse
    return parting.our_status == 400 and codings == [b""]


def _old(parting: Parting) -> bool:
    return parting.we_end and parting.last is not None and parting.last.version == "1.0"


def _repeated(parting: Parting) -> bool:
    if not parting.they_refuse or parting.ours is None:
        return False
    names = [name.lower() for name, _ in parting.ours.headers]
    return any(names.count(name) > 1 for name in _SINGLE)


def _old_websocket(parting: Parting) -> bool:
    ours = parting.ours
    return parting.they_refuse and ours is not None and bool(ours.values(b"sec-websocket-key1"))


def _target(parting: Parting) -> bool:
    ours = parting.ours
    return parting.they_refuse and ours is not None and not ours.path.startswith("/")


def _large_head(parting: Parting) -> bool:
    theirs = parting.theirs
    is_large = theirs is not None and theirs.head_bytes > MAX_HEADER_BYTES - _SPACE_BYTES
    return parting.we_refuse and parting.our_status == 431 and is_large


def _unfinished_head(parting: Parting) -> bool:
    says_nothing = parting.ours is None and parting.our_status is None and not parting.closes
    return says_nothing and parting.they_refuse and not parting.data.endswith(b"\r\n\r\n")


def _two_faults(parting: Parting) -> bool:
    statuses = {parting.our_status, parting.their_status}
    return parting.we_refuse and parting.they_refuse and statuses == {400, 431}


SAME_PIECE: Final = "bytes in one piece"
TWO_FAULTS: Final = "two faults"
DIFFERENCES: Final = (
    Difference(
        SAME_PIECE,
        "Answers every request before the bytes that cannot be read, and reads on behind every "
        "request to upgrade.",
        "Drops the requests that came in one piece with what it refuses, and what came in one "
        "piece with a request to upgrade to h2c.",
        "The answers must not depend on how the network cut the bytes. aiohttp reads the same "
        "bytes, sent one by one, as the sidecar does; that is how this row is told from a fault.",
        lambda _: False,
    ),
    Difference(
        "version",
        "505 for other versions than 1.1 and 1.0.",
        "Takes 0.9, 2.0 and others that llhttp knows.",
        "Requests of those versions do not look like this; an answer in 1.1 would be a guess.",
        _version,
    ),
    Difference(
        "transfer-encoding",
        "501 for anything but `chunked`; 400 for an empty one.",
        "Takes `gzip, chunked` and the like, and an empty one as none.",
        "A coding that is not undone here must not pass as the body.",
        _coding,
    ),
    Difference(
        "HTTP/1.0",
        "Ends the connection after the answer.",
        "Keeps it where the client asks for that.",
        "A streamed answer ends with its connection in 1.0, which knows no chunks. The sidecar's "
        "answers ended it on aiohttp's server, too.",
        _old,
    ),
    Difference(
        "repeated headers",
        "Passes on a second Content-Type, User-Agent, Server, ETag, Max-Forwards, "
        "Content-Location or Content-Range.",
        "400.",
        "They decide nothing here, and vLLM's server takes them. A second Host, Content-Length or "
        "Transfer-Encoding is refused by both.",
        _repeated,
    ),
    Difference(
        "Sec-WebSocket-Key1",
        "A header like others.",
        "400.",
        "It belongs to a draft of WebSocket from 2010; no WebSocket is relayed.",
        _old_websocket,
    ),
    Difference(
        "target",
        "Hands over a target that is neither a path nor a URL with a host. It is routed by what it "
        "has of a path, mostly to 404.",
        "400.",
        "The engine is asked for the path by which the request was routed, so nothing is gained by "
        "another way to write it.",
        _target,
    ),
    Difference(
        "large head",
        "431 where the path and all headers together are over the bound.",
        "431 where the path or one header is.",
        "The bound is on what a client makes the sidecar hold.",
        _large_head,
    ),
    Difference(
        "unfinished head",
        "Refuses a head for its headers when it is whole; one that is never, with 408.",
        "Refuses a second Host when it comes.",
        "They are looked at together, once.",
        _unfinished_head,
    ),
    Difference(
        TWO_FAULTS,
        "400 or 431 for a head that is malformed and too large.",
        "The other one of the two.",
        "Which of them is seen first follows from the piece in which it came.",
        _two_faults,
    ),
)


def table() -> list[str]:
    """Return the decided differences as lines of a table, for docs/adr."""
    rows = [
        f"| {each.name} | {each.ours} | {each.theirs} | {each.reason} |" for each in DIFFERENCES
    ]
    return ["| | Weir | aiohttp | why |", "|---|---|---|---|", *rows]


def same_body(ours: Seen, theirs: Seen) -> bool:
    """Tell whether both have read the same body, as far as it came."""
    if ours.end == theirs.end == "broken":  # how much of it came before is a matter of time
        return ours.body.startswith(theirs.body) or theirs.body.startswith(ours.body)
    return ours.end == theirs.end and ours.body == theirs.body
