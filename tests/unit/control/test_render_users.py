"""Who the containers run as: never root, and nobody in particular where the platform says who."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.control.builders import service
from weir_core.errors import InvalidSpec
from weir_operator.render import Images, pod_templates
from weir_operator.settings import from_environment

Manifest = dict[str, Any]
IDS = {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"}


def pod(images: Images) -> Manifest:
    (template,) = pod_templates(service(), images).values()
    spec: Manifest = template["spec"]
    return spec


def contexts(spec: Manifest) -> Iterator[Manifest]:
    yield spec["securityContext"]
    for container in (*spec["initContainers"], *spec["containers"]):
        yield container["securityContext"]


def test_pods_run_as_one_user_that_shares_its_volumes() -> None:
    context = pod(Images())["securityContext"]
    assert {context[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {65532}


def test_where_the_platform_assigns_users_none_is_asked_for() -> None:
    """OpenShift's restricted-v2 admits no other ids than those of the namespace."""
    for context in contexts(pod(Images(assigned_users=True))):
        assert not IDS & context.keys()


@pytest.mark.parametrize("assigned", [False, True], ids=["fixed", "assigned"])
def test_pods_meet_the_restricted_standard_either_way(assigned: bool) -> None:
    spec = pod(Images(assigned_users=assigned))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["initContainers"], *spec["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("value", "assigned"),
    [
        pytest.param("", False, id="not set"),
        pytest.param("fixed", False, id="fixed"),
        pytest.param("assigned", True, id="assigned"),
    ],
)
def test_the_operator_is_told_who_says(value: str, assigned: bool) -> None:
    assert from_environment({"WEIR_USER_IDS": value}).images.assigned_users is assigned


def test_a_word_that_is_neither_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="WEIR_USER_IDS"):
        from_environment({"WEIR_USER_IDS": "openshift"})
