"""Routers that others ship for prefix caches, for comparison; each models one behaviour.

All are one instance for the whole fleet. Each remembers which prefixes it sent where, in blocks of
`SHARED_TOKENS` and no more of them than a replica's KV cache holds, the least recently used
forgotten first. Counts of requests and of prompt tokens are exact.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final

from weir_sim.baselines import ReplicaView, Router
from weir_sim.kv import SHARED_TOKENS
from weir_sim.workload import SimRequest

_CACHE_THRESHOLD: Final = 0.3
_BALANCE_ABSOLUTE: Final = 64
_BALANCE_RELATIVE: Final = 1.5
"""Defaults of the options of these names of SMG's (and sglang-router's) policy `cache_aware`."""


class Sent:
    """Which prefixes a router sent to one replica."""

    def __init__(self, remembered: int) -> None:
        self._remembered = max(1, remembered)
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def held(self, request: SimRequest) -> int:
        """Return how many blocks of a prompt were sent, from its beginning."""
        found = 0
        for block in request.hash_ids:
            if block not in self._blocks:
                break
            found += 1
        return found

    def remember(self, request: SimRequest) -> None:
        """Note a request."""
        for block in reversed(request.hash_ids):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._remembered:
            self._blocks.popitem(last=False)


class SessionHash:
    """A session always goes to the same replica: consistent hashing by a header or a user."""

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the session's replica."""
        session = request.session or repr(request.hash_ids[:2])
        digest = blake2b(session.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % len(replicas)


class _Remembering:
    """Keeps what was sent to each replica.

    Args:
        rng: For ties.
        remembered: Blocks kept for each replica.
    """

    def __init__(self, rng: random.Random, remembered: int) -> None:
        self._rng = rng
        self._remembered = remembered
        self._sent: list[Sent] = []

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the index of a replica."""
        while len(self._sent) < len(replicas):
            self._sent.append(Sent(self._remembered))
        costs = self._costs(request, replicas)
        least = min(costs)
        tied = [index for index, cost in enumerate(costs) if cost == least]
        chosen = tied[0] if len(tied) == 1 else self._rng.choice(tied)
        self._sent[chosen].remember(request)
        return chosen

    def _costs(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> list[float]:
        """Return what speaks against each replica."""
        raise NotImplementedError


class CacheAware(_Remembering):
    """The replica of the longest prefix, unless the loads differ much.

    Models `cache_aware` of SMG and sglang-router with their defaults. Loads (requests) that differ
    by more than 64 and by half send a request to the least loaded replica; else it goes where more
    than 0.3 of it was sent before, and otherwise to where least is remembered.
    """

    def _costs(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> list[float]:
        loads = [view.outstanding for view in replicas]
        most, least = max(loads), min(loads)
        if most - least > _BALANCE_ABSOLUTE and most > _BALANCE_RELATIVE * least:
            return [float(load) for load in loads]
        held = [sent.held(request) for sent in self._sent]
        if max(held) > _CACHE_THRESHOLD * max(1, len(request.hash_ids)):
            return [-float(blocks) for blocks in held]
        return [float(len(sent)) for sent in self._sent]


class Product(_Remembering):
    """The least product of the prompt tokens to compute and the requests there.

    Models the rule of LMetric: prompt tokens that wait at the replica and that it lacks of this
    request, times the size of its batch with this request.
    """

    def _costs(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> list[float]:
        costs: list[float] = []
        for sent, view in zip(self._sent, replicas, strict=True):
            missed = request.prompt_tokens - SHARED_TOKENS * sent.held(request)
            costs.append((view.prompt_tokens + missed) * (view.outstanding + 1.0))
        return costs


PREFIX_ROUTERS: Mapping[str, Callable[[random.Random, int], Router]] = {
    "session-hash": lambda _rng, _remembered: SessionHash(),
    "cache-aware": CacheAware,
    "product": Product,
}
"""Made with a source of random numbers and the blocks that a replica's cache holds."""
