"""What one sidecar believes of its engine's cache and of its peers'."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from weir_core.route.digest import VERSION
from weir_core.route.prefix import CHUNK_BYTES, Chain, chunk_hashes, prefix_salt
from weir_core.route.types import DigestUpdate
from weir_core.wire.fields import RequestBody
from weir_core.wire.steps import Facts
from weir_sidecar.prefixes import Prefixes
from weir_sidecar.telemetry.metrics import Metrics

FACTS = Facts("weir", 8, 2048, 100_000, block_tokens=128)
CHUNK_TOKENS = 512


def chain_of(*chunks: int) -> Chain:
    """Return the chain of a text of chunks that are told apart by a number."""
    pieces = [bytes([chunk]) * CHUNK_BYTES for chunk in chunks]
    return chunk_hashes(pieces, prefix_salt("tiny"))


class Replica:
    """The prefixes of one sidecar, and a clock that a test moves on."""

    def __init__(self, name: str, facts: Facts | None = FACTS, epoch: int = 1) -> None:
        self.name = name
        self.now = 0.0
        registry = CollectorRegistry()
        self._value = registry.get_sample_value
        self.prefixes = Prefixes(name, epoch, Metrics(registry), lambda: self.now, is_used=True)
        if facts is not None:
            self.prefixes.engine_up(facts)

    def run(self, *chunks: int, cached: int | None = 0, output: int = 0) -> None:
        chain, tokens = chain_of(*chunks), len(chunks) * CHUNK_TOKENS
        self.prefixes.started(chain, tokens, cached)
        self.prefixes.ended(chain, tokens, output)

    def cached(self, *chunks: int, names: tuple[str, ...] = ()) -> dict[str, int]:
        """Return the cached tokens of a prompt with half a chunk more."""
        chain, tokens = chain_of(*chunks, 255), (len(chunks) + 1) * CHUNK_TOKENS
        return self.prefixes.cached(chain, tokens, names)

    def counted(self, name: str, **labels: str) -> float:
        return self._value(f"weir_prefix_{name}_tokens_total", labels) or 0.0

    def tell(self, peer: Replica, seq: int) -> int:
        """Tell a peer what it lacks after a digest; return the one that it has then."""
        self.now += 1.0
        update = self.prefixes.update_for(seq)
        return seq if update is None else peer.prefixes.heard(self.name, update)


def test_what_ran_here_is_cached_here() -> None:
    one = Replica("one")
    assert one.cached(1, 2) == {"one": 0}
    one.run(1, 2)
    assert one.cached(1, 2) == {"one": 2 * CHUNK_TOKENS}
    assert one.cached(1, 3) == {"one": CHUNK_TOKENS}


def test_the_engines_word_corrects_what_was_believed() -> None:
    one = Replica("one")
    one.run(1, 2, 3)
    one.run(1, 2, 4, cached=CHUNK_TOKENS)
    assert one.counted("prompt") == 6 * CHUNK_TOKENS
    assert one.counted("predicted") == 2 * CHUNK_TOKENS
    assert one.counted("cached") == CHUNK_TOKENS
    assert one.counted("error", direction="over") == CHUNK_TOKENS
    assert one.counted("error", direction="under") == 0
    assert one.cached(1, 2, 4) == {"one": 3 * CHUNK_TOKENS}
    assert one.cached(1, 2, 3) == {"one": 2 * CHUNK_TOKENS}
    one.run(5, 6, cached=CHUNK_TOKENS)
    assert one.counted("error", direction="under") == CHUNK_TOKENS


def test_a_word_that_is_not_about_the_cache_before_teaches_nothing() -> None:
    one = Replica("one")
    one.run(1, 2)
    one.run(1, 2, 3, cached=None)
    assert one.counted("prompt") == 2 * CHUNK_TOKENS
    assert one.cached(1, 2, 3) == {"one": 3 * CHUNK_TOKENS}


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(None, id="it says nothing of itself"),
        pytest.param(Facts("weir", 8, 2048, 100_000, prefix_caching=False), id="it caches nothing"),
        pytest.param(Facts("fcfs", 8, 2048, 0), id="the capacity is unknown"),
    ],
)
def test_of_an_engine_without_a_known_cache_nothing_is_believed(facts: Facts | None) -> None:
    one = Replica("one")
    one.prefixes.engine_up(facts)
    one.run(1, 2)
    assert one.cached(1, 2) == {}
    assert one.counted("prompt") == 0


def test_what_an_engine_had_is_forgotten_with_it_here_and_at_peers() -> None:
    one, two = Replica("one"), Replica("two", None)
    one.run(1, 2)
    seq = one.tell(two, 0)
    assert two.cached(1, 2) == {"one": 2 * CHUNK_TOKENS}
    one.prefixes.engine_gone()
    assert one.cached(1, 2) == {}
    seq = one.tell(two, seq)
    assert two.cached(1, 2) == {}
    one.prefixes.engine_up(FACTS)
    assert one.cached(1, 2) == {"one": 0}
    one.run(1)
    one.tell(two, seq)
    assert two.cached(1, 2) == {"one": CHUNK_TOKENS}


def test_peers_are_told_of_what_changes() -> None:
    one, two = Replica("one"), Replica("two")
    seq = 0
    for depth in range(1, 6):
        one.run(*range(1, depth + 1))
        seq = one.tell(two, seq)
        # A chunk is told of where its depth is a power of two, or where it is the last.
        assert two.cached(1, 2, 3, 4, 5, 6)["one"] == depth * CHUNK_TOKENS
    assert one.prefixes.update_for(seq) is None
    two.prefixes.peer_gone("one")
    assert two.cached(1, 2) == {"two": 0}


def test_only_the_best_of_many_peers_are_named_and_others_when_asked_for() -> None:
    here = Replica("here")
    for number in range(20):
        peer = Replica(f"p{number}")
        peer.run(*range(1, 2 + number // 5))
        peer.tell(here, 0)
    found = here.cached(1, 2, 3, 4)
    assert {tokens for name, tokens in found.items() if name != "here"} == {4 * CHUNK_TOKENS}
    assert len(found) == 5
    more = here.cached(1, 2, 3, 4, names=("p0", "p7", "unknown"))
    assert (more["p0"], more["p7"], more["unknown"]) == (CHUNK_TOKENS, 2 * CHUNK_TOKENS, 0)


def test_an_update_that_does_not_fit_asks_for_all() -> None:
    one, two = Replica("one"), Replica("two")
    one.run(1)
    seq = one.tell(two, 0)
    one.run(1, 2)
    one.now += 1.0
    assert one.prefixes.update_for(seq) is not None  # and gets lost
    update = DigestUpdate(VERSION, 1, seq + 1, seq + 2)
    assert two.prefixes.heard("one", update) == 0
    assert two.cached(1, 2)["one"] == CHUNK_TOKENS
    assert one.tell(two, 0) > seq
    assert two.cached(1, 2)["one"] == 2 * CHUNK_TOKENS


def test_a_sidecar_that_starts_anew_replaces_what_it_told_before() -> None:
    old, new, two = Replica("one", epoch=1), Replica("one", epoch=2), Replica("two")
    old.run(1)
    seq = old.tell(two, 0)
    assert new.tell(two, seq) == 0
    assert two.cached(1) == {"two": 0}
    new.run(2)
    new.tell(two, 0)
    assert two.cached(2)["one"] == CHUNK_TOKENS
    assert two.prefixes.heard("one", DigestUpdate(VERSION, 1, 0, 9)) == 1  # late


def test_what_a_peer_of_another_version_tells_means_nothing_and_is_not_asked_for_again() -> None:
    one, two = Replica("one"), Replica("two")
    one.run(1)
    update = one.prefixes.update_for(0)
    assert update is not None
    assert (
        two.prefixes.heard("one", msgspec.structs.replace(update, version=VERSION + 1))
        == update.seq
    )
    assert two.cached(1) == {"two": 0}


def test_without_use_for_them_no_chains_are_computed() -> None:
    body = b'{"prompt": "%s"}' % (b"x" * 5000)
    one = Replica("one")
    assert one.prefixes.chain_of("/v1/completions", body, RequestBody()) is not None
    one.prefixes.is_used = False
    assert one.prefixes.chain_of("/v1/completions", body, RequestBody()) is None
