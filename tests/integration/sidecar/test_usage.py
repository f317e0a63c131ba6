"""The access log and the metrics of usage: one line for each request, whatever became of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import select
import socket
import sys
import threading
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from tests.integration.conftest import metric_in
from tests.integration.sidecar.fleet import Fleet
from tests.integration.sidecar.harness import (
    CHUNK,
    HEAD,
    LAST,
    PATIENT,
    House,
    Wire,
    chat,
    eventually,
)
from weir_core.sched.types import Dispatch, End, Requeue, RequeueReason, TenantPolicy
from weir_core.units import Seconds
from weir_core.wire.access import AccessLine
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_core.wire.steps import Step, encode_step
from weir_sidecar.ends import TOLD_WITHIN_S
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.access_log import MOST_WAITING, AccessLog
from weir_sidecar.telemetry.instruments import Count
from weir_sim.mock_engine import Profile

LOGGED = replace(
    PATIENT, access_log=True, identity=Identity("chat", "default", "big", "chat-0", "tiny")
)
KEY = {"Authorization": "Bearer sk-red", "x-request-id": "mine"}
SECRET = "what nobody may read"


def document() -> PolicyDocument:
    digest = hashlib.sha256(b"sk-red").hexdigest()
    red = TenantEntry(
        TenantPolicy("red", max_requests=1), "batch", "batch", False, (digest,), ("laptop",)
    )
    return PolicyDocument(tenants=(red,))


async def lines(house: House, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Stop the sidecar; return its access log."""
    await house.stack.aclose()
    output = capfd.readouterr().out
    assert SECRET not in output
    assert "sk-red" not in output
    found = [json.loads(line) for line in output.splitlines()]
    return [line for line in found if line["event"] == "access"]


async def test_each_request_has_one_line_whatever_became_of_it(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    house.policies(document())
    await house.mock_engine(Profile(ttft_s=Seconds(0.05), token_gap_s=Seconds(0.01)))
    running = await house.sidecar(LOGGED)
    body = chat(max_tokens=4) | {"messages": [{"role": "user", "content": SECRET}]}
    assert (await running.post(json=body)).status == 401
    assert (await running.post("/nowhere", json=body, headers=KEY)).status == 404
    assert (await running.post(json=body, headers=KEY)).status == 200
    assert (await running.post(json=body | {"stream": True}, headers=KEY)).status == 200
    before = running.sidecar.registry.received_bytes
    leaving = asyncio.create_task(
        running.post(json=body | {"stream": True, "max_tokens": 5000}, headers=KEY)
    )
    await eventually(lambda: running.sidecar.registry.received_bytes > before)
    assert (await running.post(json=body, headers=KEY)).status == 429
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    outcomes = await running.ended(6)
    page = (await running.probe("/metrics")).body.decode()
    assert metric_in(page, "weir_usage_requests_total") == 6
    found = await lines(house, capfd)
    assert [line["outcome"] for line in found] == [
        *("client_error", "client_error", "ok", "ok", "rejected_tenant_limit", "client_gone"),
    ]
    assert sum(outcomes.values()) == len(found)
    assert [line["status"] for line in found] == [401, 404, 200, 200, 429, 200]
    assert [line["tenant"] for line in found] == ["", "", *(4 * ["red"])]
    assert [line["key"] for line in found] == ["", "", *(4 * ["laptop"])]
    plain, stream, gone = found[2], found[3], found[5]
    assert (plain["class"], plain["model"], plain["pool"]) == ("batch", "tiny", "big")
    assert (plain["exact"], plain["output_tokens"], plain["executed_by"]) == (True, 4, "chat-0")
    assert (stream["exact"], stream["output_tokens"]) == (False, 4)
    assert gone["output_tokens"] > 0
    assert all(line["request_id"] == "mine" for line in found[1:])
    assert metric_in(page, r'weir_usage_tokens_total\{class="batch",kind="output",.*\}') == sum(
        line["output_tokens"] for line in found
    )


async def test_names_of_models_that_nothing_serves_are_one(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    house.policies(PolicyDocument(anonymous_class="standard"))

    async def refuse(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")

    await house.raw_engine(refuse)
    running = await house.sidecar(LOGGED)
    running.sidecar.parts.usage.declare(["fox"], [])
    for model in ("tiny", "fox", "no-such", "nor-this"):
        await running.post(json=chat() | {"model": model})
    await running.ended(4)
    page = running.sidecar.metrics.render().decode()
    assert set(re.findall(r'weir_usage_requests_total{.*model="(.*?)"', page)) == {
        *("tiny", "fox", "other"),
    }
    assert [line["model"] for line in await lines(house, capfd)] == [
        *("tiny", "fox", "other", "other"),
    ]


async def test_a_line_has_what_the_step_log_tells(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    house.policies(PolicyDocument(anonymous_class="standard"))
    await house.mock_engine(Profile(ttft_s=Seconds(0.05), token_gap_s=Seconds(0.01)))
    running = await house.sidecar(LOGGED)
    asking = asyncio.create_task(
        running.post(json=chat(stream=True, max_tokens=3), headers={"x-request-id": "mine"})
    )
    await eventually(lambda: running.sidecar.registry.at_engine == 1)
    driver = running.sidecar.driver
    driver.on_step(Step(1, 0.5, prefill_tokens=10, started=("mine",), prompts=((40, 30),)))
    await asking
    page = (await running.probe("/metrics")).body.decode()
    assert metric_in(page, "weir_usage_engine_seconds_total") == 0.5
    assert metric_in(page, r'weir_usage_tokens_total\{class="standard",kind="cached",.*\}') == 30
    (line,) = await lines(house, capfd)
    assert (line["prompt_tokens"], line["cached_tokens"], line["engine_s"]) == (40, 30, 0.5)


async def test_a_stream_without_usage_counts_what_the_engine_told_before_its_last_byte(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    house.policies(PolicyDocument(anonymous_class="standard"))
    house.facts(tells_ends=True)
    step = Step(
        1, 0.5, prefill_tokens=10, started=("mine",), prompts=((40, 30),),
        ended=(End("mine", "length", 40, 30, 1, 10, 1),),
    )  # fmt: skip

    async def answer(wire: Wire) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as engine:
            engine.sendto(encode_step(step), str(house.run_dir / "steps.sock"))
        await wire.send(HEAD + CHUNK + LAST)

    await house.raw_engine(answer)
    running = await house.sidecar(LOGGED)
    await running.post(json=chat(stream=True), headers={"x-request-id": "mine"})
    (line,) = await lines(house, capfd)
    assert (line["prompt_tokens"], line["cached_tokens"], line["output_tokens"]) == (40, 30, 1)
    assert (line["exact"], line["finish_reason"], line["engine_s"]) == (True, "length", 0.5)


async def hang_in_stream(wire: Wire) -> None:
    await wire.send(HEAD + CHUNK)
    await wire.closed_by_peer()


@pytest.mark.parametrize(
    ("ended", "want"),
    [
        pytest.param((End("mine", "abort", 40, 30, 7, 10, 1),), (40, 7, True, "abort"), id="told"),
        pytest.param((), (0, 1, False, ""), id="never told: what came is counted"),
    ],
)
async def test_what_a_client_left_is_counted_once_when_the_engine_has_told_of_its_end(
    house: House,
    capfd: pytest.CaptureFixture[str],
    ended: tuple[End, ...],
    want: tuple[int, int, bool, str],
) -> None:
    house.policies(PolicyDocument(anonymous_class="standard"))
    house.facts(tells_ends=True)
    await house.raw_engine(hang_in_stream)
    running = await house.sidecar(LOGGED)
    driver = running.sidecar.driver
    leaving = asyncio.create_task(
        running.post(json=chat(stream=True), headers={"x-request-id": "mine"})
    )
    await eventually(lambda: running.sidecar.registry.received_bytes > 0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await running.ended(1)
    page = running.sidecar.metrics.render().decode()
    assert "weir_usage_tokens_total{" not in page
    for seq in (1, 2):  # once more, as no engine does
        driver.on_step(Step(seq, 0.5, prefill_tokens=10, ended=ended))
    driver.ends.expire(driver.now() + TOLD_WITHIN_S + 1)
    page = running.sidecar.metrics.render().decode()
    output = r'weir_usage_tokens_total\{class="standard",kind="output",.*\}'
    assert metric_in(page, output) == want[1]
    (line,) = await lines(house, capfd)
    names = ("prompt_tokens", "output_tokens", "exact", "finish_reason")
    assert tuple(line[name] for name in names) == want


async def test_the_end_of_an_attempt_that_was_given_up_is_not_that_of_the_next(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    house.policies(PolicyDocument(anonymous_class="standard"))
    house.facts(tells_ends=True)

    async def answer_the_second(wire: Wire) -> None:
        if wire.number == 0:
            await wire.closed_by_peer()
        else:
            await wire.send(HEAD + CHUNK)
            await told.wait()
            await wire.send(CHUNK + LAST)

    told = asyncio.Event()
    engine = await house.raw_engine(answer_the_second)
    running = await house.sidecar(LOGGED)
    driver = running.sidecar.driver
    asking = asyncio.create_task(
        running.post(json=chat(stream=True), headers={"x-request-id": "mine"})
    )
    await eventually(lambda: len(engine.requests) == 1)
    (ticket,) = driver.scheduler.tickets.values()
    name = ticket.request.request_id
    requeue, dispatch = Requeue(name, RequeueReason.PREEMPTED), Dispatch(name, 0, 0.0)
    driver._perform([requeue, dispatch], driver.now())
    await eventually(lambda: len(engine.requests) == 2)
    sent = re.search(rb"x-request-id: (.*)\r\n", engine.requests[1])
    second = sent[1].decode() if sent else ""
    assert second.startswith("mine-")
    driver.on_step(Step(1, 0.5, prefill_tokens=10, ended=(End("mine", "abort", 0, 0, 0, 10, 0),)))
    end = End(second, "stop", 40, 30, 2, 10, 1)
    driver.on_step(Step(2, 0.25, prefill_tokens=10, ended=(end,)))
    told.set()
    await asking
    (line,) = await lines(house, capfd)
    assert (line["prompt_tokens"], line["output_tokens"], line["engine_s"]) == (40, 2, 0.75)


async def test_a_log_that_nothing_reads_holds_up_nothing_and_does_not_grow() -> None:
    lost, release = Count(), threading.Event()
    written: list[bytes] = []

    def write(piece: bytes) -> None:
        release.wait(30)
        written.append(piece)

    log = AccessLog(lost, write)
    for _ in range(MOST_WAITING + 5):
        log.take(AccessLine(time="2026-11-30"))
    assert lost.value == 5
    release.set()
    await log.close()
    assert b"".join(written).count(b"\n") == MOST_WAITING
    assert all(piece.endswith(b"\n") for piece in written)


def first_lines(reading: int, number: int) -> list[bytes]:
    with os.fdopen(reading, "rb", closefd=False) as pipe:
        return list(islice(pipe, number))


async def test_waits_for_a_full_pipe_that_is_not_blocking() -> None:
    reading, writing = os.pipe()
    kept = os.dup(1)
    lost = Count()
    try:
        os.dup2(writing, 1)
        os.set_blocking(writing, False)
        log = AccessLog(lost)
        for number in range(2000):
            log.take(AccessLine(time="2026-11-30", request_id=str(number)))
        await eventually(lambda: not select.select((), (1,), (), 0)[1])
        read = asyncio.create_task(asyncio.to_thread(first_lines, reading, 2000))
        await log.close()
        found = await read
    finally:
        os.dup2(kept, 1)
        for each in (reading, writing, kept):
            os.close(each)
    assert [json.loads(line)["request_id"] for line in found] == [str(n) for n in range(2000)]
    assert lost.value == 0


async def test_lines_that_cannot_be_written_are_counted() -> None:
    lost = Count()

    def write(_piece: bytes) -> None:
        raise OSError("no space left on device")

    log = AccessLog(lost, write)
    log.take(AccessLine(time="2026-11-30"))
    await log.close()
    assert lost.value == 1


async def test_writes_into_nothing_else_where_standard_output_was_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)  # as Python has it then; 1 is another file
    lost = Count()
    log = AccessLog(lost)
    log.take(AccessLine(time="2026-11-30"))
    await log.close()
    assert lost.value == 1
    assert capfd.readouterr().out == ""


async def test_through_a_gateway_a_request_and_its_tokens_count_once(fleet: Fleet) -> None:
    for _ in range(3):
        assert (await fleet.ask_gateway(max_tokens=4)).status == 200
    parts = [fleet.gateway.parts, *(each.sidecar.parts for each in fleet.replicas)]
    await eventually(lambda: sum(fleet.served) == 3 and not any(len(p.registry) for p in parts))
    pages = [each.metrics.render().decode() for each in parts]
    requests = [metric_in(page, "weir_usage_requests_total") for page in pages]
    assert requests == [3, 0, 0, 0]
    output = r'weir_usage_tokens_total\{class="standard",kind="output",model="tiny",.*\}'
    assert metric_in(pages[0], output) == 0
    assert sum(metric_in(page, output) for page in pages) == 12
