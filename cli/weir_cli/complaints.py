"""What is wrong with a document, as one sentence for the person who wrote it.

pydantic reports every place at which a document and its type differ. Of a misspelt field that are
two: one that nobody knows and one that is missing; here they become one, with a suggestion.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import yaml
from pydantic import ValidationError

from weir_core.api.base import Model

MOST_TOLD: Final = 3
Location = tuple[str | int, ...]


def complaint(kind: type[Model], error: ValidationError) -> tuple[str, str]:
    """Return the field that most needs an edit, and what to do, with what else is wrong behind."""
    schema = kind.model_json_schema()
    found = error.errors(include_url=False)
    unknown = [each for each in found if each["type"] == "extra_forbidden"]
    meant = {(*each["loc"][:-1], _suggestion(schema, each["loc"])) for each in unknown}
    rest = [each for each in found if each not in unknown and each["loc"] not in meant]
    told = [(field_path(each["loc"]) or "spec", _words(schema, each)) for each in unknown + rest]
    (field, message), others = told[0], told[1:]
    if not others:
        return field, message
    named = "; ".join(f"{path}: {words}" for path, words in others[: MOST_TOLD - 1])
    left = len(told) - MOST_TOLD
    return field, f"{message} (also: {named}{f'; and {left} more' if left > 0 else ''})"


def field_path(location: Iterable[str | int]) -> str:
    """Return a location such as `("spec", "pools", 1, "name")` as `spec.pools[1].name`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def yaml_complaint(error: Exception) -> str:
    """Return where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _words(schema: dict[str, Any], each: Any) -> str:
    location: Location = each["loc"]
    if each["type"] == "missing":
        return "is missing"
    if each["type"] == "extra_forbidden":
        meant = _suggestion(schema, location)
        return f"unknown field; {_hint(meant)}"
    if each["type"] == "string_pattern_mismatch":
        about = _node(schema, location).get("description")
        if about:
            return f"{each['input']!r} does not fit. {about.rstrip('.')}"
    message = str(each["msg"]).removeprefix("Value error, ")
    return message.replace("Input should ", "must ").replace("String should ", "must ")


def _hint(meant: str | None) -> str:
    return f"did you mean {meant}?" if meant else "check its spelling and where it belongs"


def _suggestion(schema: dict[str, Any], location: Location) -> str | None:
    """Return the field that is spelt most like the unknown one, where it stands."""
    known = _node(schema, location[:-1]).get("properties", {})
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    return close[0] if close else None


def _node(schema: dict[str, Any], location: Sequence[str | int]) -> dict[str, Any]:
    """Return what a JSON schema says of a location; nothing where it does not know it."""
    node = schema
    for part in location:
        inside = _inside(schema, node)
        node = inside.get("items", {}) if isinstance(part, int) else _field(inside, part)
    return {**_inside(schema, node), **node}


def _field(node: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = node.get("properties", {}).get(name, {})
    return found


def _inside(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow a node to the object it stands for; of "this or null" that is this."""
    for option in node.get("anyOf", ()):
        if option.get("type") != "null":
            return _inside(schema, option)
    if "$ref" in node:
        return _inside(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    return node
