"""How well a sidecar predicts prefix hits.

The cache of one replica is modelled block by block as vLLM's is (whole blocks, never the last
token, least recently used, outputs cached as well); the index of `weir_core.route.prefix` sees
texts only. Predicted is set against actual. What hits a fleet reaches, `weir simulate fleet` says.

Requests come from a trace with `hash_ids` (one for each 512 tokens; a block that the trace names
is 2,048 bytes of text), or are conversations with texts of their own: a few system prompts, and
messages of 3 to 5 bytes a token, so that bytes say only roughly where a token is.

    python -m weir_sim.prefixes --trace conversation.jsonl
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weir_core.route.prefix import (
    Chain,
    PrefixIndex,
    chunk_hashes,
    prefix_salt,
    prompt_text,
)
from weir_sim.fleet_prefixes import chain_of, number_of
from weir_sim.kv import SHARED_TOKENS
from weir_sim.traces import read
from weir_sim.workload import SimRequest, WorkloadSpec, generate

_SYSTEM_PROMPTS: Final = 4
_SYSTEM_TOKENS: Final = 900


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, as the engine and as a sidecar see it.

    Attributes:
        blocks: What each whole block of prompt and output holds; equal for equal prefixes.
        chain: Of its text.
    """

    arrival_s: float
    session: str
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    chain: Chain


@dataclass(frozen=True, slots=True)
class Setup:
    """The engine.

    Attributes:
        capacity_tokens: Its KV cache.
    """

    capacity_tokens: int = 1_000_000
    block_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Predicted against actual on one replica, all in parts of the prompt tokens but the last.

    Attributes:
        error_tokens: Mean absolute error of a request.
    """

    actual_ratio: float
    predicted_ratio: float
    error_tokens: float


class BlockCache:
    """vLLM's prefix cache: blocks by content, the least recently used evicted first."""

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        self._capacity = max(1, capacity_tokens // block_tokens)
        self._block_tokens = block_tokens
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def cached_tokens(self, prompt: Prompt) -> int:
        """Return how much of a prompt is a hit: whole blocks, never the last token."""
        most = (prompt.prompt_tokens - 1) // self._block_tokens
        found = 0
        for block in prompt.blocks[:most]:
            if block not in self._blocks:
                break
            found += 1
        return found * self._block_tokens

    def insert(self, prompt: Prompt) -> None:
        """Compute a prompt and its output."""
        for block in reversed(prompt.blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


def prompts_of_trace(requests: Sequence[SimRequest], block_tokens: int) -> list[Prompt]:
    """Return the requests of a trace with `hash_ids`.

    An output's tokens are in no later prompt, as far as a trace tells.
    """
    per_id = SHARED_TOKENS // block_tokens
    prompts: list[Prompt] = []
    for serial, request in enumerate(requests):
        named = [hash_id * per_id + part for hash_id in request.hash_ids for part in range(per_id)]
        left = request.prompt_tokens + request.output_tokens - len(named) * block_tokens
        own = [number_of("own", serial, part) for part in range(-(-left // block_tokens))]
        prompts.append(
            Prompt(
                arrival_s=request.arrival_s,
                session=request.session or str(request.hash_ids[:2]),
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                blocks=(*named, *own),
                chain=chain_of(request, serial),
            )
        )
    return prompts


def prompts_of_conversations(requests: Sequence[SimRequest], block_tokens: int) -> list[Prompt]:
    """Return the requests of sessions, with texts as a client would send them."""
    conversations: dict[str, _Conversation] = {}
    return [
        conversations.setdefault(
            request.session, _Conversation(request.session, block_tokens)
        ).next_prompt(request)
        for request in requests
    ]


class _Conversation:
    """A system prompt of several, then messages and answers in turn."""

    def __init__(self, session: str, block_tokens: int) -> None:
        self._rng = random.Random(f"conversation-{session}")
        self._block_tokens = block_tokens
        self._messages: list[bytes] = []
        self._blocks: list[int] = []
        self._tokens = 0
        self._content = 0
        system = self._rng.randrange(_SYSTEM_PROMPTS)
        self._say(_SYSTEM_TOKENS, random.Random(f"system-{system}"))

    def next_prompt(self, request: SimRequest) -> Prompt:
        # The workload's own lengths know nothing of the system prompt.
        prompt_tokens = _SYSTEM_TOKENS + request.prompt_tokens
        self._say(max(1, prompt_tokens - self._tokens), self._rng)
        text = prompt_text([b"[" + b", ".join(self._messages) + b"]"])
        prompt_tokens = self._tokens
        self._say(request.output_tokens, self._rng)
        partial = [number_of("partial", self._content)] if self._tokens % self._block_tokens else []
        return Prompt(
            arrival_s=request.arrival_s,
            session=request.session,
            prompt_tokens=prompt_tokens,
            output_tokens=request.output_tokens,
            blocks=(*self._blocks, *partial),
            chain=chunk_hashes(text, prefix_salt("model")),
        )

    def _say(self, tokens: int, rng: random.Random) -> None:
        size = max(1, round(tokens * rng.uniform(3.0, 5.0)) - 40)
        text = rng.randbytes(size // 2 + 1).hex()[:size]
        self._messages.append(b'{"role": "user", "content": "%s"}' % text.encode())
        self._content = number_of("said", self._content, text)
        self._tokens += tokens
        while (len(self._blocks) + 1) * self._block_tokens <= self._tokens:
            self._blocks.append(number_of("block", self._content, len(self._blocks)))


def accuracy(prompts: Sequence[Prompt], setup: Setup, *, learns: bool) -> Accuracy:
    """Return how well an index predicts the cache of one replica that gets all requests."""
    cache = BlockCache(setup.capacity_tokens, setup.block_tokens)
    index = PrefixIndex(setup.capacity_tokens, setup.block_tokens)
    total = hit = believed = error = 0
    for prompt in prompts:
        predicted = index.cached_tokens(prompt.chain, prompt.prompt_tokens)
        actual = cache.cached_tokens(prompt)
        _run(index, prompt, actual if learns else None)
        cache.insert(prompt)
        total += prompt.prompt_tokens
        hit += actual
        believed += predicted
        error += abs(predicted - actual)
    return Accuracy(hit / total, believed / total, error / len(prompts))


def _run(index: PrefixIndex, prompt: Prompt, cached_tokens: int | None) -> None:
    """Tell an index of a request that ran, as a sidecar would."""
    if cached_tokens is not None:
        index.learned(prompt.chain, prompt.prompt_tokens, cached_tokens)
    index.insert(prompt.chain, prompt.prompt_tokens, prompt.prompt_tokens)
    index.insert(prompt.chain, prompt.prompt_tokens, prompt.prompt_tokens, prompt.output_tokens)


def table(prompts: Sequence[Prompt], setup: Setup) -> Iterator[str]:
    """Return the lines of the table."""
    yield f"{'one replica':15} {'actual':>8} {'predicted':>10} {'error, tokens':>14}"
    for name, learns in (("by what ran", False), ("and the engine", True)):
        found = accuracy(prompts, setup, learns=learns)
        yield (
            f"{name:15} {found.actual_ratio:8.3f} {found.predicted_ratio:10.3f}"
            f" {found.error_tokens:14.0f}"
        )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Prefix knowledge: predicted and actual hits")
    parser.add_argument("--trace", type=Path, help="with hash_ids; else conversations")
    parser.add_argument("--capacity", type=int, default=1_000_000, help="KV tokens of a replica")
    parser.add_argument("--block", type=int, default=128, help="tokens of a KV block")
    parser.add_argument("--rate", type=float, default=4.0, help="of conversations' requests")
    parser.add_argument("--duration", type=float, default=600.0, help="of conversations")
    parser.add_argument("--turns", type=int, default=8, help="of a conversation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    setup = Setup(options.capacity, options.block)
    if options.trace is not None:
        trace = read(options.trace)
        sys.stderr.write(f"{options.trace}: {trace.words()}\n")
        prompts = prompts_of_trace(trace.requests, options.block)
    else:
        spec = WorkloadSpec(options.rate, options.duration, turns=options.turns)
        prompts = prompts_of_conversations(generate(spec, options.seed), options.block)
    for line in table(prompts, setup):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
