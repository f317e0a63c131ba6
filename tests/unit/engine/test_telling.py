"""The sockets between engine and sidecar, on real sockets."""

from __future__ import annotations

import socket
from pathlib import Path

from weir_core.wire.policies import EngineMode
from weir_core.wire.steps import Facts, Step, decode_step
from weir_engine.scheduling.telling import ModeReader, StepSender, write_facts


def reader(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(str(path))
    bound.setblocking(False)
    return bound


def test_a_step_reaches_the_sidecar_and_the_one_after_its_restart(tmp_path: Path) -> None:
    path = tmp_path / "steps.sock"
    sender = StepSender(path)
    assert not sender.send(Step(seq=1, duration_s=0.01))  # nobody is there yet
    with reader(path) as first:
        assert sender.send(Step(seq=2, duration_s=0.01))
        assert decode_step(first.recv(4096)).seq == 2
    sender.send(Step(seq=3, duration_s=0.01))  # the socket is there, its reader is gone
    path.unlink()
    with reader(path) as second:
        sender.send(Step(seq=4, duration_s=0.01))
        assert decode_step(second.recv(4096)).seq == 4
    sender.close()


def test_a_reader_that_stalls_costs_steps_and_never_a_wait(tmp_path: Path) -> None:
    path = tmp_path / "steps.sock"
    sender = StepSender(path)
    with reader(path) as stalled:
        for seq in range(1, 10_001):
            sender.send(Step(seq=seq, duration_s=0.01))
        assert decode_step(stalled.recv(4096)).seq == 1
    sender.close()


def test_facts_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    facts = Facts("weir", 256, 8192, 131_072, "0.32.0")
    write_facts(facts, tmp_path / "engine.json")
    assert [path.name for path in tmp_path.iterdir()] == ["engine.json"]
    assert Facts.decode((tmp_path / "engine.json").read_bytes()) == facts


def test_the_newest_mode_counts_and_nonsense_does_not(tmp_path: Path) -> None:
    path = tmp_path / "mode.sock"
    path.write_text("what an earlier engine left")
    modes = ModeReader(path)
    assert modes.newest() is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        for text in (b'{"mode": "throughput"}', b'{"mode": "custom"}', b"{", b'{"mode": 3}'):
            sidecar.sendto(text, str(path))
    assert modes.newest() == EngineMode(mode="custom")
    assert modes.newest() is None
    modes.close()


def test_a_mode_is_passed_on_to_the_other_ranks(tmp_path: Path) -> None:
    other = ModeReader(tmp_path / "mode.1.sock")
    first = ModeReader(tmp_path / "mode.sock", (tmp_path / "mode.1.sock", tmp_path / "gone"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        sidecar.sendto(b'{"mode": "throughput"}', str(tmp_path / "mode.sock"))
    assert first.newest() == other.newest() == EngineMode(mode="throughput")
    first.close()
    other.close()
