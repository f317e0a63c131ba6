"""What of a prompt is cached where: in this sidecar's engine and in those of its peers.

The own engine's cache is modelled by what ran here, and corrected by the engine's word for each
prompt that it completes. Peers tell of theirs in digests. Chains are computed, and the own cache
followed, only where that is of use: with peers, or where the metrics are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from weir_core.route.digest import VERSION, DigestLog, DigestWriter, PeerPrefixes
from weir_core.route.prefix import Chain, PrefixIndex
from weir_core.route.types import DigestUpdate
from weir_core.wire import prompts

if TYPE_CHECKING:
    from weir_core.wire.fields import RequestBody
    from weir_core.wire.steps import Facts
    from weir_sidecar.telemetry.metrics import Metrics

_USUAL_BLOCK_TOKENS: Final = 16
"""vLLM's on a GPU; of an engine that does not tell its own."""
_HOLDERS: Final = 4
"""Peers that are named without being asked for: those that hold most of a prompt."""


class Prefixes:
    """Knows the prefix caches of a service, as one replica can.

    Args:
        name: Of this replica.
        epoch: Higher than at any start of this sidecar before.
        metrics: Where predictions are set against the truth.
        clock: Seconds that only move forward.

    Attributes:
        is_used: Chains are worth their cost.
    """

    def __init__(
        self,
        name: str,
        epoch: int,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        is_used: bool = False,
    ) -> None:
        self.is_used = is_used
        self._name = name
        self._metrics = metrics
        self._clock = clock
        self._start = epoch
        self._index: PrefixIndex | None = None
        self._writer = DigestWriter(PrefixIndex(0, 0), epoch)
        self._log = DigestLog(self._writer)
        self._peers = PeerPrefixes()

    # ---- the own engine

    def engine_up(self, facts: Facts | None) -> None:
        """Hear what an engine is that has just become ready: its cache is empty."""
        index = PrefixIndex(0, 0)
        self._index = None
        if facts is not None and facts.prefix_caching and facts.kv_capacity_tokens:
            block_tokens = facts.block_tokens or _USUAL_BLOCK_TOKENS
            self._index = index = PrefixIndex(facts.kv_capacity_tokens, block_tokens)
        self._writer.follow(index)

    def engine_gone(self) -> None:
        """Forget what the engine had cached: it has ended."""
        self.engine_up(None)

    def chain_of(self, path: str, body: bytes, asks: RequestBody) -> Chain | None:
        """Return what stands for a request's prompt; None where nothing is to be gained by it.

        Args:
            path: Of the endpoint.
            body: As the engine gets it.
            asks: What the body asks for.
        """
        return prompts.chain_of(path, body, asks) if self.is_used else None

    def started(self, chain: Chain, prompt_tokens: int, cached_tokens: int | None) -> None:
        """Hear that the engine has computed a prompt.

        Args:
            chain: Of the prompt.
            prompt_tokens: As the engine counts them.
            cached_tokens: How many of them it had cached; None where its word is not about what
                was cached before, or where it does not tell.
        """
        index = self._index
        if index is None:
            return
        if cached_tokens is not None:
            predicted = index.cached_tokens(chain, prompt_tokens)
            self._metrics.prefix(prompt_tokens, predicted, cached_tokens)
            index.learned(chain, prompt_tokens, cached_tokens)
        index.insert(chain, prompt_tokens, prompt_tokens)

    def ended(self, chain: Chain, prompt_tokens: int, output_tokens: int) -> None:
        """Hear that a request has ended whose prompt the engine had computed."""
        if self._index is not None:
            self._index.insert(chain, prompt_tokens, prompt_tokens, output_tokens)

    # ---- what the router asks

    def cached(self, chain: Chain, prompt_tokens: int, names: Sequence[str] = ()) -> dict[str, int]:
        """Return how many tokens of a prompt are believed to be cached, by replica.

        The own engine is among them, where there is one, and the peers that hold most; others
        have what they hold only where they are asked for. The work is bounded by the chain, and
        by the number of names.

        Args:
            chain: Of the prompt.
            prompt_tokens: How long it is, or is believed to be.
            names: Further replicas.
        """
        match = self._peers.match(chain, prompt_tokens)
        # Readers that choose among equal holders begin at different ones.
        found = match.best(_HOLDERS, (chain.whole ^ self._start) & 0xFFFF)
        for name in names:
            found[name] = match.tokens(name)
        if self._index is not None:
            found[self._name] = self._index.cached_tokens(chain, prompt_tokens)
        return found

    def own_cached(self, chain: Chain, prompt_tokens: int) -> int:
        """Return how many tokens of a prompt the own engine is believed to have cached."""
        return 0 if self._index is None else self._index.cached_tokens(chain, prompt_tokens)

    # ---- between sidecars

    def update_for(self, seq: int) -> DigestUpdate | None:
        """Return what a peer lacks of the own digest; None if that is nothing.

        Args:
            seq: The digest that the peer has; 0 if it has none, or can do nothing with what came.
        """
        self._log.advance(self._clock(), len(self._peers))
        return self._log.update_since(seq)

    def heard(self, peer: str, update: DigestUpdate) -> int:
        """Take over what a peer tells of its digest; return the number of the one known now.

        It is 0 where the update does not fit to what is known, so that the peer sends all of it.
        """
        if self._peers.apply(peer, update):
            return 0
        # What is of another version means nothing here, and need not be sent again.
        return update.seq if update.version != VERSION else self._peers.seq(peer)

    def peer_gone(self, peer: str) -> None:
        """Forget a peer that has left."""
        self._peers.forget(peer)
