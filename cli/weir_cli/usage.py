"""`weir usage`: who used how much, summed from the lines of access logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weir_cli import records
from weir_cli.display import plain
from weir_cli.show import NOTHING_RUNS, alive
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import InvalidSpec, MachineUnfit
from weir_core.units import parse_duration
from weir_core.wire.access import EVENT, AccessLine

STDIN: Final = Path("-")
DEFAULT_BY: Final = "tenant,class,model"
UNKNOWN: Final = "-"
_MARK: Final = f'"{EVENT}"'.encode()
_HOUR_S: Final = 3600.0
_COLUMNS: Final[Mapping[str, Callable[[AccessLine], str]]] = {
    "tenant": lambda line: line.tenant,
    "class": lambda line: line.class_name,
    "model": lambda line: line.model,
    "adapter": lambda line: line.adapter,
    "service": lambda line: line.service,
    "pool": lambda line: line.pool,
    "replica": lambda line: line.replica,
}
Costs = Mapping[tuple[str, str], float]
"""What a replica costs for an hour, by service and pool; 1 where it is not said."""


class _Event(msgspec.Struct):
    """A line of any JSON log."""

    event: str = ""


class Used(msgspec.Struct):
    """What one group of requests used."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    engine_s: float = 0.0
    cost: float = 0.0

    def add(self, line: AccessLine, hourly_cost: float) -> None:
        """Count a line."""
        engine_s = line.engine_s or 0.0
        self.requests += not line.forwarded
        self.prompt_tokens += line.prompt_tokens
        self.cached_tokens += line.cached_tokens or 0
        self.output_tokens += line.output_tokens
        self.queue_s += line.queue_s or 0.0
        self.engine_s += engine_s
        self.cost += engine_s / _HOUR_S * hourly_cost


class Sums:
    """Adds lines up.

    Args:
        by: Columns whose values tell the groups apart.
        since: Lines of requests that ended earlier do not count.
        costs: Of the pools.

    Attributes:
        groups: What was used, by the values of the columns.
        older: Lines of requests that ended before `since`.
        bad: Lines of an access log that cannot be read.
        inexact: Lines whose tokens are not the engine's own figures.
    """

    def __init__(self, by: Sequence[str], since: datetime | None, costs: Costs) -> None:
        self.groups: dict[tuple[str, ...], Used] = {}
        self.older = self.bad = self.inexact = 0
        self._columns = [_COLUMNS[name] for name in by]
        self._since = since
        self._costs = costs

    def add(self, text: bytes) -> None:
        """Count a line of a log; what is not of the access log is passed over."""
        start = text.find(b"{")
        if start < 0 or _MARK not in text:
            return
        try:
            if msgspec.json.decode(text[start:], type=_Event).event != EVENT:
                return
            line = msgspec.json.decode(text[start:], type=AccessLine)
            ended = _instant(line.time)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            self.bad += 1
            return
        if self._since is not None and ended < self._since:
            self.older += 1
            return
        values = tuple(column(line) for column in self._columns)
        used = self.groups.setdefault(values, Used())
        used.add(line, self._costs.get((line.service, line.pool), 1.0))
        here = line.executed_by and line.executed_by == line.replica
        self.inexact += bool(here and not line.exact)

    @property
    def total(self) -> Used:
        """What all groups used together."""
        total = Used()
        for used in self.groups.values():
            for name in Used.__struct_fields__:
                setattr(total, name, getattr(total, name) + getattr(used, name))
        return total


def columns_of(text: str) -> tuple[str, ...]:
    """Read `--by`.

    Raises:
        InvalidSpec: It names something else than columns, or one twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    for number, name in enumerate(names):
        if name not in _COLUMNS or name in names[:number]:
            known = ", ".join(_COLUMNS)
            raise InvalidSpec("--by", f"{name!r}: write some of {known}, each once, with commas")
    return names


def since_of(text: str, now: datetime) -> datetime | None:
    """Read `--since`: how long ago the requests ended, at most.

    Raises:
        InvalidSpec: It is no duration.
    """
    if not text:
        return None
    try:
        return now - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as error:
        raise InvalidSpec("--since", str(error)) from None


def costs_of(services: Iterable[InferenceService]) -> Costs:
    """Return what a replica of each pool costs for an hour."""
    return {
        (service.metadata.name, pool.name): pool.hourly_cost
        for service in services
        for pool in service.spec.pools
    }


def lines_of(paths: Sequence[Path], cache: Path) -> Iterator[bytes]:
    """Yield the lines of the files; without files, those of what `weir up` serves.

    Raises:
        MachineUnfit: There are no files, and nothing runs.
        OSError: A file cannot be read.
    """
    for path in paths or _logs(cache):
        if path == STDIN:
            yield from sys.stdin.buffer
        else:
            with path.open("rb") as log:
                yield from log


def _logs(cache: Path) -> list[Path]:
    running = alive(cache)
    if not running:
        raise MachineUnfit(f"no FILE is named, and {NOTHING_RUNS}")
    folders = [records.Instance(cache, record.port).logs for record in running]
    return [path for folder in folders for path in sorted(folder.glob("*.log*"))]


def show(sums: Sums, by: Sequence[str], console: Console) -> None:
    """Print a table, the greatest use of engines first."""
    total = sums.total
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in by:
        table.add_column(name.upper(), no_wrap=True)
    for name in _NUMBERS:
        table.add_column(name, no_wrap=True, justify="right")
    for values, used in _ordered(sums):
        table.add_row(*(Text(plain(value) or UNKNOWN) for value in values), *_cells(used, total))
    if len(sums.groups) > 1:
        table.add_row("TOTAL", *("" for _ in by[1:]), *_cells(total, total))
    if sums.groups:
        console.print(table)
        console.print(
            "COST is engine hours times pools[].cost; 1 for an hour where no file of --spec says "
            "it.",
            highlight=False,
            soft_wrap=True,
        )
    else:
        text = f"no request since then; before it: {sums.older} lines" if sums.older else _HOW
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for note in _notes(sums):
        console.print(note, highlight=False, soft_wrap=True)


def as_json(sums: Sums, by: Sequence[str]) -> bytes:
    """Return the sums as JSON."""
    groups = [
        dict(zip(by, values, strict=True)) | msgspec.to_builtins(used)
        for values, used in _ordered(sums)
    ]
    total: dict[str, object] = msgspec.to_builtins(sums.total)
    found = {"groups": groups, "total": total, "bad_lines": sums.bad, "inexact": sums.inexact}
    return msgspec.json.format(msgspec.json.encode(found), indent=2)


_HOW: Final = """\
no line of an access log: sidecars write none unless the spec asks for it. Add

spec:
  podTemplate:
    spec:
      initContainers:
        - name: sidecar
          env: [{name: WEIR_ACCESS_LOG, value: "1"}]

and start `weir up` again, or apply it, which replaces the pods. Later requests are counted."""
_NUMBERS: Final = (
    *("REQUESTS", "PROMPT", "CACHED", "OUTPUT"),
    *("QUEUE S", "ENGINE S", "SHARE", "COST"),
)


def _cells(used: Used, total: Used) -> tuple[str, ...]:
    share = f"{100 * used.engine_s / total.engine_s:.1f}%" if total.engine_s else UNKNOWN
    return (
        str(used.requests),
        str(used.prompt_tokens),
        str(used.cached_tokens),
        str(used.output_tokens),
        f"{used.queue_s:.1f}",
        f"{used.engine_s:.3f}",
        share,
        f"{used.cost:.4f}",
    )


def _ordered(sums: Sums) -> list[tuple[tuple[str, ...], Used]]:
    return sorted(sums.groups.items(), key=lambda each: (-each[1].engine_s, each[0]))


def _notes(sums: Sums) -> Iterator[str]:
    if sums.inexact:
        yield f"requests whose tokens are not all the engine's own figures: {sums.inexact}"
    if sums.bad:
        yield f"lines that could not be read, and do not count: {sums.bad}"


def _instant(text: str) -> datetime:
    """Read a line's time.

    Raises:
        ValueError: It is none.
    """
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
