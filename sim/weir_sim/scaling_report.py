"""What scalers did, as rows of a table and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from weir_sim.scaling import ScalingReport, ScalingScene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD: Final = (
    "scaler", "knob", "seed", "replica hours", "of static peak", "on target", "by class",
    "changes", "reversals in 10 min",
)  # fmt: skip
_DPI: Final = 110
_HOUR_S: Final = 3600.0


def row_of(report: ScalingReport) -> tuple[str, ...]:
    """Return a run as a row of the table."""
    return (
        report.scaler,
        "-" if report.knob is None else f"{report.knob:.3g}",
        str(report.seed),
        f"{report.replica_hours:.0f}" if report.replica_hours >= 100 else str(report.replica_hours),
        f"{report.cost_ratio:.1%}",
        f"{report.worst:.2%}",
        " ".join(f"{name} {ratio:.2%}" for name, ratio in report.attainment.items()),
        str(report.changes),
        str(report.most_reversals),
    )


def json_of(report: ScalingReport) -> str:
    """Return a run as one JSON object, without its timeline; equal runs give equal bytes."""
    fields = asdict(report)
    del fields["timeline"]
    return json.dumps(fields, sort_keys=True)


def notes_of(scene: ScalingScene) -> str:
    """Return what to know of the numbers of a scene."""
    return (
        f"{scene.curve.name}: {scene.curve.duration_s / _HOUR_S:.4g} hours; the static peak is "
        f"{scene.curve.static_peak} replicas of {scene.profile.name} ({scene.profile.source}); "
        f"a cold start takes {scene.cold_start_s:g} s. `on target` is the class with the lowest "
        "part of its work served on time; `of static peak` counts replicas that start, serve and "
        "drain. Others have the knob with which they cost as much as Weir on the first seed."
    )


def draw_scaling(reports: Sequence[ScalingReport], directory: Path) -> list[tuple[str, Path]]:
    """Draw the picture into `directory` and return its title and file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "scaling.png"
    _picture(reports).savefig(path, dpi=_DPI, metadata={"Software": None})
    return [("Offered work and replicas", path)]


def _picture(reports: Sequence[ScalingReport]) -> Figure:
    """Return each scaler's replicas over the offered work, and what each cost and reached."""
    from matplotlib.figure import Figure

    first = [report for report in reports if report.seed == reports[0].seed]
    figure = Figure(figsize=(13.0, 2.0 * len(first) + 3.0), layout="constrained")
    grid = figure.add_gridspec(len(first) + 1, 1, height_ratios=[1.0] * len(first) + [1.4])
    for index, report in enumerate(first):
        axes = figure.add_subplot(grid[index])
        hours = [point.at_s / _HOUR_S for point in report.timeline]
        offered = [point.offered for point in report.timeline]
        axes.fill_between(hours, offered, color="0.8", label="offered work")
        axes.step(hours, [point.ready for point in report.timeline], where="post", label="ready")
        axes.set(ylabel="replicas", ylim=(0, None), xlim=(0, hours[-1]))
        axes.set_title(f"{_label(report)}: {report.cost_ratio:.0%} of static peak", fontsize=10)
        axes.grid(alpha=0.3)
        if not index:
            axes.legend(fontsize="small", loc="upper right")
        if index == len(first) - 1:
            axes.set_xlabel("hours")
    axes = figure.add_subplot(grid[len(first)])
    for label in dict.fromkeys(_label(report) for report in reports):
        mine = [report for report in reports if _label(report) == label]
        costs = [report.cost_ratio for report in mine]
        axes.plot(costs, [report.worst for report in mine], "o", label=label)
    axes.set(xlabel="replica-seconds, static peak = 1", ylabel="on target, lowest class")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _label(report: ScalingReport) -> str:
    return report.scaler if report.knob is None else f"{report.scaler} ({report.knob:.3g})"
