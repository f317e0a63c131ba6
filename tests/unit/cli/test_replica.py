"""A replica's processes start and end in the pod's order, and a crashed one comes back alone."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from weir_cli import leash
from weir_cli.child import Surroundings, ask
from weir_cli.pods import Probe, ProcessPlan, ReplicaPlan, Role
from weir_cli.records import is_alive, started_ticks
from weir_cli.replica import Phase, Replica

STUB: Final = Path(__file__).with_name("stub_pod.py")
ADDRESS: Final = "127.0.2.1"
ALIVE: Final = Probe("/healthz", 8001, period_s=0.1, timeout_s=3, failure_threshold=2)


def process(folder: Path, name: str, role: Role, **more: object) -> ProcessPlan:
    stub = "fetch" if name == "model" else name
    argv = (sys.executable, "-S", str(STUB), stub, str(folder), ADDRESS)
    return ProcessPlan(name=name, role=role, argv=argv, env={}, **more)  # type: ignore[arg-type]


def pod(folder: Path, liveness: Probe | None) -> ReplicaPlan:
    """Return a pod like the operator's: fetch, sidecar, engine with a preStop."""
    up = Probe("/healthz", 8001, period_s=0.1, timeout_s=1, failure_threshold=100)
    drain = (sys.executable, "-S", str(STUB), "drain", str(folder))
    return ReplicaPlan(
        name="chat-1",
        service="chat",
        pool="default",
        address=ADDRESS,
        processes=(
            process(folder, "model", "init"),
            process(folder, "sidecar", "sidecar", startup=up, liveness=liveness),
            process(folder, "engine", "main", pre_stop=drain),
        ),
        grace_period_s=5.0,
        directories=(folder / "run",),
    )


class Started:
    """A replica with what it told the user, and what its stubs did."""

    def __init__(self, replica: Replica, folder: Path, told: list[str]) -> None:
        self.replica = replica
        self.folder = folder
        self.told = told

    @property
    def events(self) -> list[str]:
        events = self.folder / "events"
        return events.read_text().splitlines() if events.exists() else []

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"never {what}: {self.told} {self.events}"
            await asyncio.sleep(0.02)

    async def until_ready(self) -> None:
        await self.until(lambda: self.replica.ready, "ready")

    async def end(self) -> None:
        await self.replica.end(time.monotonic() + 5)


@pytest.fixture
async def started(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Started]:
    """Return a replica that is not started yet; whatever it runs is killed at the end.

    Its sidecar has the liveness probe that a test gives as the parameter, or none.
    """
    told: list[str] = []
    logs = tmp_path / "logs"
    logs.mkdir()
    async with aiohttp.ClientSession() as http:
        around = Surroundings(http, logs, os.environ, told.append)
        replica = Replica(pod(tmp_path, getattr(request, "param", None)), tmp_path, around)
        yield Started(replica, tmp_path, told)
        replica.kill()
        await replica.end(time.monotonic())


async def test_starts_and_ends_in_the_order_of_the_pod(started: Started) -> None:
    started.replica.start()
    await started.until_ready()
    processes = started.replica.record.processes
    await started.end()
    assert started.events == [
        "fetch done",
        "sidecar up",
        "engine up",
        "drain done",
        "engine done",
        "sidecar done",
    ]
    assert [p.name for p in processes] == ["chat-1/sidecar", "chat-1/engine"]
    assert not any(map(is_alive, processes))
    assert started.replica.phase is Phase.STOPPED
    assert started.told == []


async def test_a_killed_engine_comes_back_while_the_sidecar_stays(started: Started) -> None:
    started.replica.start()
    await started.until_ready()
    sidecar, engine = started.replica.record.processes
    (started.folder / "engine-up").unlink()
    os.kill(engine.pid, signal.SIGKILL)
    await started.until(lambda: started.replica.phase is Phase.RESTARTING, "restarting")
    await started.until_ready()
    record = started.replica.record
    assert record.restarts == 1
    assert record.processes[0] == sidecar
    assert record.processes[1] != engine
    assert "chat-1/engine killed by SIGKILL; starting it again in 1 s" in started.told[0]
    await started.end()


async def test_an_engine_is_restarted_by_the_verdict_of_its_liveness_probe(
    tmp_path: Path,
) -> None:
    plan = pod(tmp_path, None)
    command = (sys.executable, "-S", str(STUB), "alive", str(tmp_path))
    alive = Probe("", 0, period_s=0.05, timeout_s=20, failure_threshold=2, command=command)
    *others, engine = plan.processes
    told: list[str] = []
    async with aiohttp.ClientSession() as http:
        around = Surroundings(http, tmp_path / "logs", os.environ, told.append)
        plan = dataclasses.replace(
            plan, processes=(*others, dataclasses.replace(engine, liveness=alive))
        )
        started = Started(Replica(plan, tmp_path, around), tmp_path, told)
        try:
            started.replica.start()
            await started.until_ready()
            await started.until(lambda: started.events.count("alive done") >= 3, "probed")
            assert told == []
            (tmp_path / "fail-alive").touch()
            await started.until(lambda: len(told) > 0, "told")
            assert told[0] == "chat-1/engine: does not answer its liveness probe; ending it"
            (tmp_path / "fail-alive").unlink()
            await started.until(lambda: started.replica.record.restarts == 1, "restarted")
        finally:
            started.replica.kill()
            await started.replica.end(time.monotonic())


@pytest.mark.parametrize("started", [ALIVE], indirect=True)
async def test_a_sidecar_that_hangs_is_started_again_while_the_engine_stays(
    started: Started,
) -> None:
    started.replica.start()
    await started.until_ready()
    sidecar, engine = started.replica.record.processes
    (started.folder / "hang").touch()
    await started.until(lambda: len(started.told) > 0, "noticed")
    (started.folder / "hang").unlink()
    assert started.told[0] == "chat-1/sidecar: does not answer its liveness probe; ending it"
    await started.until(lambda: started.replica.record.restarts == 1, "started again")
    await started.until_ready()
    assert not is_alive(sidecar)
    assert is_alive(engine)
    await started.end()


async def test_a_probe_without_a_file_left_to_ask_with_says_nothing_of_the_process(
    started: Started,
) -> None:
    probe = Probe("/healthz", 8001, period_s=1, timeout_s=5, failure_threshold=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with aiohttp.ClientSession() as http:
        assert await ask(http, ADDRESS, probe) is False
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            assert await ask(http, ADDRESS, probe) is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_shows_the_end_of_the_log_of_an_engine_that_cannot_start(started: Started) -> None:
    (started.folder / "fail-engine").touch()
    started.replica.start()
    await started.until(lambda: len(started.told) == 2, "told twice")
    assert [told.splitlines() for told in started.told] == [
        [
            f"chat-1/engine exited with 7; starting it again in {wait_s} s",
            "    engine cannot start: no such thing",
            f"    log: {started.folder}/logs/chat-1.engine.log",
        ]
        for wait_s in (1, 2)
    ]
    await started.end()


async def test_an_engine_that_cannot_be_started_for_now_ends_nothing(started: Started) -> None:
    log = started.folder / "logs" / "chat-1.engine.log"
    log.mkdir()  # stands for a disk or a process table that is full
    started.replica.start()
    await started.until(lambda: len(started.told) == 2, "told")
    assert started.told[0].startswith("chat-1/engine cannot be started: ")
    assert started.told[1].startswith("chat-1/engine exited with 127; starting it again in 1 s")
    assert started.replica.failure is None
    log.rmdir()
    await started.until_ready()
    await started.end()


async def test_logs_have_a_folder_although_someone_removed_it(started: Started) -> None:
    (started.folder / "logs").rmdir()
    started.replica.start()
    await started.until_ready()
    await started.end()


async def test_gives_up_a_fetch_that_keeps_failing(started: Started) -> None:
    (started.folder / "fail-fetch").touch()
    started.replica.start()
    assert started.replica.failure is None
    await started.until(lambda: started.replica.failure is not None, "given up")
    assert started.replica.failure is not None
    want = "chat-1/model failed 3 times in a row: fetch cannot start: no such thing; its log: "
    assert started.replica.failure.startswith(want)
    assert started.replica.phase is Phase.FETCHING
    await started.end()
    assert started.events == []


async def test_gives_up_at_once_what_has_to_be_edited_first(started: Started) -> None:
    (started.folder / "refuse-fetch").touch()
    started.replica.start()
    await started.until(lambda: started.replica.failure is not None, "given up")
    log = f"{started.folder}/logs/chat-1.model.log"
    want = f"chat-1/model cannot start: source.uri: no such model; its log: {log}"
    assert started.replica.failure == want
    assert started.told[0].splitlines()[0] == "chat-1/model exited with 2"
    await started.end()
    assert len(started.told) == 1


async def test_ends_at_once_while_it_still_starts(started: Started) -> None:
    (started.folder / "fail-sidecar").touch()
    started.replica.start()
    await started.until(lambda: "fetch done" in started.events, "fetched")
    async with asyncio.timeout(30):  # its time would be over in an hour
        await started.replica.end(time.monotonic() + 3600)
    assert started.events == ["fetch done"]


async def test_children_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, leash.__file__, sys.executable),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    deadline = time.monotonic() + 10
    while started_ticks(child) is not None:
        assert time.monotonic() < deadline, "the child outlived its parent"
        await asyncio.sleep(0.02)


PARENT: Final = """
import os, subprocess, sys, time
leash, python = sys.argv[1:]
child = subprocess.Popen([python, "-I", leash, str(os.getpid()), python, "-c",
                          "print('up', flush=True); import time; time.sleep(60)"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
