"""Classes and tenants at the sidecar's socket: who goes first, who is refused, who must wait."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.integration.sidecar.harness import (
    CHAT,
    PATIENT,
    Answer,
    House,
    Running,
    Wire,
    chat,
    eventually,
)
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy, TenantPolicy
from weir_core.wire.policies import EngineMode, PolicyDocument, TenantEntry
from weir_core.wire.priority import due_s_of, rank_of
from weir_core.wire.sidecar_state import Scheduling, SidecarState
from weir_core.wire.steps import Step, encode_step
from weir_sidecar.settings import Limits, Tokenizing
from weir_sim.mock_engine import Profile

SLOW = Profile(output_tokens=1000, token_gap_s=0.005)  # type: ignore[arg-type]


def tenant(name: str, *, key: str, default: str = "standard", most: str = "") -> TenantEntry:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return TenantEntry(TenantPolicy(name), default, most or default, key_hashes=(digest,))


TWO_TENANTS = PolicyDocument(
    tenants=(
        tenant("chat", key="sk-chat", default="interactive"),
        tenant("nightly", key="sk-night", default="batch", most="standard"),
    )
)


def key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def asking(class_name: str) -> dict[str, str]:
    return {"x-llm-d-inference-objective": class_name}


class Dispatches:
    """A raw engine's script that answers when told to, and remembers the order it was asked in."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.left: list[str] = []
        self.answers: dict[str, asyncio.Event] = {}

    async def __call__(self, wire: Wire) -> None:
        name = json.loads(wire.request.split(b"\r\n\r\n", 1)[1])["model"]
        self.order.append(name)
        go = self.answers.setdefault(name, asyncio.Event())
        gone = asyncio.ensure_future(wire.closed_by_peer())
        told = asyncio.ensure_future(go.wait())
        await asyncio.wait({gone, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        gone.cancel()
        await asyncio.gather(gone, told, return_exceptions=True)
        if not go.is_set():
            self.left.append(name)
            raise ConnectionResetError
        body = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 2}}'
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        await wire.send(head + body)

    def asked_last(self, name: str) -> Callable[[], bool]:
        return lambda: self.order[-1] == name

    def answer(self, name: str) -> None:
        self.answers.setdefault(name, asyncio.Event()).set()


def send(
    running: Running, name: str, class_name: str, *, stream: bool = False, **headers: str
) -> asyncio.Task[Answer]:
    body = {"model": name, "stream": stream}
    return asyncio.create_task(running.post(json=body, headers={**asking(class_name), **headers}))


def waiting(running: Running) -> int:
    scheduler = running.sidecar.driver.scheduler
    return scheduler.pool.requests if scheduler else 0


async def crowded(house: House, kind: str = "weir") -> tuple[Running, Dispatches]:
    """A sidecar whose engine has one slot, which an interactive request has taken."""
    house.facts(kind, slots=1)
    dispatches = Dispatches()
    await house.raw_engine(dispatches)
    running = await house.sidecar()
    return running, dispatches


async def test_the_higher_class_goes_first_whoever_came_first(house: House) -> None:
    running, engine = await crowded(house)
    tasks = [send(running, "first", "interactive")]
    await eventually(lambda: engine.order == ["first"])
    for name, class_name in (("b", "batch"), ("s", "standard"), ("i", "interactive")):
        tasks.append(send(running, name, class_name))
        await eventually(lambda: waiting(running) == len(tasks) - 1)
    for name in ("first", "i", "s", "b"):
        await eventually(engine.asked_last(name))
        engine.answer(name)
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    assert running.sidecar.metrics.registry.get_sample_value("weir_inversions_total") == 0


async def test_a_request_loses_its_place_to_a_higher_class_and_its_client_does_not_know(
    house: House,
) -> None:
    running, engine = await crowded(house)
    # Of a plain answer nothing is seen before its end: soon its prompt would be taken for done.
    batch = send(running, "b", "batch", stream=True)
    await eventually(lambda: engine.order == ["b"])
    urgent = send(running, "i", "interactive")
    await eventually(lambda: engine.order == ["b", "i"])
    await eventually(lambda: engine.left == ["b"])
    engine.answer("i")
    assert (await urgent).status == 200
    await eventually(lambda: engine.order == ["b", "i", "b"])
    engine.answer("b")
    assert (await batch).status == 200
    assert running.outcomes == {"ok": 2}
    value = running.sidecar.metrics.registry.get_sample_value
    assert value("weir_preemptions_total", {"class": "batch"}) == 1


async def test_a_plain_answer_that_has_begun_keeps_its_place(house: House) -> None:
    """Nor is it sent twice: what its client has seen of it cannot be taken back."""
    go = asyncio.Event()
    asked: list[str] = []

    async def script(wire: Wire) -> None:
        asked.append(json.loads(wire.request.split(b"\r\n\r\n", 1)[1])["model"])
        await wire.send(b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a"')
        await go.wait()
        await wire.send(b": 1}")

    house.facts(slots=1)
    await house.raw_engine(script)
    running = await house.sidecar()
    metrics = running.sidecar.metrics
    batch = send(running, "b", "batch")
    await eventually(lambda: running.sidecar.registry.received_bytes > 0)
    urgent = send(running, "i", "interactive")
    await eventually(lambda: waiting(running) == 1)
    go.set()
    assert [(await task).body for task in (batch, urgent)] == [b'{"a": 1}'] * 2
    assert asked == ["b", "i"]
    assert metrics.registry.get_sample_value("weir_preemptions_total", {"class": "batch"}) == 0


async def test_who_leaves_while_waiting_is_forgotten_at_once(house: House) -> None:
    running, engine = await crowded(house)
    first = send(running, "first", "interactive")
    await eventually(lambda: engine.order == ["first"])
    leaver = send(running, "leaver", "standard")
    await eventually(lambda: waiting(running) == 1)
    leaver.cancel()
    await eventually(lambda: waiting(running) == 0)
    engine.answer("first")
    assert (await first).status == 200
    assert engine.order == ["first"]
    assert await running.ended(2) == {"ok": 1, "client_gone": 1}


async def test_who_waited_as_long_as_its_class_may_is_refused_with_a_time(house: House) -> None:
    house.policies(
        PolicyDocument(
            classes=(
                ClassPolicy("interactive", rank=1, max_queue_wait_s=100.0),
                ClassPolicy("standard", rank=0, max_queue_wait_s=0.1),
            )
        )
    )
    running, engine = await crowded(house)
    first = send(running, "first", "interactive")
    await eventually(lambda: engine.order == ["first"])
    answer = await send(running, "late", "standard")
    assert answer.status == 429
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
    assert int(answer.headers["Retry-After"]) >= 1
    engine.answer("first")
    await first


async def test_a_full_memory_of_waiting_bodies_is_503(house: House) -> None:
    house.facts(slots=1)
    engine = Dispatches()
    await house.raw_engine(engine)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_held_bytes=4000)))
    first = send(running, "first", "interactive")
    await eventually(lambda: engine.order == ["first"])
    answer = await running.post(json={"model": "large", "text": "x" * 3000})
    assert answer.status == 503
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-memory-full"
    engine.answer("first")
    await first


HEADER = re.compile(rb"(?i)\r\nx-vllm-priority: (-?\d+)\r\n")


@pytest.mark.parametrize("kind", ["weir", "priority"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_the_engine_is_told_the_rank_by_the_header(
    house: House, kind: str, path: str
) -> None:
    house.facts(kind)
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append(wire.request)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    await house.raw_engine(script)
    running = await house.sidecar()
    jumps = {"X-Vllm-Priority": "-9000000000000", "X-data-parallel-rank": "1"}
    body = {"model": "m", "priority": 5}
    await running.post(path, json=body, headers={**asking("batch"), **jumps})
    await running.post(path, json=body, headers=asking("interactive"))
    told = [HEADER.findall(request) for request in seen]
    assert [[rank_of(int(value)) for value in values] for values in told] == [[-100], [100]]
    assert all(b"data-parallel" not in request.lower() for request in seen)
    assert [json.loads(request.split(b"\r\n\r\n", 1)[1]) for request in seen] == [body, body]


async def test_an_engine_that_heeds_the_body_is_told_there(house: House) -> None:
    house.facts()
    seen: list[dict[str, Any]] = []

    async def script(wire: Wire) -> None:
        seen.append(json.loads(wire.request.split(b"\r\n\r\n", 1)[1]))
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    await house.raw_engine(script)
    running = await house.sidecar()
    jump = {"X-Vllm-Priority": "-9000000000000"}
    body = {"model": "m", "input": "a", "priority": 5}
    await running.post("/v1/embeddings", json=body, headers={**asking("batch"), **jump})
    assert rank_of(seen[0].pop("priority")) == -100
    assert seen == [{"model": "m", "input": "a"}]


async def test_a_target_of_a_requests_own_is_no_less_than_its_classs(house: House) -> None:
    house.facts()
    due_s: list[float] = []

    async def script(wire: Wire) -> None:
        found = HEADER.search(wire.request)
        assert found is not None
        due_s.append(due_s_of(int(found[1])) or 0.0)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    await house.raw_engine(script)
    running = await house.sidecar()
    await running.post(json={"model": "m"}, headers=asking("batch"))
    hurried = {**asking("batch"), "x-slo-ttft-ms": "1"}
    await running.post(json={"model": "m"}, headers=hurried)
    assert due_s[1] >= due_s[0]


async def test_each_request_is_judged_by_what_it_was_promised(house: House) -> None:
    never_late, never_in_time = 1000.0, 1e-9
    house.facts()
    house.policies(
        PolicyDocument(
            classes=(
                ClassPolicy("patient", rank=3, max_queue_wait_s=20.0, ttft_target_s=never_late),
                ClassPolicy("hurried", rank=2, max_queue_wait_s=20.0, ttft_target_s=never_in_time),
                ClassPolicy("standard", rank=1, max_queue_wait_s=20.0),
            )
        )
    )
    await house.mock_engine(Profile())
    running = await house.sidecar()
    for name, status in (("patient", 200), ("hurried", 429), ("standard", 200)):
        answer = await running.post(json=chat(stream=True), headers=asking(name))
        assert answer.status == status
    patience = {**asking("hurried"), "x-slo-ttft-ms": "1000000"}
    assert (await running.post(json=chat(stream=True), headers=patience)).status == 200
    wrong = await running.post(json=chat(model="unknown"), headers=asking("patient"))
    assert wrong.status == 404
    assert (await running.get("/v1/models", headers=asking("patient"))).status == 200
    await running.ended(6)
    page = (await running.probe("/metrics")).body.decode()
    assert set(re.findall(r"^weir_attainment_requests_total{(.*)} (\S+)$", page, re.MULTILINE)) == {
        ('class="patient",result="met"', "1.0"),
        ('class="patient",result="missed"', "0.0"),
        ('class="hurried",result="met"', "1.0"),
        ('class="hurried",result="missed"', "1.0"),
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
async def test_a_body_that_only_the_engine_could_read_raises_no_priority(
    house: House, encoding: str
) -> None:
    house.facts()
    engine = await house.mock_engine(Profile())
    running = await house.sidecar()
    answer = await running.post(data=json.dumps(chat(priority=-(2**62))).encode(encoding))
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "invalid_body"
    assert (engine.finished, engine.aborted) == (0, 0)


async def test_a_first_come_engine_gets_bodies_as_they_are(house: House) -> None:
    house.facts("fcfs")
    bodies: list[bytes] = []

    async def script(wire: Wire) -> None:
        bodies.append(wire.request.split(b"\r\n\r\n", 1)[1])
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    await house.raw_engine(script)
    running = await house.sidecar()
    await running.post(data=b'{"model": "m"} ')
    assert bodies == [b'{"model": "m"} ']


# Who may call.


async def test_keys_name_tenants_and_go_no_further(house: House) -> None:
    house.policies(TWO_TENANTS)
    engine = await house.mock_engine(Profile())
    running = await house.sidecar()
    refused = [
        await running.post(json=chat()),
        await running.post(json=chat(), headers=key("sk-wrong")),
        await running.post(json=chat(), headers={"Authorization": "Basic abc"}),
        await running.get("/v1/models"),
    ]
    assert {answer.status for answer in refused} == {401}
    assert {answer.headers["WWW-Authenticate"] for answer in refused} == {"Bearer"}
    assert json.loads(refused[0].body)["error"]["code"] == "invalid_api_key"
    assert (await running.post(json=chat(), headers=key("sk-chat"))).status == 200
    assert (await running.post(json=chat(), headers={"x-api-key": "sk-chat"})).status == 200
    assert (await running.get("/v1/models", headers=key("sk-night"))).status == 200
    assert not {name.lower() for name in engine.seen_headers} & {"authorization", "x-api-key"}
    state = json.loads(await running.state())
    assert state["open_to"] == "2 tenants, by API key"
    assert b"sk-chat" not in await running.state()


@pytest.mark.parametrize(
    ("headers", "body", "want"),
    [
        pytest.param({}, {}, "batch", id="the tenant's default"),
        pytest.param(asking("standard"), {}, "standard", id="as high as it may"),
        pytest.param({"x-weir-class": "batch"}, {}, "batch", id="by our own header"),
        pytest.param({}, {"service_tier": "priority"}, "standard", id="a wish ends at the most"),
        pytest.param({}, {"service_tier": "flex"}, "batch", id="flex is the lowest"),
        pytest.param({}, {"service_tier": "auto"}, "batch", id="auto is the default"),
        pytest.param({}, {"priority": 50}, "batch", id="vLLM's polarity, lowered"),
        pytest.param({}, {"priority": -500}, "batch", id="a negative priority raises nothing"),
    ],
)
async def test_a_request_gets_its_class(
    house: House, headers: dict[str, str], body: dict[str, Any], want: str
) -> None:
    house.policies(TWO_TENANTS)
    await house.mock_engine(Profile())
    running = await house.sidecar()
    answer = await running.post(
        json=chat(**body), headers={**key("sk-night"), **headers, "x-weir-explain": "1"}
    )
    assert answer.status == 200, answer.body
    explained = json.loads(answer.headers["x-weir-explain"])
    assert (explained["class"], explained["tenant"]) == (want, "nightly")
    assert explained["wait_s"] >= 0


async def test_a_header_that_asks_for_too_much_is_403(house: House) -> None:
    house.policies(TWO_TENANTS)
    await house.mock_engine(Profile())
    running = await house.sidecar()
    answer = await running.post(json=chat(), headers={**key("sk-night"), **asking("interactive")})
    assert answer.status == 403
    error = json.loads(answer.body)["error"]
    assert error["code"] == "class_not_allowed"
    assert "standard, batch" in error["message"]


async def test_a_class_that_does_not_exist_is_400(house: House) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar()
    answer = await running.post(json=chat(), headers=asking("imperial"))
    assert answer.status == 400
    error = json.loads(answer.body)["error"]
    assert error["code"] == "unknown_class"
    assert "interactive, standard, batch" in error["message"]


async def test_a_service_takes_only_the_classes_it_accepts(house: House) -> None:
    house.policies(PolicyDocument(accepted_classes=("batch",)))
    await house.mock_engine(Profile())
    running = await house.sidecar()
    assert (await running.post(json=chat(), headers=asking("standard"))).status == 403
    answer = await running.post(json=chat(), headers={"x-weir-explain": "1"})
    assert json.loads(answer.headers["x-weir-explain"])["class"] == "batch"


@pytest.mark.parametrize("text", ["soon", "-3", "0", "nan", "inf"])
async def test_a_target_that_is_no_time_is_400(house: House, text: str) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar()
    answer = await running.post(json=chat(), headers={"x-slo-ttft-ms": text})
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "bad_target"


# Changes while it runs.


async def test_a_rotated_key_works_at_once_and_the_old_one_does_not(house: House) -> None:
    house.policies(PolicyDocument(tenants=(tenant("chat", key="old"),)))
    await house.mock_engine(Profile())
    running = await house.sidecar()
    assert (await running.post(json=chat(), headers=key("old"))).status == 200
    house.policies(PolicyDocument(tenants=(tenant("chat", key="new"),)))
    directory = running.sidecar.driver.directory
    await eventually(lambda: running.sidecar.driver.directory is not directory)
    assert (await running.post(json=chat(), headers=key("new"))).status == 200
    assert (await running.post(json=chat(), headers=key("old"))).status == 401


async def test_a_changed_class_reorders_what_waits_and_loses_nothing(house: House) -> None:
    running, engine = await crowded(house)
    tasks = [send(running, "first", "interactive")]
    await eventually(lambda: engine.order == ["first"])
    tasks += [send(running, "s", "standard")]
    await eventually(lambda: waiting(running) == 1)
    tasks += [send(running, "b", "batch")]
    await eventually(lambda: waiting(running) == 2)
    raised = [replace(p, rank=50 if p.name == "batch" else p.rank) for p in BUILT_IN_CLASSES]
    house.policies(PolicyDocument(classes=tuple(raised)))
    directory = running.sidecar.driver.directory
    await eventually(lambda: running.sidecar.driver.directory is not directory)
    for name in ("first", "b", "s"):
        await eventually(engine.asked_last(name))
        engine.answer(name)
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}


async def test_a_broken_document_is_counted_and_the_last_good_one_stays(house: House) -> None:
    house.policies(TWO_TENANTS)
    await house.mock_engine(Profile())
    running = await house.sidecar()
    (house.policies_dir / "policies.json").write_bytes(b'{"classes": "none"}')
    value = running.sidecar.metrics.registry.get_sample_value
    await eventually(lambda: value("weir_policies_refused_total") == 1)
    assert (await running.post(json=chat(), headers=key("sk-chat"))).status == 200
    assert (await running.post(json=chat())).status == 401


# What the engine says.


async def test_steps_are_heard_and_rubbish_is_not_fatal(house: House) -> None:
    house.facts()
    await house.mock_engine(Profile())
    running = await house.sidecar(replace(PATIENT, step_file=house.run_dir / "steps.jsonl"))
    value = running.sidecar.metrics.registry.get_sample_value
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as engine:
        engine.connect(str(house.run_dir / "steps.sock"))
        engine.send(b"rubbish")
        engine.send(encode_step(Step(seq=1, duration_s=0.01, schedule_s=0.001)))
        engine.send(encode_step(Step(seq=5, duration_s=0.01, mode="throughput")))
    await eventually(lambda: value("weir_engine_step_seconds_count") == 2)
    assert value("weir_engine_steps_lost_total") == 3
    said = {"kind": "weir", "fallback": "0", "mode": "throughput"}
    assert value("weir_engine_scheduler_info", said) == 1


async def test_silent_answers_of_an_engine_without_a_step_log_do_not_keep_others_out(
    house: House,
) -> None:
    house.facts("fcfs", slots=64)
    engine = await house.mock_engine(Profile(output_tokens=200, token_gap_s=0.01))  # type: ignore[arg-type]
    running = await house.sidecar()
    long = chat(prompt="x" * 3000)  # 750 tokens by its size: more than one fills the gate
    tasks = [asyncio.create_task(running.post(json=long)) for _ in range(8)]
    await eventually(lambda: engine.running == 8)
    assert engine.finished == 0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_engine_is_told_its_mode_when_it_changes(house: House) -> None:
    house.facts()
    await house.mock_engine(Profile())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as engine:
        engine.bind(str(house.run_dir / "mode.sock"))
        engine.setblocking(False)
        heard: list[EngineMode] = []

        def listen() -> bool:
            try:
                heard.append(msgspec.json.decode(engine.recv(65536), type=EngineMode))
            except BlockingIOError:
                return False
            return True

        await house.sidecar()
        await eventually(listen)
        house.policies(PolicyDocument(engine=EngineMode("throughput")))
        await eventually(listen)
    assert [mode.mode for mode in heard] == ["latency", "throughput"]
    assert heard[0].class_ranks == {"interactive": 100, "standard": 0, "batch": -100}


async def test_large_prompts_are_counted_by_the_engine(house: House) -> None:
    house.facts()
    asked: list[bytes] = []

    async def script(wire: Wire) -> None:
        asked.append(wire.request.split(b" ")[1])
        body = b'{"count": 4321}' if asked[-1] == b"/tokenize" else b"{}"
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        await wire.send(head + body)

    await house.raw_engine(script)
    running = await house.sidecar(replace(PATIENT, tokenizing=Tokenizing(min_bytes=1000)))
    await running.post(json={"model": "m", "messages": ["x" * 2000]})
    await running.post(json={"model": "m"})
    assert asked == [b"/tokenize", CHAT.encode(), CHAT.encode()]


async def test_what_a_tenants_limit_refuses_is_not_counted_by_the_engine(house: House) -> None:
    house.facts()
    told = tenant("t", key="sk-t")
    policy = replace(told.policy, max_requests=1)
    house.policies(PolicyDocument(tenants=(msgspec.structs.replace(told, policy=policy),)))
    asked: list[bytes] = []

    async def script(wire: Wire) -> None:
        asked.append(wire.request.split(b" ")[1])
        await wire.closed_by_peer()

    await house.raw_engine(script)
    running = await house.sidecar(replace(PATIENT, tokenizing=Tokenizing(min_bytes=1000)))
    key = {"Authorization": "Bearer sk-t"}
    first = asyncio.create_task(running.post(json={"model": "m"}, headers=key))
    await eventually(lambda: asked == [CHAT.encode()])
    long = {"model": "m", "messages": ["x" * 2000]}
    assert (await running.post(json=long, headers=key)).status == 429
    assert asked == [CHAT.encode()]
    first.cancel()


async def test_the_state_shows_who_waits_and_where(house: House) -> None:
    running, engine = await crowded(house)
    tasks = [send(running, "first", "interactive")]
    await eventually(lambda: engine.order == ["first"])
    for name, class_name in (("b", "batch"), ("s", "standard")):
        tasks.append(send(running, name, class_name))
        await eventually(lambda: waiting(running) == len(tasks) - 1)
    whole, facts = await running.state(), running.sidecar.driver.facts
    assert facts is not None
    assert SidecarState.decode(whole).scheduling == Scheduling(facts)
    state = json.loads(whole)["scheduling"]
    assert [(q["position"], q["class"]) for q in state["queue"]] == [(1, "standard"), (2, "batch")]
    page = (await running.probe("/metrics")).body.decode()
    assert 'weir_queue_requests{class="batch",tenant="anonymous"} 1.0' in page
    for name in ("first", "s", "b"):
        await eventually(engine.asked_last(name))
        engine.answer(name)
    await asyncio.gather(*tasks)


async def test_a_flood_beyond_capacity_ends_in_exactly_one_outcome_each(house: House) -> None:
    house.facts(slots=4)
    engine = await house.mock_engine(
        Profile(output_tokens=5, token_gap_s=0.002, max_running=4)  # type: ignore[arg-type]
    )
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_requests=60)))
    classes = [policy.name for policy in BUILT_IN_CLASSES]
    answers = await asyncio.gather(
        *(
            running.post(json=chat(stream=n % 2 == 0), headers=asking(classes[n % 3]))
            for n in range(300)
        )
    )
    statuses = [answer.status for answer in answers]
    assert len(statuses) == 300
    assert set(statuses) <= {200, 429}
    assert all(int(a.headers["Retry-After"]) >= 1 for a in answers if a.status == 429)
    assert sum(running.outcomes.values()) == 300
    assert running.outcomes["ok"] == statuses.count(200) == engine.finished
    scheduler = running.sidecar.driver.scheduler
    assert scheduler is not None
    assert (scheduler.pool.requests, scheduler.engine_load.running, len(scheduler.tickets)) == (
        0,
        0,
        0,
    )
    assert running.sidecar.metrics.registry.get_sample_value("weir_inversions_total") == 0


async def test_a_client_that_honours_retry_after_is_served(house: House) -> None:
    house.facts(slots=1)
    await house.mock_engine(Profile(output_tokens=20, token_gap_s=0.01, max_running=1))  # type: ignore[arg-type]
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_requests=1)))

    async def patient() -> tuple[int, int]:
        for attempt in range(10):
            answer = await running.post(json=chat())
            if answer.status == 200:
                return 200, attempt
            await asyncio.sleep(int(answer.headers["Retry-After"]))
        return answer.status, attempt

    results = await asyncio.gather(*(patient() for _ in range(4)))
    assert {status for status, _ in results} == {200}
    assert any(attempts for _, attempts in results)


async def test_a_drain_finishes_what_waits_and_refuses_newcomers(house: House) -> None:
    running, engine = await crowded(house)
    tasks = [send(running, "first", "interactive")]
    await eventually(lambda: engine.order == ["first"])
    tasks.append(send(running, "waits", "standard"))
    await eventually(lambda: waiting(running) == 1)
    drain = running.sidecar.drain.begin()
    await eventually(lambda: running.sidecar.handler.refusing)
    async with (
        aiohttp.ClientSession() as fresh,
        fresh.post(running.url + CHAT, json=chat()) as response,
    ):
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
    engine.answer("first")
    await eventually(lambda: engine.order[-1] == "waits")
    engine.answer("waits")
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    assert (await drain).cut == 0


async def test_what_still_waits_when_a_drains_time_is_over_is_refused(house: House) -> None:
    house.facts(slots=1)
    engine = Dispatches()
    await house.raw_engine(engine)
    hasty = replace(PATIENT, draining=replace(PATIENT.draining, grace_period_s=0.4))
    running = await house.sidecar(hasty)
    tasks = [send(running, "first", "interactive")]
    await eventually(lambda: engine.order == ["first"])
    tasks.append(send(running, "waits", "standard"))
    await eventually(lambda: waiting(running) == 1)
    farewell = await running.sidecar.drain.run()
    assert farewell.cut == 2
    assert [answer.status for answer in await asyncio.gather(*tasks)] == [503, 503]
    assert running.outcomes == {"rejected_shutting_down": 2}


async def test_a_wait_that_ends_this_very_moment_is_no_trouble(house: House) -> None:
    # uvloop turns a timer of no time into a plain callback, which does not know its instant.
    brief = [replace(p, max_queue_wait_s=1e-6 * n) for n, p in enumerate(BUILT_IN_CLASSES)]
    house.policies(PolicyDocument(classes=(*brief, ClassPolicy("long", rank=200))))
    running, engine = await crowded(house)
    directory = running.sidecar.driver.directory
    assert "long" in {policy.name for policy in directory.classes}
    first = send(running, "first", "long")
    await eventually(lambda: engine.order == ["first"])
    answers = await asyncio.gather(
        *(send(running, f"n{n}", "batch" if n % 2 else "standard") for n in range(50))
    )
    assert {answer.status for answer in answers} == {429}
    engine.answer("first")
    assert (await first).status == 200
    scheduler = running.sidecar.driver.scheduler
    assert scheduler is not None
    assert not scheduler.tickets
