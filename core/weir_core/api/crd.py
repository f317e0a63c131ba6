"""Resource types to CustomResourceDefinitions.

Pydantic writes JSON Schema; the API server wants a *structural* schema, which differs:

- no `$ref`: definitions are inlined;
- no `title`, no `default` (see `inferenceservice`; `UNSEEN` is the one exception), no
  `additionalProperties: false` (unknown fields are refused by field validation, or pruned:
  kubernetes/kubernetes#94593);
- an optional field is one that is not required, not `anyOf [..., null]`;
- integer-or-string and free-form objects have extensions of their own;
- what the API server would not keep is left out (an empty `properties`): a second manager that
  applies the same definition conflicts over it;
- the `pattern` of a text is a rule with words (`base.text`): the API server would answer with
  the expression.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from weir_core.api import service_name
from weir_core.api.base import Model, Rule, rules
from weir_core.api.inferenceservice import InferenceServiceSpec
from weir_core.api.labels import GROUP, VERSION
from weir_core.api.priorityclass import InferencePriorityClassSpec
from weir_core.api.status import InferenceServiceStatus
from weir_core.api.tenant import InferenceTenantSpec, InferenceTenantStatus

Schema = dict[str, Any]

_KEPT = (
    "description", "type", "format", "enum", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties", "required", "x-kubernetes-validations",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
)  # fmt: skip

UNSEEN: Schema = {
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "no operator has looked at it yet",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
    ]
}
"""Status of a service that no operator has written a status for. Without it `helm --wait` and other
readers of conditions (kstatus) take a fresh service for one that is ready."""


@dataclass(frozen=True)
class Kind:
    """What a CustomResourceDefinition needs beside the schema."""

    name: str
    plural: str
    short: str
    scope: str
    description: str
    spec: type[Model]
    status: type[Model] | None = None
    unseen: Schema = field(default_factory=dict)
    """What its status' schema has beside the type's."""
    columns: tuple[tuple[str, str, str], ...] = ()
    scalable: bool = False
    name_rules: tuple[Rule, ...] = (
        Rule(
            "self.metadata.name.size() <= 63",
            "metadata.name has too many characters; write at most 63",
        ),
    )

    @property
    def full_name(self) -> str:
        """Name of the definition, as in `kubectl get crd NAME`."""
        return f"{self.plural}.{GROUP}"


_AGE = ("Age", "date", ".metadata.creationTimestamp")

KINDS = (
    Kind(
        name="InferenceService",
        plural="inferenceservices",
        short="infs",
        scope="Namespaced",
        description="A model, served by pools of engine pods.",
        spec=InferenceServiceSpec,
        status=InferenceServiceStatus,
        unseen={"default": UNSEEN},
        columns=(
            ("URL", "string", ".status.url"),
            ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
            ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
            ("Replicas", "integer", ".status.replicas"),
            _AGE,
        ),
        scalable=True,
        name_rules=service_name.rules(),
    ),
    Kind(
        name="InferencePriorityClass",
        plural="inferencepriorityclasses",
        short="ipc",
        scope="Cluster",
        description="How important a request is and what it is promised.",
        spec=InferencePriorityClassSpec,
        columns=(
            ("Rank", "integer", ".spec.rank"),
            ("MinShare", "number", ".spec.minShare"),
            ("TTFT-ms", "integer", ".spec.ttftTargetMs"),
            _AGE,
        ),
    ),
    Kind(
        name="InferenceTenant",
        plural="inferencetenants",
        short="itn",
        scope="Namespaced",
        description="A client of the namespace's models: its keys, classes and limits.",
        spec=InferenceTenantSpec,
        status=InferenceTenantStatus,
        columns=(
            ("Default", "string", ".spec.defaultClass"),
            ("Max", "string", ".spec.maxClass"),
            ("Weight", "number", ".spec.weight"),
            ("Keys", "integer", ".status.keys"),
            ("Accepted", "string", '.status.conditions[?(@.type=="Accepted")].status'),
            ("Reason", "string", '.status.conditions[?(@.type=="Accepted")].reason'),
            _AGE,
        ),
    ),
)


def custom_resource_definitions() -> dict[str, Schema]:
    """Return every definition by its full name, in the order of `KINDS`."""
    return {kind.full_name: _definition(kind) for kind in KINDS}


def structural(model: type[Model]) -> Schema:
    """Return the structural schema of a resource type."""
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}))


def _definition(kind: Kind) -> Schema:
    subresources: Schema = {}
    if kind.status is not None:
        subresources["status"] = {}
    if kind.scalable:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path} for name, type_, path in kind.columns
        ],
        "schema": {"openAPIV3Schema": _object_schema(kind)},
    }
    if subresources:
        version["subresources"] = subresources
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.full_name},
        "spec": {
            "group": GROUP,
            "scope": kind.scope,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["weir"],
            },
            "versions": [version],
        },
    }


def _object_schema(kind: Kind) -> Schema:
    properties: Schema = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": structural(kind.spec),
    }
    if kind.status is not None:
        properties["status"] = structural(kind.status) | kind.unseen
    return {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": properties,
        **rules(*kind.name_rules),
    }


def _convert(node: Schema, definitions: Schema) -> Schema:
    node = _resolve(node, definitions)
    if {"integer", "string"} == {option.get("type") for option in node.get("anyOf", ())}:
        kept = ("description", "pattern", "minimum")
        return {
            **{key: deepcopy(node[key]) for key in kept if key in node},
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
        }
    result: Schema = {key: deepcopy(node[key]) for key in _KEPT if key in node}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "items" in node:
        result["items"] = _convert(node["items"], definitions)
    if node.get("properties"):
        result["properties"] = {
            name: _convert(child, definitions) for name, child in node["properties"].items()
        }
    values = node.get("additionalProperties")
    if isinstance(values, dict) and values:
        result["additionalProperties"] = _convert(values, definitions)
    elif values is True or values == {}:
        result["x-kubernetes-preserve-unknown-fields"] = True
    return result


def _resolve(node: Schema, definitions: Schema) -> Schema:
    """Return `node` without references and without the null alternative of an optional."""
    options = node.get("anyOf")
    if options is not None:
        wanted = [option for option in options if option.get("type") != "null"]
        if len(wanted) == 1:
            node = {**{k: v for k, v in node.items() if k != "anyOf"}, **_inner(wanted[0], node)}
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        siblings = {key: value for key, value in node.items() if key != "$ref"}
        return _resolve({**target, **siblings}, definitions)
    return node


def _inner(option: Schema, outer: Schema) -> Schema:
    """Return an optional's only alternative; the field's own description wins over the type's."""
    return {key: value for key, value in option.items() if key not in outer or key == "type"}
