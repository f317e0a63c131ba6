"""Digests of prefix caches, which sidecars send each other, and lookups in many of them.

A replica advertises the hashes of chunks at depths 1, 2, 4, 8 ... of the prompts that are cached,
and of the last chunk of each, by the low 32 bits. So a long prompt costs a few keys and not
hundreds, and a conversation is still known to its last chunk. A reader walks a chain from its
beginning and keeps the replicas that hold every key so far: one key taken for another (32 bits,
some million keys) fools it only together with all keys of smaller depths.

Updates are numbered. Each says from which number to which it leads, so a lost one shows with the
next, and the reader asks for a snapshot. Until that comes it goes on with what it knew: a wrong
digest costs a cache miss and nothing else.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

import msgspec

from weir_core.route.prefix import Chain, PrefixIndex
from weir_core.route.types import DigestUpdate

VERSION: Final = 1
"""Of the keys as much as of the message: another way to hash is another version."""
MAX_KEYS: Final = 1 << 14
"""Keys that a replica advertises, and that a reader keeps of one: 64 KiB in a snapshot."""
_MIN_PERIOD_S: Final = 0.2
"""Changes are taken in no more often."""
_MAX_PERIOD_S: Final = 10.0
_BYTES_PER_S: Final = 32 << 10
"""What all peers together are told in a second, where that takes no more than the period above."""
_MAX_UPDATES: Final = 64
"""Updates that are kept for peers that have missed some."""
_UPDATE_BYTES: Final = 32
"""Of an update without keys."""
_KEY_MASK: Final = 0xFFFF_FFFF
_KEY_BYTES: Final = 4


class DigestWriter:
    """Tells peers about one index; one stream of updates for all of them.

    Args:
        index: Of this replica; nothing else may take its changes.
        epoch: Higher than that of any writer before it for this replica.
    """

    def __init__(self, index: PrefixIndex, epoch: int, max_keys: int = MAX_KEYS) -> None:
        self._index = index
        self._epoch = epoch
        self._max_keys = max_keys
        self._seq = 0
        self._keys: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def seq(self) -> int:
        """Return the number of the newest digest."""
        return self._seq

    def follow(self, index: PrefixIndex) -> None:
        """Tell about another index from now on: the engine has started anew."""
        self._index = index
        index.clear()  # so that all of it counts as changed

    def delta(self) -> DigestUpdate:
        """Return what has changed since the last call, as a snapshot where that is shorter."""
        added, removed = self._take_changes()
        base = self._seq
        if not added and not removed:
            return DigestUpdate(VERSION, self._epoch, base, base)
        self._seq += 1
        if len(added) + len(removed) > len(self._keys):
            return self.snapshot()
        return DigestUpdate(VERSION, self._epoch, base, self._seq, _packed(added), _packed(removed))

    def snapshot(self) -> DigestUpdate:
        """Return all that the updates so far have told."""
        return DigestUpdate(VERSION, self._epoch, 0, self._seq, _packed(self._keys))

    def _take_changes(self) -> tuple[set[int], set[int]]:
        """Bring the keys up to date; return those that came and those that went."""
        index, keys = self._index, self._keys
        changed = index.take_changed()
        if changed is not None:
            present = {_key(hashed) for hashed in changed if index.is_advertised(hashed)}
            removed = {_key(hashed) for hashed in changed} & keys - present
            added = present - keys
            if len(keys) + len(added) - len(removed) <= self._max_keys:
                keys -= removed
                keys |= added
                return added, removed
        wanted = {_key(hashed) for hashed in index.advertised()[: self._max_keys]}
        self._keys = wanted
        return wanted - keys, keys - wanted


class DigestLog:
    """Gives each peer what it lacks of one writer's digest.

    The changes are computed once for all peers, and no more often than the bytes that they cost
    with so many peers allow. What was told of late is kept, so that a peer that has an older
    digest gets the changes since then, in one; a peer that has none of those gets a snapshot.

    Args:
        writer: Nothing else may take its updates.
    """

    def __init__(self, writer: DigestWriter) -> None:
        self._writer = writer
        self._snapshot: DigestUpdate | None = None
        # Each leads from the digest before it to the next.
        self._updates: deque[DigestUpdate] = deque()
        self._kept_bytes = 0
        # Number of a digest -> the update that leads from it to the newest.
        self._merged: dict[int, DigestUpdate] = {}
        self._due_s = float("-inf")

    def advance(self, now: float, peers: int) -> None:
        """Take in what has changed, where it is time to.

        Args:
            now: The present.
            peers: How many will be told.
        """
        if now < self._due_s:
            return
        update = self._writer.delta()
        self._due_s = now + _MIN_PERIOD_S
        if update.seq == update.base:
            return
        self._snapshot = None
        self._merged.clear()
        if update.base == 0:
            self._updates.clear()
            self._kept_bytes = 0
        else:
            self._updates.append(update)
            self._kept_bytes += _size(update)
        while self._kept_bytes > self._snapshot_bytes() or len(self._updates) > _MAX_UPDATES:
            self._kept_bytes -= _size(self._updates.popleft())
        period_s = _size(update) * peers / _BYTES_PER_S
        self._due_s = now + min(_MAX_PERIOD_S, max(_MIN_PERIOD_S, period_s))

    def update_since(self, seq: int) -> DigestUpdate | None:
        """Return what leads from digest `seq` to the newest; None if that is the same.

        Of a peer that has none, 0, nobody knows what it had before: it gets a snapshot even of an
        empty digest.
        """
        if seq == self._writer.seq and seq:
            return None
        found = self._merged.get(seq)
        if found is None:
            found = self._merged[seq] = self._merge(seq)
        return found

    def _merge(self, seq: int) -> DigestUpdate:
        if not self._updates or not self._updates[0].base <= seq < self._writer.seq:
            return self._all()
        added: set[int] = set()
        removed: set[int] = set()
        for update in self._updates:
            if update.base >= seq:
                came, went = _unpacked(update.added), _unpacked(update.removed)
                # What came and went, or went and came, is as it was.
                added, removed = (
                    (added - went) | (came - removed),
                    (removed - came) | (went - added),
                )
        newest = self._updates[-1]
        merged = msgspec.structs.replace(
            newest, base=seq, added=_packed(added), removed=_packed(removed)
        )
        return merged if _size(merged) < self._snapshot_bytes() else self._all()

    def _all(self) -> DigestUpdate:
        if self._snapshot is None:
            self._snapshot = self._writer.snapshot()
        return self._snapshot

    def _snapshot_bytes(self) -> int:
        return _UPDATE_BYTES + _KEY_BYTES * len(self._writer)


class _Peer:
    """One replica, as its updates have told."""

    def __init__(self, name: str, slot: int) -> None:
        self.name = name
        self.bit = 1 << slot
        self.slot = slot
        self.epoch = self.seq = -1
        self.keys: set[int] = set()


class PeerPrefixes:
    """The digests of all peers; a lookup takes time in proportion to the chain, not to them.

    Each key has the set of its holders as the bits of one number, so that the holders of a whole
    path are found with one `and` for each depth.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._peers: dict[str, _Peer] = {}
        self._slots: list[_Peer | None] = []
        self._free: list[int] = []
        self._holders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def keys(self) -> int:
        """Return how many different keys are known."""
        return len(self._holders)

    def apply(self, name: str, update: DigestUpdate) -> bool:
        """Take over an update of a peer; return whether a snapshot must be asked for.

        The answer is the same for every update until the snapshot comes; the caller limits how
        often it asks. Updates that come late or twice change nothing. A peer of another version
        is forgotten: its keys mean something else.
        """
        if update.version != VERSION:
            self.forget(name)
            return False
        peer = self._peers.get(name) or self._join(name)
        if (update.epoch, update.seq) < (peer.epoch, peer.seq):
            return False
        if update.base == 0:
            self._replace(peer, update)
        elif update.epoch == peer.epoch and update.base == peer.seq:
            self._change(peer, update)
        else:
            return update.epoch != peer.epoch or update.seq != peer.seq
        peer.epoch, peer.seq = update.epoch, update.seq
        return False

    def seq(self, name: str) -> int:
        """Return the number of the digest that is known of a peer; 0 if none is."""
        peer = self._peers.get(name)
        return 0 if peer is None else max(0, peer.seq)

    def forget(self, name: str) -> None:
        """Forget a peer; a later update of it starts anew, whatever its epoch."""
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        self._drop(peer, set(peer.keys))
        self._slots[peer.slot] = None
        self._free.append(peer.slot)

    def match(self, chain: Chain, prompt_tokens: int) -> PrefixMatch:
        """Return which peers hold how much of a prompt."""
        hashes, holders = chain.hashes, self._holders
        paths: list[int] = []
        alive = -1
        depth = 1
        while depth <= len(hashes):
            alive &= holders.get(_key(hashes[depth - 1]), 0)
            if alive == 0:
                break
            paths.append(alive)
            depth *= 2
        return PrefixMatch(self, chain, prompt_tokens, self._levels(chain, paths))

    def bit(self, name: str) -> int:
        """Return the bit that stands for a peer in the sets of holders; 0 if it is unknown."""
        peer = self._peers.get(name)
        return 0 if peer is None else peer.bit

    def name(self, slot: int) -> str:
        """Return the name of the peer with bit `1 << slot`."""
        peer = self._slots[slot]
        assert peer is not None, "a set of holders names a peer that is gone"
        return peer.name

    def _levels(self, chain: Chain, paths: list[int]) -> list[tuple[int, int]]:
        """Return depths and holders, the deepest first.

        Args:
            chain: Of the prompt.
            paths: Holders of all keys at depths that are powers of two, up to each of them.
        """
        hashes, holders = chain.hashes, self._holders
        levels: list[tuple[int, int]] = []
        seen = 0
        for power in range(len(paths) - 1, -1, -1):
            left = paths[power] & ~seen
            seen |= left
            depth = min(2 << power, len(hashes) + 1) - 1
            # The last chunks of prompts are between two powers.
            while left and depth > 1 << power:
                found = holders.get(_key(hashes[depth - 1]), 0) & left
                if found:
                    left ^= found
                    levels.append((depth, found))
                depth -= 1
            if left:
                levels.append((1 << power, left))
        return levels

    def _join(self, name: str) -> _Peer:
        if self._free:
            peer = _Peer(name, self._free.pop())
            self._slots[peer.slot] = peer
        else:
            peer = _Peer(name, len(self._slots))
            self._slots.append(peer)
        self._peers[name] = peer
        return peer

    def _replace(self, peer: _Peer, update: DigestUpdate) -> None:
        wanted = _unpacked(update.added, self._max_keys)
        self._drop(peer, peer.keys - wanted)
        self._hold(peer, wanted - peer.keys)

    def _change(self, peer: _Peer, update: DigestUpdate) -> None:
        self._drop(peer, _unpacked(update.removed, self._max_keys))
        self._hold(peer, _unpacked(update.added, self._max_keys - len(peer.keys)))

    def _hold(self, peer: _Peer, keys: set[int]) -> None:
        holders, bit = self._holders, peer.bit
        for key in keys:
            holders[key] = holders.get(key, 0) | bit
        peer.keys.update(keys)

    def _drop(self, peer: _Peer, keys: set[int]) -> None:
        holders, bit = self._holders, peer.bit
        for key in keys:
            left = holders.get(key, 0) & ~bit
            if left:
                holders[key] = left
            else:
                holders.pop(key, None)
        peer.keys.difference_update(keys)


class PrefixMatch:
    """Which peers hold how much of one prompt; to be used before the next update is applied."""

    def __init__(
        self, peers: PeerPrefixes, chain: Chain, prompt_tokens: int, levels: list[tuple[int, int]]
    ) -> None:
        self._peers = peers
        self._chain = chain
        self._prompt_tokens = prompt_tokens
        self._levels = levels

    def tokens(self, name: str) -> int:
        """Return how many prompt tokens one replica is believed to hold."""
        bit = self._peers.bit(name)
        for depth, holders in self._levels:
            if holders & bit:
                return self._tokens(depth)
        return 0

    def best(self, limit: int, start: int = 0) -> dict[str, int]:
        """Return the replicas that hold most, and how many prompt tokens, most first.

        Args:
            limit: How many replicas.
            start: Where to begin among those that hold equally much, so that not all readers
                choose the same; a random number.
        """
        found: dict[str, int] = {}
        shift = start % (len(self._peers) or 1)
        for depth, holders in self._levels:
            above = holders >> shift << shift
            for part in (above, holders ^ above):
                left = part
                while left and len(found) < limit:
                    low = left & -left
                    left ^= low
                    found[self._peers.name(low.bit_length() - 1)] = self._tokens(depth)
            if len(found) >= limit:
                break
        return found

    def _tokens(self, depth: int) -> int:
        return min(self._chain.tokens(depth, self._prompt_tokens), max(0, self._prompt_tokens - 1))


def _key(hashed: int) -> int:
    return hashed & _KEY_MASK


def _packed(keys: set[int]) -> bytes:
    """Return keys as bytes, in order, so that equal digests are equal messages."""
    return struct.pack(f"<{len(keys)}I", *sorted(keys))


def _size(update: DigestUpdate) -> int:
    """Return the bytes that an update takes."""
    return _UPDATE_BYTES + len(update.added) + len(update.removed)


def _unpacked(packed: bytes, limit: int = MAX_KEYS) -> set[int]:
    """Return at most `limit` keys; a part of a key at the end is left out."""
    count = max(0, min(limit, len(packed) // _KEY_BYTES))
    return set(struct.unpack_from(f"<{count}I", packed))
