"""`weir top`: what `weir up` serves on this machine, live in a terminal, or one frame of it."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from weir_cli.show import EXIT_NOTHING_RUNS, NOTHING_RUNS, STATE_TIMEOUT_S, alive
from weir_cli.top_figures import Choice, Service, picture, pressed
from weir_cli.top_pages import METRICS_TIMEOUT_S, WINDOW_S, Readers
from weir_cli.top_view import KEYS, draw

REDRAW_S: Final = 0.5
POLL_S: Final = 0.05
EXIT_TERMINATED: Final = 128 + signal.SIGTERM
NO_KEY: Final = ""
QUIT: Final = "q"


def once(cache: Path, console: Console, interval_s: float) -> int:
    """Print one frame, with rates over one interval; return 0, or 3 when nothing runs."""
    readers = Readers(interval_s)
    try:
        running = alive(cache)
        readers.services(running)
        _wait_until_read(readers, interval_s)
        services = readers.services(running)
    finally:
        readers.stop()
    if not services:
        console.print(NOTHING_RUNS, highlight=False)
        return EXIT_NOTHING_RUNS
    chosen = Choice()
    shown = picture(services, chosen, _heard_since_s(interval_s), since_start=True)
    console.print(draw(shown, chosen, "since the start of each process", console.width))
    return 0


def _wait_until_read(readers: Readers, interval_s: float) -> None:
    """Wait for two readings of each process; one that hangs is waited for no longer than the rest.

    Its reading is not there, and so it is shown as silent.
    """
    deadline = time.monotonic() + interval_s + 2 * (STATE_TIMEOUT_S + METRICS_TIMEOUT_S)
    while not readers.have_read(2) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def live(cache: Path, console: Console, interval_s: float) -> int:
    """Show frames until the user quits; return 0, or 3 when nothing runs (any more)."""
    readers = Readers(interval_s)
    chosen = Choice()
    try:
        with _ends_on_sigterm(), _Keys() as keys, _screen(console) as screen:
            while services := readers.services(alive(cache)):
                screen.update(_frame(services, chosen, interval_s, console.width), refresh=True)
                key = keys.wait(REDRAW_S)
                if key == QUIT:
                    return 0
                chosen = pressed(chosen, key, services)
    except KeyboardInterrupt:
        return 0
    finally:
        readers.stop()
    console.print(NOTHING_RUNS, highlight=False)
    return EXIT_NOTHING_RUNS


def _heard_since_s(interval_s: float) -> float:
    """Return when a process that answers has answered; one read may fail, or take its time."""
    return time.monotonic() - 2 * interval_s - METRICS_TIMEOUT_S


def _screen(console: Console) -> Live:
    return Live(console=console, screen=True, auto_refresh=False)


def _frame(services: list[Service], chosen: Choice, interval_s: float, width: int) -> Group:
    shown = picture(services, chosen, _heard_since_s(interval_s), since_start=False)
    window = f"counts over the last {WINDOW_S:.0f} s"
    return Group(draw(shown, chosen, window, width), Text(KEYS, style="bold"))


class _Keys:
    """Keys as they are pressed, without Enter and without an echo, where stdin is a terminal.

    The terminal is as before when the block ends, whatever ended it.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdin.fileno() if sys.stdin.isatty() else None

    def __enter__(self) -> _Keys:
        if self._terminal is not None:
            self._before = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal is not None:
            with suppress(termios.error):  # of a terminal that was closed
                termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._before)

    def wait(self, limit_s: float) -> str:
        """Return the next key, or none after `limit_s`; a terminal that was closed quits."""
        if self._terminal is None:
            time.sleep(limit_s)
            return NO_KEY
        if not select.select([self._terminal], [], [], limit_s)[0]:
            return NO_KEY
        try:
            return os.read(self._terminal, 1).decode(errors="replace") or QUIT
        except OSError:
            return QUIT


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Leave by an exception on SIGTERM, so that the terminal is given back."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
