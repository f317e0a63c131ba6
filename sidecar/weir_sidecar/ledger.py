"""The ledger: who is in the house, and how each one left.

A request is entered when it arrives and leaves with exactly one `Outcome`; nothing else counts
requests. The ledger also bounds how many are held, watches that those at the engine make
progress, and cuts what still runs when a drain's time is over.
"""

from __future__ import annotations

from collections.abc import Callable

from weir_core.wire.openai import Usage
from weir_sidecar import outcomes
from weir_sidecar.outcomes import Outcome, Refusal
from weir_sidecar.telemetry.metrics import NO_CLASS, Metrics
from weir_sidecar.telemetry.tracing import RequestTrace
from weir_sidecar.upstreams.splice import Ending, Exchange


class Entry:
    """One request, from arrival to finish.

    Args:
        arrival: When it came.
    """

    __slots__ = (
        "_seen",
        "_seen_at",
        "_seen_bytes",
        "arrival",
        "body_bytes",
        "class_name",
        "exchange",
        "outcome",
        "recalled",
        "refuse",
        "status",
        "tenant",
        "trace",
        "usage",
    )

    def __init__(self, arrival: float) -> None:
        self.arrival = arrival
        self.body_bytes = 0
        self.outcome: Outcome | None = None
        self.exchange: Exchange | None = None
        self.usage: Usage | None = None
        self.status = 0
        """The HTTP status the client got, 0 before."""
        self.trace: RequestTrace | None = None
        self.class_name = NO_CLASS
        """Its priority class, once that is known."""
        self.tenant = ""
        self.refuse: Callable[[Refusal], None] | None = None
        """Ends its waiting for the engine; None where nothing makes it wait."""
        self.recalled = False
        """Its place at the engine was taken back."""
        # The watch: what was seen of which exchange, and when it was new.
        self._seen: Exchange | None = None
        self._seen_bytes = -1
        self._seen_at = 0.0

    def overdue(self, now: float, *, first_byte_s: float, progress_s: float) -> bool:
        """Tell whether the engine sent nothing for too long; called again and again."""
        exchange = self.exchange
        if exchange is None:
            return False
        moved = exchange is not self._seen or exchange.received_bytes != self._seen_bytes
        if moved or exchange.paused or exchange.held:
            self._seen, self._seen_bytes, self._seen_at = exchange, exchange.received_bytes, now
            return False
        return now - self._seen_at > (progress_s if exchange.begun else first_byte_s)


class Ledger:
    """Enters and leaves requests; the only one who counts them.

    Args:
        metrics: The instruments.
        clock: Seconds that only move forward.
        limit: Requests held at once.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float], *, limit: int) -> None:
        self.metrics = metrics
        self._clock = clock
        self._limit = limit
        self._entries: set[Entry] = set()
        self._finished_bytes = 0
        self.held_bytes = 0
        """Request bodies in memory, those announced included."""
        self._idle: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether one more is too many; the one who asks is already entered."""
        return len(self._entries) > self._limit

    @property
    def engine_bytes(self) -> int:
        """Bytes ever received from the engine: while this grows, it makes progress."""
        running = sum(e.exchange.received_bytes for e in self._entries if e.exchange)
        return self._finished_bytes + running

    @property
    def at_engine(self) -> int:
        """Requests the engine has, or is about to get."""
        return sum(1 for e in self._entries if e.exchange is not None)

    def enter(self) -> Entry:
        """Enter a request that has arrived."""
        entry = Entry(self._clock())
        self._entries.add(entry)
        return entry

    def hold(self, entry: Entry, size_bytes: int) -> None:
        """Note how large a request's body is, or will be."""
        self.held_bytes += size_bytes - entry.body_bytes
        entry.body_bytes = size_bytes

    def leave(self, entry: Entry) -> None:
        """Count a request that has ended."""
        self._entries.discard(entry)
        self.hold(entry, 0)
        metrics, exchange = self.metrics, entry.exchange
        outcome, now, first_byte_at = entry.outcome or Outcome.INTERNAL_ERROR, self._clock(), None
        of_class = metrics.of_class(entry.class_name)
        of_class.requests(outcome).inc()
        of_class.duration.observe(now - entry.arrival)
        if exchange is not None:
            self._finished_bytes += exchange.received_bytes
            metrics.streamed_bytes.inc(exchange.received_bytes)
            first_byte_at = exchange.first_byte_at
        if first_byte_at is not None:
            of_class.ttft.observe(first_byte_at - entry.arrival)
        if entry.trace is not None:
            entry.trace.finish(
                outcome, entry.status, now, first_byte_at=first_byte_at, usage=entry.usage
            )
        if entry.usage is not None:
            metrics.prompt_tokens.inc(entry.usage.prompt_tokens)
            metrics.output_tokens.inc(entry.usage.output_tokens)
        if not self._entries:
            waiting, self._idle = self._idle, []
            for call in waiting:
                call()

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call once, as soon as no request is held."""
        if self._entries:
            self._idle.append(call)
        else:
            call()

    def watch(self, now: float, *, first_byte_s: float, progress_s: float) -> None:
        """End the exchanges that wait too long; called about once a second."""
        for entry in list(self._entries):
            if entry.overdue(now, first_byte_s=first_byte_s, progress_s=progress_s):
                assert entry.exchange is not None
                entry.exchange.end(Ending.TIMED_OUT)

    def cut(self) -> int:
        """End everything, because the time is over; return how many there were."""
        running = [e.exchange for e in self._entries if e.exchange and not e.exchange.ending]
        for exchange in running:
            exchange.end(Ending.SHUT_DOWN)
        waiting = [e.refuse for e in self._entries if e.refuse and not e.exchange]
        for refuse in waiting:
            refuse(outcomes.shutting_down(1))
        return len(running) + len(waiting)
