"""Without a terminal each change is one line; on one the replicas are a table."""

from __future__ import annotations

import io
import os
import pty
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from rich.console import Console

from weir_cli.display import Display, Row
from weir_cli.replica import Phase


def row(phase: Phase, seconds: float) -> Row:
    return Row("chat-1", "127.0.1.1", phase, seconds)


def test_without_a_terminal_each_change_is_a_line_and_long_waits_say_so() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=100))
    display.begin()
    for shown in [
        row(Phase.WAITING, 0),
        row(Phase.FETCHING, 0),
        row(Phase.FETCHING, 1),
        row(Phase.LOADING, 0),
        row(Phase.LOADING, 14),
        row(Phase.LOADING, 16),
        row(Phase.LOADING, 20),
        row(Phase.READY, 0),
        row(Phase.READY, 100),
    ]:
        display.update([shown])
    display.notice("engine [1] exited")
    display.end()
    assert out.getvalue().splitlines() == [
        "chat-1: fetching the model",
        "chat-1: loading the engine",
        "chat-1: still loading the engine (16 s)",
        "chat-1: ready",
        "engine [1] exited",
    ]


def test_on_a_terminal_the_table_shows_each_replica_and_how_long_it_has_been_at_it() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=100, force_terminal=True, _environ={}))
    display.begin()
    display.update([row(Phase.LOADING, 12.3), Row("chat-2", "127.0.1.2", Phase.READY, 1, 2)])
    deadline = time.monotonic() + 5
    while "chat-2" not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    display.end()
    shown = Console(file=io.StringIO()).render_str(out.getvalue()).plain
    assert "loading the engine" in shown
    assert "12 s" in shown
    assert "(2 restarts)" in shown


def closed_terminal() -> int:
    ours, theirs = pty.openpty()
    os.close(ours)
    return theirs


def pipe_without_a_reader() -> int:
    theirs, ours = os.pipe()
    os.close(theirs)
    return ours


@pytest.mark.parametrize("gone", [closed_terminal, pipe_without_a_reader])
@pytest.mark.parametrize("live", [True, False])
def test_what_nobody_can_read_any_more_ends_nothing(gone: Callable[[], int], live: bool) -> None:
    out = os.fdopen(gone(), "w")
    display = Display(Console(file=out, force_terminal=live))
    display.begin()
    display.update([row(Phase.LOADING, 1)])
    display.notice("draining")
    display.line("[bold]done[/]")
    display.end()
    with suppress(OSError):  # it still holds what it could not write
        out.close()


def test_what_the_terminal_has_no_letters_for_ends_nothing() -> None:
    raw = io.BytesIO()
    display = Display(Console(file=io.TextIOWrapper(raw, "ascii"), force_terminal=False))
    display.notice("schlüssel.yaml: \ud800")
    display.console.file.flush()
    assert raw.getvalue() == b"schl\\xfcssel.yaml: \\ud800\n"
