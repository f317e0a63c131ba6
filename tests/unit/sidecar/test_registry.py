"""The registry bounds, watches and counts requests, and tells when the last one has left."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from tests.unit.sidecar.fakes import Buffer, http_request, make_driver
from weir_core.wire.fields import Usage
from weir_sidecar.inflight import Handler, InFlightRequest
from weir_sidecar.outcomes import Outcome
from weir_sidecar.registry import Registry
from weir_sidecar.settings import Settings, Timeouts
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.splice import Ending, Exchange

BOUNDS = Timeouts(first_byte_s=100.0, progress_s=10.0)


class Scene:
    def __init__(self) -> None:
        self.now = 0.0
        self.metrics = Metrics(CollectorRegistry())
        settings = Settings()
        self.registry = Registry(self.metrics, lambda: self.now, settings.limits, max_held=2)
        self.handler = Handler(
            self.registry, settings, make_driver(self.registry, lambda: self.now), lambda: self.now
        )

    def request(self) -> InFlightRequest:
        request = InFlightRequest(http_request(), self.handler)
        self.registry.add(request)
        return request

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def exchange(self) -> Exchange:
        request = self.request()
        request.exchange = Exchange(Buffer(), lambda: self.now)
        return request.exchange

    def watch_at(self, now: float) -> None:
        self.now = now
        self.registry.watch(now, BOUNDS)


def test_one_more_than_the_limit_is_too_many() -> None:
    scene = Scene()
    seen = []
    for _ in range(3):
        scene.request()
        seen.append(scene.registry.full)
    assert seen == [False, False, True]


def test_a_second_attempt_has_all_the_time_for_its_first_byte() -> None:
    scene = Scene()
    request = scene.request()
    request.exchange = first = Exchange(Buffer(), lambda: scene.now)
    scene.watch_at(1.0)
    first.end(Ending.REQUEUED)
    request.exchange = second = Exchange(Buffer(), lambda: scene.now)
    scene.watch_at(102.0)
    assert second.ending is None
    scene.watch_at(203.0)
    assert second.ending is Ending.TIMED_OUT


def test_a_request_that_leaves_is_counted_with_its_times_and_tokens() -> None:
    scene = Scene()
    request = scene.request()
    request.exchange = exchange = Exchange(Buffer(), lambda: scene.now)
    scene.now = 0.5
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    scene.now = 2.0
    request.outcome, request.usage, request.class_name = Outcome.OK, Usage(3, 4), "batch"
    request._count()
    assert scene.metrics.outcomes()["ok"] == 1
    assert scene.value("weir_time_to_first_token_seconds_sum", **{"class": "batch"}) == 0.5
    assert scene.value("weir_request_duration_seconds_sum", **{"class": "batch"}) == 2.0
    assert scene.value("weir_streamed_bytes_total") == 2.0
    assert scene.value("weir_prompt_tokens_total") == 3.0
    assert scene.value("weir_output_tokens_total") == 4.0
    assert scene.registry.received_bytes == 2


def test_a_request_without_an_outcome_is_our_bug() -> None:
    scene = Scene()
    scene.request()._count()
    assert scene.metrics.outcomes()["internal_error"] == 1


def test_the_first_byte_has_its_own_patience() -> None:
    scene = Scene()
    exchange = scene.exchange()
    scene.watch_at(1)
    scene.watch_at(100)
    assert exchange.ending is None
    scene.watch_at(102)
    assert exchange.ending is Ending.TIMED_OUT


def test_an_answer_must_go_on() -> None:
    scene = Scene()
    exchange = scene.exchange()
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nx")
    for now in range(1, 50):
        scene.watch_at(now)
        if now < 30:
            exchange.feed(b"") if now % 9 else exchange.feed(b"x")
    assert exchange.ending is Ending.TIMED_OUT


def test_waiting_for_a_slow_client_is_not_the_engines_fault() -> None:
    scene = Scene()
    exchange = scene.exchange()
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nx")
    exchange.paused = True
    for now in range(1, 500, 5):
        scene.watch_at(now)
    assert exchange.ending is None


def test_a_call_for_the_last_one_comes_once() -> None:
    scene = Scene()
    calls: list[str] = []
    first, second = scene.request(), scene.request()
    scene.registry.when_idle(lambda: calls.append("idle"))
    first._count()
    assert calls == []
    second._count()
    scene.request()._count()
    assert calls == ["idle"]


def test_cut_ends_what_runs_and_tells_how_many() -> None:
    scene = Scene()
    exchanges = [scene.exchange(), scene.exchange()]
    exchanges[0].end(Ending.COMPLETE)
    assert scene.registry.cut() == 1
    assert [exchange.ending for exchange in exchanges] == [Ending.COMPLETE, Ending.SHUT_DOWN]
