"""The two servers, each playing one connection on the simulated network and recording it."""

from __future__ import annotations

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from prometheus_client import CollectorRegistry

from bench.fuzz.network import Recorder, SimulatedLoop, Wire
from bench.http.inputs import MAX_HEADER_BYTES, MAX_HEADERS, Input
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.frontend.headers import SPACE
from weir_sidecar.frontend.protocol import HttpRequest, HttpServer
from weir_sidecar.settings import Limits, Settings
from weir_sidecar.telemetry.metrics import Metrics

_SILENT: Final = logging.getLogger("bench.http.aiohttp")
_SILENT.disabled = True  # aiohttp logs what it refuses
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d\d\d) [^\r\n]*\r\n")
_SETTLED_S: Final = 15.0
"""After this a server has done all that it will; aiohttp reads for 10 s what a handler left."""
APART: Final = frozenset({b"content-length", b"x-request-id", b"traceparent", b"tracestate"})
"""Headers that the sidecar's server keeps apart, in no order; the last one of a name counts."""


@dataclass
class Seen:
    """A request as a server handed it over.

    Attributes:
        apart: The last value of each header in `APART`.
        head_bytes: What was sent for the path and the headers; aiohttp's server only.
        end: `whole`, `broken`, or, where more of the body should have come, `open`.
    """

    method: str
    path: str
    version: str
    headers: list[tuple[bytes, bytes]]
    apart: dict[bytes, bytes]
    head_bytes: int = 0
    body: bytes = b""
    end: str = "open"

    @property
    def head(self) -> tuple[object, ...]:
        """All but the body."""
        return self.method, self.path, self.version, self.headers, self.apart

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a header by its lower-case name."""
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class Record:
    """One server's reading of one connection.

    Attributes:
        requests: What it handed over.
        statuses: What it answered.
        is_open: The connection waits for more.
        faults: What must not happen whatever is sent.
    """

    requests: list[Seen] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    is_open: bool = True
    faults: list[str] = field(default_factory=list)


class Side(ABC):
    """One of the servers.

    Args:
        loop: The simulated loop.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop

    @abstractmethod
    def connection(self, given: Input, record: Record) -> asyncio.Protocol:
        """Return the protocol of a new connection."""

    @abstractmethod
    def left_behind(self) -> list[str]:
        """Return what is left of connections that are gone."""

    async def play(self, given: Input) -> Record:
        """Send an input on a connection of its own, and return what became of it."""
        record, peer = Record(), Recorder()
        protocol = self.connection(given, record)
        wire = Wire(self.loop, protocol, peer)
        protocol.connection_made(wire)
        try:
            for wait_s, piece in given.pieces:
                wire.deliver(piece)
                if wait_s:
                    await asyncio.sleep(wait_s)
                if wire.lost:
                    break
        except Exception as error:
            record.faults.append(f"data_received raised {error!r}")
        if not given.leaves:
            await asyncio.sleep(_SETTLED_S)
        record.is_open = not wire.lost
        wire.hang_up()
        await asyncio.sleep(_SETTLED_S)
        if not wire.lost:
            record.faults.append("the connection has not ended with its client")
            wire.reset()
        record.statuses = [int(status) for status in _STATUS.findall(peer.received)]
        return record


class Ours(Side):
    """The sidecar's server."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__(loop)
        self._settings = Settings(
            limits=Limits(max_headers=MAX_HEADERS, max_header_bytes=MAX_HEADER_BYTES)
        )
        self._metrics = Metrics(CollectorRegistry())
        self._servers: list[HttpServer] = []

    def connection(self, given: Input, record: Record) -> asyncio.Protocol:
        """Return the protocol of a new connection, of a server of its own."""

        def handle(request: HttpRequest) -> None:
            _Reader(request, given, record).begin()

        server = HttpServer(handle, _refused, self._settings, self._metrics, self.loop.time)
        self._servers.append(server)
        return server()

    def left_behind(self) -> list[str]:
        """Return what is left of connections that are gone."""
        left = []
        for server in self._servers:
            if server.connections:
                left.append("a connection that is gone is still known")
            if server.unread_bytes:
                left.append(f"{server.unread_bytes} bytes of heads are still counted")
        self._servers = []
        return left


def _refused(error: ApiError) -> Answer:
    return Answer(error.status, b".", close=True)


class _Reader:
    """Reads one request of the sidecar's server, and answers it."""

    def __init__(self, request: HttpRequest, given: Input, record: Record) -> None:
        self._request, self._given = request, given
        head = request.head
        apart = {key.encode(): value.encode("latin-1") for key, value in request.tracing.items()}
        if request.given_id:
            apart[b"x-request-id"] = request.given_id
        if request.announced_bytes:
            apart[b"content-length"] = b"%d" % request.announced_bytes
        headers = [(name, value.rstrip(SPACE)) for name, value in head.headers]
        self.seen = Seen(head.method, head.raw_path, head.version, headers, apart)
        record.requests.append(self.seen)
        self._record = record
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Answer at once where that is possible and wished."""
        request, given = self._request, self._given
        request.owner = self
        if request.whole and given.answers_after_s is None and not given.reads_after_s:
            self.seen.body, self.seen.end = request.take(), "whole"
            self._answer(200)
        else:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def client_gone(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        await asyncio.sleep(self._given.reads_after_s)
        try:
            while part := await self._request.read():
                self.seen.body += part
        except ApiError as error:
            self.seen.end = "broken"
            self._answer(error.status)
            return
        self.seen.end = "whole"
        await asyncio.sleep(self._given.answers_after_s or 0.0)
        self._answer(200)

    def _answer(self, status: int) -> None:
        self._request.owner = None
        self._request.answer(Answer(status, b".", close=status != 200))


class Theirs(Side):
    """aiohttp's server, set as the sidecar had it."""

    def connection(self, given: Input, record: Record) -> asyncio.Protocol:
        """Return the protocol of a new connection, of a server of its own."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await _read(request, given, record)

        return _Reference(web.Server(handle, handler_cancellation=True), self.loop)

    def left_behind(self) -> list[str]:
        """Return nothing: what aiohttp leaves is not what is tested."""
        return []


class _Reference(RequestHandler):
    """aiohttp's connection, with the sidecar's bounds and its status for what is over them."""

    __slots__ = ("_body",)

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's way to have none
            logger=_SILENT,
            auto_decompress=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )
        self._body: StreamReader = EMPTY_PAYLOAD
        """Of the newest request."""

    def data_received(self, data: bytes) -> None:
        """Parse, and let no reader wait for a body that will never be whole, as the sidecar did."""
        body = self._body
        super().data_received(data)
        if self._messages and self._messages[-1][1] is not body:
            message, self._body = self._messages[-1]
            if isinstance(message, _ErrInfo) and not body.is_eof():
                body.set_exception(web.RequestPayloadError(message.message))

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the parser refused."""
        large = isinstance(exc, LineTooLong) or "Too many headers" in (message or "")
        answer = web.Response(status=431 if large else status, text=".")
        answer.force_close()
        return answer


async def _read(request: web.BaseRequest, given: Input, record: Record) -> web.StreamResponse:
    """Read one request of aiohttp's server, and answer it."""
    version = request.version
    seen = Seen(request.method, request.raw_path, f"{version.major}.{version.minor}", [], {})
    seen.head_bytes = len(seen.path) + sum(len(n) + len(v) for n, v in request.raw_headers)
    for name, value in request.raw_headers:
        key = name.lower()
        if key == b"content-length":
            seen.apart.update({key: b"%d" % int(value)} if int(value) else {})
        elif key in APART:
            seen.apart[key] = value
        else:
            seen.headers.append((name, value))
    if seen.apart.get(b"x-request-id") == b"":  # to the sidecar's server it is none
        del seen.apart[b"x-request-id"]
    record.requests.append(seen)
    await asyncio.sleep(given.reads_after_s)
    try:
        while part := await request.content.readany():
            seen.body += part
    except (web.RequestPayloadError, ConnectionError):
        seen.end = "broken"
        answer = web.Response(status=400, text=".")
        answer.force_close()
        return answer
    seen.end = "whole"
    await asyncio.sleep(given.answers_after_s or 0.0)
    return web.Response(text=".")
