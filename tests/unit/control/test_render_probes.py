"""A probe restarts the container that is at fault, and no other."""

from __future__ import annotations

from typing import Any

from tests.unit.control.builders import service
from weir_operator.render import pod_templates

Manifest = dict[str, Any]


def containers() -> dict[str, Manifest]:
    (template,) = pod_templates(service()).values()
    pod = template["spec"]
    return {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}


def test_the_engines_liveness_takes_a_verdict_and_not_the_silence_of_the_sidecar() -> None:
    probe = containers()["engine"]["livenessProbe"]
    assert probe["exec"] == {"command": ["weir-engine", "alive"]}
    assert "httpGet" not in probe


def test_a_slow_start_of_the_probe_on_a_busy_node_is_no_verdict() -> None:
    probe = containers()["engine"]["livenessProbe"]
    assert probe["timeoutSeconds"] >= 30


def test_a_hung_sidecar_is_killed_soon_whatever_grace_its_pod_has() -> None:
    slow = {"podTemplate": {"spec": {"terminationGracePeriodSeconds": 3600}}}
    (template,) = pod_templates(service(slow)).values()
    sidecar = template["spec"]["initContainers"][0]
    probe = sidecar["livenessProbe"]
    found_after_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert found_after_s <= 30
    assert probe["terminationGracePeriodSeconds"] == 30
