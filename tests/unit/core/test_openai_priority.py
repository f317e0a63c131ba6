"""The one field that Weir adds to a body."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from weir_core.wire.openai import token_count_in, with_priority
from weir_core.wire.priority import due_s_of, engine_priority, rank_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPACE = st.text(" \t\r\n", max_size=3)


@given(st.dictionaries(st.text(), JSON, max_size=3), st.integers(-(2**60), 2**60), SPACE)
def test_an_object_gets_it_and_keeps_the_rest(
    value: dict[str, object], priority: int, space: str
) -> None:
    body = (json.dumps(value) + space).encode()
    got = json.loads(b"".join(with_priority(body, priority)))
    assert got == {**value, "priority": priority}


@given(st.binary())
def test_no_bytes_make_it_fail(body: bytes) -> None:
    b"".join(with_priority(body, 1))


def test_what_is_no_object_stays_as_it_is() -> None:
    for body in (b"", b"[1]", b'"}"', b"  "):
        assert b"".join(with_priority(body, 1)) == body


def test_spaces_inside_an_empty_object_need_no_comma() -> None:
    assert json.loads(b"".join(with_priority(b"{ \n }", 7))) == {"priority": 7}


@given(st.integers(-(10**6), 10**6), st.none() | st.floats(0, 1e8))
def test_rank_and_deadline_fit_64_bits_and_come_back(rank: int, due_s: float | None) -> None:
    number = engine_priority(rank, float("inf") if due_s is None else due_s)
    assert -(2**63) <= number < 2**63
    assert rank_of(number) == rank
    back = due_s_of(number)
    assert (back is None) == (due_s is None)
    assert back is None or due_s is None or abs(back - due_s) <= 0.001


@given(st.integers(-100, 100), st.integers(-100, 100), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_higher_rank_is_a_lower_number_whatever_the_deadlines(
    one: int, other: int, one_due_s: float, other_due_s: float
) -> None:
    if one > other:
        assert engine_priority(one, one_due_s) < engine_priority(other, other_due_s)


def test_reads_the_count_of_a_tokenizer() -> None:
    assert token_count_in(b'{"count": 12, "tokens": [1]}') == 12
    assert token_count_in(b'{"error": {}}') is None
    assert token_count_in(b"") is None
