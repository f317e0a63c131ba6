"""The request path's instruments export what prometheus-client's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from weir_sidecar.telemetry.instruments import FastCounter, FastHistogram

BUCKETS = (0.1, 0.5, 1, 10)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 100).map(lambda x: x // 0.25))))
def test_it_exports_what_the_librarys_histogram_exports(seen: list[tuple[str, float]]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    slow = Histogram("x_seconds", "X.", ["class"], buckets=BUCKETS, registry=theirs)
    fast = FastHistogram("x_seconds", "X.", buckets=BUCKETS, registry=ours, label="class")
    for label, value in seen:
        slow.labels(label).observe(value)
        fast.labels(label).observe(value)
    assert _without_created(generate_latest(ours)) == _without_created(generate_latest(theirs))


@given(st.lists(st.floats(0, 100).map(lambda x: x // 0.25)))
def test_without_a_label_too(seen: list[float]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    slow = Histogram("x_seconds", "X.", buckets=BUCKETS, registry=theirs)
    fast = FastHistogram("x_seconds", "X.", buckets=BUCKETS, registry=ours)
    for value in seen:
        slow.observe(value)
        fast.observe(value)
    assert _without_created(generate_latest(ours)) == _without_created(generate_latest(theirs))


def test_every_value_is_there_whenever_the_histogram_is_read() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    slow = Histogram("x_seconds", "X.", buckets=BUCKETS, registry=theirs)
    fast = FastHistogram("x_seconds", "X.", buckets=BUCKETS, registry=ours)
    for number in range(700):
        slow.observe(number / 64)
        fast.labels().observe(number / 64)
        if number % 100 == 0:
            assert ours.get_sample_value("x_seconds_sum") == fast.labels().sum
            assert _without_created(generate_latest(ours)) == _without_created(
                generate_latest(theirs)
            )
    assert fast.labels().sum == sum(number / 64 for number in range(700))
    assert _without_created(generate_latest(ours)) == _without_created(generate_latest(theirs))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 9))))
def test_a_counter_exports_what_the_librarys_counter_exports(
    seen: list[tuple[str, str, int]],
) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    slow = Counter("x_total", "X.", ["class", "outcome"], registry=theirs)
    fast = FastCounter("x_total", "X.", ["class", "outcome"], registry=ours)
    slow_sum = Counter("y_total", "Y.", registry=theirs)
    fast_sum = FastCounter("y_total", "Y.", registry=ours).labels()
    for name, outcome, amount in seen:
        slow.labels(name, outcome).inc(amount)
        fast.labels(name, outcome).inc(amount)
        slow_sum.inc(amount)
        fast_sum.inc(amount)
    assert _without_created(generate_latest(ours)) == _without_created(generate_latest(theirs))


def _without_created(page: bytes) -> list[bytes]:
    """The library adds the time of creation to its own, which `main` switches off."""
    return [line for line in page.splitlines() if b"_created" not in line]
