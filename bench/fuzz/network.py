"""An event loop with simulated time and simulated connections.

The sidecar asks the running loop for its servers, its connections and its timers, so replacing the
loop replaces the network and the clock, and nothing of the sidecar is replaced. Time jumps to the
next timer when nothing is left to do, so waiting costs nothing and a run repeats itself.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

_TICK_S: Final = 1e-6
"""Time of one turn of the loop: without it, a timer that rounds down would fire for ever."""
_START_S: Final = 1000.0

Factory = Callable[[], asyncio.Protocol]


class Peer(Protocol):
    """What is at the other end of a wire."""

    def took(self, piece: bytes) -> None:
        """Take bytes that the sidecar sent."""

    def closed(self) -> None:
        """Hear that the connection is gone."""


class Recorder:
    """A peer that keeps what it is sent."""

    def __init__(self) -> None:
        self.received = b""

    def took(self, piece: bytes) -> None:
        """Keep bytes."""
        self.received += piece

    def closed(self) -> None:
        """Nothing follows from it here."""


class Wire(asyncio.Transport):
    """One simulated connection, as a transport for the sidecar's protocol.

    Args:
        loop: The simulated loop.
        protocol: The sidecar's end.
        peer: The other end.
        high_bytes: Unread bytes from which on the sidecar's end is told to pause writing.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        protocol: asyncio.Protocol,
        peer: Peer,
        *,
        high_bytes: int = 2048,
    ) -> None:
        super().__init__({"peername": ("127.0.0.1", 40000)})
        self._loop = loop
        self._protocol = protocol
        self._peer = peer
        self._high_bytes = high_bytes
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._inbox: deque[bytes | None] = deque()
        self._peer_reads = self._reads = True
        self._paused = self._closing = False
        self.lost = self.was_aborted = False
        """The sidecar's protocol has been told of the end; it dropped what was unread."""
        self.peer_failed = False
        """The peer has left, or did not read for a while."""

    # The sidecar's end.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, or keep them while the peer does not read."""
        if self._closing:
            return
        if self._peer_reads:
            self._peer.took(bytes(data))
            return
        self._unread.append(bytes(data))
        self._unread_bytes += len(data)
        if self._unread_bytes > self._high_bytes and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Return what the peer has not read."""
        return self._unread_bytes

    def is_closing(self) -> bool:
        """Tell whether the connection ends."""
        return self._closing

    def can_write_eof(self) -> bool:
        """End connections as a whole; half-closed ones are tested with real sockets."""
        return False

    def close(self) -> None:
        """End the connection after what is unread."""
        if not self._closing:
            self._closing = True
            if not self._unread:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """End the connection, dropping what is unread."""
        self._closing = self.was_aborted = True
        self._unread.clear()
        self._unread_bytes = 0
        self._loop.call_soon(self._lose, None)

    def pause_reading(self) -> None:
        """Let the peer's bytes wait."""
        self._reads = False

    def resume_reading(self) -> None:
        """Take them again."""
        self._reads = True
        if self._inbox:
            self._loop.call_soon(self._empty_inbox)

    def is_reading(self) -> bool:
        """Tell whether the peer's bytes are taken."""
        return self._reads and not self._closing

    # The peer's end.

    def deliver(self, piece: bytes) -> None:
        """Bring bytes of the peer; nothing where the sidecar has hung up."""
        self._inbox.append(piece)
        self._empty_inbox()

    def hang_up(self) -> None:
        """End the peer's side."""
        self.peer_failed = True
        self._inbox.append(None)
        self._empty_inbox()

    def reset(self) -> None:
        """Break the connection."""
        self._closing = self.peer_failed = True
        self._loop.call_soon(self._lose, ConnectionResetError("reset by the fuzz"))

    def peer_reads(self, reads: bool) -> None:
        """Let the peer read, or no longer."""
        self._peer_reads = reads
        if not reads:
            self.peer_failed = True
            return
        while self._unread:
            self._peer.took(self._unread.popleft())
        self._unread_bytes = 0
        if self._closing:
            self._loop.call_soon(self._lose, None)
        elif self._paused:
            self._paused = False
            self._protocol.resume_writing()

    def _empty_inbox(self) -> None:
        while self._inbox and self._reads and not self._closing:
            piece = self._inbox.popleft()
            if piece is not None:
                self._protocol.data_received(piece)
            elif not self._protocol.eof_received():
                self.close()

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._protocol.connection_lost(error)
            self._peer.closed()


class Listening:
    """What stands for a listening server.

    Args:
        factory: Makes a protocol for each connection.
        name: Its address.
    """

    def __init__(self, factory: Any, name: tuple[str, int]) -> None:
        self.factory = factory
        self.sockets = (self,)
        self._name = name

    def getsockname(self) -> tuple[str, int]:
        """Return the address."""
        return self._name

    async def start_serving(self) -> None:
        """Let connections in."""

    def close(self) -> None:
        """End it; nothing connects any more."""

    async def wait_closed(self) -> None:
        """Wait for nothing."""


class _Timeless(selectors.SelectSelector):
    """Never waits: it moves the loop's time on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _START_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass."""
        assert timeout is not None, "nothing is left that could happen"
        self.now += timeout + _TICK_S
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The loop.

    Attributes:
        servers: The listening servers by port; a Unix socket's by its path.
        connect: Asked for a connection to a Unix socket, or to a host and port.
        readers: What `add_reader` was given, by file descriptor.
        after_turn: Called after each turn of the loop.
    """

    def __init__(self) -> None:
        self._timeless = _Timeless()
        super().__init__(self._timeless)
        self.servers: dict[int | str, Listening] = {}
        self.readers: dict[int, Callable[[], None]] = {}
        self.connect: Callable[[Factory], Any] | None = None
        self.after_turn: Callable[[], None] | None = None

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # asyncio's types do not show it
        if self.after_turn is not None:
            self.after_turn()

    def time(self) -> float:
        """Return the simulated time."""
        return self._timeless.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # noqa: ARG002
        """Run it now: a thread would make runs differ."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Keep what is to be called when there is something to read."""
        self.readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: Any) -> bool:
        """Forget it."""
        return self.readers.pop(fd, None) is not None

    async def create_server(self, factory: Any, host: Any, port: Any, **_: Any) -> Any:  # type: ignore[override]
        """Listen on a port."""
        self.servers[port] = Listening(factory, (host, port))
        return self.servers[port]

    async def create_unix_server(self, factory: Any, path: Any, **_: Any) -> Any:  # type: ignore[override]
        """Listen on a path, which has to be a file."""
        with open(path, "wb"):  # noqa: ASYNC230 - it only makes the file
            self.servers[path] = Listening(factory, (path, 0))
        return self.servers[path]

    async def create_unix_connection(self, factory: Any, path: Any, **_: Any) -> Any:  # type: ignore[override] # noqa: ARG002
        """Connect to the engine."""
        assert self.connect is not None
        return await self.connect(factory)

    async def create_connection(self, factory: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """Connect to a replica."""
        assert self.connect is not None
        return await self.connect(factory)
