"""The operator's environment."""

from __future__ import annotations

import pytest

from weir_core.api.network import LabelSelector, NetworkSpec, Source
from weir_core.errors import InvalidSpec
from weir_operator.render import Images
from weir_operator.settings import from_environment


def test_an_empty_environment_watches_every_namespace() -> None:
    settings = from_environment({})
    assert settings.watching.namespaces == ()
    assert settings.images == Images()
    assert settings.leadership.name == "weir-operator"


def test_what_the_chart_sets_is_read() -> None:
    settings = from_environment(
        {
            "WEIR_SIDECAR_IMAGE": "weir:1",
            "WEIR_ENGINE_IMAGE": "engine:1",
            "WEIR_ENGINE_CPU_IMAGE": "engine-cpu:1",
            "WEIR_NAMESPACES": "a, b,",
            "POD_NAME": "operator-0",
            "POD_NAMESPACE": "weir-system",
        }
    )
    assert settings.images == Images("weir:1", "engine:1", "engine-cpu:1")
    assert settings.watching.namespaces == ("a", "b")
    assert (settings.leadership.identity, settings.leadership.namespace) == (
        "operator-0",
        "weir-system",
    )


def test_the_sources_of_network_policies_are_read() -> None:
    access = from_environment(
        {"WEIR_ALLOW_FROM": '[{"podSelector":{}}]', "POD_NAMESPACE": "weir-system"}
    ).access
    assert access.default == NetworkSpec(allow_from=(Source(pod_selector=LabelSelector()),))
    assert access.operator_namespace == "weir-system"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        pytest.param("[{", "WEIR_SCRAPE_FROM", id="no JSON"),
        pytest.param('[{"pods": {}}]', "networkPolicy.scrapeFrom[0].pods", id="no source"),
    ],
)
def test_sources_that_are_none_are_refused_by_name(text: str, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        from_environment({"WEIR_SCRAPE_FROM": text})
    assert caught.value.field == field


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
def test_a_number_that_is_none_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        from_environment({"WEIR_RESYNC_S": value})
    assert caught.value.field == "WEIR_RESYNC_S"


def test_less_than_a_worker_is_one() -> None:
    assert from_environment({"WEIR_WORKERS": "0.5"}).watching.workers == 1


def test_a_lease_is_renewed_several_times_before_it_runs_out() -> None:
    leadership = from_environment({"WEIR_LEASE_S": "20"}).leadership
    assert leadership.duration / leadership.renew_interval >= 3
