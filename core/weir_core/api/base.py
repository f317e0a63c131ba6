"""What all resource types share: frozen, camelCase on the wire, unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from weir_core.units import DURATION_PATTERN


class Model(BaseModel):
    """Base of every resource and wire type."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return the schema extension for CEL rules the API server checks: (expression, message)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": text} for rule, text in pairs]}


def keyed_by(field: str) -> dict[str, Any]:
    """Return the schema extension for a list whose items are told apart by `field`.

    The API server refuses two items of one key, and server-side apply merges by it.
    """
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]}


DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Duration = Annotated[str, Field(pattern=DURATION_PATTERN, max_length=32)]
Quantity = int | str
"""A Kubernetes quantity such as `4`, `500m` or `16Gi`."""
FreeForm = dict[str, Any]
"""An object Weir passes on as it is; the API server checks it where it ends up."""


class ObjectMeta(Model):
    """The part of an object's metadata that Weir reads."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
