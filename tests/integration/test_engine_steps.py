"""What real vLLM tells its sidecar: its facts, and each of its steps."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Engine
from weir_core.api.labels import FACTS_FILE, MODE_SOCKET, STEPS_SOCKET
from weir_core.wire.priority import engine_priority
from weir_core.wire.steps import NOT_LOOKED_UP, Facts, Step, decode_step
from weir_engine.scheduling import contract

STEPS_LIMIT_S = 20.0
BLOCK_TOKENS = 128
"""Of vLLM's CPU build."""


@pytest.fixture
def steps(engine: Engine) -> Iterator[socket.socket]:
    """The sidecar's end of the step log."""
    path = engine.run_dir / STEPS_SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
        bound.settimeout(STEPS_LIMIT_S)
        yield bound
    path.unlink()


def until_started(steps: socket.socket, name: str) -> list[Step]:
    """Return the steps up to the one that completes the request's prompt."""
    seen = []
    deadline = time.monotonic() + STEPS_LIMIT_S
    while time.monotonic() < deadline:
        seen.append(decode_step(steps.recv(1 << 16)))
        if name in seen[-1].started:
            return seen
    pytest.fail(f"{name} was never started; the steps: {seen}")


def ask(engine: Engine, path: str, name: str, body: dict[str, Any]) -> httpx.Response:
    with engine.client() as client:
        fields = {"model": "tiny", "temperature": 0} | body
        response = client.post(path, json=fields, headers={"x-request-id": name})
    assert response.status_code == 200, response.text
    return response


def test_the_facts_say_what_the_engine_is(engine: Engine) -> None:
    facts = Facts.decode((engine.run_dir / FACTS_FILE).read_bytes())
    assert (facts.kind, facts.fallback) == ("weir", "")
    assert contract.version_objection(facts.vllm) == ""
    assert facts.max_num_seqs > 0
    assert facts.max_num_batched_tokens > 0
    assert (engine.run_dir / MODE_SOCKET).is_socket()
    assert 120_000 < facts.kv_capacity_tokens <= 131_072
    assert (facts.block_tokens, facts.prefix_caching) == (BLOCK_TOKENS, True)


MESSAGES = [{"role": "user", "content": "What does the pilot do?"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/chat/completions", {"messages": MESSAGES}, id="chat"),
        pytest.param(
            "/v1/chat/completions", {"messages": MESSAGES, "n": 3, "temperature": 1}, id="n"
        ),
        pytest.param("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4}, id="completions"),
        pytest.param("/v1/responses", {"input": "What does the pilot do?"}, id="a response"),
    ],
)
def test_a_request_is_started_under_the_name_the_sidecar_gave_it(
    engine: Engine, steps: socket.socket, path: str, body: dict[str, Any]
) -> None:
    name = "chatcmpl-of_a-0_client-7"  # as awkward as a client may choose it
    ask(engine, path, name, body | {"priority": engine_priority(100, 12.5)})
    seen = until_started(steps, name)
    assert seen[-1].prefill_tokens > 0
    assert 0 < seen[-1].schedule_s < seen[-1].duration_s


def test_steps_say_what_they_computed(engine: Engine, steps: socket.socket) -> None:
    prompt = list(range(10, 3010))
    ask(engine, "/v1/completions", "long", {"prompt": prompt, "max_tokens": 8, "ignore_eos": True})
    seen = until_started(steps, "long")
    assert sum(step.prefill_tokens for step in seen) == len(prompt)
    decoding = [decode_step(steps.recv(1 << 16)) for _ in range(7)]
    assert [step.decodes for step in decoding] == [1] * 7
    assert [step.decode_context for step in decoding] == list(range(3001, 3008))
    assert [step.seq for step in decoding] == [seen[-1].seq + 1 + index for index in range(7)]
    assert decoding[-1].prefill_left == {}


def prompt_of(steps: socket.socket, name: str) -> tuple[int, int]:
    """Return what the step that completes a request's prompt tells of that prompt."""
    step = until_started(steps, name)[-1]
    return step.prompts[step.started.index(name)]


@pytest.mark.parametrize(
    ("tokens", "cached"),
    [
        pytest.param(300, 256, id="whole blocks"),
        pytest.param(256, 128, id="not the block of the last token"),
        pytest.param(128, 0, id="a prompt of one block"),
    ],
)
def test_a_prompt_that_comes_again_tells_what_was_cached_of_it(
    engine: Engine, steps: socket.socket, tokens: int, cached: int
) -> None:
    prompt = [tokens, *range(20, 19 + tokens)]
    told = []
    for name in ("first", "second"):
        ask(engine, "/v1/completions", name, {"prompt": prompt, "max_tokens": 1})
        told.append(prompt_of(steps, name))
    assert told == [(tokens, 0), (tokens, cached)]


def test_a_longer_prompt_tells_of_the_beginning_that_was_cached(
    engine: Engine, steps: socket.socket
) -> None:
    prompt = [7, 77, *range(20, 320)]
    ask(engine, "/v1/completions", "begun", {"prompt": prompt, "max_tokens": 1})
    assert prompt_of(steps, "begun") == (302, 0)
    longer = {"prompt": [*prompt, *range(320, 700)], "max_tokens": 1}
    ask(engine, "/v1/completions", "longer", longer)
    assert prompt_of(steps, "longer") == (682, 256)


def test_a_prompt_for_which_vllm_does_not_look_into_its_cache_tells_so(
    engine: Engine, steps: socket.socket
) -> None:
    body = {"prompt": list(range(30, 330)), "max_tokens": 1}
    for name, fields in (("plain", {}), ("echo", {"echo": True, "logprobs": 1})):
        ask(engine, "/v1/completions", name, body | fields)
    assert prompt_of(steps, "plain") == (300, 0)
    assert prompt_of(steps, "echo") == (300, NOT_LOOKED_UP)
