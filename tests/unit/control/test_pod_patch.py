"""spec.podTemplate: a strategic merge, with mistakes named as the user wrote them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from weir_core.errors import InvalidSpec
from weir_operator.render.patch import patched

Template = dict[str, Any]

BASE: Template = {
    "metadata": {"labels": {"app": "x"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "image": "vllm",
                "args": ["serve"],
                "env": [{"name": "HOME", "value": "/tmp"}, {"name": "A", "value": "1"}],
                "volumeMounts": [{"name": "run", "mountPath": "/run/weir"}],
            }
        ],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        "tolerations": [{"key": "gpu"}],
        "terminationGracePeriodSeconds": 120,
    },
}


def engine(**changes: Any) -> Template:
    """Return a patch of the engine container."""
    return {"spec": {"containers": [{"name": "engine", **changes}]}}


def merged(patch: Template) -> Template:
    return patched(BASE, patch)


def test_an_empty_patch_changes_nothing() -> None:
    assert merged({}) == BASE


def test_neither_the_template_nor_the_patch_is_changed() -> None:
    base, patch = deepcopy(BASE), engine(env=[{"name": "B", "value": "2"}], args=["x"])
    before = deepcopy((base, patch))
    result = patched(base, patch)
    result["spec"]["containers"][0]["args"].append("later")
    result["spec"]["volumes"].clear()
    assert (base, patch) == before


def test_what_two_containers_share_changes_in_one_only() -> None:
    shared = {"readOnlyRootFilesystem": True}
    base = {"spec": {"containers": [{"name": n, "securityContext": shared} for n in "ab"]}}
    patch = {"containers": [{"name": "a", "securityContext": {"readOnlyRootFilesystem": False}}]}
    a, b = patched(base, {"spec": patch})["spec"]["containers"]
    assert (a["securityContext"], b["securityContext"]) == (
        {"readOnlyRootFilesystem": False},
        {"readOnlyRootFilesystem": True},
    )


def test_objects_merge_field_by_field_and_null_removes_one() -> None:
    patch = {
        "metadata": {"labels": {"team": "search"}, "annotations": {"a": "b"}},
        "spec": {"terminationGracePeriodSeconds": None},
    }
    result = merged(patch)
    assert result["metadata"] == {
        "labels": {"app": "x", "team": "search"},
        "annotations": {"a": "b"},
    }
    assert "terminationGracePeriodSeconds" not in result["spec"]


@pytest.mark.parametrize(
    ("changes", "field", "want"),
    [
        pytest.param(
            {"env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]},
            "env",
            [
                {"name": "HOME", "value": "/tmp"},
                {"name": "A", "value": "2"},
                {"name": "B", "value": "3"},
            ],
            id="variables by name, new ones last",
        ),
        pytest.param(
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "env",
            [
                {"name": "HOME", "value": "/tmp"},
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            id="a reference takes the place of a value",
        ),
        pytest.param(
            {"env": [{"name": "A", "$patch": "delete"}]},
            "env",
            [{"name": "HOME", "value": "/tmp"}],
            id="an item can be deleted",
        ),
        pytest.param(
            {"env": [{"$patch": "replace"}, {"name": "C", "value": "4"}]},
            "env",
            [{"name": "C", "value": "4"}],
            id="a list can be replaced",
        ),
        pytest.param({"args": ["other"]}, "args", ["other"], id="plain lists are replaced whole"),
        pytest.param(
            {"volumeMounts": [{"mountPath": "/run/weir", "readOnly": True}]},
            "volumeMounts",
            [{"name": "run", "mountPath": "/run/weir", "readOnly": True}],
            id="mounts by path",
        ),
        pytest.param(
            {"ports": [{"containerPort": 9, "name": "x"}]},
            "ports",
            [{"containerPort": 9, "name": "x"}],
            id="a list that was not there",
        ),
    ],
)
def test_merges_a_container(changes: Template, field: str, want: list[Any]) -> None:
    assert merged(engine(**changes))["spec"]["containers"][0][field] == want


@pytest.mark.parametrize(
    ("volume", "want"),
    [
        pytest.param(
            {"emptyDir": {"sizeLimit": "8Gi"}},
            {"emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
            id="of the same kind: merged",
        ),
        pytest.param(
            {"hostPath": {"path": "/dev/shm"}},
            {"hostPath": {"path": "/dev/shm"}},
            id="of another kind: replaced",
        ),
    ],
)
def test_a_volume_keeps_one_source(volume: Template, want: Template) -> None:
    result = merged({"spec": {"volumes": [{"name": "shm", **volume}]}})
    assert result["spec"]["volumes"] == [{"name": "shm", **want}]


def test_a_container_that_is_new_comes_last() -> None:
    result = merged({"spec": {"containers": [{"name": "logs", "image": "fluent"}]}})
    assert [each["name"] for each in result["spec"]["containers"]] == ["engine", "logs"]


def test_an_object_can_be_replaced_or_deleted() -> None:
    replaced = merged({"metadata": {"labels": {"$patch": "replace", "only": "this"}}})
    assert replaced["metadata"]["labels"] == {"only": "this"}
    assert "labels" not in merged({"metadata": {"labels": {"$patch": "delete"}}})["metadata"]


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        pytest.param({"kind": "Pod"}, "spec.podTemplate.kind", id="not a template's field"),
        pytest.param(
            {"spec": {"containers": [{"image": "x"}]}},
            "spec.podTemplate.spec.containers[0].name",
            id="no name",
        ),
        pytest.param(
            {"spec": {"containers": [{"name": {}}]}},
            "spec.podTemplate.spec.containers[0].name",
            id="a name that is none",
        ),
        pytest.param(
            {"spec": {"containers": ["engine"]}},
            "spec.podTemplate.spec.containers[0]",
            id="a word for a container",
        ),
        pytest.param(
            {"spec": {"containers": {"engine": {}}}},
            "spec.podTemplate.spec.containers",
            id="an object for a list",
        ),
        pytest.param(
            engine(ports={"containerPort": 1}),
            "spec.podTemplate.spec.containers[0].ports",
            id="an object for a list that was not there",
        ),
        pytest.param({"spec": []}, "spec.podTemplate.spec", id="a list for an object"),
        pytest.param(
            {"spec": {"tolerations": "all"}}, "spec.podTemplate.spec.tolerations", id="a word"
        ),
        pytest.param(
            {"spec": {"$patch": "remove"}}, "spec.podTemplate.spec.$patch", id="no such directive"
        ),
        pytest.param(
            {"spec": {"$retainKeys": ["x"]}},
            "spec.podTemplate.spec.$retainKeys",
            id="a directive not understood",
        ),
    ],
)
def test_names_the_field_that_is_wrong(patch: Template, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        merged(patch)
    assert caught.value.field == field
