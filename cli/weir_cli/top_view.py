"""A frame of `weir top` as tables; a narrow terminal leaves out the columns that matter least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from weir_cli.display import plain
from weir_cli.top_figures import Choice, ClassRow, Picture, ReplicaRow

UNKNOWN: Final = "-"
KEYS: Final = "q quit   o order   s service   c class"

Row = TypeVar("Row")


@dataclass(frozen=True)
class _Column(Generic[Row]):
    """A column: its head, its cells, and the narrowest terminal that has it."""

    head: str
    cell: Callable[[Row], str]
    from_width: int = 0
    is_number: bool = False


def draw(picture: Picture, choice: Choice, window: str, width: int) -> RenderableType:
    """Return a frame.

    Args:
        picture: What is in it.
        choice: What the user chose to see.
        window: Which time the counts are of, in words.
        width: Columns of the terminal.
    """
    return Group(
        _header(choice, window),
        Text(),
        _table(_REPLICA_COLUMNS, picture.replicas, width),
        Text(),
        _table(_CLASS_COLUMNS, picture.classes, width),
        Text(),
        Text(
            "TPOT MET is of the requests of all classes: vLLM does not tell them apart.",
            style="dim",
        ),
        *map(Text, picture.notes),
    )


def _header(choice: Choice, window: str) -> Text:
    chosen = (
        f"order: {choice.order}   service: {choice.service or 'all'}   "
        f"class: {choice.class_name or 'all'}"
    )
    return Text.assemble(("weir top", "bold"), f"   {window}   {chosen}")


def _table(columns: Sequence[_Column[Row]], rows: Sequence[Row], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [column for column in columns if column.from_width <= width]
    for column in shown:
        justify = "right" if column.is_number else "left"
        table.add_column(column.head, no_wrap=True, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(plain(column.cell(row))) for column in shown))
    return table


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f}%"


def _seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{1000 * value:.0f}ms" if value < 1 else f"{value:.1f}s"


def _counts(counts: Mapping[str, int]) -> str:
    """Return names and counts, the largest first."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered) or "0"


def _known(row: ReplicaRow, counts: Mapping[str, int]) -> str:
    return _counts(counts) if row.answers else UNKNOWN


_REPLICA_COLUMNS: Final[Sequence[_Column[ReplicaRow]]] = (
    _Column("SERVICE", lambda row: row.service, 100),
    _Column("REPLICA", lambda row: row.name),
    _Column("STATE", lambda row: row.state),
    _Column("AT ENGINE", lambda row: _number(row.at_engine), is_number=True),
    _Column("OUTPUT/S", lambda row: _number(row.output_tokens_s), 50, is_number=True),
    _Column("PROMPT/S", lambda row: _number(row.prompt_tokens_s), 90, is_number=True),
    _Column("TPOT", lambda row: _seconds(row.tpot_s), 70, is_number=True),
    _Column("KV", lambda row: _share(row.kv_ratio), 110, is_number=True),
    _Column("OLDEST", lambda row: _seconds(row.oldest_s), 80, is_number=True),
    _Column("WAITING", lambda row: _known(row, row.waiting)),
    _Column("REJECTED", lambda row: _known(row, row.rejected), 120),
)
_CLASS_COLUMNS: Final[Sequence[_Column[ClassRow]]] = (
    _Column("SERVICE", lambda row: row.service),
    _Column("CLASS", lambda row: row.name),
    _Column("TTFT", lambda row: _seconds(row.ttft_target_s), 70, is_number=True),
    _Column("TTFT MET", lambda row: _share(row.ttft_met), is_number=True),
    _Column("TPOT", lambda row: _seconds(row.tpot_target_s), 90, is_number=True),
    _Column("TPOT MET", lambda row: _share(row.tpot_met), 70, is_number=True),
    _Column("ENDED", lambda row: _number(row.ended), 80, is_number=True),
    _Column("OLDEST", lambda row: _seconds(row.oldest_s), 100, is_number=True),
    _Column("WAITING BY TENANT", lambda row: _counts(row.waiting)),
    _Column("REJECTED", lambda row: _counts(row.rejected), 80),
)
