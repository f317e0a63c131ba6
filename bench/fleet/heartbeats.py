"""What heartbeats cost one sidecar, in CPU time and bytes.

The sidecar is in this process: the real membership, its peer port, and a scheduler whose load it
tells. The others are in a second process. Each of them is real, too, but knows only the measured
one, so that they cost little; each pair exchanges as many heartbeats as in a fleet of that size.
CPU time is the whole process's, garbage collector and event loop included. Bytes are counted by the
kernel, per connection: HTTP's heads are in them, and the headers of TCP and IP beside them.

A machine that does other work makes all of it dearer. So a bare echo of as many messages of that
size over as many connections is measured in the same run, in the same event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import random
import resource
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, cast

import uvloop
from prometheus_client import CollectorRegistry

from weir_core.route.digest import VERSION
from weir_core.route.load import load_of
from weir_core.route.types import DigestUpdate, LoadVector
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import EngineFacts, EngineKind
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.peers.peers import Peers
from weir_sidecar.peers.port import PeerPort
from weir_sidecar.settings import Addresses, Peering, Settings
from weir_sidecar.telemetry.metrics import Metrics

GOAL_CPU: Final = 0.02
GOAL_BYTES_PER_S: Final = 200_000
_ECHO_BYTES: Final = 220
_KEY: Final = random.Random(0).randbytes(32).hex()
_ENGINE: Final = EngineFacts(
    kind=EngineKind.WEIR,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    kv_capacity_tokens=1_000_000,
)
_MEASURED: Final = "measured"
_SETTLE_S: Final = 5.0
_MEET_S: Final = 60.0
_BYTES_ACKED: Final = struct.Struct("=120xQQII")
"""In struct tcp_info: bytes that were sent and received, segments out and in."""
_HEADERS_BYTES: Final = 52
"""Of TCP and IPv4, with timestamps."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent up to one moment."""

    at_s: float
    cpu_s: float
    exchanges: float
    sent_bytes: int
    received_bytes: int
    segments: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--peers", type=int, default=256, help="sidecars, the measured one too")
    parser.add_argument("--seconds", type=float, default=30.0, help="time of the measurement")
    parser.add_argument(
        "--digest-bytes", type=int, default=0, help="of prefix digests in each heartbeat"
    )


class _Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Sender(asyncio.Protocol):
    """Sends one message a period, at a time of its own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        asyncio.get_running_loop().call_later(random.random(), self._send)

    def _send(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(bytes(_ECHO_BYTES))
            asyncio.get_running_loop().call_later(random.uniform(0.9, 1.1), self._send)


def run(options: argparse.Namespace) -> int:
    """Measure, and print; 1 where a goal is missed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    here, there = multiprocessing.Pipe()
    others = multiprocessing.get_context("spawn").Process(
        target=_others, args=(there, options.peers - 1, options.digest_bytes), daemon=True
    )
    others.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            before, after = runner.run(_measure(here, options))
            echo_cpu = runner.run(_measure_echo(here, options))
    finally:
        here.close()
        others.join(timeout=10)
        if others.is_alive():
            others.kill()
    return _report(options, before, after, echo_cpu)


async def _measure(others: Connection, options: argparse.Namespace) -> tuple[Spent, Spent]:
    scheduler = Scheduler(SchedulerSettings(_ENGINE))
    settings = Settings(addresses=Addresses(host="127.0.0.1", peer_port=0))
    async with _sidecar(
        _MEASURED, settings, lambda: load_of(scheduler, time.monotonic()), options.digest_bytes
    ) as (peers, metrics):
        others.send(peers.own.address)
        entries = tuple(PeerEntry(name, address) for name, address in others.recv())
        peers.apply(PolicyDocument(peers=entries, peer_keys=(_KEY,)))
        async with asyncio.timeout(_MEET_S):
            while peers.usable < options.peers - 1:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await asyncio.sleep(_SETTLE_S)
        gc.freeze()  # as `weir-sidecar` does
        gc.set_threshold(50_000, 20, 20)
        before = _spent(metrics)
        await asyncio.sleep(options.seconds)
        after = _spent(metrics)
        assert peers.usable == options.peers - 1, "a peer was lost"
        return before, after


async def _measure_echo(others: Connection, options: argparse.Namespace) -> float:
    """Return the CPU time of a second in which each of the others sends a message."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, "127.0.0.1", 0)
    others.send(server.sockets[0].getsockname()[1])
    await loop.run_in_executor(None, others.recv)  # the loop still has connections to close
    await asyncio.sleep(_SETTLE_S)
    at_s, cpu_s = time.monotonic(), time.process_time()
    await asyncio.sleep(options.seconds / 2)
    cpu = (time.process_time() - cpu_s) / (time.monotonic() - at_s)
    server.close()
    return cpu


def _others(measured: Connection, count: int, digest_bytes: int) -> None:
    """Be all other sidecars, in a process of their own, until the measured one has left."""
    logging.disable(logging.WARNING)  # they hear of each other, and are to ignore that
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        address = measured.recv()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            port = runner.run(_be_others(measured, address, count, digest_bytes))
            runner.run(_send_to(measured, port, count))


async def _send_to(measured: Connection, port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.create_connection(_Sender, "127.0.0.1", port)
    measured.send(count)
    await loop.run_in_executor(None, measured.recv)


async def _be_others(measured: Connection, address: str, count: int, digest_bytes: int) -> int:
    """Be all other sidecars until the measured one has left and says what comes next."""
    period_s = Peering().period_s(count)
    peering = Peering(min_period_s=period_s, max_period_s=period_s, most=1)
    scheduler = Scheduler(SchedulerSettings(_ENGINE))
    load = load_of(scheduler, time.monotonic())
    document = PolicyDocument(peers=(PeerEntry(_MEASURED, address),), peer_keys=(_KEY,))
    async with contextlib.AsyncExitStack() as stack:
        entries = []
        for number in range(count):
            host = f"127.0.{1 + number // 200}.{1 + number % 200}"
            settings = Settings(addresses=Addresses(host=host, peer_port=0), peering=peering)
            name = f"a-service-with-a-name-6c8f9d7b54-{number:05}"
            peers, _ = await stack.enter_async_context(
                _sidecar(name, settings, lambda: load, digest_bytes)
            )
            peers.apply(document)
            entries.append((name, peers.own.address))
        measured.send(entries)
        port: int = await asyncio.get_running_loop().run_in_executor(None, measured.recv)
        return port


@contextlib.asynccontextmanager
async def _sidecar(
    name: str, settings: Settings, load: Callable[[], LoadVector], digest_bytes: int
) -> AsyncIterator[tuple[Peers, Metrics]]:
    metrics = Metrics(CollectorRegistry())
    peers = Peers(name, settings, metrics, time.monotonic, load)
    peers.apply(PolicyDocument(peer_keys=(_KEY,)))
    if digest_bytes:
        peers.digests = _Digests(digest_bytes)
    port = PeerPort(
        peers, lambda http, _: http.answer(Answer(404, b"")), settings, metrics, time.monotonic
    )
    async with port.listen(settings.addresses.host, 0):
        task = asyncio.create_task(peers.run())
        try:
            yield peers, metrics
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            peers.close()


class _Digests:
    """Sends as many bytes in each heartbeat, and keeps none."""

    def __init__(self, size_bytes: int) -> None:
        self._update = DigestUpdate(VERSION, 1, 1, 2, os.urandom(size_bytes))

    def update_for(self, seq: int) -> DigestUpdate | None:  # noqa: ARG002
        return self._update

    def heard(self, peer: str, update: DigestUpdate) -> int:  # noqa: ARG002
        return update.seq

    def peer_gone(self, peer: str) -> None:
        """Keep nothing."""


def _spent(metrics: Metrics) -> Spent:
    counts = metrics.heartbeats.counts()
    sent_bytes = received_bytes = segments = 0
    for information in _connections():
        sent, received, out, into = _BYTES_ACKED.unpack(information)
        sent_bytes, received_bytes = sent_bytes + sent, received_bytes + received
        segments += out + into
    return Spent(
        time.monotonic(),
        time.process_time(),
        counts.get(("answered",), 0) + counts.get(("heard",), 0),
        sent_bytes,
        received_bytes,
        segments,
    )


def _connections() -> list[bytes]:
    """Return the kernel's words on each connected TCP socket of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            number = int(name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as one:
                if one.family is socket.AF_INET and one.getpeername():
                    size = _BYTES_ACKED.size
                    found.append(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size))
    return found


def _report(options: argparse.Namespace, before: Spent, after: Spent, echo_cpu: float) -> int:
    seconds = after.at_s - before.at_s
    cpu = (after.cpu_s - before.cpu_s) / seconds
    exchanges = (after.exchanges - before.exchanges) / seconds
    sent = (after.sent_bytes - before.sent_bytes) / seconds
    received = (after.received_bytes - before.received_bytes) / seconds
    headers = (after.segments - before.segments) * _HEADERS_BYTES / seconds
    each_us = 1e6 * cpu / exchanges if exchanges else 0.0
    print(f"{options.peers} sidecars, {exchanges:.0f} heartbeats/s, {seconds:.0f} s")
    print(f"heartbeats: {100 * cpu:.2f} % of a core, {each_us:.0f} us a heartbeat")
    print(f"a bare echo of as many messages: {100 * echo_cpu:.2f} % of a core")
    print(f"bytes: {sent / 1e3:.0f} kB/s sent, {received / 1e3:.0f} kB/s received")
    print(f"headers of TCP and IP beside them, in both directions: {headers / 1e3:.0f} kB/s")
    met = cpu <= GOAL_CPU and sent + received <= GOAL_BYTES_PER_S
    print(
        f"goal of {GOAL_CPU:.0%} and {GOAL_BYTES_PER_S // 1000} kB/s: {'met' if met else 'missed'}"
    )
    return 0 if met else 1
