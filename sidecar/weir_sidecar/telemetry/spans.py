"""Spans of a request that has ended, as exporters read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from weir_sidecar.telemetry.request_trace import RequestTrace

Attribute = str | int | float | bool
INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3
"""OTLP's numbers for the kinds of spans."""


class Span:
    """One span; instants are nanoseconds since 1970.

    Attributes:
        name: What it is called.
        span_id: 16 hexadecimal digits.
        parent_id: The span above it; empty where there is none.
        kind: OTLP's number.
        start_ns: When it began.
        end_ns: When it ended.
        attributes: What is known of it.
        first_token_ns: When the first token came, or 0; it becomes an event.
        error: Why it failed; empty where it did not.
    """

    __slots__ = (
        "attributes",
        "end_ns",
        "error",
        "first_token_ns",
        "kind",
        "name",
        "parent_id",
        "span_id",
        "start_ns",
    )

    def __init__(self, name: str, span_id: str, parent_id: str, *, kind: int = INTERNAL) -> None:
        self.name = name
        self.span_id = span_id
        self.parent_id = parent_id
        self.kind = kind
        self.start_ns = self.end_ns = self.first_token_ns = 0
        self.attributes: dict[str, Attribute] = {}
        self.error = ""


class Exporter(Protocol):
    """Where the traces of finished requests go."""

    def take(self, trace: RequestTrace) -> None:
        """Take one request's."""

    async def close(self) -> None:
        """Send what is left, within a bound."""
