"""What a sidecar of a fleet knows of prefix caches: its own engine's, and peers' by digests."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from weir_core.route.digest import DigestWriter, PeerPrefixes
from weir_core.route.prefix import CHUNK_BYTES, Chain, PrefixIndex
from weir_core.route.types import DigestUpdate
from weir_sim.kv import SHARED_TOKENS
from weir_sim.profiles import EngineProfile
from weir_sim.workload import SimRequest

_EPOCH: Final = 1
_HOLDERS: Final = 2


def chain_of(request: SimRequest, serial: int) -> Chain:
    """Return the chain of a prompt that names its content by `hash_ids`.

    Each stands for a text chunk. Only these are shared with other prompts, as far as they tell.

    Args:
        request: The request.
        serial: Its own number.
    """
    text_bytes = request.prompt_tokens * CHUNK_BYTES // SHARED_TOKENS
    hashes = [number_of("chunk", hash_id) for hash_id in request.hash_ids]
    return Chain(hashes, number_of("whole", serial), text_bytes)


def number_of(*parts: object) -> int:
    """Return a number that is the same for equal parts, in every process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


class SidecarPrefixes:
    """The prefix knowledge of one replica's sidecar."""

    def __init__(self, name: str, profile: EngineProfile) -> None:
        self._name = name
        self._index = PrefixIndex(profile.kv_tokens, profile.block_tokens)
        self._writer = DigestWriter(self._index, _EPOCH)
        self._peers = PeerPrefixes()
        self._behind: set[int] = set()
        """Listeners that missed an update."""

    def own_cached(self, chain: Chain, prompt_tokens: int) -> int:
        """Return how many tokens of a prompt the own engine probably has."""
        return self._index.cached_tokens(chain, prompt_tokens)

    def cached(
        self, chain: Chain, prompt_tokens: int, names: Sequence[str], start: int
    ) -> dict[str, int]:
        """Return how many tokens of a prompt the own engine, the best holders and `names` have."""
        match = self._peers.match(chain, prompt_tokens)
        found = match.best(_HOLDERS, start)
        for name in names:
            found[name] = match.tokens(name)
        found[self._name] = self.own_cached(chain, prompt_tokens)
        return found

    def started(self, chain: Chain, prompt_tokens: int, cached_tokens: int) -> None:
        """Hear that the engine has computed a prompt, and how much of it it had."""
        self._index.learned(chain, prompt_tokens, cached_tokens)
        self._index.insert(chain, prompt_tokens, prompt_tokens)

    def ended(self, chain: Chain, prompt_tokens: int) -> None:
        """Hear that an answer is complete; the simulated engine does not keep outputs."""
        self._index.insert(chain, prompt_tokens, prompt_tokens)

    def updates(self) -> tuple[DigestUpdate, DigestUpdate, frozenset[int]]:
        """Return what to tell most listeners, and what to tell those that missed an update."""
        update = self._writer.delta()
        behind = frozenset(self._behind)
        self._behind.clear()
        return update, self._writer.snapshot() if behind else update, behind

    def hear(self, name: str, update: DigestUpdate) -> bool:
        """Take over what a peer tells; return whether it has to tell all."""
        return self._peers.apply(name, update)

    def is_behind(self, listener: int) -> None:
        """Hear that a listener missed an update."""
        self._behind.add(listener)
