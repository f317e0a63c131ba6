"""Dashboards and alerts name metrics that exist, and each alert has a section of the runbook.

`tests/integration` has a Prometheus run them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.dashboards import PAGES
from monitoring.panels import Page

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = ROOT / "helm/weir/dashboards"
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
DOCUMENTED = set(
    re.findall(r"^\| `(weir_\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
)
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "tests/golden/chart-alerts.yaml").read_text())["spec"][
        "groups"
    ]
    for rule in group["rules"]
]


def metrics_in(text: str) -> set[str]:
    """Return the metrics of Weir's that a text names; a histogram's series are of one."""
    named = re.findall(r"\b(weir_\w+)", text)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_chart_carries_the_generated_dashboard(page: Page) -> None:
    assert (DASHBOARDS / f"{page.name}.json").read_text() == page.text()


def test_the_chart_carries_no_other_dashboard() -> None:
    assert {path.stem for path in DASHBOARDS.iterdir()} == {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_dashboard_names_metrics_that_exist(page: Page) -> None:
    assert metrics_in(page.text()) - DOCUMENTED == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_panels_of_a_dashboard_differ_in_id_and_do_not_overlap(page: Page) -> None:
    panels = json.loads(page.text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (at["x"] + x, at["y"] + y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["w"])
        for y in range(at["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_names_metrics_that_exist(rule: dict[str, Any]) -> None:
    named = metrics_in(rule["expr"])
    assert named
    assert named - DOCUMENTED == set()


def test_each_alert_has_its_section_of_the_runbook_and_points_to_it() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted({rule["alert"] for rule in RULES})
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_runbook_names_metrics_that_exist() -> None:
    assert metrics_in(RUNBOOK) - DOCUMENTED == set()


@pytest.mark.parametrize("section", RUNBOOK.split("\n## ")[1:], ids=lambda text: text.split()[0])
def test_a_section_of_the_runbook_says_what_to_look_at(section: str) -> None:
    assert re.search(r"^```|kubectl |conditions, as above", section, re.MULTILINE)
