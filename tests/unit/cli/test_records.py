"""What a run writes down names processes so that no stranger is ever signalled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from weir_cli import records
from weir_cli.records import Instance, InstanceRecord, ProcessRecord, ReplicaRecord, ServiceRecord
from weir_core.errors import MachineUnfit


def own_record() -> ProcessRecord:
    record = records.record_of("test", os.getpid())
    assert record is not None
    return record


def instance_record(scratch: Path, *children: ProcessRecord) -> InstanceRecord:
    replica = ReplicaRecord(
        name="chat-1", pool="default", address="127.0.1.1", phase="ready", processes=children
    )
    service = ServiceRecord(
        name="chat", model="tiny", url="http://127.0.0.1:8000", replicas=(replica,)
    )
    return InstanceRecord(
        up=own_record(), port=8000, scratch=str(scratch), grace_period_s=1, services=(service,)
    )


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_reads_what_was_written(tmp_path: Path) -> None:
    instance = Instance(tmp_path, 8000)
    record = instance_record(tmp_path / "scratch", own_record())
    with instance.held():
        instance.write(record)
    assert instance.read() == record
    assert [found.port for found in records.instances(tmp_path)] == [8000]


def test_ignores_the_record_of_another_version(tmp_path: Path) -> None:
    instance = Instance(tmp_path, 8000)
    instance.directory.mkdir(parents=True)
    (instance.directory / "state.json").write_text('{"who": "knows"}')
    assert instance.read() is None


def test_reads_the_record_of_a_later_version_that_writes_more(tmp_path: Path) -> None:
    instance = Instance(tmp_path, 8000)
    record = instance_record(tmp_path / "scratch", own_record())
    with instance.held():
        instance.write(record)
    state = instance.directory / "state.json"
    written = json.loads(state.read_text())
    written["services"][0]["replicas"][0]["news"] = 1
    state.write_text(json.dumps({**written, "news": 1}))
    assert instance.read() == record


def test_ignores_a_record_that_a_power_cut_left(tmp_path: Path) -> None:
    instance = Instance(tmp_path, 8000)
    instance.directory.mkdir(parents=True)
    (instance.directory / "state.json").write_bytes(b"\xff\x00\x00")
    assert instance.read() is None


def test_two_cannot_hold_one_port(tmp_path: Path) -> None:
    with (
        Instance(tmp_path, 8000).held(),
        Instance(tmp_path, 8100).held(),
        pytest.raises(MachineUnfit, match="already runs for port 8000; see `weir status`"),
        Instance(tmp_path, 8000).held(),
    ):
        pass
    with Instance(tmp_path, 8000).held():
        pass


def test_a_process_is_its_pid_and_its_start(sleeper: subprocess.Popen[bytes]) -> None:
    record = records.record_of("sleeper", sleeper.pid)
    assert record is not None
    assert records.is_alive(record)
    reused = record.model_copy(update={"started_ticks": record.started_ticks - 1})
    assert not records.is_alive(reused)


def test_ends_leftovers_and_spares_a_stranger_with_a_reused_pid(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    record = records.record_of("sleeper", sleeper.pid)
    assert record is not None
    reused = record.model_copy(update={"started_ticks": record.started_ticks - 1})
    assert records.end_leftovers(instance_record(tmp_path, reused)) == 0
    assert sleeper.poll() is None
    assert records.end_leftovers(instance_record(tmp_path, record)) == 1
    assert sleeper.wait(timeout=10) != 0


def test_a_worker_that_outlives_its_killed_leader_is_ended_too(tmp_path: Path) -> None:
    worker = "import time; print('up', flush=True); time.sleep(60)"
    leader = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {worker!r}])\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", leader], stdout=subprocess.PIPE, process_group=0
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        record = records.record_of("engine", process.pid)
        assert record is not None
        process.kill()
        process.wait(timeout=10)
        assert not records.is_alive(record)
        assert records.group_lives(record)
        records.end_leftovers(instance_record(tmp_path, record), grace_s=0.0)
        assert not records.group_lives(record)
        assert process.stdout.read() == b""  # the worker held its other end


def test_forgetting_removes_the_scratch_and_keeps_the_logs(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    instance = Instance(tmp_path, 8000)
    log = instance.fresh_logs() / "chat.log"
    log.touch()
    instance.write(instance_record(scratch))
    instance.forget()
    assert not scratch.exists()
    assert log.exists()
    assert records.instances(tmp_path) == []
