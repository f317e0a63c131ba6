"""What the user wrote: YAML files in, checked resources out.

`weir up` reads the same files that `kubectl apply -f` does, so every kind Weir knows is checked
here by the very types the CRDs are made from, and anything else is refused: a kind that was
skipped in silence would look as if it had taken effect. An error names the file, the document in
it and the field, as the user wrote them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from weir_cli.source import documents_of
from weir_core.api.base import Model
from weir_core.api.inferenceservice import InferenceService
from weir_core.api.labels import API_VERSION
from weir_core.api.priorityclass import InferencePriorityClass
from weir_core.api.reading import read, shown, unknown_metadata
from weir_core.api.tenant import InferenceTenant
from weir_core.errors import Fault, InvalidSpec
from weir_operator.render import pod_templates

WEIR_KINDS: Mapping[str, type[Model]] = {
    "InferenceService": InferenceService,
    "InferencePriorityClass": InferencePriorityClass,
    "InferenceTenant": InferenceTenant,
}

Object = tuple[str, str]
"""(namespace, name) of an object."""


@dataclass(frozen=True)
class Documents:
    """Everything the files declare."""

    services: tuple[InferenceService, ...]
    classes: tuple[InferencePriorityClass, ...]
    tenants: tuple[InferenceTenant, ...]
    secrets: Mapping[Object, Mapping[str, str]]
    where: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """File and document of each object, by kind, namespace and name."""

    @property
    def origin(self) -> str:
        """The files' names."""
        names = dict.fromkeys(each.rpartition(":")[0] for each in self.where.values())
        return ", ".join(names) or "the files"

    def check_serves(self) -> None:
        """Check that there is something to serve.

        Raises:
            InvalidSpec: There is no InferenceService.
        """
        if not self.services:
            message = "no InferenceService in it, so there is nothing to serve"
            raise InvalidSpec(self.origin, message)


@dataclass(frozen=True)
class _Document:
    """One YAML document and where it stands."""

    where: str
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.body.get("kind"))


def load(paths: Sequence[Path]) -> Documents:
    """Read and check every document of every file.

    Raises:
        InvalidSpec: A file cannot be read, or documents are not what Weir can take; the error has
            all that is wrong with all of them.
    """
    resources: list[Model] = []
    secrets: dict[Object, Mapping[str, str]] = {}
    seen: dict[tuple[str, str, str], str] = {}
    faults: list[Fault] = []
    for document in _documents(paths, faults):
        try:
            if document.kind == "Secret":
                resource_id = _object_of(document)
                secrets[resource_id] = _secret_values(document)
            else:
                resource = _resource(document)
                resource_id = (resource.metadata.namespace, resource.metadata.name)  # type: ignore[attr-defined]
                resources.append(resource)
        except InvalidSpec as error:
            faults += error.faults
            continue
        key = (document.kind, *resource_id)
        if key in seen:
            faults.append(
                Fault(document.where, f"the same object as {seen[key]}; keep one of them")
            )
        seen[key] = document.where
    if faults:
        raise InvalidSpec.of(faults)
    return Documents(
        services=tuple(r for r in resources if isinstance(r, InferenceService)),
        classes=tuple(r for r in resources if isinstance(r, InferencePriorityClass)),
        tenants=tuple(r for r in resources if isinstance(r, InferenceTenant)),
        secrets=secrets,
        where=seen,
    )


def _documents(paths: Iterable[Path], faults: list[Fault]) -> Iterator[_Document]:
    """Yield each document; what is none is a fault, and hides none of the others."""
    for path in paths:
        try:
            bodies = documents_of(path)
        except InvalidSpec as error:
            faults += error.faults
            continue
        for number, body in enumerate(bodies, start=1):
            where = f"{path}: document {number}"
            if isinstance(body, dict):
                yield _Document(where, body)
            elif body is not None:  # None: what a trailing `---` or a file of comments leaves
                faults.append(Fault(where, "must be an object with apiVersion, kind and metadata"))


def _resource(document: _Document) -> Model:
    """Return the typed resource, or say which field is wrong."""
    kind = WEIR_KINDS.get(document.kind)
    api_version = document.body.get("apiVersion")
    if kind is None:
        raise InvalidSpec(f"{document.where}: kind", _no_kind(document))
    if api_version != API_VERSION:
        is_there = "is missing" if api_version is None else f"{shown(api_version)} is not Weir's"
        raise InvalidSpec(f"{document.where}: apiVersion", f"{is_there}; write {API_VERSION}")
    metadata = document.body.get("metadata")
    faults = unknown_metadata(metadata) if isinstance(metadata, dict) else []
    try:
        resource = read(kind, document.body)
        if isinstance(resource, InferenceService):
            pod_templates(resource)  # what only shows in the pods is wrong here and now, too
    except InvalidSpec as error:
        faults += error.faults
    if faults:
        name = metadata.get("name") if isinstance(metadata, dict) else None
        whose = f"{document.where} ({document.kind}{f' {name}' if name else ''})"
        raise InvalidSpec.of([Fault(f"{whose}: {field}", said) for field, said in faults])
    return resource


def _no_kind(document: _Document) -> str:
    """Return what to write in the place of a kind that is none of Weir's."""
    if "kind" not in document.body:
        return f"is missing; write one of {', '.join([*WEIR_KINDS, 'Secret'])}"
    known = {each.lower(): each for each in (*WEIR_KINDS, "Secret")}
    found = get_close_matches(document.kind.lower(), known, n=1, cutoff=0.8)
    meant = f"; did you mean {known[found[0]]}?" if found else ""
    names = ", ".join(known.values())
    return f"{shown(document.body['kind'])} is not a kind Weir knows ({names}){meant}"


def _object_of(document: _Document) -> Object:
    metadata = document.body.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidSpec(f"{document.where}: metadata.name", "a Secret needs a name")
    return str(metadata.get("namespace", "default")), metadata["name"]


def _secret_values(document: _Document) -> Mapping[str, str]:
    """Return the decoded values; no error ever quotes one."""
    values: dict[str, str] = {}
    for section in ("data", "stringData"):
        entries = document.body.get(section) or {}
        if not isinstance(entries, dict):
            raise InvalidSpec(f"{document.where}: {section}", "must map keys to strings")
        for key, value in entries.items():
            if not isinstance(value, str):
                raise InvalidSpec(f"{document.where}: {section}.{key}", "must be a string")
            values[str(key)] = _decoded(document, key, value) if section == "data" else value
    return values


def _decoded(document: _Document, key: str, value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except ValueError:  # whether it is no base64, no ASCII or no UTF-8
        # `from None`: the cause would carry the secret's bytes into a traceback.
        raise InvalidSpec(
            f"{document.where}: data.{key}", "is not base64 text; write it under stringData"
        ) from None
