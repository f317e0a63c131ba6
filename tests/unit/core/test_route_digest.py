"""Digests of prefix caches: what peers know of each other through loss, reordering, restarts."""

from __future__ import annotations

import random
from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir_core.route.digest import VERSION, DigestLog, DigestWriter, PeerPrefixes
from weir_core.route.prefix import CHUNK_BYTES, Chain, PrefixIndex, chunk_hashes, prefix_salt
from weir_core.route.types import DigestUpdate

SALT = prefix_salt("llama")
CHUNK_TOKENS = 512


def chain_of(*chunks: int) -> Chain:
    """Return the chain of a text of chunks that are told apart by a number."""
    return chunk_hashes([bytes([chunk]) * CHUNK_BYTES for chunk in chunks], SALT)


class Replica:
    """An index and what it tells."""

    def __init__(self, capacity_tokens: int = 1 << 20, epoch: int = 1, max_keys: int = 999) -> None:
        self.index = PrefixIndex(capacity_tokens, 16)
        self.writer = DigestWriter(self.index, epoch, max_keys)

    def run(self, *chunks: int) -> None:
        tokens = len(chunks) * CHUNK_TOKENS
        self.index.insert(chain_of(*chunks), tokens, tokens)

    def live(self, chunks: list[int], event: str) -> None:
        match event:
            case "run":
                self.run(*chunks)
            case "less":
                self.index.learned(chain_of(*chunks), len(chunks) * CHUNK_TOKENS, 0)
            case _:
                self.index.clear()


def held(peers: PeerPrefixes, *chunks: int, limit: int = 8) -> dict[str, int]:
    """Return the chunks that the best peers hold of a prompt with one chunk more."""
    chain = chain_of(*chunks, 255)
    best = peers.match(chain, (len(chunks) + 1) * CHUNK_TOKENS).best(limit)
    return {name: tokens // CHUNK_TOKENS for name, tokens in best.items()}


def known_of(peers: PeerPrefixes, name: str, other: PeerPrefixes, other_name: str) -> bool:
    """Return whether two readers know the same of a peer, over all prompts of a small world."""
    prompts = product((1, 2), repeat=7)
    return all(
        peers.match(chain_of(*prompt), 10_000).tokens(name)
        == other.match(chain_of(*prompt), 10_000).tokens(other_name)
        for prompt in prompts
    )


def test_the_longest_holders_come_first() -> None:
    peers = PeerPrefixes()
    for name, chunks in {"a": (1, 2, 3, 4, 5), "b": (1, 2, 3), "c": (1, 9), "d": (8,)}.items():
        replica = Replica()
        replica.run(*chunks)
        assert not peers.apply(name, replica.writer.delta())
    assert list(held(peers, 1, 2, 3, 4, 5).items()) == [("a", 5), ("b", 3), ("c", 1)]
    assert held(peers, 1, 2, 3, 4, 5, limit=1) == {"a": 5}
    assert held(peers, 7) == {}
    match = peers.match(chain_of(1, 2, 3), 3 * CHUNK_TOKENS)
    assert [match.tokens(name) for name in "abcd"] == [1024, 1535, 512, 0]
    assert match.tokens("unknown") == 0


@pytest.mark.parametrize(
    ("length", "shared", "want"),
    [
        pytest.param(100, 100, 100, id="a conversation that goes on is known to its last chunk"),
        pytest.param(100, 99, 64, id="a branch of it by the power of two below"),
        pytest.param(4, 3, 2, id="a branch of a short one"),
        pytest.param(1, 1, 1, id="one chunk"),
    ],
)
def test_a_long_prompt_costs_few_keys(length: int, shared: int, want: int) -> None:
    replica, peers = Replica(), PeerPrefixes()
    replica.run(*range(length))
    peers.apply("a", replica.writer.delta())
    assert held(peers, *range(shared)) == {"a": want}
    assert peers.keys <= length.bit_length() + 1


def test_a_last_chunk_is_taken_back_when_the_prompt_goes_on() -> None:
    replica, peers = Replica(), PeerPrefixes()
    keys = []
    for length in range(1, 11):
        replica.run(*range(length))
        peers.apply("a", replica.writer.delta())
        assert held(peers, *range(length)) == {"a": length}
        keys.append(peers.keys)
    assert keys == [1, 2, 3, 3, 4, 4, 4, 4, 5, 5]


def test_equal_holders_are_not_all_found_in_the_same_order() -> None:
    peers = PeerPrefixes()
    for number in range(10):
        replica = Replica()
        replica.run(1, 2)
        peers.apply(str(number), replica.writer.delta())
    match = peers.match(chain_of(1, 2, 3), 3 * CHUNK_TOKENS)
    assert {next(iter(match.best(1, start))) for start in range(10)} == set(map(str, range(10)))
    assert all(len(match.best(3, start)) == 3 for start in range(20))


def test_nothing_new_is_an_update_without_keys_and_still_shows_a_loss() -> None:
    replica, peers = Replica(), PeerPrefixes()
    replica.run(1, 2)
    lost = replica.writer.delta()
    idle = replica.writer.delta()
    assert (idle.base, idle.seq, idle.added, idle.removed) == (1, 1, b"", b"")
    assert peers.apply("a", idle)
    assert held(peers, 1, 2) == {}
    assert not peers.apply("a", lost)
    assert not peers.apply("a", idle)
    assert held(peers, 1, 2) == {"a": 2}


def test_after_a_loss_the_old_digest_serves_until_a_snapshot_comes() -> None:
    replica, peers = Replica(), PeerPrefixes()
    replica.run(1, 2, 3, 4)
    peers.apply("a", replica.writer.delta())
    replica.run(5)
    replica.writer.delta()
    replica.run(6)
    assert peers.apply("a", replica.writer.delta())
    assert [held(peers, first) for first in (1, 5, 6)] == [{"a": 1}, {}, {}]
    assert not peers.apply("a", replica.writer.snapshot())
    assert [held(peers, first) for first in (1, 5, 6)] == [{"a": 1}, {"a": 1}, {"a": 1}]
    replica.run(7)
    assert not peers.apply("a", replica.writer.delta())
    assert held(peers, 7) == {"a": 1}


def test_what_is_evicted_is_taken_back() -> None:
    replica, peers = Replica(capacity_tokens=4 * CHUNK_TOKENS), PeerPrefixes()
    replica.run(1, 2, 3, 4)
    peers.apply("a", replica.writer.delta())
    replica.run(5, 6)
    peers.apply("a", replica.writer.delta())
    assert held(peers, 1, 2, 3, 4) == {"a": 2}
    replica.index.clear()
    update = replica.writer.delta()
    assert (update.base, update.added) == (0, b""), "a snapshot is shorter"
    peers.apply("a", update)
    assert peers.keys == 0


def test_a_key_without_those_before_it_is_not_believed() -> None:
    peers = PeerPrefixes()
    chain = chain_of(1, 2, 3, 4, 5)
    for name, depths in {"a": (2, 4, 5), "b": (1, 4), "c": (1, 2, 3)}.items():
        keys = b"".join(
            (chain.hashes[depth - 1] & 0xFFFFFFFF).to_bytes(4, "little") for depth in depths
        )
        peers.apply(name, DigestUpdate(VERSION, 1, 0, 1, keys))
    assert held(peers, 1, 2, 3, 4, 5) == {"c": 3, "b": 1}


def test_a_restarted_writer_is_believed_and_its_predecessor_no_more() -> None:
    old, new, peers = Replica(epoch=1), Replica(epoch=2), PeerPrefixes()
    for first in range(1, 5):
        old.run(first)
        late = old.writer.delta()
        peers.apply("a", late)
    new.run(9)
    assert not peers.apply("a", new.writer.delta())
    assert not peers.apply("a", late)
    assert (held(peers, 1), held(peers, 9)) == ({}, {"a": 1})


def test_a_delta_of_a_new_writer_asks_for_its_snapshot() -> None:
    old, new, peers = Replica(epoch=1), Replica(epoch=2), PeerPrefixes()
    for replica in (old, new):
        for first in (1, 2, 3, 4, 5):
            replica.run(first)
            update = replica.writer.delta()
            if replica is old:
                peers.apply("a", update)
    assert update.base > 0
    assert peers.apply("a", update)
    assert not peers.apply("a", new.writer.snapshot())


def test_a_peer_of_another_version_is_one_of_which_nothing_is_known() -> None:
    replica, peers = Replica(), PeerPrefixes()
    replica.run(1)
    update = replica.writer.delta()
    peers.apply("a", update)
    assert not peers.apply("a", msgspec.structs.replace(update, version=VERSION + 1, seq=2))
    assert held(peers, 1) == {}
    assert not peers.apply("a", update)
    assert held(peers, 1) == {"a": 1}


def test_a_forgotten_peer_leaves_nothing_and_its_place_is_used_again() -> None:
    replica, peers = Replica(), PeerPrefixes()
    replica.run(1, 2)
    for name in ("a", "b"):
        peers.apply(name, replica.writer.snapshot() if name == "b" else replica.writer.delta())
    place = peers.bit("a")
    peers.forget("a")
    peers.forget("a")
    assert held(peers, 1, 2) == {"b": 2}
    peers.apply("c", replica.writer.snapshot())
    assert peers.bit("c") == place
    peers.forget("b")
    assert held(peers, 1, 2) == {"c": 2}
    peers.forget("c")
    assert (len(peers), peers.keys) == (0, 0)


def test_a_lying_peer_takes_bounded_memory() -> None:
    peers = PeerPrefixes(max_keys=100)
    many = random.Random(1).randbytes(4 * 1000)
    peers.apply("liar", DigestUpdate(VERSION, 1, 0, 1, many))
    for seq in range(1, 50):
        more = random.Random(seq + 1).randbytes(4 * 1000 + 3)
        peers.apply("liar", DigestUpdate(VERSION, 1, seq, seq + 1, more, many[:5]))
    assert peers.keys <= 100
    peers.forget("liar")
    assert peers.keys == 0


def test_a_writer_tells_of_the_most_recent_where_there_is_too_much() -> None:
    replica, peers = Replica(max_keys=6), PeerPrefixes()
    for first in range(20):
        replica.run(first, first)
        peers.apply("a", replica.writer.delta())
        assert peers.keys <= 6
    assert held(peers, 19, 19) == {"a": 2}
    assert held(peers, 2, 2) == {}


def test_a_reader_that_is_not_there_costs_the_index_no_memory() -> None:
    replica = Replica(capacity_tokens=2048)
    for first in range(200):
        replica.run(first, first, first)
    assert replica.index.take_changed() is None
    assert replica.index.take_changed() == set()


@pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack], ids=["json", "msgpack"])
def test_an_update_survives_the_wire(codec: object) -> None:
    replica = Replica()
    replica.run(1, 2, 3)
    update = replica.writer.delta()
    encode, decode = codec.encode, codec.decode  # type: ignore[attr-defined]
    assert decode(encode(update), type=DigestUpdate) == update


steps = st.tuples(
    st.lists(st.integers(1, 2), min_size=1, max_size=7),
    st.sampled_from(["run", "run", "run", "less", "restart of the engine"]),
    st.sampled_from(["delivered", "lost", "late", "twice"]),
)


@settings(deadline=None)
@given(history=st.lists(steps, max_size=40), capacity=st.integers(1, 20))
def test_deltas_and_snapshots_rebuild_the_digest_through_loss_and_reordering(
    history: list[tuple[list[int], str, str]], capacity: int
) -> None:
    replica, peers = Replica(capacity * CHUNK_TOKENS), PeerPrefixes()
    late: list[DigestUpdate] = []
    for chunks, event, way in history:
        replica.live(chunks, event)
        update = replica.writer.delta()
        if way == "late":
            late.append(update)
        if way in ("delivered", "twice") and peers.apply("a", update):
            assert not peers.apply("a", replica.writer.snapshot())
        if way == "twice":
            assert not peers.apply("a", update)
        if way == "delivered" and late:
            peers.apply("a", late.pop(0))
    if peers.apply("a", replica.writer.delta()):
        assert not peers.apply("a", replica.writer.snapshot())
    fresh = PeerPrefixes()
    fresh.apply("b", replica.writer.snapshot())
    assert known_of(peers, "a", fresh, "b")
    assert peers.keys == fresh.keys == len(replica.index.advertised())


@settings(deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=9),
    asked=st.lists(st.integers(1, 3), min_size=1, max_size=9),
)
def test_a_digest_never_claims_more_than_the_index_holds(
    prompts: list[list[int]], asked: list[int]
) -> None:
    replica, peers = Replica(), PeerPrefixes()
    for prompt in prompts:
        replica.run(*prompt)
    peers.apply("a", replica.writer.delta())
    chain = chain_of(*asked, 255)
    tokens = (len(asked) + 1) * CHUNK_TOKENS
    claimed = peers.match(chain, tokens).tokens("a")
    exact = replica.index.cached_tokens(chain, tokens)
    assert exact // 2 <= claimed <= exact


class Told:
    """A replica with many peers, and what each of them knows of it."""

    def __init__(self, names: str, capacity_tokens: int = 1 << 20, epoch: int = 1) -> None:
        self.replica = Replica(capacity_tokens, epoch)
        self.log = DigestLog(self.replica.writer)
        self.peers = {name: PeerPrefixes() for name in names}
        self.now = 0.0

    def pass_time(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.log.advance(self.now, len(self.peers))

    def tell(self, name: str) -> DigestUpdate | None:
        """Tell one peer what it lacks; it fits to what the peer has."""
        peer = self.peers[name]
        update = self.log.update_since(peer.seq("r"))
        if update is not None:
            assert not peer.apply("r", update)
        return update

    def knows(self, name: str) -> bool:
        """Return whether a peer knows what one that begins now would be told."""
        fresh = PeerPrefixes()
        fresh.apply("f", self.replica.writer.snapshot())
        return known_of(self.peers[name], "r", fresh, "f")


def test_each_peer_gets_what_it_lacks_in_one_update() -> None:
    told = Told("ab")
    for chunk in range(3, 20):
        told.replica.run(chunk, chunk)
    told.pass_time()
    first = told.tell("a"), told.tell("b")
    assert [update is not None and update.base for update in first] == [0, 0]
    for chunks in ((1, 2, 1, 1), (1, 1), (2,)):
        told.replica.run(*chunks)
        told.pass_time()
        assert told.tell("a")
        assert told.knows("a")
    assert told.tell("a") is None
    late = told.tell("b")
    assert late is not None
    assert (late.base, late.seq) == (1, 4)
    assert told.knows("b")


def test_what_came_and_went_meanwhile_is_not_told() -> None:
    told = Told("ab")
    for chunk in range(3, 20):
        told.replica.run(chunk, chunk)
    told.pass_time()
    told.tell("a")
    told.replica.run(1)
    told.pass_time()
    told.replica.live([1], "less")
    told.replica.run(2)
    told.pass_time()
    update = told.tell("a")
    assert update is not None
    assert (len(update.added), len(update.removed)) == (4, 0)
    assert told.knows("a")


def test_a_peer_that_lacks_more_than_is_kept_gets_a_snapshot() -> None:
    told = Told("a")
    told.replica.run(1)
    told.pass_time()
    told.tell("a")
    for depth in range(2, 8):
        told.replica.run(*[2] * depth)
        told.replica.run(*[1] * depth)
        told.pass_time()
    update = told.tell("a")
    assert update is not None
    assert update.base == 0
    assert told.knows("a")


def test_a_peer_that_has_none_gets_a_snapshot_though_it_is_empty() -> None:
    old, new = Told("a", epoch=1), Told("", epoch=2)
    old.replica.run(1)
    old.pass_time()
    old.tell("a")
    new.pass_time()
    update = new.log.update_since(0)
    assert update is not None
    assert not old.peers["a"].apply("r", update)
    assert held(old.peers["a"], 1) == {}


def test_an_engine_that_starts_anew_is_told_of_as_empty() -> None:
    told = Told("a")
    told.replica.run(1, 2)
    told.pass_time()
    told.tell("a")
    told.replica.index = PrefixIndex(1 << 20, 16)
    told.replica.writer.follow(told.replica.index)
    told.replica.run(2)
    told.pass_time()
    told.tell("a")
    assert held(told.peers["a"], 1, 2) == {}
    assert held(told.peers["a"], 2) == {"r": 1}


def test_changes_are_computed_once_for_all_peers() -> None:
    told = Told("ab")
    told.replica.run(1)
    told.pass_time()
    first = told.log.update_since(0)
    told.replica.run(2)
    told.pass_time(0.1)  # less than the least period
    assert told.log.update_since(0) is first
    told.pass_time(0.2)
    assert told.log.update_since(0) is not first


def test_many_peers_are_told_less_often() -> None:
    told = Told("a")
    told.replica.run(1)
    told.log.advance(0.0, 1000)  # 36 bytes for each, at 32 KiB a second
    assert told.log.update_since(0) is not None
    told.replica.run(2)
    told.log.advance(1.0, 1000)
    assert told.log.update_since(1) is None
    told.log.advance(1.2, 1000)
    assert told.log.update_since(1) is not None


@given(
    lives=st.lists(
        st.tuples(
            st.sampled_from(["run", "run", "run", "less", "clear"]),
            st.lists(st.sampled_from([1, 2]), min_size=1, max_size=6),
            st.sampled_from(["", "a", "b", "ab"]),
        ),
        max_size=20,
    ),
    capacity=st.sampled_from([4, 12, 1000]),
)
@settings(max_examples=30, deadline=None)
def test_peers_that_hear_seldom_know_as_much_as_those_that_hear_each_update(
    lives: list[tuple[str, list[int], str]], capacity: int
) -> None:
    told = Told("ab", capacity * CHUNK_TOKENS)
    for event, chunks, hearing in lives:
        told.replica.live(chunks, event)
        told.pass_time()
        for name in hearing:
            told.tell(name)
            assert told.knows(name)
