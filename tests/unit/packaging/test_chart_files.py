"""What can be said about the chart without a Helm binary; e2e/test_chart.py renders it."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from weir_core.api.crd import custom_resource_definitions
from weir_core.api.priorityclass import InferencePriorityClassSpec
from weir_operator.parts import owned

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm/weir"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

FREE_FORM = {
    "global", "operator.affinity", "operator.tolerations[]", "operator.topologySpreadConstraints[]",
    "operator.extraEnv[]", "operator.extraVolumes[]", "operator.extraVolumeMounts[]",
    "podTemplatePolicy.namespaceSelector",
    "console.affinity", "console.tolerations[]", "console.extraEnv[]", "console.extraVolumes[]",
    "console.extraVolumeMounts[]",
}  # fmt: skip
"""Kubernetes' own types: the API server checks them."""


def schemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from schemas(child, f"{path}.{name}".lstrip("."))
    if isinstance(items := schema.get("items"), dict):
        yield from schemas(items, f"{path}[]")
    if isinstance(others := schema.get("additionalProperties"), dict):
        yield from schemas(others, f"{path}.*")


def rules() -> list[dict[str, Any]]:
    """Return the operator's rights; the templates are plain YAML between two marks."""
    text = (CHART / "templates/_rules.tpl").read_text()
    bodies = re.findall(r"{{- define [^}]*}}(.*?){{- end -}}", text, re.DOTALL)
    assert len(bodies) == 3
    return [rule for body in bodies for rule in yaml.safe_load(body)]


def test_schema_is_a_valid_json_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)


def test_default_values_conform_to_the_schema() -> None:
    assert list(Draft7Validator(SCHEMA).iter_errors(VALUES)) == []


def test_schema_and_default_values_know_the_same_keys() -> None:
    def keys(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
        known = schema.get("properties", {})
        for name in known.keys() | values.keys() if known else ():
            if (name in known) != (name in values):
                yield f"{path}{name}"
            elif isinstance(values[name], dict):
                yield from keys(values[name], known[name], f"{path}{name}.")

    assert set(keys(VALUES, SCHEMA)) == {"global"}


def test_every_value_is_described() -> None:
    undescribed = [path for path, schema in schemas(SCHEMA) if path and not described(path, schema)]
    assert undescribed == []


def described(path: str, schema: dict[str, Any]) -> bool:
    return "description" in schema or path.endswith((".*", "[]"))


def test_every_object_is_strict_unless_it_is_kubernetes_own() -> None:
    lax = [
        path
        for path, schema in schemas(SCHEMA)
        if schema.get("type") == "object" and schema.get("additionalProperties") is None
    ]
    assert set(lax) == FREE_FORM


def source() -> dict[str, Any]:
    """Return an item of a NetworkPolicy's `from` with all that it may have."""
    found: dict[str, Any] = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    for name in ("namespaceSelector", "podSelector"):
        expressions = [{"key": "app", "operator": "Exists"}]
        found[name] = {"matchLabels": {}, "matchExpressions": expressions}
    return found


@pytest.mark.parametrize(
    "path",
    [path for path, schema in schemas(SCHEMA) if schema.get("additionalProperties") is False],
)
def test_refuses_unknown_keys_in(path: str) -> None:
    values = copy.deepcopy(VALUES)
    values["imagePullSecrets"] = [{"name": "pull"}]
    values["networkPolicy"] = {"allowFrom": [source()], "scrapeFrom": [source()]}
    values["console"]["allowFrom"] = [source()]
    target = values
    for step in re.sub(r"\.\*", ".batch", path.replace("[]", ".0")).split("."):
        if step:
            target = target[int(step) if isinstance(target, list) else step]
    target["unheardOf"] = 1
    messages = [error.message for error in Draft7Validator(SCHEMA).iter_errors(values)]
    assert len(messages) == 1
    assert "unheardOf" in messages[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("operator.replicas", -1, id="negative replicas"),
        pytest.param("images.pullPolicy", "Sometimes", id="unknown pull policy"),
        pytest.param("images.weir.repository", "weir@sha256:0", id="digest in the repository"),
        pytest.param("images.weir.digest", "0123", id="digest without algorithm"),
        pytest.param("watchNamespaces", ["Upper"], id="impossible namespace"),
        pytest.param("priorityClasses.classes", {"x": {"weight": 1}}, id="class without rank"),
        pytest.param("metrics.podMonitor.interval", 15, id="interval without unit"),
    ],
)
def test_refuses(path: str, value: object) -> None:
    values = copy.deepcopy(VALUES)
    *parents, last = path.split(".")
    target = values
    for step in parents:
        target = target[step]
    target[last] = value
    assert len(list(Draft7Validator(SCHEMA).iter_errors(values))) == 1


def test_default_classes_are_those_of_the_example() -> None:
    example = yaml.safe_load_all((ROOT / "examples/priority-classes.yaml").read_text())
    assert VALUES["priorityClasses"]["classes"] == {
        document["metadata"]["name"]: document["spec"] for document in example
    }


def test_schema_of_a_class_has_the_fields_of_the_type() -> None:
    schema = SCHEMA["properties"]["priorityClasses"]["properties"]["classes"]
    fields = {field.alias for field in InferencePriorityClassSpec.model_fields.values()}
    assert schema["additionalProperties"]["properties"].keys() == fields


def test_chart_carries_the_generated_definitions() -> None:
    files = [yaml.safe_load(path.read_text()) for path in sorted((CHART / "crds").glob("*.yaml"))]
    generated = custom_resource_definitions()
    assert {file["metadata"]["name"]: file for file in files} == generated


def test_there_is_one_rule_for_each_resource_of_what_the_parts_own() -> None:
    granted = [
        (group, resource)
        for rule in rules()
        for group, resource in itertools.product(rule["apiGroups"], rule["resources"])
        if rule["verbs"] != ["watch"]
    ]
    assert len(set(granted)) == len(granted)
    assert {(each.kind.group, each.kind.plural) for each in owned()} <= set(granted)


def test_rights_are_written_out() -> None:
    for rule in rules():
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]


@pytest.mark.parametrize(
    ("resource", "verbs"),
    [
        pytest.param(
            "secrets", {"get", "watch", "create", "patch"}, id="lists no Secret, and deletes none"
        ),
        pytest.param("pods", {"list", "patch"}, id="neither makes nor deletes a pod"),
        pytest.param("pods/exec", set(), id="never runs a command in a pod"),
        pytest.param("inferenceservices", {"get", "list", "watch"}, id="leaves specs to users"),
        pytest.param("roles", set(), id="grants nobody anything"),
    ],
)
def test_operator(resource: str, verbs: set[str]) -> None:
    granted = {verb for rule in rules() if resource in rule["resources"] for verb in rule["verbs"]}
    assert granted == verbs
