"""The ledger bounds, watches, counts, and lets the last one out."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from tests.unit.sidecar.fakes import Buffer
from weir_core.wire.openai import Usage
from weir_sidecar.ledger import Ledger
from weir_sidecar.outcomes import Outcome
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.splice import Ending, Exchange


class Scene:
    def __init__(self) -> None:
        self.now = 0.0
        self.metrics = Metrics(CollectorRegistry())
        self.ledger = Ledger(self.metrics, lambda: self.now, limit=2)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def exchange(self) -> Exchange:
        entry = self.ledger.enter()
        entry.exchange = Exchange(Buffer(), lambda: self.now)
        return entry.exchange

    def watch_at(self, now: float) -> None:
        self.now = now
        self.ledger.watch(now, first_byte_s=100.0, progress_s=10.0)


def test_one_more_than_the_limit_is_too_many() -> None:
    scene = Scene()
    seen = []
    for _ in range(3):
        scene.ledger.enter()
        seen.append(scene.ledger.full)
    assert seen == [False, False, True]


def test_a_second_attempt_has_all_the_time_for_its_first_byte() -> None:
    scene = Scene()
    first = scene.exchange()
    entry = next(iter(scene.ledger._entries))
    scene.watch_at(1.0)
    first.end(Ending.RECALLED)
    entry.exchange = second = Exchange(Buffer(), lambda: scene.now)
    scene.watch_at(102.0)
    assert second.ending is None
    scene.watch_at(203.0)
    assert second.ending is Ending.TIMED_OUT


def test_a_request_that_leaves_is_counted_with_its_times_and_tokens() -> None:
    scene = Scene()
    exchange = scene.exchange()
    entry = next(iter(scene.ledger._entries))
    scene.now = 0.5
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    scene.now = 2.0
    entry.outcome, entry.usage, entry.class_name = Outcome.OK, Usage(3, 4), "batch"
    scene.ledger.leave(entry)
    assert scene.metrics.outcomes()["ok"] == 1
    assert scene.value("weir_time_to_first_token_seconds_sum", **{"class": "batch"}) == 0.5
    assert scene.value("weir_request_duration_seconds_sum", **{"class": "batch"}) == 2.0
    assert scene.value("weir_streamed_bytes_total") == 2.0
    assert scene.value("weir_prompt_tokens_total") == 3.0
    assert scene.value("weir_output_tokens_total") == 4.0
    assert scene.ledger.engine_bytes == 2


def test_a_request_nobody_named_an_outcome_for_is_our_bug() -> None:
    scene = Scene()
    scene.ledger.leave(scene.ledger.enter())
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


def test_whoever_waits_for_the_last_one_is_called_once() -> None:
    scene = Scene()
    calls: list[str] = []
    first, second = scene.ledger.enter(), scene.ledger.enter()
    scene.ledger.when_idle(lambda: calls.append("idle"))
    scene.ledger.leave(first)
    assert calls == []
    scene.ledger.leave(second)
    scene.ledger.leave(scene.ledger.enter())
    assert calls == ["idle"]


def test_cut_ends_what_runs_and_tells_how_many() -> None:
    scene = Scene()
    exchanges = [scene.exchange(), scene.exchange()]
    exchanges[0].end(Ending.COMPLETE)
    assert scene.ledger.cut() == 1
    assert [exchange.ending for exchange in exchanges] == [Ending.COMPLETE, Ending.SHUT_DOWN]
