"""What connects to peer ports and is no sidecar of the fleet: with its key, and without it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from bench.fuzz import requests
from bench.fuzz.network import SimulatedLoop
from bench.fuzz.policies import PEER_PORT
from bench.fuzz.replica import Host
from weir_core.errors import EngineUnavailable
from weir_core.route.types import ClassLoad, LoadVector
from weir_core.sched.types import Served, ServedLately
from weir_core.wire.peer_auth import Hello, Keys, Proof
from weir_core.wire.peers import HEARTBEAT_PATH, HELLO_PATH, Forwarded, Heartbeat
from weir_core.wire.policies import PeerEntry
from weir_sidecar.peers.peer import Peer
from weir_sidecar.telemetry.metrics import Metrics

GHOST: Final = "ghost"
"""Begins the names of those that have the key."""
_NUMBERS: Final = (0, 1, -1, 2, 7, 1 << 40, (1 << 63) - 1, -(1 << 62))
_TIMES: Final = (0.0, 0.001, 1.0, 1e9, -1.0, -1e9, 1e300, float("inf"), float("-inf"), float("nan"))
_NAMES: Final = ("interactive", "standard", "batch", "gold", "none", "", "\xe9")
_ADDRESSES: Final = ("127.0.9.9:8002", "127.0.1.1:8002", "127.0.1.2:1", "nowhere", "", "[::1]:0")
_HEADS: Final = (
    b"POST /v1/chat/completions HTTP/1.1", b"POST /v1/completions HTTP/1.1",
    b"GET /v1/models HTTP/1.1", b"POST /sleep HTTP/1.1", b"POST /tokenize HTTP/1.1",
    b"HEAD /v1/models HTTP/1.1", b"POST /v1/embeddings HTTP/1.0", b"OPTIONS /v1/models HTTP/1.1",
)  # fmt: skip
_BODY: Final = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"prompt":"a"}'
_PATIENCE_S: Final = 15.0


@dataclass
class _Itself:
    """What a stranger says that it is."""

    name: str
    epoch: int
    keys: Keys


def forwarded_request(rng: random.Random, said: bytes) -> bytes:
    """Return a request as a sidecar forwards it, with what it says."""
    lines = [rng.choice(_HEADS), b"host: weir", b"x-weir-forwarded: " + said]
    lines.append(b"%b: %d" % (requests.SCRIPT, rng.getrandbits(40)))
    body = rng.choice((_BODY, _BODY, b"", b"{"))
    lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _said(rng: random.Random) -> bytes:
    """Return what stands in the header, sensible or not."""
    forwarded = Forwarded(
        rng.choice(_NAMES),
        rng.choice(("ada", "eve", "")),
        rng.choice(("ada", "bob", "eve", "")),
        rng.choice(_TIMES[:6]),
        rng.choice(_NUMBERS),
        hops=rng.choice((1, 2, 0, 99)),
        ttft_target_s=rng.choice((None, *_TIMES[:6])),
        prompt_tokens=rng.choice((None, *_NUMBERS)),
        may_return=rng.random() < 0.5,
        explains=rng.random() < 0.3,
        reason=rng.choice(("best", "\xe9", "x" * 200)),
        protocol=rng.choice((1, 1, 0, 99)),
    )
    written = msgspec.json.encode(forwarded)
    chance = rng.random()
    if chance < 0.2:
        written = requests.mutated(rng, written).replace(b"\r", b"").replace(b"\n", b"")
    elif chance < 0.3:
        written = rng.choice((b"", b"{}", b"[]", b"null", b"\xff", b"x" * 9000, b"[" * 2000))
    return written


def _load(rng: random.Random) -> LoadVector | None:
    if rng.random() < 0.1:
        return None
    names = rng.choices(_NAMES, k=rng.choice((0, 1, 3)))
    return LoadVector(
        tuple(ClassLoad(name, rng.choice(_TIMES), rng.choice(_NUMBERS)) for name in names),
        rng.choice(_TIMES),
        rng.choice(_TIMES),
        rng.choice(_TIMES),
        rng.choice(_NUMBERS),
        rng.choice(_NUMBERS),
        rng.choice(_NUMBERS),
        draining=rng.random() < 0.1,
        sequences=rng.choice(_NUMBERS),
    )


def _served(rng: random.Random) -> ServedLately | None:
    number = rng.choice((None, *_NUMBERS))
    tenants = rng.choices(("ada", "eve", ""), k=rng.choice((0, 1, 40)))
    sums = (Served(rng.choice(_NAMES), each, rng.choice(_NUMBERS[3:6])) for each in tenants)
    return None if number is None else ServedLately(number, tuple(sums))


def _heartbeat(rng: random.Random, itself: _Itself) -> bytes:
    beat = Heartbeat(
        itself.name if rng.random() < 0.9 else rng.choice(("r1", "")),
        "" if rng.random() < 0.7 else rng.choice(_ADDRESSES),
        itself.epoch if rng.random() < 0.8 else rng.choice(_NUMBERS),
        _load(rng),
        rng.choice(_TIMES),
        rng.choice(_NUMBERS),
        tuple(PeerEntry(f"{GHOST}-{rng.randrange(4)}", each) for each in _ADDRESSES[:2]),
        protocol=rng.choice((1, 1, 1, 0, 99)),
        asks_peers=rng.random() < 0.5,
        served=_served(rng),
    )
    written = msgspec.msgpack.encode(beat)
    chance = rng.random()
    if chance < 0.2:
        return requests.mutated(rng, written)
    if chance < 0.3:
        return rng.choice((b"", b"\xff" * 9, b"\xdd\xff\xff\xff\xff", b"\x91" * 3000, b"{}"))
    return written


async def haunt(loop: SimulatedLoop, rng: random.Random, host: Host, key: str) -> None:
    """Connect with the key, and say what no sidecar says."""
    is_known = rng.random() < 0.8
    epoch = host.process.parts.peers.own.epoch if is_known else rng.choice((1, 5000))
    itself = _Itself(f"{GHOST}-{rng.randrange(4)}", epoch, Keys((key,)))
    beats = rng.random() < 0.5
    if beats and rng.random() < 0.7:
        itself.name = rng.choice(("r1", "r2", "gateway"))
    peer = Peer(
        itself,
        host.name,
        host.entry.address,
        host.settings,
        Metrics(CollectorRegistry()),
        loop.time,
    )
    try:
        for _ in range(rng.choice((1, 1, 4))):
            connection = peer._connections.take_idle() or await peer._connections.open()
            if beats:
                body = _heartbeat(rng, itself)
                head = b"POST %b HTTP/1.1\r\nhost: weir\r\ncontent-length: %d\r\n\r\n"
                asked = head % (HEARTBEAT_PATH.encode(), len(body)) + body
            else:
                asked = forwarded_request(rng, _said(rng))
            timeout_s = rng.choice((0.0, 0.3, _PATIENCE_S))
            try:
                await connection.ask("it", [asked], timeout_s=timeout_s, limit_bytes=1 << 20)
            finally:
                connection.finish()
    except EngineUnavailable:
        pass  # it may be refused, or the host may be gone
    finally:
        peer.close()


@dataclass
class Stranger:
    """One without the key; it may get refusals and no more."""

    host: Host
    received: bytes = b""
    is_gone: bool = False
    faults: list[str] = field(default_factory=list)

    def took(self, piece: bytes) -> None:
        """Keep bytes."""
        self.received += piece

    def closed(self) -> None:
        """Hear that the connection is gone."""
        self.is_gone = True

    def wrong(self) -> list[str]:
        """Return what must not have happened."""
        found = []
        statuses = [part[:3] for part in self.received.split(b"HTTP/1.1 ")[1:]]
        if statuses.count(b"200") > 1 or b"choices" in self.received:
            found.append(f"a stranger was answered: {self.received[:400]!r}")
        if not self.is_gone:
            found.append("a stranger's connection has not ended")
        return found


def knock(loop: SimulatedLoop, rng: random.Random, host: Host) -> Stranger | None:
    """Connect without the key, and ask; None where nothing listens."""
    port = loop.server(host.address, PEER_PORT)
    if port is None:
        return None
    stranger = Stranger(host)
    wire = port.connect(stranger)
    wire.begin()
    keys = Keys(host.process.parts.peers.settings.identity.pod and ("00" * 32,))
    ids = rng.choice((keys.ids, host.process.parts.peers.own.keys.ids, ("\xff",), ("a",) * 20))
    hello = msgspec.json.encode(Hello(rng.choice(("r1", "stranger", "\xe9")), 1, b"n" * 32, ids))
    proof = msgspec.json.encode(Proof(b"p" * 32))
    asks = [_posted(HELLO_PATH, hello), _posted(HELLO_PATH, proof)]
    asks.append(forwarded_request(rng, _said(rng)))
    asks.append(_posted(HEARTBEAT_PATH, b"\x93"))
    if rng.random() < 0.4:
        rng.shuffle(asks)
    data = b"".join(asks[: rng.randrange(len(asks) + 1)])
    if rng.random() < 0.3:
        data = requests.mutated(rng, data)
    cut = rng.randrange(len(data) + 1)
    wire.deliver(data[:cut])
    loop.call_later(rng.choice((0.0, 0.1, 1.0)), wire.deliver, data[cut:])
    return stranger


def _posted(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: weir\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )
