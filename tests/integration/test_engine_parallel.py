"""Engines of several processes on real vLLM: stages of a pipeline, data-parallel ranks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from bench.engine.adapters import write_adapter
from tests.integration.conftest import Engine
from weir_core.api.labels import ALIASES_PATH, FACTS_FILE, MODE_SOCKET, STEPS_SOCKET
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


def test_an_adapter_is_loaded_replaced_and_unloaded_while_it_runs(
    ranks: Engine, answers: list[list[str]], tmp_path: Path
) -> None:
    prose, other = (write_adapter(tmp_path, name) for name in ("prose", "other"))
    with ranks.client() as client:
        first, second = (told_by(client, path) for path in (prose, other))
        assert first != second, "new weights, and no prefix of the old ones"
        assert answers[:2] not in (first, second)
        assert [greedy(client, number) for number in range(2)] == answers[:2]
        gone = client.post("/v1/completions", json={"model": "late", "prompt": "Hi"})
    assert gone.status_code == 404


def told_by(client: httpx.Client, path: Path) -> list[list[str]]:
    """Return what an adapter answers that is there for no longer than that."""
    done = client.post("/v1/load_lora_adapter", json={"lora_name": "late", "lora_path": str(path)})
    assert done.status_code == 200, done.text
    listed = {each["id"]: each["parent"] for each in client.get("/v1/models").json()["data"]}
    assert listed["late"] == "tiny"
    told = [greedy(client, number, "late") for number in range(2)]
    done = client.post("/v1/unload_lora_adapter", json={"lora_name": "late"})
    assert done.status_code == 200, done.text
    return told


def test_aliases_change_while_it_runs(ranks: Engine) -> None:
    def names(client: httpx.Client) -> list[str]:
        listed = client.get("/v1/models").json()["data"]
        return [each["id"] for each in listed if each["parent"] is None]

    with ranks.client() as client:
        before = names(client)
        for aliases in (["gpt", "best"], ["best"], before[1:]):
            done = client.put(ALIASES_PATH, json={"aliases": aliases})
            assert done.status_code == 204, done.text
            assert names(client) == ["tiny", *aliases]
            for model, status in (("tiny", 200), *((each, 200) for each in aliases), ("no", 404)):
                asked = {"model": model, "prompt": "Hi", "max_tokens": 1}
                assert client.post("/v1/completions", json=asked).status_code == status
        refused = client.put(ALIASES_PATH, content=b"nothing")
    assert refused.status_code == 400
