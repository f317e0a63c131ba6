"""The engine of bench/relay and its floor: what they send, and when."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from bench.relay.engine import AsRead, StepLog, Stream
from bench.relay.floor import ClientSide
from weir_core.wire.steps import decode_step

HANGS_AFTER_S = 10.0


class Written(asyncio.Transport):
    """Keeps what was written."""

    def __init__(self, to: list[bytes]) -> None:
        super().__init__()
        self._to = to
        self._closing = False
        self.ended = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._to.append(bytes(data))
        if b"[DONE]" in bytes(data):
            self.ended.set()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True


def stream(log: StepLog, to: list[bytes], *, tokens: int) -> tuple[Stream, Written]:
    transport = Written(to)
    log.joined("id", 1, 0.0)
    return Stream(transport, log, 1, arrived_ns=5, left=tokens, gap_s=0.0), transport


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[StepLog]:
    """A step log to which nobody listens."""
    with contextlib.closing(StepLog(tmp_path / "nobody", asyncio.get_running_loop())) as log:
        yield log


async def test_no_more_chunks_are_under_way_than_there_are_streams(log: StepLog) -> None:
    batch = AsRead(asyncio.get_running_loop())
    sent: list[bytes] = []
    for _ in range(3):
        batch.add(stream(log, sent, tokens=50)[0])
    for _ in range(40):
        under_way = b"".join(sent).count(b"data: ")
        assert 3 <= under_way <= 4  # the opening event comes with its first token
        sent.clear()
        batch.read(under_way)


async def test_a_stream_that_was_cut_leaves_room_for_the_others(log: StepLog) -> None:
    batch = AsRead(asyncio.get_running_loop())
    cut, cut_transport = stream(log, [], tokens=50)
    other, transport = stream(log, [], tokens=4)
    batch.add(cut)
    batch.add(other)
    cut_transport.close()  # its first token will never be read
    async with asyncio.timeout(HANGS_AFTER_S):
        await transport.ended.wait()


async def test_a_step_names_the_prompts_it_computed_and_counts_the_decodes(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    path = tmp_path / "steps.sock"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader,
        contextlib.closing(StepLog(path, loop)) as log,
    ):
        reader.setblocking(False)
        reader.bind(str(path))
        log.joined("a", 100, 0.0)
        log.joined("b", 20, 0.0)
        async with asyncio.timeout(HANGS_AFTER_S):
            first = decode_step(await loop.sock_recv(reader, 1 << 16))
            log.joined("c", 3, 0.0)
            second = decode_step(await loop.sock_recv(reader, 1 << 16))
    assert (first.started, first.prefill_tokens, first.decodes) == (("a", "b"), 120, 0)
    assert (second.started, second.prefill_tokens, second.decodes) == (("c",), 3, 2)
    assert (first.seq, second.seq, second.running) == (1, 2, 3)


async def test_the_floor_moves_bytes_as_they_come_and_ends_both_sides_together(
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    uds = str(tmp_path / "engine.sock")
    ended = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()
        await writer.wait_closed()
        ended.set()

    engine = await asyncio.start_unix_server(echo, uds)
    floor = await loop.create_server(partial(ClientSide, uds, loop), "127.0.0.1", 0)
    sent = bytes(range(256)) * 4096
    async with engine, floor, asyncio.timeout(HANGS_AFTER_S):
        reader, writer = await asyncio.open_connection(*floor.sockets[0].getsockname())
        writer.write(sent)  # before the floor has reached the engine
        assert await reader.readexactly(len(sent)) == sent
        writer.close()
        await writer.wait_closed()
        await ended.wait()  # the engine's side is closed with the client's
