"""The few fields of OpenAI's format that Weir reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.wire.openai import (
    UNREADABLE,
    RequestFields,
    Usage,
    has_stream_error,
    is_utf8,
    read_request,
    usage_in,
    was_aborted,
)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        pytest.param(
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":5}',
            RequestFields(model="m", stream=True, max_tokens=5),
            id="a chat",
        ),
        pytest.param(
            b'{"model":"m","new":{"a":[1]}}', RequestFields(model="m"), id="unknown field"
        ),
        pytest.param(b'{"temperature":"0.5"}', RequestFields(temperature=0.5), id="a lax number"),
        pytest.param(b'{"model":["m"]}', UNREADABLE, id="a field of another type"),
        pytest.param(b"[1]", UNREADABLE, id="no object"),
        pytest.param(b"{", UNREADABLE, id="no JSON"),
        pytest.param(b"", UNREADABLE, id="nothing"),
        pytest.param(b'{"a":' * 5000, UNREADABLE, id="too deep"),
    ],
)
def test_reads_what_it_can(body: bytes, want: RequestFields) -> None:
    assert read_request(body) == want


@given(st.binary(max_size=200))
def test_no_body_is_too_odd_to_be_passed_on(body: bytes) -> None:
    assert isinstance(read_request(body), RequestFields)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        (RequestFields(max_tokens=3), 3),
        (RequestFields(max_tokens=3, max_completion_tokens=4), 4),
        (RequestFields(max_output_tokens=5), 5),
        (RequestFields(), None),
    ],
)
def test_the_output_limit_has_several_names(fields: RequestFields, want: int | None) -> None:
    assert fields.output_limit_tokens == want


@pytest.mark.parametrize(
    ("tail", "want"),
    [
        pytest.param(
            b'x],"usage":{"prompt_tokens":11,"total_tokens":20,"completion_tokens":9}}',
            Usage(11, 9),
            id="chat",
        ),
        pytest.param(
            b'"usage": {"input_tokens": 4, "output_tokens": 2}', Usage(4, 2), id="responses"
        ),
        pytest.param(b'"usage":{"prompt_tokens":5,"total_tokens":5}', Usage(5, 0), id="embeddings"),
        pytest.param(
            b'"usage":{"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":1},'
            b'"prompt_tokens":3,"completion_tokens_details":null}',
            Usage(3, 9),
            id="details and any order",
        ),
        pytest.param(b'"usage":null}', None, id="null"),
        pytest.param(b'"usage":{"prompt_tokens":5', None, id="cut off"),
        pytest.param(b'"content":"\\"usage\\":{\\"prompt_tokens\\":1}"', None, id="generated text"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_usage_is_picked_out_of_the_tail(tail: bytes, want: Usage | None) -> None:
    assert usage_in(tail) == want


def test_the_last_usage_counts() -> None:
    first, last = b'"usage":{"prompt_tokens":1}', b'"usage":{"prompt_tokens":2}'
    assert usage_in(first + last) == Usage(2, 0)


@pytest.mark.parametrize(
    ("piece", "want"),
    [
        (b'2e\r\ndata: {"error":{"message":"dead"}}\n\n\r\n', True),
        (b'data: {"error": {}}', True),
        (b'data: {"choices":[{"text":"data: {\\"error\\":"}]}', False),
    ],
)
def test_error_events_are_told_from_generated_text(piece: bytes, want: bool) -> None:
    assert has_stream_error(piece) is want


@pytest.mark.parametrize(
    ("piece", "want"),
    [
        (b'data: {"choices":[{"text":"","finish_reason":"abort"}]}\n\ndata: [DONE]\n\n', True),
        (b'{"choices":[{"text":"\\"finish_reason\\":\\"abort\\"","finish_reason":"stop"}]}', False),
    ],
)
def test_an_answer_that_was_given_up_is_told_from_text_that_speaks_of_it(
    piece: bytes, want: bool
) -> None:
    assert was_aborted(piece) is want


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_what_only_pythons_json_could_read_is_told_apart(encoding: str) -> None:
    assert not is_utf8('{"priority": -9}'.encode(encoding))


@pytest.mark.parametrize("body", [b"", b"{}", b'\xef\xbb\xbf{"a": 1}', b"--boundary\r\n\x00"])
def test_other_bodies_pass_as_utf8(body: bytes) -> None:
    assert is_utf8(body)
