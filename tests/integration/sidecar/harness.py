"""Engines that behave and engines that do not, and a sidecar before them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from weir_core.wire.policies import PolicyDocument
from weir_core.wire.steps import Facts
from weir_sidecar.app import Sidecar
from weir_sidecar.settings import Addresses, Draining, Health, Policies, Settings, Timeouts
from weir_sidecar.telemetry.request_trace import Tracing
from weir_sidecar.upstreams.monitor import EngineState
from weir_sim.mock_engine import ENGINE, MockEngine, Profile, build_app

CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
LAST = b"0\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

Script = Callable[["Wire"], Awaitable[None]]

PATIENT = Settings(
    addresses=Addresses(host="127.0.0.1", api_port=0, admin_port=0, peer_port=0),
    health=Health(poll_s=0.02, timeout_s=1.0, stall_s=60.0),
    draining=Draining(grace_period_s=20.0, lame_duck_s=0.0),
)


def chat(**fields: Any) -> dict[str, Any]:
    """A chat request for the mock engine."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **fields}


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until something becomes true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what a test observes has no event
            await asyncio.sleep(0.01)


@dataclass
class Wire:
    """One engine connection as a script sees it, after a whole request was read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    request: bytes
    number: int
    """How many requests came before, health checks not counted."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed_by_peer(self) -> None:
        """Wait until the sidecar hangs up."""
        while await self.reader.read(65536):
            pass


class RawEngine:
    """An engine that plays a script on the wire, and is healthy meanwhile."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.healthy = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await _read_request(reader):
                if request.startswith(b"GET /health "):
                    status = b"200 OK" if self.healthy else b"503 Service Unavailable"
                    writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)
                    continue
                wire = Wire(reader, writer, request, len(self.requests))
                self.requests.append(request)
                await self._script(wire)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return head + (await reader.readexactly(int(length.group(1))) if length else b"")


class House:
    """Starts engines and sidecars; everything stops with the test."""

    def __init__(self, run_dir: Path, stack: contextlib.AsyncExitStack) -> None:
        self.run_dir = run_dir
        self.stack = stack

    def facts(self, kind: str = "weir", *, slots: int = 128, tells_ends: bool = False) -> None:
        """Let the engine say what it is; before the sidecar finds it ready."""
        facts = Facts(kind, slots, 2048, 100_000, tells_ends=tells_ends)  # type: ignore[arg-type]
        (self.run_dir / "engine.json").write_bytes(facts.encode())

    def policies(self, document: PolicyDocument) -> None:
        """Put a document where the sidecar looks for one, as a kubelet does: all at once."""
        self.policies_dir.mkdir(exist_ok=True)
        new = self.policies_dir / "new"
        new.write_bytes(document.encode())
        new.rename(self.policies_dir / "policies.json")

    @property
    def policies_dir(self) -> Path:
        return self.run_dir / "policies"

    async def mock_engine(self, profile: Profile) -> MockEngine:
        """Start the mock of vLLM on the engine's socket."""
        app = build_app(profile)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(self.run_dir / "engine.sock")).start()
        return app[ENGINE]

    async def raw_engine(self, script: Script) -> RawEngine:
        """Start an engine that plays a script."""
        engine = RawEngine(script)
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(engine.serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async def stop() -> None:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        server = await asyncio.start_unix_server(accept, str(self.run_dir / "engine.sock"))
        self.stack.push_async_callback(stop)
        return engine

    async def sidecar(
        self, settings: Settings = PATIENT, *, ready: bool = True, tracing: Tracing | None = None
    ) -> Running:
        """Start a sidecar and a client for it."""
        settings = replace(
            settings,
            addresses=replace(settings.addresses, run_dir=self.run_dir),
            policies=Policies(self.policies_dir, poll_s=0.02),
        )
        sidecar = await self.stack.enter_async_context(Sidecar(settings, tracing=tracing).running())
        session = await self.stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        if ready:
            await eventually(lambda: sidecar.monitor.state is EngineState.READY)
        return Running(sidecar, session, self.stack)


@dataclass
class Running:
    """A sidecar that listens, seen from a client."""

    sidecar: Sidecar
    session: aiohttp.ClientSession
    stack: contextlib.AsyncExitStack

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.sidecar.api_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.sidecar.admin_port}"

    @property
    def outcomes(self) -> dict[str, int]:
        """The outcomes that occurred."""
        return {name: n for name, n in self.sidecar.metrics.outcomes().items() if n}

    async def ended(self, total: int) -> dict[str, int]:
        """Wait until `total` requests ended; return how."""
        await eventually(lambda: sum(self.outcomes.values()) >= total)
        return self.outcomes

    async def post(self, path: str = CHAT, **options: Any) -> Answer:
        """Send a request and read all of the answer."""
        async with self.session.post(self.url + path, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def broken(self, path: str = CHAT, **options: Any) -> Answer:
        """Send a request whose answer is cut; return what came before the cut."""
        body = bytearray()
        async with self.session.post(self.url + path, **options) as response:
            try:
                while piece := await response.content.readany():
                    body += piece
            except aiohttp.ClientPayloadError:
                return Answer(response.status, response.headers.copy(), bytes(body))
        pytest.fail("the answer was whole")

    async def get(self, path: str, **options: Any) -> Answer:
        async with self.session.get(self.url + path, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def probe(self, path: str, **options: Any) -> Answer:
        """Ask the admin port."""
        async with self.session.get(self.admin_url + path, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def state(self) -> bytes:
        """Ask the admin socket what the sidecar knows."""
        path = self.sidecar.settings.addresses.admin_socket
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as pod,
            pod.get("http://weir/state") as response,
        ):
            assert response.status == 200
            return await response.read()

    async def raw(
        self, *, receive_buffer_bytes: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare connection, for what no client library would send."""
        sock = socket.socket()
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", self.sidecar.api_port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)

        async def close() -> None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        self.stack.push_async_callback(close)
        return reader, writer


@dataclass
class Answer:
    """A whole answer."""

    status: int
    headers: Any
    body: bytes


def request_bytes(
    body: bytes = b"{}", *, version: str = "1.1", extra: str = "", path: str = CHAT
) -> bytes:
    """A request as it looks on the wire."""
    return (
        f"POST {path} HTTP/{version}\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def quick(**timeouts: float) -> Settings:
    """Settings with some short timeouts."""
    return replace(PATIENT, timeouts=replace(Timeouts(), **timeouts))
