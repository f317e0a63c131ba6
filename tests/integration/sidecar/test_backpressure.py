"""A client that reads slowly slows its own stream down, and costs no memory."""

from __future__ import annotations

import asyncio
import resource

from tests.integration.sidecar.harness import HEAD, LAST, House, Wire, quick, request_bytes

PIECE = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
PIECES = 1600
"""100 MiB: far more than all buffers on the way together."""


class Torrent:
    """An engine that sends as fast as it may, and tells how far it came."""

    def __init__(self) -> None:
        self.sent_pieces = 0

    async def __call__(self, wire: Wire) -> None:
        await wire.send(HEAD)
        while self.sent_pieces < PIECES:
            await wire.send(PIECE)
            self.sent_pieces += 1
        await wire.send(LAST)

    async def comes_to_rest(self) -> int:
        """Wait until it can send no more; return how many pieces it got rid of."""
        before = -1
        while before != self.sent_pieces:
            before = self.sent_pieces
            await asyncio.sleep(0.2)
        return before


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def test_memory_stays_flat_and_every_byte_arrives(house: House) -> None:
    torrent = Torrent()
    await house.raw_engine(torrent)
    running = await house.sidecar()
    reader, writer = await running.raw(receive_buffer_bytes=1 << 16)
    before_kib = peak_kib()
    writer.write(request_bytes(extra="Connection: close\r\n"))
    await reader.readuntil(b"\r\n\r\n")
    assert await torrent.comes_to_rest() < PIECES / 5
    assert peak_kib() - before_kib < 32 << 10
    received = 0
    while part := await reader.read(1 << 16):
        received += len(part)
    assert received == PIECES * len(PIECE) + len(LAST)
    assert peak_kib() - before_kib < 32 << 10
    assert await running.ended(1) == {"ok": 1}


async def test_a_client_that_stops_reading_is_cut_and_the_engine_freed(house: House) -> None:
    freed = asyncio.Event()

    async def torrent(wire: Wire) -> None:
        try:
            await wire.send(HEAD)
            while True:
                await wire.send(PIECE)
        finally:
            freed.set()

    await house.raw_engine(torrent)
    running = await house.sidecar(quick(slow_client_s=0.3))
    _, writer = await running.raw(receive_buffer_bytes=1 << 16)
    writer.write(request_bytes())
    await asyncio.wait_for(freed.wait(), timeout=10)
    assert await running.ended(1) == {"client_slow": 1}
    assert b"weir_client_stalls_total 1.0" in (await running.probe("/metrics")).body
