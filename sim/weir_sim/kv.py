"""The KV cache: blocks, and among them those that whole prompt prefixes share.

A prompt may name its content as a chain of hash ids, one per `SHARED_TOKENS` tokens in the format
of the Mooncake traces. Blocks of one id exist once, are counted by reference, and stay cached
after their last user until room is needed, the least recently used first, as in vLLM.
Simplification: a prompt's blocks are all taken when it is admitted, and count as cached from then
on, while vLLM takes and registers them chunk by chunk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

SHARED_TOKENS = 512
"""Prompt tokens that one hash id of a trace stands for."""


class KvCache:
    """Counts blocks; holds nothing.

    Args:
        blocks: How many there are.
        block_tokens: Tokens in a block.
        shared_tokens: Prompt tokens that one hash id stands for.
    """

    def __init__(self, blocks: int, block_tokens: int, shared_tokens: int = SHARED_TOKENS) -> None:
        self._blocks = blocks
        self._block_tokens = block_tokens
        self._shared_tokens = shared_tokens
        self._per_id = -(-shared_tokens // block_tokens)
        self._private = 0
        self._references: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def held(self) -> int:
        """Return the blocks that running requests hold."""
        return self._private + self._per_id * len(self._references)

    @property
    def available(self) -> int:
        """Return the blocks that are free or can be freed at once."""
        return self._blocks - self.held

    def usage_ratio(self) -> float:
        """Return the held part of the cache, 0 to 1."""
        return self.held / self._blocks

    def cached_tokens(self, hash_ids: Sequence[int], prompt_tokens: int) -> int:
        """Return how much of a prompt is cached; its last token is always computed."""
        found = 0
        for hash_id in hash_ids:
            if hash_id not in self._references and hash_id not in self._unused:
                break
            found += 1
        return min(found * self._shared_tokens, prompt_tokens - 1)

    def private_blocks(self, hash_ids: Sequence[int], tokens: int) -> int:
        """Return the blocks beside the shared ones that a request of `tokens` needs."""
        return -(-(tokens - len(hash_ids) * self._shared_tokens) // self._block_tokens)

    def needed(self, hash_ids: Sequence[int], private_blocks: int) -> int:
        """Return the blocks that a request would take from the available ones."""
        new = sum(1 for hash_id in hash_ids if hash_id not in self._references)
        return private_blocks + new * self._per_id

    def admit(self, hash_ids: Sequence[int], private_blocks: int) -> bool:
        """Take the blocks of a request, all or none."""
        if self.available < self.needed(hash_ids, private_blocks):
            return False
        for hash_id in hash_ids:
            self._references[hash_id] = self._references.get(hash_id, 0) + 1
            self._unused.pop(hash_id, None)
        self._private += private_blocks
        self._evict()
        return True

    def grow(self, blocks: int) -> bool:
        """Take more private blocks, all or none."""
        if self.available < blocks:
            return False
        self._private += blocks
        self._evict()
        return True

    def release(self, hash_ids: Sequence[int], private_blocks: int) -> None:
        """Give a request's blocks back; shared ones without a user stay cached."""
        self._private -= private_blocks
        # In reverse, so that the end of a chain is evicted before its beginning.
        for hash_id in reversed(hash_ids):
            left = self._references[hash_id] - 1
            if left:
                self._references[hash_id] = left
            else:
                del self._references[hash_id]
                self._unused[hash_id] = None

    def _evict(self) -> None:
        while self._unused and self.held + self._per_id * len(self._unused) > self._blocks:
            self._unused.popitem(last=False)
