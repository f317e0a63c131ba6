"""The few kinds of panel that the dashboards are made of, and how a page of them is laid out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal, NamedTuple

from grafana_foundation_sdk.builders.common import VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT: Final = 8


class Query(NamedTuple):
    """One line, or one line for each series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        title: Its heading.
        unit: One of Grafana's, such as `s` or `percentunit`.
        queries: What it shows.
        help_text: What to make of it, behind the panel's (i).
        kind: Lines over time, the newest values in large figures, or a table of series.
        width: Of 24 columns.
    """

    title: str
    unit: str
    queries: Sequence[Query]
    help_text: str
    kind: Literal["lines", "figures", "table"] = "lines"
    width: int = 8

    def build(self) -> Timeseries | Stat | Table:
        """Return Grafana's panel."""
        built = _SHAPES[self.kind]()
        built.title(self.title).description(self.help_text).unit(self.unit)
        built.datasource(_SOURCE).height(_HEIGHT).span(self.width)
        for number, query in enumerate(self.queries):
            built.with_target(self._target(query).ref_id(chr(ord("A") + number)))
        return built

    def _target(self, query: Query) -> Dataquery:
        target = Dataquery().expr(query.expr).legend_format(query.legend)
        if self.kind == "lines":
            return target.range()
        if self.kind == "table":
            target.format(PromQueryFormat.TABLE)
        return target.instant()


def _lines() -> Timeseries:
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True)
    tooltip = VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    below = legend.placement(LegendPlacement.BOTTOM)
    return Timeseries().fill_opacity(8).min(0).legend(below).tooltip(tooltip)


_SHAPES: Final[dict[str, Callable[[], Timeseries | Stat | Table]]] = {
    "lines": _lines,
    "figures": lambda: Stat().graph_mode(BigValueGraphMode.NONE),
    "table": lambda: Table().show_header(True),
}


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Page:
    """A dashboard.

    Args:
        name: Of its file, and of its address in Grafana.
        title: What Grafana calls it.
        variables: Name of each variable that is chosen by, and the query for its values.
        sections: What it shows.
    """

    name: str
    title: str
    variables: Sequence[tuple[str, str]]
    sections: Sequence[Section]

    def text(self) -> str:
        """Return the dashboard as JSON."""
        page = (
            Dashboard(self.title)
            .uid(f"weir-{self.name}")
            .tags(["weir"])
            .readonly()
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        )
        for name, query in self.variables:
            page.with_variable(
                QueryVariable(name)
                .query(query)
                .datasource(_SOURCE)
                .multi(True)
                .include_all(True)
                .all_value(".*")
                .current(VariableOption(selected=True, text="All", value="$__all"))
                .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            )
        ids = count(1)
        for section in self.sections:
            page.with_row(Row(section.title).id(next(ids)))
            for panel in section.panels:
                page.with_panel(panel.build().id(next(ids)))
        built = page.build()
        return json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
