"""The figures of a comparison, as PNG files: distributions per class, attainment.

matplotlib is imported when something is drawn: it takes longer than a small simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Final

from weir_sim.sweep import Curves, Done, Points, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI: Final = 110
_PANEL: Final = (4.2, 3.2)


def draw(results: Sequence[Done], directory: Path) -> list[tuple[str, Path]]:
    """Draw everything that `results` can show and return titles and files."""
    directory.mkdir(parents=True, exist_ok=True)
    chosen = shown(results)
    figures = [
        ("Time to first token", "ttft.png", _distributions(chosen, "TTFT", lambda c: c.ttft_s)),
        ("Time per output token", "tpot.png", _distributions(chosen, "TPOT", lambda c: c.tpot_s)),
        ("Attainment over load", "attainment.png", _attainment(results)),
    ]
    drawn = []
    for title, name, figure in figures:
        figure.savefig(directory / name, dpi=_DPI, metadata={"Software": None})
        drawn.append((title, directory / name))
    return drawn


def _distributions(
    results: Sequence[Done], quantity: str, select: Callable[[Curves], dict[str, Points]]
) -> Figure:
    names = list(dict.fromkeys(name for done in results for name in select(done.curves)))
    figure, panels = _panels(max(1, len(names)))
    for axes, name in zip(panels, names, strict=False):
        for done in results:
            points = select(done.curves).get(name, ())
            label = done.job.system.name
            axes.plot([x for x, _ in points], [y for _, y in points], label=label)
        axes.set(title=name, xlabel=f"{quantity}, seconds", xscale="log", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("part of the answered requests")
    panels[-1].legend(fontsize="small")
    return figure


def _attainment(results: Sequence[Done]) -> Figure:
    names = [row.name for row in results[0].report.classes]
    figure, panels = _panels(len(names) + 1)
    loads = sorted({done.job.scenario.load for done in results})
    systems = list(dict.fromkeys(done.job.system.name for done in results))
    for axes, name in zip(panels, [*names, "all"], strict=True):
        for system in systems:
            values = [_mean_attainment(results, system, load, name) for load in loads]
            axes.plot(loads, values, marker="o", label=system)
        axes.set(title=name, xlabel="load", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("part of all requests on target")
    panels[-1].legend(fontsize="small")
    return figure


def _mean_attainment(results: Sequence[Done], system: str, load: float, name: str) -> float:
    found = [
        done.report.attainment_ratio
        if name == "all"
        else next((r.attainment_ratio for r in done.report.classes if r.name == name), 0.0)
        for done in results
        if done.job.system.name == system and done.job.scenario.load == load
    ]
    return mean(found)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    # Without pyplot there is no process-wide state, and nothing needs a display.
    width, height = _PANEL
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, [figure.add_subplot(1, count, index + 1) for index in range(count)]
