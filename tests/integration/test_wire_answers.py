"""Pieces of answers, made by vLLM's own classes, are told apart by their bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from weir_core.wire.answers import carries_token, reports_failure, was_aborted
from weir_core.wire.fields import Usage
from weir_core.wire.openai import usage_in
from weir_core.wire.paths import Api

PROGRAM = Path(__file__).with_name("vllm_answers.py")
APIS = {
    "chat": Api.CHAT,
    "completions": Api.COMPLETIONS,
    "responses": Api.RESPONSES,
    "messages": Api.MESSAGES,
}
HEADS = {
    "chat: head",
    "chat: two heads",
    "chat: keep-alive",
    "chat: usage",
    "completions: keep-alive",
    "responses: head",
    "messages: head",
    "messages: ping",
}
TOKENS = {
    "chat: text",
    "chat: head and text",
    "chat: reasoning",
    "chat: tool",
    "chat: end",
    "chat: last text",
    "completions: text",
    "completions: end",
    "responses: text",
    "responses: reasoning",
    "responses: arguments",
    "responses: end",
    "messages: text",
    "messages: end",
    "messages: whole",
}
PLAIN = {"responses: plain", "messages: plain"}
ERRORS = {"chat: error", "completions: error", "messages: error"}
ABORTED = {
    "chat: aborted",
    "completions: aborted",
    "responses: plain, aborted",
    "messages: aborted",
    "messages: plain, aborted",
}


@pytest.fixture(scope="module")
def pieces() -> dict[str, bytes]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return {name: piece.encode() for name, piece in made.items()}


def api_of(name: str) -> Api:
    return APIS[name.partition(":")[0]]


def test_every_piece_is_one_of_a_kind(pieces: dict[str, bytes]) -> None:
    assert pieces.keys() == HEADS | TOKENS | PLAIN | ERRORS | ABORTED


def test_tells_tokens_from_heads(pieces: dict[str, bytes]) -> None:
    streamed = HEADS | TOKENS
    told = {name for name in streamed if carries_token(api_of(name), pieces[name])}
    assert told == TOKENS


def test_every_api_says_when_the_engine_failed_and_no_output_of_a_model_looks_like_it(
    pieces: dict[str, bytes],
) -> None:
    failed = {name for name, piece in pieces.items() if reports_failure(api_of(name), piece)}
    assert failed == ERRORS | ABORTED
    assert {name for name in failed if was_aborted(api_of(name), pieces[name])} == ABORTED


@pytest.mark.parametrize("name", ["chat: usage", "messages: whole", "messages: plain"])
def test_the_prompt_counts_with_what_was_cached(pieces: dict[str, bytes], name: str) -> None:
    assert usage_in(pieces[name]) == Usage(300, 7)


@pytest.mark.parametrize(
    ("api", "piece"),
    [
        pytest.param(Api.RESPONSES, b'event: response.failed\ndata: {"a":1}\n\n', id="failed"),
        pytest.param(Api.RESPONSES, b'event: error\ndata: {"a":1}\n\n', id="an error"),
        pytest.param(Api.OTHER, b'data: {"error":{"code":500}}\n\n', id="of another path"),
        pytest.param(
            Api.COHERE,
            b'data: {"type": "message-end", "delta": {"finish_reason": "ERROR"}}\n\n',
            id="of Cohere's API",
        ),
    ],
)
def test_knows_failures_that_vllm_writes_without_a_class(api: Api, piece: bytes) -> None:
    assert reports_failure(api, piece)
    assert not was_aborted(api, piece)


@pytest.mark.parametrize(
    ("api", "piece", "want"),
    [
        pytest.param(Api.COHERE, b'data: {"type":"message-start","id":"a"}\n\n', False, id="head"),
        pytest.param(Api.COHERE, b'data: {"type":"content-delta","index":0}\n\n', True, id="text"),
        pytest.param(
            Api.OTHER, b'data: {"request_id":"a","choices":[{"index":0}]}', True, id="ids"
        ),
        pytest.param(Api.OTHER, b": keep-alive\n\n", False, id="a comment"),
    ],
)
def test_tells_tokens_of_the_other_apis(api: Api, piece: bytes, want: bool) -> None:
    assert carries_token(api, piece) is want
