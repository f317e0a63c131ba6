"""vLLM's names of requests; each case is what the pinned version made of the header `call-7`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_engine.scheduling.request_ids import (
    RESPONSES_MODULE,
    carry_response_ids,
    is_further_answer,
    sent_id,
)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        pytest.param("chatcmpl-call-7-1a2b3c4d", "call-7", id="a chat"),
        pytest.param("3_chatcmpl-call-7-1a2b3c4d", "call-7", id="the fourth of n answers"),
        pytest.param("cmpl-call-7-0-1a2b3c4d", "call-7", id="a text completion"),
        pytest.param("2_cmpl-call-7-1-1a2b3c4d", "call-7", id="the second prompt's third answer"),
        pytest.param("responses-call-7_0-1a2b3c4d", "call-7", id="a response"),
        pytest.param("responses-call-7_2-1a2b3c4d", "call-7", id="a response after two tools"),
        pytest.param("embd-call-7-0-1a2b3c4d", "call-7", id="an embedding"),
        pytest.param("embd-call-7-prompt-0-chunk-2-1a2b3c4d", "call-7", id="of a long text"),
        pytest.param("score-call-7-4-1a2b3c4d", "call-7", id="a score"),
        pytest.param("chatcmpl-a_1-b-2-1a2b3c4d", "a_1-b-2", id="a header full of separators"),
        pytest.param("resp_77_0-1a2b3c4d", "resp_77_0-1a2b3c4d", id="no header was sent"),
        pytest.param("warmup", "warmup", id="no request of the API"),
    ],
)
def test_finds_the_header(name: str, want: str) -> None:
    assert sent_id(name) == want


@pytest.mark.parametrize(
    ("name", "want"),
    [
        pytest.param("chatcmpl-call-7-1a2b3c4d", False, id="the only one"),
        pytest.param("0_chatcmpl-call-7-1a2b3c4d", False, id="the first of n"),
        pytest.param("1_cmpl-call-7-2-1a2b3c4d", True, id="the second to the third prompt"),
        pytest.param("1_warmup", False, id="no request of the API"),
    ],
)
def test_tells_further_answers_to_one_prompt(name: str, want: bool) -> None:
    assert is_further_answer(name) is want


@given(st.text(min_size=1), st.integers(0, 9), st.sampled_from(["chatcmpl-{}", "cmpl-{}-3"]))
def test_finds_any_header(sent: str, answer: int, kind: str) -> None:
    assert sent_id(f"{answer}_{kind.format(sent)}-00c0ffee") == sent


class Responses:
    """What of vLLM's endpoint is replaced."""

    async def create_responses(self, request: Any, raw_request: Any = None) -> str:
        assert request == "body"
        assert raw_request in {None, Raw}
        return self._generate_with_builtin_tools("prompt", request_id="resp_1")

    def _generate_with_builtin_tools(self, prompt: str, *, request_id: str) -> str:
        assert prompt == "prompt"
        return request_id


class Raw:
    headers = {"x-request-id": "call-7"}  # noqa: RUF012 - as a web framework's request has them


@pytest.fixture
def responses(monkeypatch: pytest.MonkeyPatch) -> Responses:
    module = ModuleType(RESPONSES_MODULE)
    replaced = type("OpenAIServingResponses", (Responses,), dict(vars(Responses)))
    module.OpenAIServingResponses = replaced  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, RESPONSES_MODULE, module)
    carry_response_ids()
    carry_response_ids()  # loading twice changes nothing
    made: Responses = replaced()
    return made


async def test_responses_are_named_after_the_header(responses: Responses) -> None:
    assert await responses.create_responses("body", Raw) == "responses-call-7"


async def test_responses_without_a_header_keep_their_own_name(responses: Responses) -> None:
    assert await responses.create_responses("body") == "resp_1"
