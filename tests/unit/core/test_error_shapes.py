"""The errors that Weir says itself, byte by byte, and the headers that go with them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.wire.errors import (
    ErrorShape,
    anthropic_type,
    ending_event,
    error_body,
    error_shape_of,
    retry_headers,
    status_headers,
)


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("/v1/chat/completions", ErrorShape.CHAT),
        ("/v1/chat/completions/", ErrorShape.CHAT),
        ("/v1/chat/completions/batch", ErrorShape.OPENAI),
        ("/v1/completions", ErrorShape.COMPLETIONS),
        ("/v1/responses", ErrorShape.RESPONSES),
        ("/v1/responses/resp_1/cancel", ErrorShape.RESPONSES),
        ("/v1/messages", ErrorShape.MESSAGES),
        ("/v1/messages/count_tokens", ErrorShape.MESSAGES),
        pytest.param("/v1/messages/render", ErrorShape.VLLM, id="vLLM's own beside Anthropic's"),
        ("/v1/embeddings", ErrorShape.OPENAI),
        ("/v1/models", ErrorShape.OPENAI),
        ("/v1/audio/transcriptions", ErrorShape.OPENAI),
        ("/cohere/v2/chat", ErrorShape.COHERE),
        ("/inference/v1/generate", ErrorShape.VLLM),
        ("/tokenize", ErrorShape.VLLM),
        ("/v2/embed", ErrorShape.VLLM),
        ("/", ErrorShape.VLLM),
        ("", ErrorShape.VLLM),
    ],
)
def test_the_path_tells_the_api(path: str, want: ErrorShape) -> None:
    assert error_shape_of(path) is want


@pytest.mark.parametrize(
    ("api", "want"),
    [
        (
            ErrorShape.CHAT,
            b'{"error":{"message":"Too busy.","type":"rate_limit_error","param":null,'
            b'"code":"rejected-saturated"}}',
        ),
        (
            ErrorShape.MESSAGES,
            b'{"type":"error","error":{"type":"rate_limit_error","message":"Too busy.",'
            b'"details":{"error_code":"rejected-saturated"}}}',
        ),
        (ErrorShape.COHERE, b'{"message":"Too busy.","code":"rejected-saturated"}'),
        (
            ErrorShape.VLLM,
            b'{"error":{"message":"Too busy.","type":"rate_limit_error","param":null,"code":429},'
            b'"code":"rejected-saturated"}',
        ),
    ],
)
def test_a_refusal_speaks_the_language_of_the_api(api: ErrorShape, want: bytes) -> None:
    got = error_body(api, 429, "Too busy.", "rate_limit_error", "rejected-saturated")
    assert got == want


@pytest.mark.parametrize("api", [ErrorShape.COMPLETIONS, ErrorShape.RESPONSES, ErrorShape.OPENAI])
def test_openais_apis_share_one_shape(api: ErrorShape) -> None:
    assert error_body(api, 400, "m", "k", "c") == error_body(ErrorShape.CHAT, 400, "m", "k", "c")


@pytest.mark.parametrize(
    ("status", "want"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (501, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_anthropics_word_follows_from_the_status(status: int, want: str) -> None:
    assert anthropic_type(status) == want


@pytest.mark.parametrize("api", [each for each in ErrorShape if each is not ErrorShape.COHERE])
def test_a_stream_ends_with_an_event_that_every_client_notices(api: ErrorShape) -> None:
    assert ending_event(api, "The engine died.", 503, "engine_lost", 7) == (
        b"event: error\n"
        b": The engine died.\n"
        b'data: {"type":"error","error":{"message":"The engine died.","type":"api_error",'
        b'"param":null,"code":503},"code":"engine_lost","message":"The engine died.",'
        b'"param":null,"sequence_number":7}\n\n'
    )


def test_a_stream_of_coheres_ends_as_its_clients_can_read() -> None:
    assert ending_event(ErrorShape.COHERE, "The engine died.", 503, "engine_lost") == (
        b"event: error\n"
        b": The engine died.\n"
        b'data: {"type":"message-end","delta":{"finish_reason":"ERROR",'
        b'"error":"The engine died."},"code":"engine_lost"}\n\n'
    )


@given(st.text())
def test_no_message_can_break_out_of_its_line(message: str) -> None:
    event = ending_event(ErrorShape.CHAT, message, 500, "c").decode()
    name, comment, data, *rest = event.splitlines()  # where Unicode knows a line end
    assert (name, rest) == ("event: error", [""])
    assert comment.startswith(": ")
    assert json.loads(data.removeprefix("data: "))["message"] == comment.removeprefix(": ")


@given(st.sampled_from(ErrorShape), st.text())
def test_every_message_makes_a_body(api: ErrorShape, message: str) -> None:
    assert json.loads(error_body(api, 400, message, "k", "c"))


@pytest.mark.parametrize(
    ("seconds", "retry_after", "milliseconds"),
    [
        (1.0, "1", "1000"),
        (1.2344, "2", "1234"),
        (2.0, "2", "2000"),
        (58.9, "59", "58900"),
        (59.0, "59", "59000"),
        pytest.param(0.0, "1", "1000", id="never at once"),
        pytest.param(60.5, "58", "57500", id="too long is folded back"),
        pytest.param(88.0, "59", "59000", id="once more"),
        pytest.param(1e9, "42", "42000", id="whatever it is"),
    ],
)
def test_both_headers_tell_the_same_time(
    seconds: float, retry_after: str, milliseconds: str
) -> None:
    assert retry_headers("rejected-saturated", seconds) == {
        "Retry-After": retry_after,
        "retry-after-ms": milliseconds,
        "x-llm-d-request-dropped-reason": "rejected-saturated",
    }


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_every_wait_is_one_that_all_clients_obey(seconds: float) -> None:
    headers = retry_headers("r", seconds)
    whole, exact = int(headers["Retry-After"]), int(headers["retry-after-ms"])
    assert 1 <= whole <= 59
    assert 0 <= whole * 1000 - exact < 1000


def test_waits_that_are_too_long_stay_spread() -> None:
    waits = [90.0 + step * 0.029 for step in range(1000)]  # what a spread of 29 s makes of 90 s
    told = sorted(int(retry_headers("r", wait)["retry-after-ms"]) for wait in waits)
    gaps = [later - sooner for sooner, later in pairwise(told)]
    assert (min(gaps), max(gaps)) == (29, 29)


@pytest.mark.parametrize(
    ("status", "want"),
    [
        (501, {"x-should-retry": "false"}),
        (504, {"x-should-retry": "false"}),
        (502, {}),
        (503, {}),
        (429, {}),
    ],
)
def test_what_cannot_succeed_is_not_sent_again(status: int, want: dict[str, str]) -> None:
    assert status_headers(status) == want
