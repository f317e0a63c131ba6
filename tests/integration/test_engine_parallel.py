"""Engines of several processes on real vLLM: stages of a pipeline, data-parallel ranks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from tests.integration.conftest import Engine
from weir_core.api.labels import FACTS_FILE, MODE_SOCKET, STEPS_SOCKET
from weir_core.wire.priority import engine_priority
from weir_core.wire.steps import Facts, Step, decode_step

CALLS = [(rank, 40 + 700 * (number % 2)) for number in range(6) for rank in (100, 0, -100)]


def greedy(client: httpx.Client, number: int, model: str = "tiny") -> list[str]:
    rank, length = CALLS[number]
    prompt = [10 + (17 * number + 31 * index) % 3900 for index in range(length)]
    body = {
        "model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 0,
        "ignore_eos": True, "priority": engine_priority(rank, 5.0),
    }  # fmt: skip
    response = client.post("/v1/completions", json=body, headers={"x-request-id": f"call-{number}"})
    assert response.status_code == 200, response.text
    tokens: list[str] = response.json()["choices"][0]["logprobs"]["tokens"]
    return tokens


def greedy_all(engine: Engine) -> list[list[str]]:
    """Send every call at once."""
    with engine.client() as client, ThreadPoolExecutor(len(CALLS)) as pool:
        return list(pool.map(lambda number: greedy(client, number), range(len(CALLS))))


@pytest.fixture(scope="session")
def pipeline(loading: dict[str, Engine]) -> Engine:
    """Two stages."""
    return loading["pipeline"].until_healthy()


@pytest.fixture(scope="session")
def ranks(loading: dict[str, Engine]) -> Engine:
    """Two data-parallel ranks with an adapter."""
    return loading["ranks"].until_healthy()


@pytest.fixture(scope="module")
def answers(ranks: Engine) -> list[list[str]]:
    """What one process answers, asked for one thing at a time; each rank is one."""
    with ranks.client() as client:
        return [greedy(client, number) for number in range(len(CALLS))]


def test_two_ranks_answer_as_one_process(ranks: Engine, answers: list[list[str]]) -> None:
    assert greedy_all(ranks) == answers


def test_two_stages_answer_as_one_process(pipeline: Engine, answers: list[list[str]]) -> None:
    facts = Facts.decode((pipeline.run_dir / FACTS_FILE).read_bytes())
    assert (facts.kind, facts.fallback) == ("weir", "")
    assert greedy_all(pipeline) == answers


def test_two_ranks_are_told_of_as_one_engine(ranks: Engine, engine: Engine) -> None:
    one, both = (Facts.decode((each.run_dir / FACTS_FILE).read_bytes()) for each in (engine, ranks))
    assert both.kind == "weir"
    assert both.max_num_seqs == 2 * one.max_num_seqs
    # Of 64 MiB each, with 32 bits for what `one` keeps in 16.
    assert both.kv_capacity_tokens == pytest.approx(one.kv_capacity_tokens, rel=0.01)
    assert (ranks.run_dir / f"{MODE_SOCKET}.1").is_socket()


def test_each_rank_tells_its_own_steps(ranks: Engine) -> None:
    path = ranks.run_dir / STEPS_SOCKET
    told: dict[int, set[str]] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as steps:
        steps.bind(str(path))
        steps.settimeout(0.5)
        with ranks.client() as client, ThreadPoolExecutor(2) as pool:
            for _ in range(5):  # what finds the reader's queue full is lost, and asked for again
                answers = [pool.submit(greedy, client, number) for number in (1, 2)]
                while not all(answer.done() for answer in answers):
                    for step in received(steps):
                        told.setdefault(step.engine, set()).update(step.started)
                assert all(answer.result() for answer in answers)
                names = set[str]().union(*told.values())
                if all(told.get(rank) for rank in (0, 1)) and len(names) == 2:
                    break
    path.unlink()
    assert set(told) == {0, 1}
    assert names == {"call-1", "call-2"}


def received(steps: socket.socket) -> Iterator[Step]:
    """Yield what is sent until nothing is for half a second."""
    with suppress(TimeoutError):
        while True:
            yield decode_step(steps.recv(1 << 16))


def test_an_adapter_answers_under_its_own_name_and_leaves_its_model_alone(
    ranks: Engine, answers: list[list[str]]
) -> None:
    with ranks.client() as client, ThreadPoolExecutor(8) as pool:
        adapted = [greedy(client, number, "verse") for number in range(4)]
        together = [
            pool.submit(greedy, client, number, model)
            for number in range(4)
            for model in ("tiny", "verse")
        ]
        both = [one.result() for one in together]
    assert both[1::2] == adapted
    assert both[::2] == answers[:4]
    assert all(one != other for one, other in zip(adapted, answers[:4], strict=True))
