"""What is wrong with a resource that policies are made of, and reading one without raising.

One tenant's typing error must not take the classes from all others. So what makes the policy
document collects problems beside its result, and each problem says which object, which field,
and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from weir_core.api.base import Model

Resource = TypeVar("Resource", bound=Model)
Manifest = Mapping[str, Any]
"""An object as the API server, or a user's file, holds it."""

Reason = Literal[
    "InvalidClass",
    "InvalidTenant",
    "InvalidSecret",
    "SecretMissing",
    "KeysRevoked",
    "InvalidAdmission",
    "InvalidScheduling",
    "Unreadable",
]


class Problem(NamedTuple):
    """Why an entry is not in force as it was written.

    Attributes:
        reason: Why, as one CamelCase word; a condition's reason.
        kind: Kind of the object at fault.
        name: Its name; empty where no single object is.
        field: Path of the field as the user wrote it.
        message: What is wrong with it and what to write instead.
    """

    reason: Reason
    kind: str
    name: str
    field: str
    message: str

    def __str__(self) -> str:
        """Return it as one sentence that begins with the object and the field."""
        place = f"{self.kind}/{self.name}" if self.name else self.kind
        return (
            f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"
        )


def name_of(manifest: Manifest) -> str:
    """Return the object's name, or nothing where it has none."""
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return name if isinstance(name, str) else ""


def read(manifest: Manifest, kind: type[Resource], reason: Reason) -> Resource | Problem:
    """Return the typed resource in `manifest`, or the first thing that is wrong with it."""
    try:
        return kind.model_validate({key: manifest[key] for key in manifest if key != "status"})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown field; check its spelling, or take it out"
        if first["type"] == "string_pattern_mismatch" and first["loc"][-1] == "maxQueueWait":
            message = "is not a duration; write it like 30s, 5m or 250ms"
        return Problem(reason, kind.__name__, name_of(manifest), _path(first["loc"]), message)


def listed(names: Iterable[str]) -> str:
    """Return names for a sentence."""
    return ", ".join(sorted(names)) or "none"


def _path(location: Iterable[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")
