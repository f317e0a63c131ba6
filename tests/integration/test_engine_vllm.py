"""Real vLLM, as `weir-engine` launches it on this machine's CPU."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import (
    START_LIMIT_S,
    STOP_LIMIT_S,
    TINY,
    Engine,
    RunEngine,
    metric_in,
)
from weir_core.wire.openai import reports_failure

LISTEN = "0A"
LOOPBACK = {"0100007F", "0" * 24 + "01000000"}
QUESTION = [{"role": "user", "content": "What does the pilot do?"}]


@pytest.fixture
def client(engine: Engine) -> Any:
    with engine.client() as connected:
        yield connected


def chat(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": QUESTION, "temperature": 0} | fields
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def greedy_tokens(client: httpx.Client) -> list[str]:
    body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0,
            "logprobs": 0, "ignore_eos": True}  # fmt: skip
    answer = client.post("/v1/completions", json=body).json()
    tokens: list[str] = answer["choices"][0]["logprobs"]["tokens"]
    return tokens


def test_serves_the_model_under_its_name_and_aliases(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny", "tiny-alias"]


@pytest.mark.parametrize("model", ["tiny", "tiny-alias"])
def test_a_chat_ends_by_itself_with_a_sentence(client: httpx.Client, model: str) -> None:
    choice = chat(client, model=model)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].endswith(".")


def test_completes_a_prompt(client: httpx.Client) -> None:
    assert len(greedy_tokens(client)) == 24


def test_streams_what_it_answers_at_once(client: httpx.Client) -> None:
    whole = chat(client)["choices"][0]["message"]["content"]
    body = {"model": "tiny", "messages": QUESTION, "temperature": 0, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole
    assert len(deltas) > 2


def test_a_schema_gets_an_answer_that_fits_and_ends(client: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    content = chat(client, response_format=wanted)["choices"][0]["message"]["content"]
    assert set(json.loads(content)) == {"name", "age"}


def test_listens_on_the_socket_and_nothing_outside_the_machine(engine: Engine) -> None:
    assert engine.socket.is_socket()
    assert _listening_addresses(engine.process.pid) <= LOOPBACK


@pytest.fixture(scope="session")
def parallel(loading: dict[str, Engine]) -> Engine:
    """The same model over two processes."""
    return loading["parallel"].until_healthy()


def test_two_processes_in_parallel_say_the_same_as_one(
    client: httpx.Client, parallel: Engine
) -> None:
    with parallel.client() as parallel_client:
        assert greedy_tokens(parallel_client) == greedy_tokens(client)
    assert _listening_addresses(parallel.process.pid) <= LOOPBACK


def test_stops_within_seconds_and_passes_no_part_of_an_answer_for_the_whole(
    parallel: Engine,
) -> None:
    """The last test of `parallel`: it ends the engine."""
    body = {"model": "tiny", "prompt": "x", "max_tokens": 8000, "ignore_eos": True}
    with (
        parallel.client() as client,
        ThreadPoolExecutor(1) as threads,
        client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response,
    ):
        plain = threads.submit(client.post, "/v1/completions", json=body)
        pieces = response.iter_raw()
        assert next(pieces).startswith(b"data: ")
        _wait_until_running(client, requests=2)
        parallel.process.terminate()
        # Cut, or told that it failed: what vLLM cancels first as it ends differs from time to time.
        streamed, broke_off = _read_until_cut(pieces)
        assert broke_off or reports_failure(streamed[-1000:])
        assert b'"finish_reason":"' not in streamed
        with suppress(httpx.RemoteProtocolError):
            assert plain.result().status_code == 500
    assert parallel.process.wait(timeout=STOP_LIMIT_S) == 0


def test_ends_at_once_while_its_core_loads(run_engine: RunEngine) -> None:
    """Left to itself vLLM swallows the signal then, and goes on waiting for its core."""
    with run_engine(TINY, healthy=False) as loading:
        deadline = time.monotonic() + START_LIMIT_S
        while not _has_core(loading):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        loading.process.terminate()
        assert loading.process.wait(timeout=STOP_LIMIT_S) == 128 + signal.SIGTERM
        deadline = time.monotonic() + STOP_LIMIT_S
        while _has_core(loading):  # killed, and for the kernel to clear away
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _has_core(engine: Engine) -> bool:
    return any(b"EngineCore" in _title(process) for process in _members(engine.process.pid))


def _title(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _read_until_cut(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Return the rest of an answer, and whether it broke off before its end."""
    read = bytearray()
    try:
        for piece in pieces:
            read += piece
    except httpx.RemoteProtocolError:
        return bytes(read), True
    return bytes(read), False


def _wait_until_running(client: httpx.Client, *, requests: int) -> None:
    deadline = time.monotonic() + 30
    while metric_in(client.get("/metrics").text, "vllm:num_requests_running") != requests:
        assert time.monotonic() < deadline, f"never {requests} at once"
        time.sleep(0.05)


def _listening_addresses(group: int) -> set[str]:
    """Return the addresses (hexadecimal, as the kernel prints them) a process group listens on."""
    inodes = {inode for process in _members(group) for inode in _sockets(process)}
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in inodes:
                addresses.add(fields[1].rpartition(":")[0])
    return addresses


def _members(group: int) -> list[Path]:
    processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [path for path in processes if _group(path) == group]


def _group(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return None


def _sockets(process: Path) -> list[str]:
    links = []
    for descriptor in (process / "fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except OSError:
            continue
    return [link[8:-1] for link in links if link.startswith("socket:[")]
