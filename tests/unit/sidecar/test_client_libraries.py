"""What client libraries make of our errors, by API: no broken answer passes for a whole one."""

from __future__ import annotations

from typing import Any, Final

import anthropic
import httpx2
import openai
import pytest

from bench.endings.player import Answer, Ending, playing
from tests.unit.sidecar.calls import (
    Call,
    chat,
    chat_helper,
    completions,
    messages,
    messages_helper,
    responses,
    responses_helper,
)
from tests.unit.sidecar.streams import BEGUN, ENDED
from weir_core.wire.errors import (
    ErrorShape,
    ending_event,
    error_body,
    error_shape_of,
    retry_headers,
    status_headers,
)

DIED: Final = "The engine broke off."
BUSY: Final = "The replica is too busy to answer in time."

OPENAI: Final[list[tuple[str, Call]]] = [
    ("/v1/chat/completions", chat),
    ("/v1/chat/completions", chat_helper),
    ("/v1/completions", completions),
    ("/v1/responses", responses),
    ("/v1/responses", responses_helper),
]
ANTHROPIC: Final[list[tuple[str, Call]]] = [
    ("/v1/messages", messages),
    ("/v1/messages", messages_helper),
]


def table(cases: list[tuple[str, Call]]) -> pytest.MarkDecorator:
    rows = [pytest.param(path, call, id=call.__name__) for path, call in cases]
    return pytest.mark.parametrize(("path", "call"), rows)


openais: Final = table(OPENAI)
anthropics: Final = table(ANTHROPIC)
everyones: Final = table(OPENAI + ANTHROPIC)
ones: Final = table([OPENAI[0], ANTHROPIC[0]])


def whole(path: str) -> Answer:
    return Answer(BEGUN[path], Ending("whole", ENDED[path], whole=True))


def broken(path: str) -> Answer:
    event = ending_event(error_shape_of(path), DIED, 503, "engine_lost", len(BEGUN[path]))
    return Answer(BEGUN[path], Ending("broken", event))


def refused(path: str, status: int, kind: str, code: str) -> Answer:
    body = error_body(error_shape_of(path), status, BUSY, kind, code)
    retry = retry_headers(code, 1.0) if status in (429, 503) else {}
    return Answer((body,), status=status, headers=retry | status_headers(status))


@everyones
async def test_a_whole_answer_is_one(path: str, call: Call) -> None:
    async with playing({path: whole(path)}.__getitem__) as port:
        assert await call(port, 0) == "Fine."


@openais
async def test_openais_client_raises_on_a_broken_stream(path: str, call: Call) -> None:
    async with playing({path: broken(path)}.__getitem__) as port:
        with pytest.raises(openai.APIError, match=DIED) as caught:
            await call(port, 2)
    error = caught.value
    assert (error.message, error.type) == (DIED, "api_error")
    assert not isinstance(error, openai.APIStatusError | openai.APIConnectionError)


@anthropics
async def test_anthropics_client_raises_on_a_broken_stream(path: str, call: Call) -> None:
    async with playing({path: broken(path)}.__getitem__) as port:
        with pytest.raises(anthropic.APIStatusError, match=DIED) as caught:
            await call(port, 2)
    body: Any = caught.value.body
    assert (body["error"]["type"], body["error"]["message"]) == ("api_error", DIED)
    assert body["code"] == "engine_lost"


@everyones
async def test_a_cut_alone_raises_too(path: str, call: Call) -> None:
    cut = Answer(BEGUN[path], Ending("cut", b""))
    async with playing({path: cut}.__getitem__) as port:
        with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
            await call(port, 0)


@openais
async def test_openais_client_reads_a_refusal(path: str, call: Call) -> None:
    answer = refused(path, 429, "rate_limit_error", "rejected-saturated")
    async with playing({path: answer}.__getitem__) as port:
        with pytest.raises(openai.RateLimitError, match=BUSY) as caught:
            await call(port, 0)
    error = caught.value
    assert (error.status_code, error.code) == (429, "rejected-saturated")
    assert error.type == "rate_limit_error"


@anthropics
async def test_anthropics_client_reads_a_refusal(path: str, call: Call) -> None:
    answer = refused(path, 429, "rate_limit_error", "rejected-saturated")
    async with playing({path: answer}.__getitem__) as port:
        with pytest.raises(anthropic.RateLimitError, match=BUSY) as caught:
            await call(port, 0)
    error = caught.value
    body: Any = error.body
    assert (error.status_code, body["error"]["type"]) == (429, "rate_limit_error")
    assert body["error"]["details"]["error_code"] == "rejected-saturated"


@ones
async def test_each_client_tries_again_what_may_succeed(path: str, call: Call) -> None:
    answers = [whole(path), refused(path, 429, "rate_limit_error", "rejected-saturated")]
    async with playing(lambda _: answers.pop()) as port:
        assert await call(port, 1) == "Fine."
    assert answers == []


@ones
async def test_no_client_tries_again_what_cannot_succeed(path: str, call: Call) -> None:
    answers = [whole(path), refused(path, 504, "server_error", "engine_timeout")]
    async with playing(lambda _: answers.pop()) as port:
        with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)) as caught:
            await call(port, 2)
    error: Any = caught.value
    assert (error.status_code, len(answers)) == (504, 1)


def test_every_api_has_its_clients() -> None:
    tried = {error_shape_of(path) for path, _ in OPENAI + ANTHROPIC}
    assert tried == {
        ErrorShape.CHAT,
        ErrorShape.COMPLETIONS,
        ErrorShape.RESPONSES,
        ErrorShape.MESSAGES,
    }
