"""A few bytes tell the events of an answer apart, and no model output can look like them."""

from __future__ import annotations

import pytest

from weir_core.wire.answers import reports_failure, tokens_in, was_aborted
from weir_core.wire.paths import Api

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
BLOCK = b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n'


@pytest.mark.parametrize(
    ("piece", "want"),
    [
        (b'2e\r\ndata: {"error":{"message":"dead"}}\n\n\r\n', True),
        (b'data: {"error": {}}', True),
        (b'data: {"choices":[{"text":"data: {\\"error\\":"}]}', False),
    ],
)
def test_error_events_are_told_from_generated_text(piece: bytes, want: bool) -> None:
    assert reports_failure(Api.CHAT, piece) is want


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
    assert was_aborted(Api.COMPLETIONS, piece) is want


@pytest.mark.parametrize(
    ("api", "piece", "want"),
    [
        pytest.param(Api.CHAT, ROLE, 0, id="a chat's role is no token"),
        pytest.param(Api.CHAT, TOKEN, 1, id="one event"),
        pytest.param(Api.CHAT, ROLE + TOKEN * 3, 3, id="several events in one piece"),
        pytest.param(Api.CHAT, b"data: [DONE]\n\n", 0, id="the end is no token"),
        pytest.param(Api.CHAT, b": ping\n\n", 0, id="a comment is no token"),
        pytest.param(Api.COMPLETIONS, b'data: {"choices":[{"text":"x"}]}\n\n' * 2, 2, id="texts"),
        pytest.param(
            Api.RESPONSES,
            b'event: response.created\ndata: {"type":"response.created"}\n\n',
            0,
            id="response.created is no token",
        ),
        pytest.param(
            Api.RESPONSES,
            b'event: response.output_text.delta\ndata: {"delta":"x"}\n\n' * 2,
            2,
            id="deltas of a response",
        ),
        pytest.param(
            Api.MESSAGES, b"event: message_start\ndata: {}\n\n", 0, id="message_start is no token"
        ),
        pytest.param(Api.MESSAGES, BLOCK * 2, 2, id="deltas of a message"),
        pytest.param(
            Api.MESSAGES, b"event: message_delta\ndata: {}\n\n", 1, id="the end of an empty message"
        ),
    ],
)
def test_events_that_show_a_token_are_counted(api: Api, piece: bytes, want: int) -> None:
    assert tokens_in(api, piece) == want
