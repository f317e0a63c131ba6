"""The access log: one JSON line for each request that ended, on standard output.

A thread of its own encodes and writes, so that a full pipe or a slow disk holds up no request. What
it cannot write in time is lost and counted: the log never grows in memory.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import queue
import select
import sys
import threading
from collections.abc import Callable
from typing import Final

import msgspec

from weir_core.wire.access import AccessLine
from weir_sidecar.telemetry.instruments import Count

log = logging.getLogger(__name__)

MOST_WAITING: Final = 10_000
"""Lines that may wait to be written."""
_PERIOD_S: Final = 0.2
_CLOSE_S: Final = 2.0
_PIECE_BYTES: Final = 4096
"""A pipe takes so much at once: lines of other writers do not come in between."""


class AccessLog:
    """Takes lines and has them written.

    Args:
        lost: Counts lines that were not written.
        write: Takes whole lines, in the thread; raises OSError where it cannot.
    """

    def __init__(self, lost: Count, write: Callable[[bytes], object] | None = None) -> None:
        self._lost = lost
        self._write = write or _stdout
        self._taken = self._done = self._failed = self._failed_seen = 0
        self._lines: list[AccessLine] = []
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.SimpleQueue[list[AccessLine] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
        self._thread.start()

    def take(self, line: AccessLine) -> None:
        """Take the line of a request that has ended; lose it where too many wait."""
        if self._taken - self._done >= MOST_WAITING:
            self._lost.inc()
            return
        self._taken += 1
        self._lines.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD_S, self._hand_over)

    async def close(self) -> None:
        """Write what is left, within a bound."""
        if self._timer is not None:
            self._timer.cancel()
        self._hand_over()
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join, _CLOSE_S)
        self._count_failures()
        if self._taken > self._done:
            log.warning("access lines were lost", extra={"lines": self._taken - self._done})

    def _hand_over(self) -> None:
        self._timer = None
        lines, self._lines = self._lines, []
        self._batches.put(lines)
        self._count_failures()

    def _count_failures(self) -> None:
        failed = self._failed
        self._lost.inc(failed - self._failed_seen)
        self._failed_seen = failed

    # ---- in the thread

    def _work(self) -> None:
        encoder = msgspec.json.Encoder()
        while (lines := self._batches.get()) is not None:
            piece, count = bytearray(), 0
            for line in lines:
                encoded = encoder.encode(line) + b"\n"
                if piece and len(piece) + len(encoded) > _PIECE_BYTES:
                    self._put(bytes(piece), count)
                    piece, count = bytearray(), 0
                piece += encoded
                count += 1
            if piece:
                self._put(bytes(piece), count)

    def _put(self, piece: bytes, count: int) -> None:
        try:
            self._write(piece)
        except OSError:
            self._failed += count
        self._done += count


def _stdout(piece: bytes) -> None:
    """Write to standard output, past Python's own buffer: its lock is not for two threads."""
    if sys.__stdout__ is None:  # it was closed at the start, so the number may be a connection's
        raise OSError(errno.EBADF, "standard output is closed")
    with io.FileIO(1, "wb", closefd=False) as file:
        rest = memoryview(piece)
        while rest:
            written = file.write(rest)
            if written is None:  # what shares it may have made it non-blocking
                select.select((), (file,), ())
            else:
                rest = rest[written:]
