"""What `weir simulate --report` writes: one HTML file that loads nothing from elsewhere.

Its timelines are drawn by the modules of the console's page, with the same stylesheet.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

from weir_core.sched.types import BUILT_IN_CLASSES
from weir_sim.plots import draw
from weir_sim.report import ClassReport, legend
from weir_sim.scaling import ScalingReport, ScalingScene
from weir_sim.scaling_report import HEAD, draw_scaling, notes_of, row_of
from weir_sim.sweep import Done, shown

_HEAD: Final = (
    "system", "load", "seed", "class", "requests", "on target", "goodput/s", "refused",
    "refusals", "TTFT p50 s", "TTFT p99 s", "TPOT p99 ms", "longest wait s",
)  # fmt: skip
_STYLE: Final = """
img { max-width: 100% }
#runs { display: grid; grid-template-columns: minmax(0, 1fr); gap: 22px }
th:nth-child(n+5), td:nth-child(n+5) { text-align: right }
"""
_IMPORT: Final = re.compile(r'from "\./([^"]+)"')
_LICENSES: Final = ("vendor/LICENSE.preact", "vendor/LICENSE.htm")


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
    parts = [_table([_HEAD, *rows]), _timelines(shown(results)), *map(_image, figures)]
    return _write_page(directory, command, notes, parts)


def write_scaling_report(
    scene: ScalingScene, reports: Sequence[ScalingReport], directory: Path, command: str
) -> Path:
    """Draw the picture into `directory`, write `report.html` beside it, and return its path."""
    figures = draw_scaling(reports, directory)
    table = _table([HEAD, *(row_of(report) for report in reports)])
    return _write_page(directory, command, notes_of(scene), [table, *map(_image, figures)])


def _write_page(directory: Path, command: str, notes: str, parts: Sequence[str]) -> Path:
    """Write `report.html` into a folder and return its path.

    Args:
        directory: Where it goes.
        command: What made it, for the reader who wants to repeat it.
        notes: What to know of the numbers.
        parts: HTML.
    """
    page = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        '<meta name=color-scheme content="light dark">',
        f"<title>weir simulate</title><style>{_asset('console.css')}{_STYLE}</style>",
        "<header class=top><h1>weir <span>simulate</span></h1></header><main>",
        f"<p><code>{escape(command)}</code></p><p>{escape(notes)}</p>",
        *parts,
        "</main></html>",
    ]
    path = directory / "report.html"
    path.write_text("\n".join(page) + "\n", encoding="utf-8")
    return path


def _timelines(runs: Sequence[Done]) -> str:
    """Return runs over their time, and the console's modules that draw them."""
    figures = {
        "classes": [asdict(policy) for policy in sorted(BUILT_IN_CLASSES, key=lambda c: -c.rank)],
        "runs": [
            {"title": done.job.title, "moments": [asdict(each) for each in done.curves.timeline]}
            for done in runs
        ],
    }
    data = json.dumps(figures).replace("<", "\\u003c")
    modules: dict[str, str] = {}
    _add_module("report.js", modules)
    licenses = "\n".join(_asset(name) for name in _LICENSES)
    return "\n".join(
        [
            "<p>Over time: each system's first seed at the highest load. A chart's numbers are the "
            "highest of each line.</p>",
            "<div id=runs><noscript>The timelines need JavaScript.</noscript></div>",
            f'<script type="application/json" id=figures>{data}</script>',
            f"<!-- Of Preact and htm, which are part of this page:\n{licenses}-->",
            f'<script type="importmap">{json.dumps({"imports": modules})}</script>',
            '<script type="module">import "weir/report.js";</script>',
        ]
    )


def _add_module(name: str, modules: dict[str, str]) -> None:
    """Add a module of the page, and those that it imports, as URLs that hold them."""
    source = _asset(name)
    # A module in a `data:` URL has no neighbours: a name that starts with "./" finds nothing.
    held = base64.b64encode(_IMPORT.sub(r'from "weir/\1"', source).encode()).decode()
    modules[f"weir/{name}"] = f"data:text/javascript;base64,{held}"
    for other in _IMPORT.findall(source):
        if f"weir/{other}" not in modules:
            _add_module(other, modules)


def _asset(name: str) -> str:
    """Return a file of the console's page."""
    return (files("weir_cli.console") / "page" / name).read_text(encoding="utf-8")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th scope=col>{name}</th>" for name in head)
    lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body]
    return "\n".join(
        [
            f"<div class=scrolled><table><thead><tr>{cells}</tr></thead><tbody>",
            *lines,
            "</tbody></table></div>",
        ]
    )


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


def _image(figure: tuple[str, Path]) -> str:
    title, path = figure
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<section><h2>{escape(title)}</h2>"
        f'<img alt="{escape(title)}" src="data:image/png;base64,{data}"></section>'
    )
