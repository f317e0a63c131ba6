"""How sidecars of one service prove to each other that they hold its key.

The key never crosses the network. Each side sends a nonce, and shows an HMAC over its role, both
nonces and both names, so that no proof can be shown again, shown back, or shown as another's. The
side that was connected to proves first: a sidecar gives no proof to an address that has no key.

A connection is authenticated, not encrypted: whoever can change its bytes on the way can use it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from weir_core.wire.peers import PROTOCOL

NONCE_BYTES: Final = 32
MOST_KEYS: Final = 8
"""Keys that one hello may name."""
CLIENT: Final = b"client"
SERVER: Final = b"server"
_DOMAIN: Final = b"weir peer 1"
_ID_BYTES: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")


class Hello(msgspec.Struct, frozen=True):
    """First message of the side that has connected.

    Attributes:
        name: Of the sidecar.
        epoch: A number that is higher after each start of it.
        nonce: Random, new for each connection.
        keys: Ids of the keys that it has, the newest first.
        protocol: `PROTOCOL` of the writer.
    """

    name: str
    epoch: int
    nonce: bytes
    keys: tuple[str, ...]
    protocol: int = PROTOCOL


class Challenge(msgspec.Struct, frozen=True):
    """The answer to it.

    Attributes:
        name: Of the sidecar that answers.
        nonce: Random, new for each connection.
        key: Id of the newest key that both have.
        proof: That the writer has it.
        protocol: `PROTOCOL` of the writer.
    """

    name: str
    nonce: bytes
    key: str
    proof: bytes
    protocol: int = PROTOCOL


class Proof(msgspec.Struct, frozen=True):
    """Second message of the side that has connected.

    Attributes:
        proof: That it has the key that the challenge names.
    """

    proof: bytes


class Keys:
    """The keys of a service, by their ids; its representation shows none of them.

    Args:
        keys: 64 lower-case hex digits each, the newest first.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._by_id = {key_id(bytes.fromhex(key)): bytes.fromhex(key) for key in keys[:MOST_KEYS]}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, wanted: str) -> bool:
        return wanted in self._by_id

    def __repr__(self) -> str:
        """Return the ids, which tell nothing of the keys."""
        return f"Keys({', '.join(self._by_id)})"

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids, that of the newest key first."""
        return tuple(self._by_id)

    def find(self, wanted: str) -> bytes | None:
        """Return a key by its id."""
        return self._by_id.get(wanted)

    def newest_of(self, ids: Sequence[str]) -> str | None:
        """Return the first of the ids whose key is here."""
        return next((each for each in ids if each in self._by_id), None)


def key_id(key: bytes) -> str:
    """Return what a key is called on the wire and in logs."""
    return sha256(key).digest()[:_ID_BYTES].hex()


def proof_of(key: bytes, role: bytes, nonces: tuple[bytes, bytes], names: tuple[str, str]) -> bytes:
    """Return the proof that one side has the key.

    Args:
        key: The key.
        role: `CLIENT` or `SERVER`: which side proves.
        nonces: Of the client and of the server.
        names: Of the client and of the server.
    """
    parts = (_DOMAIN, role, *nonces, names[0].encode(), names[1].encode())
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(key, message, "sha256")


def is_proof(shown: bytes, expected: bytes) -> bool:
    """Tell whether a proof is the expected one, in a time that tells nothing of it."""
    return hmac.compare_digest(shown, expected)


def is_name(name: str) -> bool:
    """Tell whether a sidecar may be called so."""
    return _NAME.fullmatch(name) is not None
