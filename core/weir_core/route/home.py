"""Which replica counts a tenant's requests and tokens, and what is left to one that is alone.

Rendezvous hashing: each sidecar finds the same home for a tenant in the same list of replicas, and
a replica that comes or goes moves only the tenants whose home it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b


def order_of(tenant: str, replicas: Iterable[str]) -> tuple[str, ...]:
    """Return the replicas in the order in which they are the tenant's home."""

    def weight(replica: str) -> tuple[bytes, str]:
        return blake2b(f"{tenant}\n{replica}".encode(), digest_size=8).digest(), replica

    return tuple(sorted(replicas, key=weight))


def part_of(limit: int, order: Sequence[str], replica: str) -> int:
    """Return a replica's part of a limit; all parts add up to it, the first ones are larger."""
    whole, rest = divmod(limit, len(order))
    return whole + (order.index(replica) < rest)
