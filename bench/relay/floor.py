"""The floor of a relay in this language: the same bytes moved with nothing decided.

Each connection of a client gets one to the engine, and what comes from either side goes to the
other as it came. No request is parsed, so that what a relay costs above this is what it decides.

    python -m bench.relay.floor --port 8000 --uds /tmp/engine.sock
"""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One side of a pair of connections."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.other: Side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the other side."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        """Read no more from the other side until this one has taken what it was given."""
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Close the other side."""
        self.other.transport.close()


class ClientSide(Side):
    """The side of the client; what comes before the engine's side is there waits for it."""

    def __init__(self, uds: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._uds = uds
        self._loop = loop
        self._early = b""
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the engine."""
        super().connection_made(transport)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            _, self.other = await self._loop.create_unix_connection(Side, self._uds)
        except OSError:
            self.transport.abort()
            raise
        self.other.other = self
        self._connecting = None
        if self.transport.is_closing():
            self.other.transport.close()
        else:
            self.other.transport.write(self._early)

    def data_received(self, data: bytes) -> None:
        """Pass it on, or keep it until it can be."""
        if self._connecting is None:
            self.other.transport.write(data)
        else:
            self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the engine's side, if it is there."""
        if self._connecting is None:
            super().connection_lost(exc)


async def serve(port: int, uds: str) -> None:
    """Relay until the process is stopped."""
    loop = asyncio.get_running_loop()
    await loop.create_server(partial(ClientSide, uds, loop), "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--uds", required=True)
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.port, chosen.uds))


if __name__ == "__main__":
    main()
