"""An event loop with simulated time and simulated connections.

The sidecar asks the running loop for its servers, its connections and its timers, so replacing the
loop replaces the network and the clock, and nothing of the sidecar is replaced. Time jumps to the
next timer when nothing is left to do, so waiting costs nothing and a run repeats itself.

Several sidecars share one loop. Each is one host: whatever runs in a context whose `HOST` is its
address. Connections between hosts are two wires, and what one side sends reaches the other later
and in pieces.
"""

from __future__ import annotations

import asyncio
import errno
import random
import selectors
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Protocol

_TICK_S: Final = 1e-6
"""Time of one turn of the loop: without it, a timer that rounds down would fire for ever."""
_START_S: Final = 1000.0

_WINDOW_BYTES: Final = 16 << 10
"""Bytes on the way from which on a side has to wait before it sends more."""
_LOOK_S: Final = 0.05
"""Between two looks whether bytes that cannot move now can."""
_DELAYS_S: Final = (0.0, 0.0, 0.0002, 0.0002, 0.001, 0.01)

HOST: Final[ContextVar[str]] = ContextVar("HOST", default="")
"""Address of the host that runs."""

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
        context: The protocol runs in a copy of it; None is the present one.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        protocol: asyncio.Protocol,
        peer: Peer,
        *,
        high_bytes: int = 2048,
        context: Context | None = None,
    ) -> None:
        super().__init__({"peername": ("127.0.0.1", 40000)})
        self._loop = loop
        self._context = copy_context() if context is None else context
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
            self._run(self._protocol.pause_writing)

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
        self.peer_failed |= not reads
        self.let_read(reads)

    def let_read(self, reads: bool) -> None:
        """Let what is written pass, or wait."""
        self._peer_reads = reads
        if not reads:
            return
        while self._unread and self._peer_reads:
            piece = self._unread.popleft()
            self._unread_bytes -= len(piece)
            self._peer.took(piece)
        if self._unread:
            return
        if self._closing:
            self._loop.call_soon(self._lose, None)
        elif self._paused:
            self._paused = False
            self._run(self._protocol.resume_writing)

    def _empty_inbox(self) -> None:
        while self._inbox and self._reads and not self._closing:
            piece = self._inbox.popleft()
            if piece is not None:
                self._run(self._protocol.data_received, piece)
            elif not self._run(self._protocol.eof_received):
                self.close()

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._run(self._protocol.connection_lost, error)
            self._peer.closed()

    def begin(self) -> None:
        """Tell the protocol that it is connected."""
        self._run(self._protocol.connection_made, self)

    def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        return self._context.copy().run(call, *args)


class _Way:
    """One direction of a connection between two hosts; the peer of the wire that sends."""

    source: Wire
    target: Wire

    def __init__(self, loop: SimulatedLoop, link: Link) -> None:
        self._loop = loop
        self._link = link
        self._pieces: deque[bytes | None] = deque()
        self._bytes = 0
        self._moves = False

    def took(self, piece: bytes) -> None:
        """Take bytes to bring to the other side."""
        rng = self._loop.rng
        while len(piece) > 1 and rng.random() < 0.15:
            cut = rng.randrange(1, len(piece))
            self._add(piece[:cut])
            piece = piece[cut:]
        self._add(piece)

    def closed(self) -> None:
        """Hear that the side that sends has ended the connection."""
        self._pieces.append(None)
        self._move_later(0.0)
        self._link.look()

    def _add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes > _WINDOW_BYTES:
            self.source.let_read(False)
        self._move_later(self._loop.rng.choice(_DELAYS_S))

    def _move_later(self, delay_s: float) -> None:
        if not self._moves:
            self._moves = True
            self._loop.call_later(delay_s, self._move)

    def _move(self) -> None:
        """Bring one piece."""
        self._moves = False
        target = self.target
        if target.lost:
            return
        if self._loop.is_cut(*self._link.hosts) or not (target.is_reading() or target.is_closing()):
            self._move_later(_LOOK_S)
            return
        piece = self._pieces.popleft()
        if piece is not None:
            self._bytes -= len(piece)
            target.deliver(piece)
            if self._bytes <= _WINDOW_BYTES and not self.source.lost:
                self.source.let_read(True)
        elif self.source.was_aborted and self._loop.rng.random() < 0.5:
            target.reset()
        else:
            target.hang_up()
        if self._pieces:
            self._move_later(self._loop.rng.choice(_DELAYS_S))


class Link:
    """A connection between two hosts.

    Args:
        loop: The simulated loop.
        hosts: Who connects, and to whom.
        protocols: Theirs.
        context: Of the host that is connected to.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        hosts: tuple[str, str],
        protocols: tuple[asyncio.Protocol, asyncio.Protocol],
        context: Context,
    ) -> None:
        self.hosts = hosts
        self._loop = loop
        there, back = _Way(loop, self), _Way(loop, self)
        self.wires = (
            Wire(loop, protocols[0], there),
            Wire(loop, protocols[1], back, context=context),
        )
        there.source, there.target = back.target, back.source = self.wires
        loop.links[self] = None

    def reset(self) -> None:
        """Break it, on both sides."""
        for wire in self.wires:
            wire.reset()

    def look(self) -> None:
        """Forget it where both sides have ended it."""
        if all(wire.lost for wire in self.wires):
            self._loop.links.pop(self, None)


class Listening:
    """What stands for a listening server.

    Args:
        loop: The simulated loop.
        factory: Makes a protocol for each connection.
        name: Its address.
        serves: Connections are let in.
    """

    def __init__(
        self, loop: SimulatedLoop, factory: Any, name: tuple[str, int], *, serves: bool = True
    ) -> None:
        self.factory = factory
        self.sockets = (self,)
        self.serves = serves
        self.wires: list[Wire] = []
        """Those of clients."""
        self.context = copy_context()
        self._loop = loop
        self._name = name

    def connect(self, peer: Peer) -> Wire:
        """Return the wire of a new client; the server is to be told by `Wire.begin`."""
        wire = Wire(self._loop, self.factory(), peer, context=self.context)
        self.wires.append(wire)
        return wire

    def getsockname(self) -> tuple[str, int]:
        """Return the address."""
        return self._name

    async def start_serving(self) -> None:
        """Let connections in."""
        self.serves = True

    def close(self) -> None:
        """End it; nothing connects any more."""
        self.serves = False

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
        servers: The listening servers by host and port; a Unix socket's by its path and 0.
        engines: Asked for a connection to the Unix socket of that path.
        readers: What `add_reader` was given, by file descriptor.
        after_turn: Called after each turn of the loop.
        rng: Draws delays and pieces.
        links: Connections between hosts, in the order in which they were made.
        cut_off: Hosts that no byte reaches or leaves.
        dead: Hosts that nothing runs on.
    """

    def __init__(self) -> None:
        self._timeless = _Timeless()
        super().__init__(self._timeless)
        self.servers: dict[tuple[str, int], Listening] = {}
        self.readers: dict[int, Callable[[], None]] = {}
        self.engines: dict[str, Callable[[Factory], Any]] = {}
        self.after_turn: Callable[[], None] | None = None
        self.rng = random.Random(0)
        self.links: dict[Link, None] = {}
        self.cut_off: set[str] = set()
        self.dead: set[str] = set()
        self.calm = False
        """Connections are opened at once and without errors."""

    def is_cut(self, one: str, other: str) -> bool:
        """Tell whether no byte passes between two hosts."""
        return one != other and (one in self.cut_off or other in self.cut_off)

    def server(self, host: str, port: int) -> Listening | None:
        """Return what listens there, if anything does."""
        found = self.servers.get((host, port))
        return found if found is not None and found.serves else None

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
        context = copy_context()
        self.readers[fd] = lambda: context.copy().run(callback, *args)

    def remove_reader(self, fd: Any) -> bool:
        """Forget it."""
        return self.readers.pop(fd, None) is not None

    async def create_server(  # type: ignore[override]
        self, factory: Any, host: Any, port: Any, *, start_serving: bool = True, **_: Any
    ) -> Any:
        """Listen on a port."""
        found = self.servers[host, port] = Listening(
            self, factory, (host, port), serves=start_serving
        )
        return found

    async def create_unix_server(self, factory: Any, path: Any, **_: Any) -> Any:  # type: ignore[override]
        """Listen on a path, which has to be a file."""
        with open(path, "wb"):  # noqa: ASYNC230 - it only makes the file
            self.servers[path, 0] = Listening(self, factory, (path, 0))
        return self.servers[path, 0]

    async def create_unix_connection(self, factory: Any, path: Any, **_: Any) -> Any:  # type: ignore[override]
        """Connect to an engine."""
        return await self.engines[path](factory)

    async def create_connection(self, factory: Any, host: Any, port: Any, **_: Any) -> Any:  # type: ignore[override]
        """Connect to another host."""
        source = HOST.get()
        await asyncio.sleep(self.rng.choice(_DELAYS_S))
        while self.is_cut(source, host):  # noqa: ASYNC110 - nothing tells of the end of it
            await asyncio.sleep(_LOOK_S)
        if source in self.dead or (not self.calm and self.rng.random() < 0.01):
            raise OSError(self.rng.choice((errno.EMFILE, errno.ENETUNREACH)), "no way")
        found = self.server(host, port)
        if found is None or host in self.dead:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing listens there")
        protocol = factory()
        link = Link(self, (source, host), (protocol, found.factory()), found.context)
        for wire in link.wires:
            wire.begin()
        return link.wires[0], protocol
