"""`weir top` in a terminal, without one, and beside processes that do not answer."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.local_http import Answer, serving
from weir_cli.__main__ import main
from weir_cli.records import Instance, InstanceRecord, ReplicaRecord, ServiceRecord, record_of
from weir_cli.top_figures import read_page
from weir_cli.top_pages import classes_in, page_of
from weir_core.sched.types import BUILT_IN_CLASSES
from weir_core.wire.policies import PolicyDocument

PATIENCE_S = 60.0
IN_A_TERMINAL = """
import fcntl, termios
from weir_cli.__main__ import main
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the session's own, so that its Ctrl-C is a signal
main(["top"])
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the cache of a `weir up` whose replica is still loading, and answers nothing."""
    own = record_of("weir up", os.getpid())
    assert own is not None
    policies = tmp_path / "policies.json"
    policies.write_bytes(PolicyDocument().encode())
    # No process listens on the address, nor on a port that no process may have.
    replica = ReplicaRecord(name="chat-1", pool="cpu", address="127.255.255.254", phase="waiting")
    service = ServiceRecord(
        name="chat",
        model="tiny",
        url="http://127.255.255.254:1",
        policies_file=str(policies),
        replicas=(replica,),
    )
    instance = Instance(tmp_path, 8000)
    with instance.held():
        instance.write(
            InstanceRecord(
                up=own, port=8000, scratch=str(tmp_path), grace_period_s=1, services=(service,)
            )
        )
    return tmp_path


class Terminal:
    """A terminal of 100 columns, and `weir top` in it."""

    def __init__(self, cache: Path) -> None:
        self.screen, self.side = pty.openpty()
        self.resize(100)
        self.before = termios.tcgetattr(self.side)
        self.top = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL],
            stdin=self.side,
            stdout=self.side,
            stderr=self.side,
            env={**os.environ, "WEIR_CACHE": str(cache), "TERM": "xterm"},
            start_new_session=True,
        )

    def see(self, text: str) -> None:
        """Read the screen until `text` is on it."""
        seen, deadline = "", time.monotonic() + PATIENCE_S
        while text not in seen:
            left = deadline - time.monotonic()
            assert select.select([self.screen], [], [], max(0, left))[0], f"only: {seen}"
            seen += os.read(self.screen, 65536).decode(errors="replace")

    def resize(self, columns: int) -> None:
        termios.tcsetwinsize(self.side, (40, columns))

    def press(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def ended(self) -> int:
        """Return the exit code; what is written meanwhile is read, so that nothing waits for it."""
        deadline = time.monotonic() + PATIENCE_S
        while self.top.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.screen], [], [], 0.05)[0]:
                os.read(self.screen, 65536)
        return self.top.returncode

    def close(self) -> None:
        if self.top.poll() is None:
            self.top.kill()
            self.top.wait(PATIENCE_S)
        os.close(self.screen)
        os.close(self.side)


@pytest.fixture
def terminal(cache: Path) -> Iterator[Terminal]:
    with closing(Terminal(cache)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        pytest.param(lambda terminal: terminal.press("q"), 0, id="q"),
        pytest.param(lambda terminal: terminal.press("\x03"), 0, id="Ctrl-C"),
        pytest.param(lambda terminal: terminal.top.send_signal(signal.SIGTERM), 143, id="SIGTERM"),
    ],
)
def test_gives_the_terminal_back(terminal: Terminal, leave: Any, code: int) -> None:
    terminal.see("interactive")
    assert termios.tcgetattr(terminal.side) != terminal.before
    leave(terminal)
    assert terminal.ended() == code
    assert termios.tcgetattr(terminal.side) == terminal.before


def test_keys_act_in_the_terminal(terminal: Terminal) -> None:
    terminal.see("order: name")
    terminal.press("o")
    terminal.see("order: waiting")
    terminal.press("s")
    terminal.see("service: chat")


def test_a_wider_terminal_shows_more(terminal: Terminal) -> None:
    terminal.resize(40)
    terminal.see("chat-1")
    terminal.resize(160)
    terminal.see("PROMPT/S")


def test_ends_when_nothing_runs_any_more(terminal: Terminal, cache: Path) -> None:
    terminal.see("chat-1")
    Instance(cache, 8000).forget()
    assert terminal.ended() == 3


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code or 0, capsys.readouterr().out


@pytest.mark.parametrize("how", [["--once"], []], ids=["asked for", "no terminal"])
def test_prints_one_frame(
    how: list[str],
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEIR_CACHE", str(cache))
    code, shown = run(["top", *how], capsys)
    assert code == 0
    lines = [line.split() for line in shown.splitlines()]
    assert next(x for x in lines if "chat-1" in x)[:3] == ["chat", "chat-1", "waiting"]
    assert "answer" in next(x for x in lines if "chat-gateway" in x)
    assert [x[1] for x in lines if x[:1] == ["chat"]][-3:] == ["interactive", "standard", "batch"]


def test_of_nothing_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIR_CACHE", str(tmp_path))
    nothing = (3, "nothing runs; start something with: weir up FILE\n")
    assert run(["top", "--once"], capsys) == nothing


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        pytest.param(Answer(200, b"weir_queue_requests 1\n"), {"weir_queue_requests": 1}, id="one"),
        pytest.param(Answer(404, b"no"), {}, id="a gateway that shows none here"),
        pytest.param(Answer(200, b"vllm:generation_tokens_total x\n"), None, id="not a page"),
        pytest.param(Answer(200, b"weir_", length=100), None, id="half a page"),
    ],
)
def test_reads_a_page_of_metrics(answer: Answer, want: dict[str, float] | None) -> None:
    with serving(lambda _: answer) as url:
        page = page_of("127.0.0.1", int(url.rpartition(":")[2]))
    assert (page if page is None else {one.name: n for one, n in page.items()}) == want


def test_does_not_wait_for_a_process_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        assert page_of("127.0.0.1", hangs.getsockname()[1], timeout_s=0.1) is None


@pytest.mark.parametrize(
    ("held", "want"),
    [
        pytest.param(PolicyDocument().encode(), BUILT_IN_CLASSES, id="the built-in classes"),
        pytest.param(
            PolicyDocument(classes=BUILT_IN_CLASSES[:2]).encode(),
            BUILT_IN_CLASSES[:2],
            id="its own",
        ),
        pytest.param(b"{", (), id="not readable"),
    ],
)
def test_reads_the_classes(held: bytes, want: Any, tmp_path: Path) -> None:
    path = tmp_path / "policies.json"
    path.write_bytes(held)
    assert classes_in(path) == want


def test_what_is_not_shown_of_a_page_is_not_read() -> None:
    assert read_page("weir_engine_up 1\n}{\n") == {}
