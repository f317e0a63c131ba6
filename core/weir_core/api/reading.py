"""From a document to its typed resource, or to all that is wrong with it.

pydantic reports every place at which a document and its type differ. Each becomes a fault that
names the field as the user wrote it, shows what is there and says what to write. Of a misspelt
field pydantic reports two places, one that nobody knows and one that is missing: they become one,
with a suggestion. `weir_core.api.base.Contradictions` becomes as many faults as it holds.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from weir_core.api.base import METADATA, Contradictions, Location, Model
from weir_core.errors import Fault, InvalidSpec

Read = TypeVar("Read", bound=Model)
Schema = dict[str, Any]

MOST_SHOWN: Final = 60
"""Characters of a value in a message."""


_OF_PODS: Final = (
    *("affinity", "containers", "imagePullSecrets", "initContainers", "priorityClassName"),
    *("runtimeClassName", "securityContext", "serviceAccountName", "volumes"),
)
_ARGS: Final = "spec.engine.args"
_COUNT: Final = "spec.pools[].accelerator.count"
_HASHES: Final = "spec.apiKeySecretRef"
_REQUESTS: Final = "spec.pools[].resources.requests"
_URI: Final = "spec.model.source.uri"

ALSO_CALLED: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: (f"spec.podTemplate.spec.{name}",) for name in _OF_PODS},
    **dict.fromkeys(("gpu", "gpus", "gpuCount"), (_COUNT,)),
    **dict.fromkeys(("cpu", "memory"), (_REQUESTS,)),
    **dict.fromkeys(("predictor", "storageUri", "storage"), (_URI,)),
    **dict.fromkeys(("maxModelLen", "maxModelLength", "gpuMemoryUtilization"), (_ARGS,)),
    **dict.fromkeys(("apiKey", "apiKeys", "keys"), (_HASHES,)),
    **dict.fromkeys(("allowedClasses", "classes", "priorityClass"), ("spec.maxClass",)),
    "tensorParallelSize": ("spec.engine.parallelism.tensor",),
    "pipelineParallelSize": ("spec.engine.parallelism.pipeline",),
    "dataParallelSize": ("spec.engine.parallelism.data",),
    "secretName": ("spec.model.source.secretRef.name", "spec.apiKeySecretRef.name"),
    "value": ("spec.rank",),
}
"""Fields of plain pods, of KServe and of vLLM, and what stands for them here."""

_UNITS: Final = {
    **{"k": 10**3, "M": 10**6, "G": 10**9},
    **{"Ki": 2**10, "Mi": 2**20, "Gi": 2**30},
}
_WITH_UNIT: Final = re.compile(r"([0-9]{1,9})([kMG]i?|Ki)")


class Known(NamedTuple):
    """A document read by a Weir that may be older than it."""

    resource: Any
    unknown: tuple[str, ...]
    """Paths of the fields that this version does not know; they are not in `resource`."""


def read(kind: type[Read], document: Mapping[str, Any], where: str = "") -> Read:
    """Return the resource in `document`, which stands at the path `where`.

    Raises:
        InvalidSpec: It is not of its type; the error has all that is wrong with it.
    """
    try:
        return _validated(kind, document)
    except ValidationError as error:
        raise InvalidSpec.of(faults_of(kind, error, where)) from error


def read_known(kind: type[Model], document: Mapping[str, Any], where: str = "") -> Known:
    """Return the resource in `document` without the fields that its type does not have.

    Raises:
        InvalidSpec: What it does have is not of its type.
    """
    try:
        return Known(_validated(kind, document), ())
    except ValidationError as error:
        found = error.errors(include_url=False)
    unknown = [each["loc"] for each in found if each["type"] == "extra_forbidden"]
    left = deepcopy(dict(document))
    for location in unknown:
        _parent(left, location).pop(location[-1])
    return Known(read(kind, left, where), tuple(field_path(each, where) for each in unknown))


def unknown_metadata(metadata: Mapping[str, Any]) -> list[Fault]:
    """Return the fields of an object's metadata that Kubernetes does not know.

    `weir_core.api.base.ObjectMeta` holds only those that Weir reads.
    """
    unknown = [str(each) for each in metadata if each not in METADATA]
    return [Fault(f"metadata.{each}", _hint(_closest(each, METADATA))) for each in unknown]


def faults_of(kind: type[Model], error: ValidationError, where: str = "") -> list[Fault]:
    """Return all that is wrong, unknown fields first: they explain what is missing."""
    schema = kind.model_json_schema()
    found = error.errors(include_url=False)
    unknown = [each for each in found if each["type"] == "extra_forbidden"]
    meant = {(*each["loc"][:-1], _sibling(schema, each["loc"])) for each in unknown}
    rest = [each for each in found if each not in unknown and each["loc"] not in meant]
    return [
        Fault(field_path(location, where) or "spec", message)
        for each in unknown + rest
        for location, message in _told(schema, each)
    ]


def field_path(location: Iterable[str | int], start: str = "") -> str:
    """Return a location such as `("spec", "pools", 1, "name")` as `spec.pools[1].name`."""
    path = start
    for part in location:
        keyed = isinstance(part, int) or "." in part or "/" in part
        path += f"[{part}]" if keyed else f".{part}"
    return path.removeprefix(".")


def shown(value: object) -> str:
    """Return a value as the user may have written it, shortened."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _validated(kind: type[Read], document: Mapping[str, Any]) -> Read:
    """Return the resource; a field has only its name in documents, never Python's."""
    return kind.model_validate(document, by_alias=True, by_name=False)


def _parent(document: Any, location: Location) -> Any:
    for part in location[:-1]:
        document = document[part]
    return document


def _told(schema: Schema, each: Any) -> Iterator[tuple[Location, str]]:
    location: Location = each["loc"]
    cause = each.get("ctx", {}).get("error")
    if isinstance(cause, Contradictions):
        for where, message in cause.found:
            yield (*location, *where), message
    else:
        yield location, _words(schema, each)


def _words(schema: Schema, each: Any) -> str:
    words = _WORDS.get(each["type"])
    if words is None:
        return str(each["msg"]).removeprefix("Value error, ")
    return words(schema, each)


def _missing(schema: Schema, each: Any) -> str:
    if each["loc"] == ("metadata",):
        return "is missing; write it, like {name: chat}"
    about = _node(schema, each["loc"]).get("description", "").partition(". ")[0].rstrip(".")
    return f"is missing; write it ({about})" if about else "is missing; write it"


def _unknown(schema: Schema, each: Any) -> str:
    location = each["loc"]
    sibling = _sibling(schema, location)
    elsewhere = [] if sibling else _elsewhere(schema, str(location[-1]))
    meant = sibling or " or ".join(elsewhere[:2])
    return _hint(meant)


def _hint(meant: str | None) -> str:
    return f"unknown field; {f'did you mean {meant}?' if meant else 'leave it out'}"


def _closest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def _pattern(schema: Schema, each: Any) -> str:
    return f"{shown(each['input'])} {_says(schema, each['loc']) or each['msg']}"


def _says(schema: Schema, location: Location) -> str:
    """Return what is said of a text that is not spelt as it must be; nothing where any may be."""
    rules = _node(schema, location).get("x-kubernetes-validations", ())
    said = (rule["message"] for rule in rules if rule["rule"].startswith("self.matches("))
    return next(said, "")


def _no_text(schema: Schema, each: Any) -> str:
    value, says = each["input"], _says(schema, each["loc"])
    if says:
        return f"{shown(value)} {says}"
    if isinstance(value, dict | list):
        return f"{shown(value)} is not a text"
    return f'{shown(value)} is not a text; put it in quotes: "{shown(value)}"'


def _no_number(kind: str) -> Callable[[Schema, Any], str]:
    def words(_: Schema, each: Any) -> str:
        value = each["input"]
        remedy = _as_number(value) if isinstance(value, str) else ""
        return f"{shown(value)} is not a {kind}{remedy}"

    return words


def _as_number(text: str) -> str:
    """Return what to write for a text that means a number; nothing where it means none."""
    if text.replace(".", "", 1).isdecimal():
        return f"; write {text} without quotes"
    found = _WITH_UNIT.fullmatch(text)
    return f"; write {int(found[1]) * _UNITS[found[2]]}" if found else ""


def _no_object(schema: Schema, each: Any) -> str:
    value = each["input"]
    fields = _inside(schema, _node(schema, each["loc"])).get("properties", {})
    only = _field_for(schema, each)
    if only:
        return f"{shown(value)} is not an object; write {{{only}: {value}}}"
    return f"{shown(value)} is not an object with fields{_of(fields)}"


def _field_for(schema: Schema, each: Any) -> str:
    """Return the one field of an object that the value in its place can be; empty if there is none.

    Where an object needs two fields, one of them is not what was meant.
    """
    node = _inside(schema, _node(schema, each["loc"]))
    needed, fields = node.get("required", ()), node.get("properties", {})
    type_ = {str: "string", int: "integer"}.get(type(each["input"]))
    fitting = [
        name
        for name in needed or fields
        if type_ and _inside(schema, fields[name]).get("type") == type_
    ]
    return fitting[0] if len(needed) <= 1 and len(fitting) == 1 else ""


def _no_list(schema: Schema, each: Any) -> str:
    items = _inside(schema, _node(schema, each["loc"])).get("items", {})
    first = next(iter(_inside(schema, items).get("properties", {})), "")
    item = f"- {first}:" if first else "-"
    return f"{shown(each['input'])} is not a list; begin each item with `{item}`"


def _of(fields: Iterable[str]) -> str:
    names = ", ".join(fields)
    return f" ({names})" if names else ""


def _out_of_range(each: Any, bound: str, remedy: str) -> str:
    return f"{shown(each['input'])} is out of range; write {each['ctx'][bound]:g} or {remedy}"


def _one_of(_: Schema, each: Any) -> str:
    expected = str(each["ctx"]["expected"]).replace("'", "")
    return f"{shown(each['input'])} is not known here; write {expected}"


_WORDS: Final[Mapping[str, Callable[[Schema, Any], str]]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "string_pattern_mismatch": _pattern,
    "quantity": lambda _, each: f"{shown(each['input'])} {each['msg']}",
    "string_type": _no_text,
    "int_type": _no_number("whole number"),
    "float_type": _no_number("number"),
    "bool_type": lambda _, each: f"{shown(each['input'])} is neither true nor false",
    "model_type": _no_object,
    "model_attributes_type": _no_object,
    "dict_type": lambda _, each: f"{shown(each['input'])} is not an object of names and values",
    "tuple_type": _no_list,
    "literal_error": _one_of,
    "greater_than_equal": lambda _, each: _out_of_range(each, "ge", "more"),
    "less_than_equal": lambda _, each: _out_of_range(each, "le", "less"),
    "string_too_long": lambda _, each: (
        f"has {len(each['input'])} characters; write at most {each['ctx']['max_length']}"
    ),
    "too_long": lambda _, each: (
        f"has {len(each['input'])} items; write at most {each['ctx']['max_length']}"
    ),
}
"""pydantic's kind of error to what is said of it."""


def _sibling(schema: Schema, location: Location) -> str | None:
    """Return the field that is spelt most like the unknown one, where it stands.

    None is returned where a field has the very name, only not here.
    """
    name = str(location[-1])
    known = _node(schema, location[:-1]).get("properties", {})
    return None if _elsewhere(schema, name) else _closest(name, known)


def _elsewhere(schema: Schema, name: str) -> list[str]:
    """Return the paths of the fields of this name, or with another for the same, elsewhere."""
    paths = list(_paths(schema, schema, ""))
    named = [path for path in paths if path.rpartition(".")[2] == name]
    # What stands in a pod is not of this schema.
    return named or [
        path for path in ALSO_CALLED.get(name, ()) if path.partition(".spec.")[0] in paths
    ]


def _paths(schema: Schema, node: Schema, start: str) -> Iterator[str]:
    node = _inside(schema, node)
    for name, child in node.get("properties", {}).items():
        if start or name == "spec":
            path = f"{start}.{name}" if start else name
            yield path
            yield from _paths(schema, child, path)
    if "items" in node:
        yield from _paths(schema, node["items"], f"{start}[]")


def _node(schema: Schema, location: Sequence[str | int]) -> Schema:
    """Return what a JSON schema says of a location; nothing where it does not know it."""
    node = schema
    for part in location:
        inside = _inside(schema, node)
        node = inside.get("items", {}) if isinstance(part, int) else _field(inside, part)
    return {**_inside(schema, node), **node}


def _field(node: Schema, name: str) -> Schema:
    values = node.get("additionalProperties")
    found: Schema = node.get("properties", {}).get(name, values if isinstance(values, dict) else {})
    return found


def _inside(schema: Schema, node: Schema) -> Schema:
    """Follow a node to the object it stands for; of "this or null" that is this."""
    for option in node.get("anyOf", ()):
        if option.get("type") != "null":
            return _inside(schema, option)
    if "$ref" in node:
        return _inside(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    return node
