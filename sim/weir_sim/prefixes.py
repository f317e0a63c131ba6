"""How well a sidecar predicts prefix hits, and what hit rate a fleet reaches by digests.

The first table has one replica. Its cache is modelled block by block as vLLM's is (whole blocks,
never the last token, least recently used, outputs cached as well); the index of
`weir_core.route.prefix` sees texts only. Predicted is set against actual.

The second has a fleet. A request goes to the replica with the least work before its first token:
prompt tokens that wait there, and `weight` times those of its own that must be computed. Policies
differ in what is known of the caches: nothing (`random`), the session's replica only (`session`),
digests that come late or get lost (`digest`), or all (`perfect`). Candidates by digest are the two
best holders and two random replicas. Only prefill takes time here, so the waits compare policies
and are no latencies of a product.

Requests come from a trace with `hash_ids` (one for each 512 tokens; a block that the trace names
is 2,048 bytes of text), or are conversations with texts of their own: a few system prompts, and
messages of 3 to 5 bytes a token, so that bytes say only roughly where a token is.

    python -m weir_sim.prefixes --trace conversation.jsonl --replicas 8
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from weir_core.route.digest import DigestUpdate, DigestWriter, PeerPrefixes
from weir_core.route.prefix import (
    CHUNK_BYTES,
    Chain,
    PrefixIndex,
    chunk_hashes,
    prefix_salt,
    prompt_text,
)
from weir_sim.kv import SHARED_TOKENS
from weir_sim.traces import read_trace
from weir_sim.workload import SimRequest, WorkloadSpec, generate

POLICIES: Final = ("random", "session", "digest", "perfect")
_SYSTEM_PROMPTS: Final = 4
_SYSTEM_TOKENS: Final = 900
_HOLDERS: Final = 2
_RANDOM: Final = 2
_EPOCH: Final = 1


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
    """What is compared.

    Attributes:
        capacity_tokens: KV cache of one replica.
        load: Prompt tokens that arrive over those that the fleet can compute, hits left out.
        weight: Of a token that must be computed again, in tokens that wait.
        period_s: A replica tells its digest so often.
        delay_s: An update arrives so much later.
        loss: Part of all updates that do not arrive.
    """

    replicas: int = 8
    capacity_tokens: int = 1_000_000
    block_tokens: int = 128
    load: float = 1.0
    weight: float = 1.0
    period_s: float = 1.0
    delay_s: float = 0.2
    loss: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Predicted against actual on one replica, all in parts of the prompt tokens but the last.

    Attributes:
        error_tokens: Mean absolute error of a request.
    """

    actual_ratio: float
    predicted_ratio: float
    error_tokens: float


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What a policy reached.

    Attributes:
        hit_ratio: Cached over all prompt tokens.
        mean_wait_s: From arrival to the first token, as prefill goes.
        p99_wait_s: The same, 99th percentile.
        imbalance: Tokens that the busiest replica computed over the mean.
        digest_bytes_per_s: Keys that one replica tells one peer.
    """

    policy: str
    hit_ratio: float
    mean_wait_s: float
    p99_wait_s: float
    imbalance: float
    digest_bytes_per_s: float


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
        own = [_number("own", serial, part) for part in range(-(-left // block_tokens))]
        text_bytes = request.prompt_tokens * CHUNK_BYTES // SHARED_TOKENS
        hashes = [_number("chunk", hash_id) for hash_id in request.hash_ids]
        prompts.append(
            Prompt(
                arrival_s=request.arrival_s,
                session=request.session or str(request.hash_ids[:2]),
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                blocks=(*named, *own),
                chain=Chain(hashes, _number("whole", serial), text_bytes),
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
        partial = [_number("partial", self._content)] if self._tokens % self._block_tokens else []
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
        self._content = _number("said", self._content, text)
        self._tokens += tokens
        while (len(self._blocks) + 1) * self._block_tokens <= self._tokens:
            self._blocks.append(_number("block", self._content, len(self._blocks)))


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


class _Replica:
    """Computes prompts one after the other."""

    def __init__(self, setup: Setup, tokens_per_s: float) -> None:
        self.cache = BlockCache(setup.capacity_tokens, setup.block_tokens)
        self.index = PrefixIndex(setup.capacity_tokens, setup.block_tokens)
        self.writer = DigestWriter(self.index, _EPOCH)
        self.computed = 0
        self.hits = 0
        self._tokens_per_s = tokens_per_s
        self._queue: deque[tuple[Prompt, int]] = deque()
        self._queued_tokens = 0
        self._free_s = 0.0
        self.waits_s: list[float] = []

    def take(self, prompt: Prompt, expected_tokens: int) -> None:
        self._queue.append((prompt, expected_tokens))
        self._queued_tokens += expected_tokens

    def work(self, now: float) -> float:
        """Return the prompt tokens that a newcomer waits for."""
        return max(0.0, self._free_s - now) * self._tokens_per_s + self._queued_tokens

    def advance(self, now: float) -> None:
        """Begin what can begin by `now`."""
        while self._queue and self._free_s <= now:
            prompt, expected_tokens = self._queue.popleft()
            self._queued_tokens -= expected_tokens
            actual = self.cache.cached_tokens(prompt)
            _run(self.index, prompt, actual)
            self.cache.insert(prompt)
            self.hits += actual
            self.computed += prompt.prompt_tokens - actual
            start_s = max(self._free_s, prompt.arrival_s)
            self._free_s = start_s + (prompt.prompt_tokens - actual) / self._tokens_per_s
            self.waits_s.append(self._free_s - prompt.arrival_s)


class _Fleet:
    """Replicas, and one sidecar that sends them all requests."""

    def __init__(self, setup: Setup, tokens_per_s: float) -> None:
        self.replicas = [_Replica(setup, tokens_per_s) for _ in range(setup.replicas)]
        self.digest_bytes = 0
        self._setup = setup
        self._rng = random.Random(f"prefixes-{setup.seed}")
        self._peers = PeerPrefixes()
        self._next_s = 0.0
        # Replica -> when it may be asked for a snapshot again.
        self._asked_s = [0.0] * setup.replicas
        self._underway: deque[tuple[float, int, DigestUpdate]] = deque()

    def advance(self, now: float) -> None:
        """Let replicas work, tell and hear until `now`."""
        while self._next_s <= now:
            for number, replica in enumerate(self.replicas):
                replica.advance(self._next_s)
                self._tell(number, replica.writer.delta(), self._next_s)
            self._next_s += self._setup.period_s
        for replica in self.replicas:
            replica.advance(now)
        while self._underway and self._underway[0][0] <= now:
            arrived_s, number, update = self._underway.popleft()
            if self._peers.apply(str(number), update) and arrived_s >= self._asked_s[number]:
                self._asked_s[number] = arrived_s + self._setup.period_s + self._setup.delay_s
                self._tell(number, self.replicas[number].writer.snapshot(), arrived_s)

    def choose(self, policy: str, prompt: Prompt, now: float) -> tuple[int, int]:
        """Return a replica, and the tokens of the prompt that it is believed to have cached."""
        count = len(self.replicas)
        if policy == "session":
            return _number("session", prompt.session) % count, 0
        if policy == "random":
            return self._rng.randrange(count), 0
        held = self._digest_candidates(prompt) if policy == "digest" else self._all(prompt)
        replicas = self.replicas
        weight = self._setup.weight
        scores = {
            number: (
                replicas[number].work(now) + weight * (prompt.prompt_tokens - tokens),
                self._rng.random(),
            )
            for number, tokens in held.items()
        }
        chosen = min(scores, key=scores.__getitem__)
        return chosen, held[chosen]

    def _digest_candidates(self, prompt: Prompt) -> dict[int, int]:
        count = len(self.replicas)
        match = self._peers.match(prompt.chain, prompt.prompt_tokens)
        best = match.best(_HOLDERS, self._rng.randrange(count))
        held = {int(name): tokens for name, tokens in best.items()}
        for number in self._rng.sample(range(count), min(_RANDOM, count)):
            held[number] = match.tokens(str(number))
        return held

    def _all(self, prompt: Prompt) -> dict[int, int]:
        return {
            number: replica.cache.cached_tokens(prompt)
            for number, replica in enumerate(self.replicas)
        }

    def _tell(self, number: int, update: DigestUpdate, now: float) -> None:
        self.digest_bytes += len(update.added) + len(update.removed)
        if self._rng.random() >= self._setup.loss:
            self._underway.append((now + self._setup.delay_s, number, update))


def run_fleet(prompts: Sequence[Prompt], setup: Setup, policy: str) -> FleetResult:
    """Return what a policy reaches on a fleet."""
    total = sum(prompt.prompt_tokens for prompt in prompts)
    duration_s = max(prompts[-1].arrival_s, 1.0)
    fleet = _Fleet(setup, total / (setup.replicas * duration_s * setup.load))
    for prompt in prompts:
        now = prompt.arrival_s
        fleet.advance(now)
        number, held_tokens = fleet.choose(policy, prompt, now)
        fleet.replicas[number].take(prompt, prompt.prompt_tokens - held_tokens)
    for replica in fleet.replicas:
        replica.advance(float("inf"))
    waits_s = sorted(wait_s for replica in fleet.replicas for wait_s in replica.waits_s)
    computed = [replica.computed for replica in fleet.replicas]
    return FleetResult(
        policy=policy,
        hit_ratio=sum(replica.hits for replica in fleet.replicas) / total,
        mean_wait_s=sum(waits_s) / len(waits_s),
        p99_wait_s=waits_s[int(len(waits_s) * 0.99)],
        imbalance=max(computed) * setup.replicas / sum(computed),
        digest_bytes_per_s=fleet.digest_bytes / setup.replicas / duration_s,
    )


def _number(*parts: object) -> int:
    """Return a number that is the same for equal parts, in every process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def table(prompts: Sequence[Prompt], setup: Setup) -> Iterator[str]:
    """Return the lines of both tables."""
    yield f"{'one replica':15} {'actual':>8} {'predicted':>10} {'error, tokens':>14}"
    for name, learns in (("by what ran", False), ("and the engine", True)):
        found = accuracy(prompts, setup, learns=learns)
        yield (
            f"{name:15} {found.actual_ratio:8.3f} {found.predicted_ratio:10.3f}"
            f" {found.error_tokens:14.0f}"
        )
    yield ""
    yield (
        f"{setup.replicas:3} replicas    {'hit':>8} {'mean s':>10} {'p99 s':>8} {'busiest':>8}"
        f" {'digest B/s':>11}"
    )
    for policy in POLICIES:
        result = run_fleet(prompts, setup, policy)
        yield (
            f"{policy:15} {result.hit_ratio:8.3f} {result.mean_wait_s:10.2f}"
            f" {result.p99_wait_s:8.2f} {result.imbalance:8.2f} {result.digest_bytes_per_s:11.0f}"
        )


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description="Prefix knowledge: predicted hits, and digests")
    parser.add_argument("--trace", type=Path, help="with hash_ids; else conversations")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--capacity", type=int, default=1_000_000, help="KV tokens of a replica")
    parser.add_argument("--block", type=int, default=128, help="tokens of a KV block")
    parser.add_argument("--load", type=float, default=1.0, help="were there no hits")
    parser.add_argument("--weight", type=float, default=1.0, help="of a miss, in tokens of wait")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds to a digest's arrival")
    parser.add_argument("--loss", type=float, default=0.0, help="part of updates lost")
    parser.add_argument("--rate", type=float, default=4.0, help="of conversations' requests")
    parser.add_argument("--duration", type=float, default=600.0, help="of conversations")
    parser.add_argument("--turns", type=int, default=8, help="of a conversation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    setup = Setup(
        replicas=options.replicas,
        capacity_tokens=options.capacity,
        block_tokens=options.block,
        load=options.load,
        weight=options.weight,
        delay_s=options.delay,
        loss=options.loss,
        seed=options.seed,
    )
    if options.trace is not None:
        prompts = prompts_of_trace(read_trace(options.trace), options.block)
    else:
        spec = WorkloadSpec(options.rate, options.duration, turns=options.turns)
        prompts = prompts_of_conversations(generate(spec, options.seed), options.block)
    for line in table(prompts, setup):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
