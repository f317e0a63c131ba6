"""What the user sees while `weir up` runs.

On a terminal the replicas are a small table that stays in place while engines load; elsewhere,
and once everything is ready, each change is one line. Notices (a crash with the end of its log)
come in between and are never drawn over. What serves does not depend on being shown: a terminal may
be closed, a disk full.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from weir_cli.replica import Phase

REPEAT_S = 15.0
"""Without a terminal, a replica that is still at it says so this often."""


def plain(text: str) -> str:
    """Return text without characters that terminals take as commands.

    Clients choose names of models, and some of tenants; engines log what clients sent.
    """
    return "".join(
        each if each.isprintable() or each == "\t" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


@dataclass(frozen=True)
class Row:
    """One replica, as it is shown."""

    name: str
    address: str
    phase: Phase
    seconds: float
    """Time in this phase."""
    restarts: int = 0


class Display:
    """Draws rows and notices on a console."""

    def __init__(self, console: Console) -> None:
        console.file = cast(IO[str], _Unfailing(console.file))
        self.console = console
        self._live: Live | None = None
        self._shown: dict[str, tuple[Phase, float]] = {}

    def begin(self) -> None:
        """Show the table from now on, if there is a terminal."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=8)
            self._live.start()

    def end(self) -> None:
        """Take the table away; changes become lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def notice(self, text: str) -> None:
        """Print something that happened."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print a line with markup of our own."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def update(self, rows: Sequence[Row]) -> None:
        """Show where the replicas stand."""
        if self._live is not None:
            self._live.update(_table(rows))
        for row in rows:
            text = self._news(row)
            if text and self._live is None:
                self.notice(text)

    def _news(self, row: Row) -> str | None:
        """Return a line about a row that changed, or that has long not changed."""
        phase, said_s = self._shown.get(row.name, (None, 0.0))
        if phase is row.phase:
            busy = row.phase in {Phase.FETCHING, Phase.LOADING, Phase.DRAINING}
            if not busy or row.seconds - said_s < REPEAT_S:
                return None
            self._shown[row.name] = (row.phase, row.seconds)
            return f"{row.name}: still {row.phase.value} ({row.seconds:.0f} s)"
        self._shown[row.name] = (row.phase, row.seconds)
        return None if row.phase is Phase.WAITING else f"{row.name}: {row.phase.value}"


class _Unfailing:
    """A file that takes everything, and loses what cannot be written."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            try:
                self._file.write(text)
            except UnicodeEncodeError as error:  # the terminal's alphabet is smaller than ours
                shown = text.encode(error.encoding, "backslashreplace")
                self._file.write(shown.decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _table(rows: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(_mark(row), row.name, f"[dim]{row.address}[/]", _state(row))
    return table


def _mark(row: Row) -> Spinner | str:
    if row.phase is Phase.READY:
        return "[green]✔[/]"
    if row.phase is Phase.WAITING:
        return "[dim]·[/]"
    return Spinner("dots")


def _state(row: Row) -> str:
    state = {Phase.READY: "[green]ready[/]", Phase.RESTARTING: "[yellow]restarting[/]"}
    text = state.get(row.phase, row.phase.value)
    if row.phase not in {Phase.READY, Phase.WAITING}:
        text += f" [dim]{row.seconds:.0f} s[/]"
    if row.restarts:
        text += f" [yellow]({row.restarts} restarts)[/]"
    return text
