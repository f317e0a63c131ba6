"""What passes between sidecar and engine beside requests: facts, steps, modes.

The engine writes what it is into a file when it starts, sends a datagram after each step to a
socket bound here, and listens on a socket of its own for how to divide its steps. Nobody waits
for anybody: what is lost costs precision.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from weir_core.wire.steps import Facts, Step, decode_step

log = logging.getLogger(__name__)

_MAX_DATAGRAM_BYTES: Final = 64 << 10
MAX_STEP_FILE_BYTES: Final = 256 << 20
"""About an hour of steps of 3 ms."""
_AT_ONCE: Final = 64
"""Records read in one go, so that a burst of them does not delay streams."""


def read_facts(path: Path) -> Facts | None:
    """Return what the engine says of itself, or None where it says nothing readable.

    Raises:
        OSError: There is something that cannot be read now, which says nothing of the engine.
    """
    try:
        return Facts.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("the engine's facts cannot be read", extra={"error": str(error)})
        return None


@contextlib.contextmanager
def step_log(path: Path, on_step: Callable[[Step], None]) -> Iterator[Callable[[], None]]:
    """Bind the socket of the step log, and hand each record on while the context is open.

    Yields:
        Hands on at once what has come: an engine sends its record before the answer that it tells
        of, but the loop may see the answer first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.setblocking(False)
        reader.bind(str(path))
        os.chmod(path, 0o660)
        loop = asyncio.get_running_loop()
        read = functools.partial(_read, reader, OneCount(), on_step)
        loop.add_reader(reader.fileno(), read)
        try:
            yield read
        finally:
            loop.remove_reader(reader.fileno())
            path.unlink(missing_ok=True)


class OneCount:
    """Counts the steps of all data-parallel ranks in one line, in which a gap is a lost record."""

    def __init__(self) -> None:
        self._seq = 0
        self._of_rank: dict[int, int] = {}

    def counted(self, step: Step) -> Step:
        """Return the step with its place in the one line."""
        before = self._of_rank.get(step.engine)
        self._of_rank[step.engine] = step.seq
        if before is None and not self._seq:
            self._seq = step.seq
        else:
            # A rank that is new, or began anew, has lost nothing that could be known.
            self._seq += max(1, step.seq - before) if before is not None else 1
        return step if step.seq == self._seq else msgspec.structs.replace(step, seq=self._seq)


def _read(reader: socket.socket, count: OneCount, on_step: Callable[[Step], None]) -> None:
    for _ in range(_AT_ONCE):
        try:
            datagram = reader.recv(_MAX_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        try:
            step = decode_step(datagram)
        except ValueError as error:
            log.warning("a step record cannot be read", extra={"error": str(error)})
        else:
            on_step(count.counted(step))


class StepFile:
    """Keeps the engine's steps as JSON lines, up to a size.

    Args:
        path: The file, begun anew.
        limit_bytes: Nothing is written beyond this.
    """

    def __init__(self, path: Path, limit_bytes: int = MAX_STEP_FILE_BYTES) -> None:
        self._file = path.open("wb", buffering=1 << 16)
        self._left = limit_bytes

    def write(self, step: Step) -> None:
        """Add one step."""
        line = msgspec.json.encode(step) + b"\n"
        self._left -= len(line)
        if self._left >= 0:
            self._file.write(line)

    def close(self) -> None:
        """Write what is buffered."""
        self._file.close()


def send_mode(path: Path, message: bytes) -> bool:
    """Tell the engine how to divide its steps; false where nobody listens, or not now."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
            writer.setblocking(False)
            writer.sendto(message, str(path))
    except OSError:
        return False
    return True
