"""What `weir top` shows follows from the pages of a service's processes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from weir_cli.top_figures import (
    Choice,
    ClassRow,
    Process,
    Reading,
    ReplicaRow,
    Service,
    class_names,
    picture,
    pressed,
    read_page,
    share_within,
)
from weir_cli.top_view import draw
from weir_core.sched.types import ClassPolicy

HIGH = ClassPolicy("high", rank=2, ttft_target_s=0.5, tpot_target_s=0.05)
LOW = ClassPolicy("low", rank=0)
ALL = Choice()
HEARD_SINCE_S = 6.0
TPOT = "vllm:request_time_per_output_token_seconds"


def page(*lines: str) -> str:
    return "\n".join(
        ["# HELP weir_draining 1 from the start of a drain.", "weir_draining 0", *lines]
    )


def tpot(within_50_ms: int, total: int, spent_s: float) -> list[str]:
    bounds = {"0.025": 0, "0.05": within_50_ms, "0.1": total, "+Inf": total}
    buckets = [f'{TPOT}_bucket{{le="{le}"}} {count}' for le, count in bounds.items()]
    return [f"# TYPE {TPOT} histogram", *buckets, f"{TPOT}_count {total}", f"{TPOT}_sum {spent_s}"]


def state(at_engine: int) -> dict[str, Any]:
    return {"scheduling": {"at_engine": at_engine}}


def reading(at_s: float, *lines: str, at_engine: int | None = None) -> Reading:
    said = None if at_engine is None else state(at_engine)
    return Reading(at_s, said, read_page(page(*lines)))


def process(name: str, *readings: Reading, phase: str = "ready") -> Process:
    return Process(name, phase, readings)


def service(*replicas: Process, gateway: Process | None = None, name: str = "chat") -> Service:
    return Service(name, (LOW, HIGH), (gateway or process(f"{name}-gateway"),), replicas)


def rows(
    *services: Service, choice: Choice = ALL, since_start: bool = False
) -> tuple[list[ReplicaRow], list[ClassRow]]:
    shown = picture(services, choice, HEARD_SINCE_S, since_start=since_start)
    return list(shown.replicas), list(shown.classes)


def row_of(replica: Process, **options: Any) -> ReplicaRow:
    (row,) = [each for each in rows(service(replica), **options)[0] if each.name == replica.name]
    return row


BUSY = process(
    "chat-1",
    reading(
        9.0,
        "vllm:generation_tokens_total 100",
        "vllm:prompt_tokens_total 1000",
        'weir_requests_total{class="low",outcome="rejected_saturated"} 2',
        *tpot(10, 10, 0.25),
    ),
    reading(
        11.0,
        "vllm:generation_tokens_total 300",
        "vllm:prompt_tokens_total 1500",
        'vllm:kv_cache_usage_perc{engine="0"} 0.25',
        'weir_queue_requests{class="low",tenant="night"} 5',
        'weir_queue_requests{class="low",tenant="day"} 1',
        'weir_queue_requests{class="high",tenant="day"} 2',
        'weir_queue_oldest_seconds{class="low",tenant="night"} 7.5',
        'weir_queue_oldest_seconds{class="high",tenant="day"} 0.5',
        'weir_requests_total{class="low",outcome="rejected_saturated"} 5',
        'weir_requests_total{class="low",outcome="ok"} 9',
        *tpot(13, 14, 0.5),
        at_engine=3,
    ),
)


def test_shows_what_a_replica_holds_and_does() -> None:
    assert row_of(BUSY) == ReplicaRow(
        "chat",
        "chat-1",
        "ready",
        at_engine=3,
        waiting={"low": 6, "high": 2},
        oldest_s=7.5,
        kv_ratio=0.25,
        prompt_tokens_s=250.0,
        output_tokens_s=100.0,
        tpot_s=0.0625,
        rejected={"saturated": 3},
    )


def test_shows_one_class_of_a_replica() -> None:
    row = row_of(BUSY, choice=Choice(class_name="high"))
    assert (row.waiting, row.oldest_s, row.rejected) == ({"high": 2}, 0.5, {})


def test_counts_since_the_start_where_asked() -> None:
    assert row_of(BUSY, since_start=True).rejected == {"saturated": 5}


def test_a_counter_that_fell_began_anew() -> None:
    before = reading(9.0, "vllm:generation_tokens_total 500")
    after = reading(11.0, "vllm:generation_tokens_total 20")
    assert row_of(process("chat-1", before, after)).output_tokens_s == 10.0


def test_a_reading_that_failed_is_not_one_of_zero() -> None:
    before = reading(7.0, "vllm:generation_tokens_total 100", at_engine=1)
    after = reading(11.0, "vllm:generation_tokens_total 300", at_engine=1)
    row = row_of(process("chat-1", before, Reading(9.0), after))
    assert (row.output_tokens_s, row.at_engine) == (50.0, 1)


@pytest.mark.parametrize(
    ("replica", "want"),
    [
        pytest.param(process("chat-1"), "ready", id="not asked yet"),
        pytest.param(process("chat-1", Reading(10.0)), "no answer", id="it does not answer"),
        pytest.param(
            process("chat-1", Reading(10.0), phase="loading the engine"),
            "loading the engine",
            id="it cannot answer yet",
        ),
        pytest.param(process("chat-1", reading(10.0), Reading(11.0)), "ready", id="one is lost"),
        pytest.param(process("chat-1", reading(5.0)), "no answer", id="it hangs"),
        pytest.param(process("chat-1", reading(11.0)), "ready", id="it answers"),
    ],
)
def test_tells_which_process_answers(replica: Process, want: str) -> None:
    assert row_of(replica).state == want


def test_shows_a_class_over_all_processes_of_its_service() -> None:
    gateway = process(
        "chat-gateway",
        reading(
            9.0,
            'weir_attainment_requests_total{class="high",result="met"} 10',
            'weir_attainment_requests_total{class="high",result="missed"} 10',
        ),
        reading(
            11.0,
            'weir_attainment_requests_total{class="high",result="met"} 19',
            'weir_attainment_requests_total{class="high",result="missed"} 11',
            'weir_requests_total{class="high",outcome="ok"} 9',
            'weir_requests_total{class="high",outcome="rejected_ttl_expired"} 1',
            'weir_queue_requests{class="high",tenant="day"} 1',
        ),
    )
    high, low = rows(service(BUSY, gateway=gateway))[1]
    assert high == ClassRow(
        "chat",
        "high",
        waiting={"day": 3},
        oldest_s=0.5,
        ended=10,
        rejected={"ttl_expired": 1},
        ttft_target_s=0.5,
        ttft_met=0.9,
        tpot_target_s=0.05,
        tpot_met=0.75,
    )
    assert (low.waiting, low.ended, low.rejected) == ({"night": 5, "day": 1}, 12, {"saturated": 3})
    assert (low.ttft_met, low.tpot_met) == (None, None)


@pytest.mark.parametrize(
    ("limit_s", "want"),
    [
        pytest.param(0.05, 0.5, id="a bound"),
        pytest.param(0.075, 0.7, id="between two bounds"),
        pytest.param(0.025, 0.0, id="below all"),
        pytest.param(7.0, 0.9, id="above the last bound"),
    ],
)
def test_a_histogram_is_taken_to_be_even_inside_its_buckets(limit_s: float, want: float) -> None:
    bounds = {"0.025": 0, "0.05": 5, "0.1": 9, "+Inf": 10}
    text = "\n".join(f'{TPOT}_bucket{{le="{le}"}} {count}' for le, count in bounds.items())
    assert share_within(read_page(text), limit_s) == pytest.approx(want)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1e300"])
def test_a_value_that_is_no_count_is_left_out(value: str) -> None:
    text = f'weir_requests_total{{class="a"}} {value}\nweir_requests_total{{class="b"}} 2\n'
    assert list(read_page(text).values()) == [2.0]


@pytest.mark.parametrize("labels", ["", '{le="x"}'])
def test_a_histogram_without_bounds_is_no_page(labels: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        read_page(f"{TPOT}_bucket{labels} 1\n")


def test_an_empty_histogram_says_nothing() -> None:
    assert share_within(read_page(f'{TPOT}_bucket{{le="+Inf"}} 0'), 0.05) is None
    assert share_within({}, 0.05) is None


def waiting(name: str, count: int, at_engine: int, tokens: int) -> Process:
    return process(
        name,
        reading(9.0, "vllm:generation_tokens_total 0"),
        reading(
            11.0,
            f"vllm:generation_tokens_total {tokens}",
            f'weir_queue_requests{{class="low",tenant="t"}} {count}',
            at_engine=at_engine,
        ),
    )


@pytest.mark.parametrize(
    ("order", "want"),
    [
        pytest.param("name", ["a", "b", "c", "chat-gateway"], id="name"),
        pytest.param("waiting", ["b", "c", "a", "chat-gateway"], id="waiting"),
        pytest.param("at engine", ["c", "a", "b", "chat-gateway"], id="at engine"),
        pytest.param("output", ["a", "b", "c", "chat-gateway"], id="output"),
    ],
)
def test_orders_replicas(order: str, want: list[str]) -> None:
    chat = service(waiting("c", 2, 9, 10), waiting("b", 7, 0, 20), waiting("a", 1, 5, 30))
    assert [row.name for row in rows(chat, choice=Choice(order))[0]] == want


CHAT, CODE = service(BUSY), service(name="code")


@pytest.mark.parametrize(
    ("keys", "want"),
    [
        pytest.param("", Choice(), id="none"),
        pytest.param("x", Choice(), id="a key that means nothing"),
        pytest.param("o", Choice("waiting"), id="the next order"),
        pytest.param("oooo", Choice(), id="all orders"),
        pytest.param("s", Choice(service="chat"), id="the first service"),
        pytest.param("ss", Choice(service="code"), id="the second service"),
        pytest.param("sss", Choice(), id="all services again"),
        pytest.param("c", Choice(class_name="high"), id="the first class"),
        pytest.param("ccsc", Choice(service="chat"), id="a service, and all classes again"),
    ],
)
def test_keys_choose(keys: str, want: Choice) -> None:
    chosen = Choice()
    for key in keys:
        chosen = pressed(chosen, key, [CHAT, CODE])
    assert chosen == want


def test_a_service_that_is_gone_is_followed_by_all() -> None:
    assert pressed(Choice(service="gone"), "s", [CHAT]) == Choice()


def test_one_service_is_shown_alone() -> None:
    replicas, classes = rows(CHAT, CODE, choice=Choice(service="code"))
    assert {row.service for row in replicas} == {row.service for row in classes} == {"code"}


def test_a_class_of_the_pages_that_is_not_declared_comes_last() -> None:
    odd = process("r", reading(11.0, 'weir_queue_requests{class="none",tenant="t"} 1'))
    assert class_names(service(odd)) == ["high", "low", "none"]


def drawn(width: int, *services: Service) -> list[str]:
    written = io.StringIO()
    console = Console(file=written, width=width)
    shown = picture(services, Choice(), HEARD_SINCE_S, since_start=False)
    console.print(draw(shown, Choice(), "counts over the last 60 s", width))
    return written.getvalue().splitlines()


def heads(lines: Sequence[str]) -> list[str]:
    return [line.split()[0] for line in lines if line and line.isupper()]


def test_a_wide_terminal_shows_all() -> None:
    text = "\n".join(drawn(160, CHAT))
    for part in ("low 6, high 2", "saturated 3", "night 5, day 1", "100", "250", "25.0%", "7.5s"):
        assert part in text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = drawn(width, CHAT, CODE)
    assert max(map(len, lines)) <= width
    assert len(heads(lines)) == 2
