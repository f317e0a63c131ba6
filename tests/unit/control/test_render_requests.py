"""Every container says what it needs: quotas ask for it, and nodes are not overfilled."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import service
from weir_operator.render import pod_templates

Manifest = dict[str, Any]
KINDS = {"cpu", "memory", "ephemeral-storage"}


def pools(count: int = 1, **pool: Any) -> Manifest:
    """Return a spec of one pool whose engines use all of their accelerators."""
    sizes = {"parallelism": {"tensor": max(count, 1)}}
    return {
        "engine": sizes,
        "pools": [{"name": "p", "accelerator": {"count": count}, **pool}],
    }


def resources(spec: Manifest) -> dict[str, Manifest]:
    (template,) = pod_templates(service(spec)).values()
    pod = template["spec"]
    found = (*pod["initContainers"], *pod["containers"])
    return {each["name"]: each.get("resources", {}) for each in found}


@pytest.mark.parametrize("count", [0, 1, 8])
def test_every_container_requests_processors_memory_and_disk(count: int) -> None:
    for name, asked in resources(pools(count)).items():
        assert asked["requests"].keys() >= KINDS, name


def test_an_engine_asks_for_more_with_each_accelerator() -> None:
    one, eight = (resources(pools(count))["engine"]["requests"] for count in (1, 8))
    assert (one["cpu"], one["memory"]) == ("1", "4Gi")
    assert (eight["cpu"], eight["memory"]) == ("8", "32Gi")


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        pytest.param("tiny://", "128Mi", id="a small generated model"),
        pytest.param("hf://o/m", "8Gi", id="downloaded weights"),
    ],
)
def test_the_download_asks_for_room_for_the_weights(uri: str, want: str) -> None:
    model = {"model": {"name": "m", "source": {"uri": uri}}}
    assert resources(model)["model"]["requests"]["ephemeral-storage"] == want


def test_a_pools_own_requests_count() -> None:
    own = {"requests": {"cpu": 8, "memory": "64Gi"}}
    requests = resources(pools(resources=own))["engine"]["requests"]
    assert (requests["cpu"], requests["memory"]) == (8, "64Gi")
    assert "ephemeral-storage" in requests


def test_a_limit_is_its_own_request() -> None:
    """One above it would be refused, and the API server takes the limit where there is none."""
    own = {"limits": {"memory": "2Gi"}}
    engine = resources(pools(resources=own))["engine"]
    assert engine["limits"]["memory"] == "2Gi"
    assert engine["requests"].keys() == {"cpu", "ephemeral-storage"}


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("initContainers", "sidecar"),
        ("initContainers", "adapters"),
        ("initContainers", "model"),
        ("containers", "engine"),
    ],
)
def test_a_limit_in_a_patch_is_its_own_request_too(group: str, name: str) -> None:
    limits = {"cpu": "100m", "memory": "64Mi"}
    container = {"name": name, "resources": {"limits": limits}}
    model = {"name": "chat", "source": {"uri": "hf://o/m"}, "adapterSlots": 1}
    asked = resources({"model": model, "podTemplate": {"spec": {group: [container]}}})[name]
    assert asked["limits"].items() >= limits.items()
    assert asked["requests"].keys() == {"ephemeral-storage"}


def test_a_container_of_the_users_own_is_left_as_it_is() -> None:
    patch = {"spec": {"containers": [{"name": "logs", "image": "fluent"}]}}
    assert resources({"podTemplate": patch})["logs"] == {}
