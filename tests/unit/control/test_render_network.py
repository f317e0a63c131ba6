"""A service's NetworkPolicy: its ports are open, unless their sources are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.control.builders import NAME, service
from weir_core.api.network import NetworkSpec
from weir_operator.render import Access, network, pod_templates
from weir_operator.revisions import choose

Manifest = dict[str, Any]

CHART = Path(__file__).resolve().parents[3] / "tests/golden/chart-everything.yaml"
FRONT = {"podSelector": {"matchLabels": {"app": "front"}}}
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
EVERY_POD: Manifest = {"namespaceSelector": {}}
PEERS = [{"podSelector": {"matchLabels": {"serving.weir.dev/service": NAME}}}]
WEIR: Manifest = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "weir-system"}},
    "podSelector": {
        "matchLabels": {"app.kubernetes.io/part-of": "weir"},
        "matchExpressions": [
            {
                "key": "app.kubernetes.io/component",
                "operator": "In",
                "values": ["operator", "console"],
            }
        ],
    },
}
ANY = None


def admitted(said: Manifest, chart: Manifest) -> dict[int, list[Manifest] | None]:
    """Return which sources a service's NetworkPolicy admits to each port; None is any."""
    access = Access(NetworkSpec.model_validate(chart), "weir-system")
    owned = network(service({"network": said}), access=access)
    (policy,) = (each["spec"] for each in owned if each["kind"] == "NetworkPolicy")
    assert policy["policyTypes"] == ["Ingress"]
    return {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}


@pytest.mark.parametrize(
    ("said", "chart", "callers", "scrapers"),
    [
        pytest.param({}, {}, ANY, ANY, id="nothing is said"),
        pytest.param({"allowFrom": [FRONT]}, {}, [FRONT], ANY, id="callers"),
        pytest.param({"scrapeFrom": [PROMETHEUS]}, {}, ANY, [PROMETHEUS, WEIR], id="scrapers"),
        pytest.param(
            {},
            {"allowFrom": [FRONT], "scrapeFrom": [PROMETHEUS]},
            [FRONT],
            [PROMETHEUS, WEIR],
            id="the chart's defaults",
        ),
        pytest.param(
            {"allowFrom": [EVERY_POD]},
            {"allowFrom": [FRONT], "scrapeFrom": [PROMETHEUS]},
            [EVERY_POD],
            [PROMETHEUS, WEIR],
            id="the service's own in place of one of them",
        ),
    ],
)
def test_a_port_is_open_to(
    said: Manifest,
    chart: Manifest,
    callers: list[Manifest] | None,
    scrapers: list[Manifest] | None,
) -> None:
    assert admitted(said, chart) == {8000: callers, 8001: scrapers, 8002: PEERS}


def test_operator_and_console_are_known_by_the_labels_that_the_chart_gives_them() -> None:
    made = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in yaml.safe_load_all(CHART.read_text())
        if each["kind"] == "Deployment"
    ]
    wanted = WEIR["podSelector"]
    (component,) = wanted["matchExpressions"]
    assert sorted(each[component["key"]] for each in made) == sorted(component["values"])
    assert all(each.items() >= wanted["matchLabels"].items() for each in made)


def test_who_may_call_is_no_part_of_the_pods() -> None:
    open_, narrow = service(), service({"network": {"allowFrom": [FRONT]}})
    kept = [each.new for each in choose(open_, pod_templates(open_), []).values() if each.new]
    (choice,) = choose(narrow, pod_templates(narrow), kept).values()
    assert choice.new is None
