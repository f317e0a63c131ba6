"""The comparison of what the two servers made of the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

from bench.http.differences import DIFFERENCES, REFUSED, Parting, same_body
from bench.http.sides import Record, Seen


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes:
        kind: How the connection ended, for the counts.
        difference: The name of the decided difference by which the two part, or empty.
        fault: What is wrong, or empty.
    """

    kind: str
    difference: str = ""
    fault: str = ""


def compare(ours: Record, theirs: Record, data: bytes) -> Verdict:
    """Compare what the two servers made of the same bytes."""
    if alike(ours, theirs):
        return Verdict(_kind(ours))
    count = common(ours, theirs)
    parting = Parting(
        ours=ours.requests[count] if count < len(ours.requests) else None,
        theirs=theirs.requests[count] if count < len(theirs.requests) else None,
        last=ours.requests[count - 1] if count else None,
        our_status=ours.statuses[count] if count < len(ours.statuses) else None,
        their_status=theirs.statuses[count] if count < len(theirs.statuses) else None,
        closes=not ours.is_open,
        data=data,
    )
    for difference in DIFFERENCES:
        if difference.explains(parting):
            return Verdict("different", difference.name)
    return Verdict(
        "fault", fault=f"ours: {_shown(ours, count)}\n  aiohttp's: {_shown(theirs, count)}"
    )


def alike(ours: Record, theirs: Record) -> bool:
    """Tell whether both made the same of the whole connection."""
    return (
        common(ours, theirs) == len(ours.requests) == len(theirs.requests)
        and ours.statuses == theirs.statuses
        and ours.is_open == theirs.is_open
    )


def common(ours: Record, theirs: Record) -> int:
    """Return how many requests both have handed over alike, from the first on."""
    count = 0
    for one, other in zip(ours.requests, theirs.requests, strict=False):
        if not _same(one, other):
            break
        count += 1
    return count


def _same(ours: Seen, theirs: Seen) -> bool:
    return same_body(ours, theirs) and ours.head == theirs.head


def _kind(record: Record) -> str:
    if record.statuses and record.statuses[-1] >= REFUSED:
        return "refused"
    return "open" if record.is_open else "closed"


def _shown(record: Record, count: int) -> str:
    """Return the rest of a record, for people."""
    state = "open" if record.is_open else "closed"
    return f"{record.requests[count:][:1]} {record.statuses} {state}"
