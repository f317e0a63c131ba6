"""The generated definitions are structural, described, and say what the types say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from weir_core.api.crd import KINDS, custom_resource_definitions
from weir_core.api.status import InferenceServiceStatus

Schema = dict[str, Any]


def schemas() -> list[Any]:
    return [
        pytest.param(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], id=name)
        for name, definition in custom_resource_definitions().items()
    ]


def walk(path: str, node: Schema) -> Iterator[tuple[str, Schema]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(f"{path}.{name}", child)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from walk(f"{path}[]", node[key])


@pytest.mark.parametrize("schema", schemas())
def test_every_field_has_a_type_or_is_integer_or_string(schema: Schema) -> None:
    untyped = [
        path
        for path, node in walk("", schema)
        if "type" not in node and not node.get("x-kubernetes-int-or-string")
    ]
    assert untyped == []


@pytest.mark.parametrize("schema", schemas())
def test_keeps_nothing_that_a_structural_schema_forbids(schema: Schema) -> None:
    forbidden = {"$ref", "$defs", "title", "default", "const", "exclusiveMinimum", "nullable"}
    found = [(path, forbidden & set(node)) for path, node in walk("", schema)]
    found = [(path, keys) for path, keys in found if (path, keys) != (".status", {"default"})]
    assert [(path, keys) for path, keys in found if keys] == []


def test_a_service_no_operator_has_seen_is_not_taken_for_ready() -> None:
    definition = custom_resource_definitions()["inferenceservices.serving.weir.dev"]
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    status = InferenceServiceStatus.model_validate(schema["properties"]["status"]["default"])
    assert [(each.type, each.status) for each in status.conditions] == [("Ready", "Unknown")]


@pytest.mark.parametrize("schema", schemas())
def test_holds_nothing_empty_which_the_api_server_would_drop(schema: Schema) -> None:
    empty = [f"{path}.{key}" for path, node in walk("", schema) for key in node if node[key] == {}]
    assert empty == []


@pytest.mark.parametrize("schema", schemas())
def test_refuses_texts_in_words_and_not_by_a_pattern(schema: Schema) -> None:
    texts = [path for path, node in walk("", schema) if "pattern" in node and "type" in node]
    assert texts == []


@pytest.mark.parametrize("schema", schemas())
def test_describes_every_field_of_a_spec(schema: Schema) -> None:
    spec = schema["properties"]["spec"]
    bare = [
        path
        for path, node in walk("spec", spec)
        if "description" not in node and not path.endswith("[]")
    ]
    assert bare == []


@pytest.mark.parametrize("schema", schemas())
def test_every_optional_field_states_its_default(schema: Schema) -> None:
    silent = []
    for path, node in walk("spec", schema["properties"]["spec"]):
        required = set(node.get("required", ()))
        silent += [
            f"{path}.{name}"
            for name, child in node.get("properties", {}).items()
            if name not in required and "Default" not in child["description"]
        ]
    assert silent == []


@pytest.mark.parametrize("schema", schemas())
def test_bounds_every_list_so_that_cel_has_a_budget(schema: Schema) -> None:
    spec = schema["properties"]["spec"]
    unbounded = [
        path
        for path, node in walk("spec", spec)
        if node.get("type") == "array" and "maxItems" not in node
    ]
    assert unbounded == []


def test_kinds_have_distinct_names_and_short_names() -> None:
    assert len({kind.plural for kind in KINDS}) == len(KINDS)
    assert len({kind.short for kind in KINDS}) == len(KINDS)
