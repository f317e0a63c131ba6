"""The engine's side of the two sockets it shares with its sidecar, and the file of its facts.

Nothing here may hold up a step: a missing, stalled or restarted sidecar costs a system call that
fails. A datagram goes to whatever is bound at the path now, so there is no connection to mend.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import msgspec

from weir_core.wire.policies import EngineMode
from weir_core.wire.steps import Facts, Step, encode_step

MAX_DATAGRAM_BYTES = 1 << 16


class StepSender:
    """Sends steps to whoever is bound at `path`; a step that nobody takes is forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, step: Step) -> bool:
        """Send one step, or lose it: no reader, a full buffer and a missing socket are alike."""
        try:
            self._socket.sendto(encode_step(step), self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class ModeReader:
    """Binds `path` and reads the newest mode sent to it, without waiting.

    Args:
        path: Where the sidecar sends modes; what an earlier engine left there is removed.
        relays: Where the engine's further ranks read; each mode is passed on to them.
    """

    def __init__(self, path: Path, relays: tuple[Path, ...] = ()) -> None:
        with suppress(FileNotFoundError):
            path.unlink()
        self._relays = tuple(map(str, relays))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))

    def newest(self) -> EngineMode | None:
        """Return the newest mode since the last call, or None; what is no mode is ignored."""
        newest = None
        while (datagram := self._receive()) is not None:
            with suppress(msgspec.DecodeError):
                newest = msgspec.json.decode(datagram, type=EngineMode)
                self._pass_on(datagram)
        return newest

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _receive(self) -> bytes | None:
        try:
            return self._socket.recv(MAX_DATAGRAM_BYTES)
        except BlockingIOError:
            return None

    def _pass_on(self, datagram: bytes) -> None:
        for path in self._relays:
            with suppress(OSError):
                self._socket.sendto(datagram, path)


def write_facts(facts: Facts, path: Path) -> None:
    """Write the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(facts.encode())
    os.replace(partial, path)
