"""`weir up examples/quickstart.yaml` with two replicas of real vLLM, used as a stranger would.

One run is shared by all tests of this file, for an engine takes its time to start; the tests that
break something come last, and each leaves the service whole. The last one ends it.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from tests.integration.conftest import metric_in
from weir_cli.records import Instance, InstanceRecord, ReplicaRecord, is_alive
from weir_cli.show import state_of

ROOT: Final = Path(__file__).parents[2]
QUICKSTART: Final = ROOT / "examples" / "quickstart.yaml"
README: Final = ROOT / "README.md"
ROUTING: Final = ROOT / "docs" / "routing.md"
BLOCK: Final = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
READY_S: Final = 480
ASK: Final[Any] = [{"role": "user", "content": "Tell me about rivers."}]


class Up:
    """A running `weir up`."""

    def __init__(self, cache: Path, *arguments: str) -> None:
        self.cache = cache
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = cache / "output"
        self.file = cache / "weir.yaml"
        self.file.write_text(QUICKSTART.read_text())
        self.instance = Instance(cache, self.port)
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*self.weir, "up", str(self.file), "--port", str(self.port), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    weir: Final = (sys.executable, "-m", "weir_cli")

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "WEIR_CACHE": str(self.cache)}

    @property
    def record(self) -> InstanceRecord:
        record = self.instance.read()
        assert record is not None, self.output.read_text()
        return record

    @property
    def replicas(self) -> tuple[ReplicaRecord, ...]:
        return self.record.services[0].replicas

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.weir, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"not {what}:\n{self.output.read_text()}"
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.1)

    def until_ready(self) -> None:
        def ready() -> bool:
            record = self.instance.read()
            return record is not None and record.ready

        self.until(ready, "ready", READY_S)

    def engine_started(self) -> bool:
        record = self.instance.read()
        return record is not None and any(r.engine_pid for r in record.services[0].replicas)

    def running_in_engines(self) -> list[float]:
        """Return what each engine's own gauge says."""
        return [metric(replica.address, "vllm:num_requests_running") for replica in self.replicas]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def is_answered(url: str) -> bool:
    """Tell whether a request is answered, and not told to come again later."""
    try:
        return bool(get(url))
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False


def metric(address: str, name: str) -> float:
    """Return the sum of a metric's series on one replica's admin port."""
    return metric_in(get(f"http://{address}:8001/metrics").decode(), name)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("weir"), "--replicas", "2")
    try:
        running.until_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
        try:
            running.process.wait(timeout=60)
        finally:
            running.process.kill()


@pytest.fixture
def client(up: Up) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def pasted(line: str) -> str:
    """Run a line with curl, as pasted into a shell, and return the answer."""
    done = subprocess.run(
        [*shlex.split(line), "--silent", "--fail-with-body"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_says_where_it_is_and_its_curl_works_as_pasted(up: Up) -> None:
    output = up.output.read_text()
    assert f"quickstart is ready at {up.url}" in output
    (line,) = [line for line in output.splitlines() if line.strip().startswith("curl ")]
    assert json.loads(pasted(line))["usage"]["completion_tokens"] > 0


def test_the_curl_of_the_readme_streams_an_answer(up: Up) -> None:
    (block,) = (text for text in BLOCK.findall(README.read_text()) if "curl" in text)
    line = block.replace("\\\n", " ").replace(":8000/", f":{up.port}/")
    events = pasted(line).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(each.removeprefix("data: "))["choices"][0] for each in events[:-2]]
    assert "".join(each["delta"].get("content") or "" for each in deltas).strip()


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_completion_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="Once upon", max_tokens=4, logprobs=2, extra_body={"ignore_eos": True}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 4


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"depth": {"enum": ["shallow", "deep"]}},
        "required": ["depth"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "river", "schema": schema}},
    )
    content = answer.choices[0].message.content
    assert content is not None
    assert json.loads(content)["depth"] in {"shallow", "deep"}


def test_embeddings_are_refused_as_an_error_the_client_understands(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model="tiny", input="river")
    assert refused.value.status_code in {400, 404, 501}
    assert refused.value.message


def test_lists_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_client_that_leaves_stops_its_generation(up: Up, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=7000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert sum(up.running_in_engines()) == 1
    stream.close()
    up.until(lambda: sum(up.running_in_engines()) == 0, "aborted")


def test_replicas_share_the_requests(up: Up, client: openai.OpenAI) -> None:
    def finished() -> list[float]:
        return [metric(r.address, "vllm:request_success_total") for r in up.replicas]

    def all_serve() -> bool:
        answers = [
            pool.submit(client.completions.create, model="tiny", prompt="A", max_tokens=64)
            for _ in range(16)
        ]
        assert all(answer.result(timeout=60).choices for answer in answers)
        asked.append(len(answers))
        up.until(lambda: sum(finished()) - sum(before) == sum(asked), "counted")
        return all(after > first for first, after in zip(before, finished(), strict=True))

    before, asked = finished(), list[int]()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # A replica that a busy machine keeps silent for seconds is sent nothing meanwhile.
        up.until(all_serve, "shared")


ONE_CLASS: Final = """\
---
apiVersion: serving.weir.dev/v1alpha1
kind: InferencePriorityClass
metadata: {name: standard}
spec: {rank: 9}
"""


def test_an_edit_is_refused_or_reaches_every_sidecar(up: Up, client: openai.OpenAI) -> None:
    def classes() -> list[list[str]]:
        states = [state_of(each.admin_socket) for each in up.replicas]
        return [[one["name"] for one in each["scheduling"]["classes"]] for each in states]

    def said(words: str) -> None:
        up.until(lambda: words in up.output.read_text(), f"said: {words}")

    well, before = up.file.read_text(), classes()
    up.file.write_text(well + "---\nreviewed: !!int soon\n")
    said("not applied: ")
    assert client.completions.create(model="tiny", prompt="A", max_tokens=2).choices
    assert classes() == before
    in_the_way = Path(up.record.scratch) / "1" / "policies" / ".policies.json.new"
    in_the_way.mkdir()  # as a full disk would be
    up.file.write_text(well + ONE_CLASS)
    said("not applied everywhere yet: quickstart-")
    assert "applied what changed" not in up.output.read_text()
    in_the_way.rmdir()
    said("applied what changed")
    up.until(lambda: classes() == [["standard"]] * 2, "told")
    up.file.write_text(well)
    up.until(lambda: classes() == before, "told again")


def test_status_shows_both_replicas(up: Up) -> None:
    shown = up.run("status")
    assert shown.returncode == 0
    rows = [line.split() for line in shown.stdout.splitlines()[1:]]
    assert [row[2] for row in rows] == ["ready", "ready"]
    assert [row[3] for row in rows] == [replica.address for replica in up.replicas]
    assert {row[-1] for row in rows} == {up.url}


def test_a_second_up_for_the_port_is_told_about_the_first(up: Up) -> None:
    second = up.run("up", str(QUICKSTART), "--port", str(up.port))
    assert second.returncode == 1
    assert f"`weir up` already runs for port {up.port}; see `weir status`" in second.stderr


def test_vllms_own_benchmark_sees_no_failure(up: Up, tmp_path: Path) -> None:
    """500 requests; the benchmark of the vLLM project counts failures itself."""
    finished = subprocess.run(
        [
            *("scripts/bench-serve", up.url, "--save-result"),
            *("--result-dir", str(tmp_path), "--result-filename", "result.json"),
        ],
        cwd=ROOT,
        env={**os.environ, "WEIR_CACHE": str(up.cache)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (500, 0), finished.stdout


def test_the_routing_page_does_what_it_says(up: Up, client: openai.OpenAI) -> None:
    page = ROUTING.read_text()
    first, *blocks = BLOCK.findall(page)
    assert first.startswith(f"weir up {QUICKSTART.relative_to(ROOT)} --replicas ")
    script = "\necho ----\n".join(blocks).replace(":8000/", f":{up.port}/")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'weir() {{ {" ".join(up.weir)} "$@"; }}\n{script}'],
        env=up.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, third = (json.loads(x.partition(": ")[2]) for x in done.stdout.split("----\n"))
    assert second["replica"] == first["replica"]
    (shown,) = map(json.loads, re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert list(shown) == list(second)
    assert list(shown["candidates"][0]) == list(second["candidates"][0])
    cached = {each["replica"]: each["cached_tokens"] for each in second["candidates"]}
    assert cached.pop(second["replica"]) > 0
    assert not any(cached.values())
    assert third["replica"] != second["replica"]
    at = [replica.name for replica in up.replicas].index(second["replica"])
    # Whichever sidecar is asked, a replica that has an engine answers. A busy machine may keep that
    # one silent for seconds.
    up.until(lambda: is_answered(f"http://{up.replicas[at].address}:8000/v1/models"), "answered")
    for _ in range(5):
        assert client.completions.create(model="tiny", prompt="A", max_tokens=2).choices
    up.until(
        lambda: up.replicas[at].phase == "ready" and bool(up.replicas[at].restarts), "back", READY_S
    )
    assert sum(replica.restarts for replica in up.replicas) == 1
    assert f"{second['replica']}/engine killed by SIGKILL" in up.output.read_text()


def test_ctrl_c_lets_a_stream_finish_and_leaves_nothing(up: Up, client: openai.OpenAI) -> None:
    record = up.record
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    up.process.send_signal(signal.SIGINT)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert up.process.wait(timeout=60) == 0, up.output.read_text()
    assert not [process.name for process in record.children if is_alive(process)]
    assert not Path(record.scratch).exists()
    assert up.run("status").returncode == 3
    assert up.run("down").stdout == "nothing runs\n"


def test_ctrl_c_ends_an_engine_that_still_loads(tmp_path: Path) -> None:
    running = Up(tmp_path)
    running.until(running.engine_started, "started")
    record = running.record
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=60) == 0, running.output.read_text()
    assert not [process.name for process in record.children if is_alive(process)]
    assert not Path(record.scratch).exists()


def test_children_do_not_outlive_a_killed_up(tmp_path: Path) -> None:
    running = Up(tmp_path)
    running.until(running.engine_started, "started")
    record = running.record
    running.process.kill()
    running.process.wait(timeout=10)
    deadline = time.monotonic() + 20
    while any(is_alive(process) for process in record.children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running.run("status").returncode == 3
    assert running.run("down").returncode == 0
    assert not Path(record.scratch).exists()
