"""The first two requests of each connection between sidecars: both sides show the service's key.

`weir_core.wire.peer_auth` says what is shown. Here are the two halves: a client's, which runs on a
connection right after it was opened, and a server's, which is asked by the peer port.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import msgspec

from weir_core.errors import EngineUnavailable
from weir_core.wire.peer_auth import (
    CLIENT,
    MOST_KEYS,
    NONCE_BYTES,
    SERVER,
    Challenge,
    Hello,
    Keys,
    Proof,
    is_name,
    is_proof,
    proof_of,
)
from weir_core.wire.peers import HELLO_PATH, PROTOCOL

MAX_HELLO_BYTES: Final = 4 << 10
"""A name, a nonce and some ids of keys have less."""
_T = TypeVar("_T")


class UnknownKey(EngineUnavailable):
    """The other side has none of our keys, or showed none of them."""


class OtherName(EngineUnavailable):
    """Another sidecar is at this address now."""


class Answered(Protocol):
    """An answer, as far as it is looked at here."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def body(self) -> bytes:
        """The whole of it."""


Ask = Callable[[str, bytes], Awaitable[Answered]]
"""Posts a body to a path of the peer port, on one connection."""


class Itself(Protocol):
    """What a sidecar says of itself in a handshake."""

    name: str
    epoch: int
    keys: Keys


class ClientHandshake:
    """The half of the side that has connected.

    Args:
        own: This sidecar.
        name: The sidecar that should be at the other side.
    """

    def __init__(self, own: Itself, name: str) -> None:
        self._own = own
        self._name = name

    async def run(self, ask: Ask) -> None:
        """Authenticate a connection in both directions.

        Raises:
            EngineUnavailable: It is of no use: `UnknownKey` where the keys differ.
        """
        own, keys = self._own, self._own.keys
        nonce = secrets.token_bytes(NONCE_BYTES)
        hello = Hello(own.name, own.epoch, nonce, keys.ids)
        challenge = self._read(await ask(HELLO_PATH, msgspec.json.encode(hello)))
        if challenge.name != self._name:
            raise OtherName(f"the sidecar at the address of {self._name} is {challenge.name}")
        key = keys.find(challenge.key)
        nonces, names = (nonce, challenge.nonce), (own.name, challenge.name)
        if (
            key is None
            or len(challenge.nonce) != NONCE_BYTES
            or not is_proof(challenge.proof, proof_of(key, SERVER, nonces, names))
        ):
            raise UnknownKey(f"{self._name} does not know our key")
        proof = Proof(proof_of(key, CLIENT, nonces, names))
        answer = await ask(HELLO_PATH, msgspec.json.encode(proof))
        if answer.status != 200:
            raise UnknownKey(f"{self._name} refuses our key")

    def _read(self, answer: Answered) -> Challenge:
        if answer.status == 401:
            raise UnknownKey(f"{self._name} does not know our key")
        challenge = decoded(answer.body, Challenge) if answer.status == 200 else None
        if challenge is None or not is_name(challenge.name):
            raise EngineUnavailable(f"what answers as {self._name} is no sidecar")
        return challenge


class ServerHandshake:
    """The half of the side that was connected to, for one connection.

    One handshake is all that a connection gets: another one needs another connection.

    Args:
        own: This sidecar.
        began_s: When it began.

    Attributes:
        name: The sidecar at the other side, as it says; believed once `done`.
        epoch: Its epoch, in the same way.
        key: Id of the key that it has shown.
        done: It has shown the key.
        why: What ended the handshake; empty where nothing did.
    """

    def __init__(self, own: Itself, began_s: float) -> None:
        self._own = own
        self.began_s = began_s
        self.name = self.key = self.why = ""
        self.epoch = 0
        self.done = False
        self._expected: bytes | None = None

    def answer(self, body: bytes) -> bytes | None:
        """Return the body of the answer to one of its messages; None ends the connection."""
        if self.done or self.why:
            return None
        return self._challenge(body) if self._expected is None else self._judge(body)

    def _challenge(self, body: bytes) -> bytes | None:
        own, hello = self._own, decoded(body, Hello)
        if hello is None or not is_name(hello.name) or len(hello.nonce) != NONCE_BYTES:
            return self._refuse("malformed")
        self.name, self.epoch = hello.name, hello.epoch
        if hello.name == own.name:
            return self._refuse("it has our name")
        chosen = own.keys.newest_of(hello.keys[:MOST_KEYS])
        key = own.keys.find(chosen) if chosen else None
        if chosen is None or key is None:
            return self._refuse("no common key")
        self.key = chosen
        nonce = secrets.token_bytes(NONCE_BYTES)
        nonces, names = (hello.nonce, nonce), (hello.name, own.name)
        self._expected = proof_of(key, CLIENT, nonces, names)
        proof = proof_of(key, SERVER, nonces, names)
        return msgspec.json.encode(Challenge(own.name, nonce, chosen, proof, PROTOCOL))

    def _judge(self, body: bytes) -> bytes | None:
        expected, shown = self._expected, decoded(body, Proof)
        if shown is None or expected is None or not is_proof(shown.proof, expected):
            return self._refuse("wrong proof")
        if self.key not in self._own.keys:
            return self._refuse("the key was retired")
        self.done, self._expected = True, None
        return b"{}"

    def _refuse(self, why: str) -> bytes | None:
        """Note why there is no answer, and return none."""
        self.why, self._expected = why, None
        return None


def decoded(body: bytes, kind: type[_T]) -> _T | None:
    """Return a message, or None where the bytes are none; what they are is in no log."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
