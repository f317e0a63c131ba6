"""OTLP over HTTP in JSON, straight from the notes of finished requests.

The SDK's way to the wire (a ReadableSpan, a protobuf message and its copies for each span) costs
about as much as all else that is done for a request. Collectors take JSON at the same address;
encoding it costs a tenth. What cannot be sent is dropped and counted: telemetry never holds up
requests, nor memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind, StatusCode

from weir_sidecar.telemetry.spans import Attribute, Note, wall_ns

log = logging.getLogger(__name__)

MAX_WAITING_SPANS: Final = 16_384
BATCH_SPANS: Final = 256
"""Encoded at once: about a millisecond of the event loop."""
PERIOD_S: Final = 1.0
ATTEMPTS: Final = 3
FLUSH_S: Final = 2.0
"""Spans still unsent at exit get this long."""
_RETRIED: Final = frozenset({429, 502, 503, 504})
_KINDS: Final = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3}
_STATUSES: Final = {StatusCode.OK: 1, StatusCode.ERROR: 2}
_ENCODER: Final = msgspec.json.Encoder()


class JsonExporter:
    """Sends spans in batches, each second or when a batch is full.

    Args:
        endpoint: The whole address, for example `http://collector:4318/v1/traces`.
        headers: Sent with every batch.
        timeout_s: Bound on one attempt.
        resource: Who we are.
    """

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], timeout_s: float, resource: Resource
    ) -> None:
        self._endpoint = endpoint
        self._headers = {**headers, "Content-Type": "application/json"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        known = {key: value for key, value in resource.attributes.items() if _is_plain(value)}
        self._resource = {"attributes": _attributes(known)}  # type: ignore[arg-type]
        self._waiting: deque[tuple[list[Note], int]] = deque()
        self._spans = 0
        self._lost = 0
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def take(self, notes: list[Note], wall_offset_ns: int) -> None:
        """Take one request's notes; drop them where too many wait already."""
        if self._spans + len(notes) > MAX_WAITING_SPANS:
            self._lost += len(notes)
            return
        self._waiting.append((notes, wall_offset_ns))
        self._spans += len(notes)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send_on(), name="spans")
        if self._spans >= BATCH_SPANS:
            self._full.set()

    async def close(self) -> None:
        """Send what is left; a collector that is away does not delay the exit for long."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(FLUSH_S), self._session() as session:
                await self._send_all(session)
        except TimeoutError:
            self._lost += self._spans
        self._tell_lost()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)

    async def _send_on(self) -> None:
        async with self._session() as session:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S):
                        await self._full.wait()
                self._full.clear()
                await self._send_all(session)
                self._tell_lost()

    async def _send_all(self, session: aiohttp.ClientSession) -> None:
        while self._waiting:
            spans: list[dict[str, Any]] = []
            while self._waiting and len(spans) < BATCH_SPANS:
                notes, wall_offset_ns = self._waiting.popleft()
                self._spans -= len(notes)
                spans += [_span(note, wall_offset_ns) for note in notes]
            self._lost += len(spans)  # until they arrived: sending may be cancelled
            if await self._post(session, self._page(spans)):
                self._lost -= len(spans)

    def _page(self, spans: list[dict[str, Any]]) -> bytes:
        scope = {"scope": {"name": "weir_sidecar"}, "spans": spans}
        return _ENCODER.encode(
            {"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}
        )

    async def _post(self, session: aiohttp.ClientSession, page: bytes) -> bool:
        """Send one batch, again where that may help; tell whether it arrived."""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(2.0 ** (attempt - 1))
            try:
                async with session.post(self._endpoint, data=page) as answer:
                    if answer.status < 300:
                        return True
                    if answer.status not in _RETRIED:
                        log.warning("the collector refused spans", extra={"status": answer.status})
                        return False
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("the collector cannot be reached", extra={"error": str(error)})
        return False

    def _tell_lost(self) -> None:
        if self._lost:
            log.warning("spans were lost", extra={"spans": self._lost})
            self._lost = 0


def _span(note: Note, wall_offset_ns: int) -> dict[str, Any]:
    context = note.context
    span: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": note.name,
        "kind": _KINDS.get(note.kind, 0),
        "startTimeUnixNano": str(wall_ns(note.start, wall_offset_ns)),
        "endTimeUnixNano": str(wall_ns(note.end, wall_offset_ns)),
        "attributes": _attributes(note.attributes),
    }
    if note.parent is not None:
        span["parentSpanId"] = f"{note.parent.span_id:016x}"
    if context.trace_state:
        span["traceState"] = context.trace_state.to_header()
    if note.events:
        span["events"] = [
            {"name": name, "timeUnixNano": str(wall_ns(at, wall_offset_ns))}
            for name, at in note.events
        ]
    if note.status.status_code is not StatusCode.UNSET:
        span["status"] = {
            "code": _STATUSES[note.status.status_code],
            "message": note.status.description or "",
        }
    return span


def _attributes(of: Mapping[str, Attribute]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in of.items()]


def _value(value: Attribute) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}  # 64 bits do not fit JSON's numbers everywhere
        case float():
            return {"doubleValue": value}
    return {"stringValue": value}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)
