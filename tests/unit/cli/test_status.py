"""`weir status` shows what each replica's engine is and has, and who waits for it."""

from __future__ import annotations

import io
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from weir_cli.records import (
    Instance,
    InstanceRecord,
    ProcessRecord,
    ScalingRecord,
    ServiceRecord,
    record_of,
)
from weir_cli.show import WIDEST, down, facts_of, load_of, scheduler_note, state_of, status
from weir_core.errors import MachineUnfit


def state(**waiting: int) -> dict[str, Any]:
    classes = [{"name": name, "rank": 0, "waiting": count} for name, count in waiting.items()]
    return {"scheduling": {"at_engine": 3, "classes": classes}}


@pytest.mark.parametrize(
    ("said", "want"),
    [
        pytest.param(state(interactive=0, batch=57), ("3", "batch 57"), id="one class waits"),
        pytest.param(state(a=1, b=2), ("3", "a 1, b 2"), id="two classes wait"),
        pytest.param(state(interactive=0), ("3", "0"), id="nobody waits"),
        pytest.param({"scheduling": None}, ("-", "-"), id="the engine is loading"),
        pytest.param(None, ("-", "-"), id="the sidecar does not answer"),
        pytest.param(["strange"], ("-", "-"), id="something else answers"),
    ],
)
def test_shows_the_load(said: Any, want: tuple[str, str]) -> None:
    assert load_of(said) == want


def engine(kind: str, fallback: str = "") -> dict[str, Any]:
    bounds = dict.fromkeys(("max_num_seqs", "max_num_batched_tokens", "kv_capacity_tokens"), 1)
    return {
        "pod": "chat-1",
        "scheduling": {"engine": {"kind": kind, "fallback": fallback, **bounds}},
    }


@pytest.mark.parametrize(
    ("said", "want"),
    [
        pytest.param(engine("weir"), "", id="Weir's scheduler"),
        pytest.param(
            engine("priority", "chunked prefill is off"),
            "chat-1: runs vLLM's own priority scheduler: chunked prefill is off",
            id="a fallback, in the engine's words",
        ),
        pytest.param(
            engine("fcfs"),
            "chat-1: runs vLLM's own fcfs scheduler: it says nothing of itself; is its image a "
            "Weir engine?",
            id="an engine that is not Weir's",
        ),
        pytest.param({"pod": "chat-1", "scheduling": None}, "", id="the engine is loading"),
        pytest.param(None, "", id="the sidecar does not answer"),
    ],
)
def test_says_why_weirs_scheduler_is_not_in_use(said: Any, want: str) -> None:
    assert scheduler_note("chat-1", facts_of(said)) == want


class _State(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"pod": "chat-0"}')

    def log_message(self, *_: object) -> None:
        pass


class _AtSocket(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return self.socket.accept()[0], ("", 0)


def test_replicas_are_asked_at_their_own_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    with _AtSocket(path, _State) as server:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert state_of(path) == {"pod": "chat-0"}
        server.shutdown()


@pytest.mark.parametrize("path", ["", "/nowhere/admin.sock"], ids=["no path", "no socket"])
def test_a_replica_without_a_sidecar_says_nothing(path: str) -> None:
    assert state_of(path) is None


@pytest.mark.parametrize(
    ("reason", "phase"),
    [
        pytest.param("Asleep", "asleep", id="asleep"),
        pytest.param("Woken", "-", id="woken, and its first replica is not there yet"),
    ],
)
def test_only_what_sleeps_is_shown_as_asleep(reason: str, phase: str, tmp_path: Path) -> None:
    scaling = ScalingRecord(replicas=0, reason=reason, message="0 replicas")
    served = ServiceRecord(name="chat", model="m", url="http://127.0.0.1", scaling=scaling)
    up = record_of("weir up", os.getpid())
    assert up is not None
    state = InstanceRecord(
        up=up, port=8000, scratch=str(tmp_path / "s"), grace_period_s=1, services=(served,)
    )
    instance = Instance(tmp_path, 8000)
    told = io.StringIO()
    with instance.held():
        instance.write(state)
        assert status(tmp_path, Console(file=told, width=WIDEST)) == 0
    assert told.getvalue().splitlines()[1].split()[:3] == ["chat", "-", phase]


def test_down_leaves_the_record_of_an_up_that_it_cannot_read(tmp_path: Path) -> None:
    instance = Instance(tmp_path, 8000)
    with instance.held():
        state = instance.directory / "state.json"
        state.write_text('{"of": "another version"}')
        with pytest.raises(MachineUnfit, match="stop it where it was started"):
            down(tmp_path, Console(file=io.StringIO()), None)
        assert state.exists()
    assert down(tmp_path, Console(file=io.StringIO()), None) == 0
    assert not state.exists()


def test_down_touches_nothing_of_an_up_that_began_meanwhile(tmp_path: Path) -> None:
    ended = ProcessRecord(name="weir up", pid=2**22 + 1, started_ticks=1)
    state = InstanceRecord(up=ended, port=8000, scratch=str(tmp_path / "s"), grace_period_s=1)
    instance = Instance(tmp_path, 8000)
    with instance.held():
        instance.write(state)
        assert down(tmp_path, Console(file=io.StringIO()), None) == 0
        assert instance.read() == state
