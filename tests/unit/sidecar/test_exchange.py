"""The splice finds head, end and chunk boundaries however the engine's bytes were split."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sidecar.fakes import Buffer, Judge, Line
from weir_sidecar.upstreams.splice import MAX_HEAD_BYTES, AnswerParser, Ending, Exchange, Unframed

EVENTS = [b'data: {"a":1}\n\n', b"data: \r\n\r\n0\r\n\r\n\n\n", b"data: [DONE]\n\n"]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in EVENTS)
STREAM = HEAD + CHUNKS + b"0\r\n\r\n"
PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
EMPTY = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nServer: old\r\n\r\nall until the end"


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def fed(answer: bytes, cuts: list[int], kind: type[Exchange] = Exchange) -> tuple[Exchange, Buffer]:
    buffer = Buffer()
    exchange = kind(buffer, lambda: 1.0)
    for piece in split(answer, cuts):
        exchange.feed(piece)
    return exchange, buffer


cuts = st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=40)


@given(cuts)
def test_a_stream_comes_out_as_it_went_in_however_it_is_split(where: list[int]) -> None:
    exchange, buffer = fed(STREAM, where)
    assert buffer.written == b"[200]" + CHUNKS + b"0\r\n\r\n"
    assert (exchange.ending, exchange.reusable, buffer.heads) == (Ending.COMPLETE, True, 1)


@given(cuts)
def test_without_framing_only_the_events_come_out(where: list[int]) -> None:
    exchange, buffer = fed(STREAM, where, Unframed)
    assert buffer.written == b"[200]" + b"".join(EVENTS)
    assert exchange.ending is Ending.COMPLETE


@given(cuts)
def test_a_plain_answer_ends_at_its_length(where: list[int]) -> None:
    exchange, buffer = fed(PLAIN, where)
    assert buffer.written == b'[200]{"a": 1}'
    assert (exchange.ending, exchange.reusable) == (Ending.COMPLETE, True)


@given(cuts)
def test_an_answer_without_length_ends_with_its_connection(where: list[int]) -> None:
    exchange, buffer = fed(UNTIL_CLOSE, where)
    assert exchange.ending is None
    exchange.connection_lost()
    assert buffer.written == b"[200]all until the end"
    assert exchange.ending is Ending.COMPLETE
    assert not exchange.reusable


@given(cuts)
def test_an_empty_answer_is_its_head(where: list[int]) -> None:
    exchange, buffer = fed(EMPTY, where)
    assert (buffer.written, exchange.ending) == (b"[204]", Ending.COMPLETE)


@given(st.integers(min_value=0, max_value=len(STREAM) - 1), cuts)
def test_another_chunk_may_follow_only_after_a_whole_one(length: int, where: list[int]) -> None:
    exchange, _ = fed(STREAM[:length], where)
    boundaries = {
        len(HEAD) + sum(len(b"%x\r\n\r\n" % len(e)) + len(e) for e in EVENTS[: n + 1])
        for n in range(len(EVENTS))
    }
    assert exchange.at_chunk_boundary == (length in boundaries)


def test_the_head_waits_for_the_first_body_byte() -> None:
    exchange, buffer = fed(HEAD, [])
    assert (buffer.written, exchange.begun) == (b"", False)


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        pytest.param(b"I am not HTTP\r\n\r\n", Ending.MALFORMED, id="not http"),
        pytest.param(HEAD + b"zz\r\n", Ending.MALFORMED, id="a chunk size that is no number"),
        pytest.param(PLAIN + PLAIN, Ending.MALFORMED, id="two answers to one request"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", Ending.MALFORMED, id="an interim answer"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES, Ending.MALFORMED, id="endless head"
        ),
        pytest.param(
            b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            Ending.MALFORMED,
            id="another protocol",
        ),
    ],
)
def test_an_engine_that_does_not_speak_http_ends_the_exchange(answer: bytes, want: Ending) -> None:
    exchange, _ = fed(answer, [])
    assert exchange.ending is want


def test_a_broken_connection_is_no_end_of_an_answer_without_length() -> None:
    exchange, _ = fed(UNTIL_CLOSE, [])
    exchange.connection_lost(broken=True)
    assert exchange.ending is Ending.LOST


@pytest.mark.parametrize("length", [0, 10, len(HEAD), len(HEAD) + 9, len(STREAM) - 1])
def test_a_connection_lost_too_early_is_lost(length: int) -> None:
    exchange, _ = fed(STREAM[:length], [])
    exchange.connection_lost()
    assert exchange.ending is Ending.LOST


def test_the_answer_to_head_has_no_body() -> None:
    buffer = Buffer()
    exchange = Exchange(buffer, lambda: 1.0, bodiless=True)
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
    assert (buffer.written, exchange.ending) == (b"[200]", Ending.COMPLETE)
    assert not exchange.reusable


def test_a_full_client_pauses_the_engine_until_it_is_resumed() -> None:
    buffer, line = Buffer(), Line()
    exchange = Exchange(buffer, lambda: 1.0)
    exchange.attach(line, AnswerParser())
    exchange.feed(HEAD)
    buffer.writing_paused = True
    exchange.feed(CHUNKS)
    assert (exchange.paused, line.reading) == (True, False)
    exchange.resume()
    assert (exchange.paused, line.reading) == (False, True)


def test_a_suspect_answer_is_held_until_it_is_released() -> None:
    buffer, line = Buffer(), Line()
    exchange = Exchange(buffer, lambda: 1.0, owner=Judge(lambda answer: answer.status == 200))
    exchange.attach(line, AnswerParser())
    exchange.feed(HEAD + CHUNKS)
    assert (exchange.held, buffer.written, line.reading) == (True, b"", False)
    exchange.release()
    assert (buffer.written, line.reading) == (b"[200]" + CHUNKS, True)
    exchange.feed(b"0\r\n\r\n")
    assert exchange.ending is Ending.COMPLETE


def test_a_held_answer_that_was_recalled_meanwhile_is_never_sent() -> None:
    buffer = Buffer()
    exchange = Exchange(buffer, lambda: 1.0, owner=Judge(lambda _: True))
    exchange.feed(PLAIN)
    exchange.end(Ending.REQUEUED)
    exchange.release()
    assert (buffer.written, exchange.ending) == (b"", Ending.REQUEUED)


@pytest.mark.parametrize("kind", [Exchange, Unframed])
def test_a_whole_answer_can_be_held_even_when_its_connection_closes(kind: type[Exchange]) -> None:
    buffer = Buffer()
    exchange = kind(buffer, lambda: 1.0, owner=Judge(lambda _: True))
    exchange.feed(PLAIN)
    exchange.connection_lost()
    assert (exchange.held, exchange.ending) == (True, None)
    exchange.release()
    assert (buffer.written, exchange.ending) == (b'[200]{"a": 1}', Ending.COMPLETE)


def test_a_client_that_left_ends_the_exchange() -> None:
    buffer = Buffer()
    buffer.closing = True
    exchange = Exchange(buffer, lambda: 1.0)
    exchange.feed(HEAD + CHUNKS)
    assert exchange.ending is Ending.CLIENT_GONE


async def test_the_handler_is_woken_by_the_end() -> None:
    exchange = Exchange(Buffer(), lambda: 1.0)
    waiting = asyncio.create_task(exchange.interruption())
    await asyncio.sleep(0)
    exchange.feed(STREAM)
    await asyncio.wait_for(waiting, timeout=20)


def test_the_tail_keeps_the_last_pieces() -> None:
    exchange, _ = fed(STREAM, [len(STREAM) - 5, len(STREAM) - 30])
    assert exchange.tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_held_answer_whose_client_left_meanwhile_ends_when_it_is_released() -> None:
    buffer = Buffer()
    exchange = Exchange(buffer, lambda: 1.0, owner=Judge(lambda _: True))
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{")
    assert exchange.held
    buffer.closing = True
    exchange.release()
    assert exchange.ending is Ending.CLIENT_GONE
