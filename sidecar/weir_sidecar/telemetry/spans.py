"""What is noted of a span while its request runs; exporters make spans of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

Attribute = str | int | float | bool
UNSET: Final = Status(StatusCode.UNSET)


@dataclass(slots=True)
class Note:
    """One span to be: what is known of it so far; instants are the sidecar's clock."""

    name: str
    context: SpanContext
    parent: SpanContext | None
    kind: SpanKind
    start: float
    end: float = 0.0
    attributes: dict[str, Attribute] = field(default_factory=dict)
    events: tuple[tuple[str, float], ...] = ()
    status: Status = UNSET


class Exporter(Protocol):
    """Where the spans of finished requests go."""

    def take(self, notes: list[Note], wall_offset_ns: int) -> None:
        """Take one request's; wall time is the sidecar's clock plus the offset."""

    async def close(self) -> None:
        """Send what is left, within a bound."""


def wall_ns(instant: float, wall_offset_ns: int) -> int:
    """Return an instant of the sidecar's clock as nanoseconds since 1970."""
    return int(instant * 1e9) + wall_offset_ns
