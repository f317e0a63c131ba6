"""One HTML file that holds a whole comparison; it loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from weir_sim.plots import draw
from weir_sim.report import ClassReport, legend
from weir_sim.sweep import Done

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } img { max-width: 100% }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .7rem; text-align: right }
td:nth-child(-n+4), th:nth-child(-n+4) { text-align: left }
"""
_HEAD: Final = (
    "system", "load", "seed", "class", "requests", "on target", "goodput/s", "refused",
    "refusals", "TTFT p50 s", "TTFT p99 s", "TPOT p99 ms", "longest wait s",
)  # fmt: skip


def write_report(results: Sequence[Done], directory: Path, command: str) -> Path:
    """Draw the figures into `directory`, write `report.html` beside them, and return its path.

    Args:
        results: At least one.
        directory: Made if it is missing.
        command: What made it, for the reader who wants to repeat it.
    """
    figures = draw(results, directory)
    rows = [_row(done, row) for done in results for row in done.report.classes]
    profile = results[0].job.scenario.profile
    notes = (
        f"Engine: {profile.name} ({profile.source}); {legend([done.report for done in results])}."
    )
    return write_page(directory, command, notes, [_HEAD, *rows], figures)


def write_page(
    directory: Path,
    command: str,
    notes: str,
    table: Sequence[Sequence[str]],
    figures: Sequence[tuple[str, Path]],
) -> Path:
    """Write `report.html` into a folder and return its path.

    Args:
        directory: Where it goes.
        command: What made it, for the reader who wants to repeat it.
        notes: What to know of the numbers.
        table: The first row is the head.
        figures: Titles and files.
    """
    head, *rows = table
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>weir simulate</title><style>{_STYLE}</style>",
        f"<h1>weir simulate</h1><p><code>{escape(command)}</code></p>",
        f"<p>{escape(notes)}</p>",
        "<table><tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>",
        *(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows),
        "</table>",
        *(f"<h2>{escape(title)}</h2>{_image(title, path)}" for title, path in figures),
        "</html>",
    ]
    path = directory / "report.html"
    path.write_text("\n".join(parts) + "\n")
    return path


def _row(done: Done, row: ClassReport) -> tuple[str, ...]:
    tpot_ms = None if row.tpot_p99_s is None else row.tpot_p99_s * 1000
    return (
        done.job.system.name,
        f"{done.job.scenario.load:g}",
        str(done.job.seed),
        row.name,
        str(row.requests),
        f"{row.attainment_ratio:.1%}",
        f"{row.goodput_per_s:.2f}",
        str(row.rejected),
        str(row.refusals),
        *(
            "-" if value is None else f"{value:.3f}"
            for value in (row.ttft_p50_s, row.ttft_p99_s, tpot_ms, row.longest_wait_s)
        ),
    )


def _image(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
