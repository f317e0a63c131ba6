"""A model of the prefix cache of one replica's engine, as far as its sidecar can know it.

The engine's cache is keyed by tokens, and a sidecar has none: it has the text of requests. So a
prompt is named by a chain of hashes over the text that the engine renders it from, one for each
`CHUNK_BYTES`; the hash of a chunk covers all text before it, so equal hashes mean equal prefixes.

`PrefixIndex` follows the cache by what ran: chunks are kept least recently used first, within the
engine's KV capacity in tokens, beside the ends of prompts and the outputs, which take room as
well. It is a model, and the engine tells the truth with each request that starts: how many of its
prompt tokens were cached. What was predicted beyond that is forgotten; where it is more, the
prediction grows. Conversations go on inside a chunk, after the answer that the engine computed and
the sidecar has not hashed: that the end of the last prompt is cached with its output is predicted
while the engine's reports bear it out. A wrong prediction costs a cache miss and nothing else.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

CHUNK_BYTES: Final = 2048
"""Text of one chunk: 512 tokens of English."""
MAX_CHUNKS: Final = 512
"""Chunks hashed of one prompt, so that the work for a request is bounded: 1 MiB of text."""
TOKENS_PER_ENTRY: Final = 64
"""An index has at most one entry for so many tokens of its capacity."""
_MOST_CONTINUED: Final = 8
"""How far what was seen of late can tip the guess whether prompts go on where others ended."""
_SEPARATOR: Final = b"\0"
"""Between parts of a prompt: JSON text never holds this byte."""
_WHITE: Final = b" \t\n\r"
_CLOSING: Final = b']"'
_END: Final = b"\0\0"
"""Makes the hash of a whole text another than that of a chunk which ends there."""


class Chain:
    """The hashes of one prompt's text.

    Attributes:
        hashes: One for each whole chunk, from the beginning of the text; unsigned 64 bit.
        whole: Of all the text, its last part of a chunk included.
        text_bytes: How long the text is.
    """

    def __init__(self, hashes: list[int], whole: int, text_bytes: int) -> None:
        self.hashes = hashes
        self.whole = whole
        self.text_bytes = text_bytes

    @property
    def is_complete(self) -> bool:
        """Whether all of the text was hashed, so that equal chains are equal texts."""
        return self.text_bytes <= MAX_CHUNKS * CHUNK_BYTES

    def tokens(self, chunks: int, prompt_tokens: int) -> int:
        """Return how many of the prompt's tokens the first `chunks` hold, by their bytes."""
        if chunks <= 0:
            return 0
        return min(prompt_tokens, prompt_tokens * chunks * CHUNK_BYTES // self.text_bytes)


def prefix_salt(model: str, adapter: str = "", cache_salt: str = "") -> bytes:
    """Return what sets chains apart whose equal texts have nothing cached in common."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (model, adapter, cache_salt):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def prompt_text(parts: list[bytes] | list[memoryview]) -> list[bytes | memoryview]:
    """Return the text of a prompt, in pieces, from the body's values that it is rendered from.

    The order is that of the rendered prompt: what a conversation keeps (tools, system text,
    instructions) before the list of messages, which grows at its end. The bracket or quote that
    closes the last value is left out, so that the text of a conversation begins with the text
    that it had one message earlier.
    """
    pieces: list[bytes | memoryview] = []
    for part in parts:
        pieces.append(part)
        pieces.append(_SEPARATOR)
    if pieces:
        last = parts[-1]
        end = _stripped(last, len(last))
        if end and last[end - 1] in _CLOSING:
            end = _stripped(last, end - 1)
        pieces[-2:] = [last[:end]]
    return pieces


def _stripped(text: bytes | memoryview, end: int) -> int:
    """Return where a text ends, without the white space before `end`."""
    while end and text[end - 1] in _WHITE:
        end -= 1
    return end


def chunk_hashes(pieces: Sequence[bytes | memoryview], salt: bytes) -> Chain:
    """Return the chain of a prompt's text; no more than `MAX_CHUNKS` of it are read.

    Nothing of it is copied: copies of long texts would cost as much as their hashes.

    Args:
        pieces: The text, as `prompt_text` returns it.
        salt: As `prefix_salt` returns it.
    """
    digest = hashlib.blake2b(salt, digest_size=8)
    hashes: list[int] = []
    size, missing = 0, CHUNK_BYTES
    for piece in pieces:
        length, start = len(piece), 0
        size += length
        while start < length and len(hashes) < MAX_CHUNKS:
            end = min(start + missing, length)
            digest.update(piece[start:end])
            missing -= end - start
            start = end
            if missing == 0:
                hashes.append(int.from_bytes(digest.copy().digest(), "little"))
                missing = CHUNK_BYTES
    digest.update(_END)
    return Chain(hashes, int.from_bytes(digest.digest(), "little"), size)


class _Entry:
    """A chunk that is cached, or the end of a prompt and its output.

    No dataclass: mypyc leaves a dataclass' `__init__` in Python.

    Attributes:
        key: The chunk's hash; of an end, the hash of the whole prompt.
        parent: The chunk before it.
        depth: Chunks from the beginning of the prompt to its end; 0 for the end of a prompt.
        tokens: How many tokens it stands for.
        extra: Tokens that the engine had cached after this chunk, by its last report about a
            prompt of which this was the last cached chunk.
        children: Chunks that follow it.
        ends: How many ends of prompts follow it.
        last_end: The key of the last of them, while it may be where another prompt goes on; or 0.
    """

    def __init__(self, key: int, parent: _Entry | None, depth: int, tokens: int) -> None:
        self.key = key
        self.parent = parent
        self.depth = depth
        self.tokens = tokens
        self.extra = 0
        self.children: dict[int, _Entry] = {}
        self.ends = 0
        self.last_end = 0


class PrefixIndex:
    """A model of the prefix cache of one engine.

    Operations take time in proportion to the chain; what an operation evicts was inserted once.

    Args:
        capacity_tokens: What the engine's KV cache holds.
        block_tokens: The engine's block; a hit is whole blocks.
    """

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        self._capacity = max(1, capacity_tokens)
        self._block = max(1, block_tokens)
        self._max_entries = self._capacity // TOKENS_PER_ENTRY + 1
        # The least recently used first; a chunk is always after those that follow it in a prompt.
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._tokens = 0
        self._changed: set[int] = set()
        self._all_changed = False
        # Above 0: of late, prompts went on more often than not where another one had ended.
        self._continued = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tokens(self) -> int:
        """Return how many tokens are believed to be cached, at most the capacity."""
        return self._tokens

    def cached_tokens(self, chain: Chain, prompt_tokens: int) -> int:
        """Return how many tokens of a prompt the engine probably has: whole blocks, never all."""
        most = self._usable(prompt_tokens)
        path = self._path(chain)
        is_whole = chain.is_complete and len(path) == len(chain.hashes)
        if is_whole and chain.whole in self._entries:
            return most
        if not path:
            return 0
        more = path[-1].extra
        if self._continued > 0:
            end = self._lone_end(path[-1])
            if end is not None:
                more = max(more, end.tokens)
        return min(most, self._whole_blocks(_tokens(path) + more))

    def insert(
        self, chain: Chain, prompt_tokens: int, computed_tokens: int, output_tokens: int = 0
    ) -> None:
        """Note that the engine has computed a prompt, or its first `computed_tokens`.

        Insert a request when its prompt is computed, and again when it ends, with its output:
        that is when the engine begins to count its blocks as unused. A request that ends in
        mid-prefill leaves what was computed.
        """
        path = self._path(chain)
        self._extend(path, chain, prompt_tokens, computed_tokens)
        if computed_tokens >= prompt_tokens:
            self._end(path, chain, prompt_tokens - _tokens(path) + output_tokens)
        # The engine gives the end of a prompt back first, so it is the first to be evicted.
        for entry in reversed(path):
            self._entries.move_to_end(entry.key)
        self._evict()

    def learned(self, chain: Chain, prompt_tokens: int, cached_tokens: int) -> None:
        """Correct the model by how many tokens of a prompt the engine found in its cache.

        Leave out requests whose report is not about what was cached before them: several
        sequences of one prompt, and prompts that skip the cache (`prompt_logprobs`, `echo`).
        """
        is_all = cached_tokens >= self._usable(prompt_tokens)
        path = self._path(chain)
        if not is_all:
            self._forget_end(chain.whole)
            self._forget_beyond(path, cached_tokens)
        if path:
            self._judge_end(path[-1], cached_tokens - _tokens(path))
        self._extend(path, chain, prompt_tokens, cached_tokens)
        if path:
            path[-1].extra = max(0, cached_tokens - _tokens(path))
        for entry in reversed(path):
            self._entries.move_to_end(entry.key)
        self._evict()

    def clear(self) -> None:
        """Forget all: the engine has started anew, or its cache was reset."""
        # Break the reference cycles here, so that the GC need not.
        for entry in self._entries.values():
            entry.children = {}
            entry.parent = None
        self._entries.clear()
        self._tokens = 0
        self._changed.clear()
        self._all_changed = True

    def is_advertised(self, key: int) -> bool:
        """Return whether peers are told of a chunk.

        They are told of those at depths that are powers of two, and of those that no cached
        chunk follows: every chain that is cached is known by its end, and confirmed before it.
        """
        entry = self._entries.get(key)
        if entry is None or entry.depth == 0:
            return False
        return not entry.children or entry.depth & (entry.depth - 1) == 0

    def advertised(self) -> list[int]:
        """Return all hashes that peers are told of, the most recently used first."""
        return [key for key in reversed(self._entries) if self.is_advertised(key)]

    def take_changed(self) -> set[int] | None:
        """Return hashes whose `is_advertised` may have changed since the last call; None for all.

        One reader can follow an index so.
        """
        changed = None if self._all_changed else self._changed
        self._changed = set()
        self._all_changed = False
        return changed

    def _usable(self, prompt_tokens: int) -> int:
        """Return the most that a prompt can hit: the engine always computes its last token."""
        return self._whole_blocks(max(0, prompt_tokens - 1))

    def _whole_blocks(self, tokens: int) -> int:
        return tokens // self._block * self._block

    def _path(self, chain: Chain) -> list[_Entry]:
        """Return the chunks of a chain that are cached, from its beginning."""
        entries = self._entries
        path: list[_Entry] = []
        for key in chain.hashes:
            entry = entries.get(key)
            if entry is None:
                break
            path.append(entry)
        return path

    def _extend(
        self, path: list[_Entry], chain: Chain, prompt_tokens: int, computed_tokens: int
    ) -> None:
        """Add the chunks after `path` that lie within the first `computed_tokens`."""
        known = len(path)
        known_tokens = _tokens(path)
        left_tokens = max(0, prompt_tokens - known_tokens)
        left_bytes = chain.text_bytes - known * CHUNK_BYTES
        before = 0
        for index in range(known, len(chain.hashes)):
            through = left_tokens * (index + 1 - known) * CHUNK_BYTES // left_bytes
            if known_tokens + through > computed_tokens:
                break
            self._add(path, chain.hashes[index], through - before)
            before = through

    def _add(self, path: list[_Entry], key: int, tokens: int) -> None:
        parent = path[-1] if path else None
        if parent is not None:
            # Taken for the prompt that ended here, which goes on: its end is in the next chunks.
            end = self._lone_end(parent)
            if end is not None:
                self._remove(end)
            self._note_change(parent.key)
        entry = _Entry(key, parent, len(path) + 1, tokens)
        if parent is not None:
            parent.children[key] = entry
        self._entries[key] = entry
        self._tokens += tokens
        self._note_change(key)
        path.append(entry)

    def _end(self, path: list[_Entry], chain: Chain, tokens: int) -> None:
        """Note the end of a prompt, with its output, as the most recently used."""
        key = chain.whole
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(key, path[-1] if path else None, 0, 0)
            self._entries[key] = entry
            if entry.parent is not None:
                entry.parent.ends += 1
                entry.parent.last_end = key
        tokens = max(0, tokens)
        self._tokens += tokens - entry.tokens
        entry.tokens = tokens
        self._entries.move_to_end(key)

    def _forget_beyond(self, path: list[_Entry], cached_tokens: int) -> None:
        """Take from `path` and from the model what lies beyond a hit of `cached_tokens`."""
        # The engine reports whole blocks: what ends less than one beyond it may be there.
        most = cached_tokens + self._block - 1
        tokens = 0
        for index, entry in enumerate(path):
            tokens += entry.tokens
            if tokens > most:
                self._remove(entry)
                del path[index:]
                return

    def _judge_end(self, last: _Entry, beyond_tokens: int) -> None:
        """Note whether a prompt went on where the one before it had ended, after chunk `last`.

        If it did, the end's tokens belong to the chunks that follow now, or to the new end.
        """
        end = self._entries.get(last.last_end)
        if end is None:
            return
        went_on = beyond_tokens + self._block > end.tokens
        if self._lone_end(last) is not None:
            step = 1 if went_on else -1
            self._continued = max(-_MOST_CONTINUED, min(_MOST_CONTINUED, self._continued + step))
        if went_on:
            self._remove(end)
        last.last_end = 0

    def _lone_end(self, last: _Entry) -> _Entry | None:
        """Return the end after chunk `last`, if only one prompt is known that came so far."""
        if last.ends != 1 or last.children:
            return None
        return self._entries.get(last.last_end)

    def _forget_end(self, key: int) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.depth == 0:
            self._remove(entry)

    def _evict(self) -> None:
        entries = self._entries
        while entries and (self._tokens > self._capacity or len(entries) > self._max_entries):
            self._remove(next(iter(entries.values())))

    def _remove(self, entry: _Entry) -> None:
        """Forget an entry and the chunks that follow it, which cannot be hit without it."""
        parent = entry.parent
        if parent is not None and entry.depth == 0:
            parent.ends -= 1
        elif parent is not None:
            del parent.children[entry.key]
            self._note_change(parent.key)
        doomed = [entry]
        while doomed:
            gone = doomed.pop()
            doomed += gone.children.values()
            # As in `clear`.
            gone.children = {}
            gone.parent = None
            del self._entries[gone.key]
            self._tokens -= gone.tokens
            if gone.depth:
                self._note_change(gone.key)

    def _note_change(self, key: int) -> None:
        if self._all_changed:
            return
        self._changed.add(key)
        if len(self._changed) > 2 * self._max_entries:
            # Nothing has read the changes for long: comparing all keys is cheaper then.
            self._changed.clear()
            self._all_changed = True


def _tokens(path: list[_Entry]) -> int:
    """Return the prompt tokens of chunks from the beginning of a prompt."""
    return sum([entry.tokens for entry in path])
