"""What prefixes cost a sidecar: chains of prompts, the model of its cache, digests of peers.

A chain is computed for each request of a service with peers whose prompt is long enough; it is set
beside the reading of the body that every request has. The cache is one of a million tokens with
conversations of 4 to 62 chunks on four system prompts, and so is that of each peer. Digests are
told to all peers and heard of all once a second, while each replica takes `--rate` requests a
second.

Times are of the CPU, the least of several runs.

    python -m weir_sim.prefix_cost --peers 256 --rate 8
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from weir_core.route import prefix
from weir_core.route.digest import DigestLog, DigestWriter, PeerPrefixes
from weir_core.route.prefix import CHUNK_BYTES, Chain, PrefixIndex, chunk_hashes, prefix_salt
from weir_core.wire.bodies import read_body
from weir_core.wire.paths import POSTS
from weir_core.wire.prompts import chain_of

_SIZES_KIB: Final = (1, 4, 16, 256, 1024)
_CAPACITY_TOKENS: Final = 1_000_000
_BLOCK_TOKENS: Final = 16
_CONVERSATIONS: Final = 60
_CHUNKS: Final = (2, 5, 10, 30, 60)
_RUNS: Final = 5
_SECONDS: Final = 10
_SALT: Final = prefix_salt("model")
_PATH: Final = "/v1/chat/completions"


class Replica:
    """The cache of one replica as its sidecar follows it, and what it tells of it."""

    def __init__(self, rng: random.Random, systems: list[bytes]) -> None:
        self.index = PrefixIndex(_CAPACITY_TOKENS, _BLOCK_TOKENS)
        self.log = DigestLog(DigestWriter(self.index, 1))
        self._rng, self._systems = rng, systems

    def prompt(self) -> Chain:
        """Return a prompt with a beginning that others have, too."""
        text = self._rng.randbytes(self._rng.choice(_CHUNKS) * CHUNK_BYTES + 700)
        return chunk_hashes([self._rng.choice(self._systems), text], _SALT)

    def run(self, chain: Chain) -> None:
        """Start and end a request, as the sidecar hears of it."""
        tokens = _tokens(chain)
        found = self.index.cached_tokens(chain, tokens)
        self.index.learned(chain, tokens, found)
        self.index.insert(chain, tokens, tokens)
        self.index.insert(chain, tokens, tokens, 200)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What prefixes cost a sidecar.")
    parser.add_argument("--peers", type=int, default=256)
    parser.add_argument("--rate", type=int, default=8, help="requests per replica and second")
    options = parser.parse_args(arguments)
    compiled = "compiled" if prefix.__file__.endswith(".so") else "interpreted"
    lines = [f"prefixes, {compiled}", *_of_bodies(), *_of_digests(options.peers, options.rate)]
    sys.stdout.write("\n".join(lines) + "\n")


def _of_bodies() -> list[str]:
    endpoint = POSTS[_PATH]
    lines = []
    for size in _SIZES_KIB:
        body = _body(size << 10)
        asks = read_body(endpoint, body)
        times = 200 if size <= 16 else 10
        reading = _us(partial(read_body, endpoint, body), times)
        chain = _us(partial(chain_of, _PATH, body, asks), times)
        lines.append(f"body of {size} KiB: read in {reading:.1f} us, its chain in {chain:.1f} us")
    return lines


def _of_digests(count: int, rate: int) -> list[str]:
    rng = random.Random(0)
    systems = [rng.randbytes(2 * CHUNK_BYTES) for _ in range(4)]
    here, known = Replica(rng, systems), PeerPrefixes()
    peers = [Replica(rng, systems) for _ in range(count)]
    chains = [here.prompt() for _ in range(_CONVERSATIONS)]
    for chain in chains:
        here.run(chain)
    start_end = _us(partial(_run_all, here, tuple(chains)), 5) / len(chains)
    for number, peer in enumerate(peers):
        for _ in range(_CONVERSATIONS):
            chains.append(peer.prompt())
            peer.run(chains[-1])
        peer.log.advance(0.0, count)
        update = peer.log.update_since(0)
        assert update is not None
        known.apply(str(number), update)
    asked = rng.sample(chains, min(1000, len(chains)))
    looked_up = _us(partial(_look_up_all, here, known, asked), 3) / len(asked)
    told, told_bytes = _tell(here, count, rate)
    heard = _hear(known, peers, rate)
    return [
        f"a request's start and end: {start_end:.1f} us",
        f"what is cached of a prompt here and at {count} peers: {looked_up:.1f} us",
        f"digests told to {count} peers: {told:.2f} ms/s, {told_bytes / 1000:.1f} kB/s",
        f"digests heard of {count} peers: {heard:.2f} ms/s",
    ]


def _run_all(here: Replica, chains: Sequence[Chain]) -> None:
    for chain in chains:
        here.run(chain)


def _look_up_all(here: Replica, known: PeerPrefixes, chains: Sequence[Chain]) -> None:
    for chain in chains:
        tokens = _tokens(chain)
        known.match(chain, tokens).best(4, chain.whole & 0xFFFF)
        here.index.cached_tokens(chain, tokens)


def _tell(here: Replica, count: int, rate: int) -> tuple[float, float]:
    """Return the milliseconds and bytes of a second in which all peers are told."""
    here.log.advance(0.0, count)
    seqs = [0] * count
    spent_s, told_bytes = 0.0, 0
    for second in range(1, _SECONDS + 1):
        for _ in range(rate):
            here.run(here.prompt())
        begun_s = time.process_time()
        here.log.advance(float(second), count)
        for number, seq in enumerate(seqs):
            update = here.log.update_since(seq)
            if update is not None:
                seqs[number] = update.seq
                told_bytes += len(update.added) + len(update.removed)
        spent_s += time.process_time() - begun_s
    return spent_s / _SECONDS * 1000, told_bytes / _SECONDS


def _hear(known: PeerPrefixes, peers: list[Replica], rate: int) -> float:
    """Return the milliseconds of a second in which all peers tell."""
    spent_s = 0.0
    for second in range(1, _SECONDS + 1):
        updates = []
        for number, peer in enumerate(peers):
            for _ in range(rate):
                peer.run(peer.prompt())
            peer.log.advance(float(second), len(peers))
            updates.append((str(number), peer.log.update_since(known.seq(str(number)))))
        begun_s = time.process_time()
        for name, update in updates:
            if update is not None:
                known.apply(name, update)
        spent_s += time.process_time() - begun_s
    return spent_s / _SECONDS * 1000


def _body(size: int) -> bytes:
    """Return a chat of about so many bytes."""
    turn = {"role": "user", "content": 'the quick "brown" fox\njumps over the lazy dog. ' * 8}
    messages = [turn] * max(1, size // len(json.dumps(turn)))
    return json.dumps({"model": "model", "messages": messages, "stream": True}).encode()


def _tokens(chain: Chain) -> int:
    return chain.text_bytes // 4


def _us(call: Callable[[], object], times: int) -> float:
    """Return the microseconds of one call, the least of several runs."""
    best_s = float("inf")
    for _ in range(_RUNS):
        begun_s = time.process_time()
        for _ in range(times):
            call()
        best_s = min(best_s, (time.process_time() - begun_s) / times)
    return best_s * 1e6


if __name__ == "__main__":
    main()
