"""The two ends of an exchange, without sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry

from weir_sidecar.driver import Driver
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.headers import RequestHead
from weir_sidecar.frontend.protocol import ClientConnection, HttpRequest, HttpServer
from weir_sidecar.registry import Registry
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.prompt_counter import PromptCounter
from weir_sidecar.upstreams.splice import Exchange


def http_request(
    method: str = "POST", path: str = "/", headers: Iterable[tuple[str, str]] = ()
) -> HttpRequest:
    """A request as a connection reads it, without the connection's transport."""
    metrics = Metrics(CollectorRegistry())
    server = HttpServer(_nothing, lambda _: Answer(400, b""), Settings(), metrics, lambda: 0.0)
    given = [(name.encode(), value.encode()) for name, value in headers]
    return HttpRequest(ClientConnection(server), RequestHead(method, path, "1.1", given))


def make_driver(registry: Registry, clock: Callable[[], float]) -> Driver:
    """A driver without an engine."""
    settings = Settings()
    prompts = PromptCounter(None, settings.tokenizing)
    return Driver(settings, registry.metrics, registry.memory, prompts, clock)


def _nothing(_: HttpRequest) -> None:
    """Leave a request as it is."""


class Buffer:
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        self.written = b""
        self.heads = 0
        self.closing = False
        self.writing_paused = False

    def open(self, answer: Exchange) -> bytes:
        self.heads += 1
        return b"[%d]" % answer.status

    def write(self, piece: bytes) -> None:
        self.written += piece

    def is_closing(self) -> bool:
        return self.closing


class Judge:
    """Says which answers are held back, and lets them be awaited."""

    def __init__(self, holds: Callable[[Exchange], bool]) -> None:
        self._holds = holds

    def on_exchange(self, exchange: Exchange) -> None:
        """Leave it to whoever awaits it."""

    def holds_back(self, exchange: Exchange, piece: bytes) -> bool:  # noqa: ARG002
        return self._holds(exchange)

    def tokens_in(self, piece: bytes) -> int:  # noqa: ARG002
        return 0


class Line:
    """An engine connection that only remembers whether it is read."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
