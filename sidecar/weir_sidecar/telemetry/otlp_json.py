"""OTLP over HTTP in JSON, straight from the traces of finished requests.

The SDK's way to the wire (a ReadableSpan, a protobuf message and its copies for each span) costs
about as much as all else that is done for a request. Collectors take JSON at the same address;
encoding it costs a tenth. What cannot be sent is dropped and counted: telemetry never holds up
requests, nor memory.

JSON is written by hand here: dictionaries for msgspec to encode cost half as much again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from typing import Final

import aiohttp
import msgspec
from opentelemetry.sdk.resources import Resource

from weir_sidecar.telemetry.request_trace import RequestTrace
from weir_sidecar.telemetry.spans import Attribute, Span

log = logging.getLogger(__name__)

MAX_WAITING_SPANS: Final = 16_384
BATCH_SPANS: Final = 1024
"""Sent at once: a post costs as much as encoding a hundred spans."""
SLICE_SPANS: Final = 256
"""Encoded at once: half a millisecond of the event loop."""
PERIOD_S: Final = 1.0
ATTEMPTS: Final = 3
FLUSH_S: Final = 2.0
"""Spans still unsent at exit get this long."""
_RETRIED: Final = frozenset({429, 502, 503, 504})
_ENCODER: Final = msgspec.json.Encoder()
_QUOTED: Final[dict[str, str]] = {}
_MAX_QUOTED: Final = 512


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
        known: dict[str, Attribute] = {
            _quoted(key)[1:-1]: value
            for key, value in resource.attributes.items()
            if isinstance(value, str | int | float | bool)
        }
        self._before = (
            f'{{"resourceSpans":[{{"resource":{{"attributes":[{_attributes(known)}]}},'
            '"scopeSpans":[{"scope":{"name":"weir_sidecar"},"spans":['
        ).encode()
        self._waiting: deque[RequestTrace] = deque()
        self._spans = 0
        self._lost = 0
        self._due = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def take(self, trace: RequestTrace) -> None:
        """Take one request's trace; drop it where too many spans wait already."""
        spans = trace.span_count
        if self._spans + spans > MAX_WAITING_SPANS:
            self._lost += spans
            return
        self._waiting.append(trace)
        self._spans += spans
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send_on(), name="spans")
        if self._spans >= BATCH_SPANS:
            self._due.set()

    async def close(self) -> None:
        """Send what is left; a collector that is away does not delay the exit for long."""
        if self._task is None:
            return
        self._closing = True
        self._due.set()
        _, late = await asyncio.wait({self._task}, timeout=FLUSH_S)
        for task in late:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._lost += self._spans
        self._tell_lost()

    async def _send_on(self) -> None:
        async with aiohttp.ClientSession(timeout=self._timeout, headers=self._headers) as session:
            while self._waiting or not self._closing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S):
                        await self._due.wait()
                if not self._closing:
                    self._due.clear()
                await self._send(session)
                self._tell_lost()

    async def _send(self, session: aiohttp.ClientSession) -> None:
        """Send what waits; what comes meanwhile waits for its own turn, or posts would be small."""
        while self._waiting:
            traces: list[bytes] = []
            spans = self._encode(traces)
            while self._waiting and spans < BATCH_SPANS:
                await asyncio.sleep(0)
                spans += self._encode(traces)
            if await self._post(session, self._page(traces)):
                self._lost -= spans
            if self._spans < BATCH_SPANS and not self._closing:
                return

    def _encode(self, traces: list[bytes]) -> int:
        """Encode what waits, up to a slice; return how many spans that are."""
        spans = 0
        while self._waiting and spans < SLICE_SPANS:
            trace = self._waiting.popleft()
            spans += trace.span_count
            traces.append(_spans(trace))
        self._spans -= spans
        self._lost += spans  # until they arrived: sending may be cancelled
        return spans

    def _page(self, traces: list[bytes]) -> bytes:
        traces[0] = self._before + traces[0]
        traces[-1] += b"]}]}]}"
        return b",".join(traces)

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


def _spans(trace: RequestTrace) -> bytes:
    return ",".join([_span(span, trace) for span in trace.spans()]).encode()


def _span(span: Span, trace: RequestTrace) -> str:
    above = f'"parentSpanId":"{span.parent_id}",' if span.parent_id else ""
    if trace.state:
        above += f'"traceState":{_quoted(trace.state)},'
    more = ""
    if span.first_token_ns:
        more = f',"events":[{{"name":"first_token","timeUnixNano":"{span.first_token_ns}"}}]'
    if span.error:
        more += f',"status":{{"code":2,"message":{_quoted(span.error)}}}'
    return (
        f'{{"traceId":"{trace.trace_id}","spanId":"{span.span_id}",{above}'
        f'"name":{_quoted(span.name)},"kind":{span.kind},'
        f'"startTimeUnixNano":"{span.start_ns}","endTimeUnixNano":"{span.end_ns}",'
        f'"attributes":[{_attributes(span.attributes)}]{more}}}'
    )


def _attributes(of: dict[str, Attribute]) -> str:
    return ",".join([_attribute(key, value) for key, value in of.items()])


def _attribute(key: str, value: Attribute) -> str:
    if isinstance(value, str):
        return f'{{"key":"{key}","value":{{"stringValue":{_quoted(value)}}}}}'
    if isinstance(value, bool):
        word = "true" if value else "false"
        return f'{{"key":"{key}","value":{{"boolValue":{word}}}}}'
    if isinstance(value, int):  # 64 bits do not fit JSON's numbers everywhere
        return f'{{"key":"{key}","value":{{"intValue":"{value}"}}}}'
    return f'{{"key":"{key}","value":{{"doubleValue":{_ENCODER.encode(value).decode()}}}}}'


def _quoted(text: str) -> str:
    """Return a text as JSON has it; nearly all come again and again."""
    found = _QUOTED.get(text)
    if found is None:
        if len(_QUOTED) >= _MAX_QUOTED:
            _QUOTED.clear()
        found = _QUOTED[text] = _ENCODER.encode(text).decode()
    return found
