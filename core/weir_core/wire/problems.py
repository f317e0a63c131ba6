"""What is wrong with a resource that policies are made of, and reading one without raising.

One tenant's typing error must not take the classes from all others. So what makes the policy
document collects problems beside its result, and each problem says which object, which field,
and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeVar

from weir_core.api import reading
from weir_core.api.base import Model
from weir_core.errors import InvalidSpec

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
    "UnknownField",
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
    """Return the typed resource in `manifest`, or the first thing that is wrong with it.

    Fields that this version does not know are left out: see `unheard_of`.
    """
    try:
        found: Resource = _known(manifest, kind).resource
    except InvalidSpec as error:
        return Problem(reason, kind.__name__, name_of(manifest), error.field, error.message)
    return found


def unheard_of(manifests: Iterable[Manifest], kind: type[Model]) -> Iterator[Problem]:
    """Yield the fields that only a later Weir knows; of others the API server keeps none."""
    message = "this version of Weir does not know it, so it has no effect; upgrade Weir"
    for manifest in manifests:
        with suppress(InvalidSpec):  # `read` tells of that
            for path in _known(manifest, kind).unknown:
                yield Problem("UnknownField", kind.__name__, name_of(manifest), path, message)


def _known(manifest: Manifest, kind: type[Model]) -> reading.Known:
    return reading.read_known(kind, {key: manifest[key] for key in manifest if key != "status"})


def listed(names: Iterable[str]) -> str:
    """Return names for a sentence."""
    return ", ".join(sorted(names)) or "none"
