"""Which classes a service accepts, gives by default, and gives to those without an API key."""

from __future__ import annotations

from typing import NamedTuple

from weir_core.api.inferenceservice import InferenceService
from weir_core.wire.class_entries import Classes
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.problems import Problem, listed

DEFAULT_CLASS = "standard"
"""Class of requests that name none, where neither their tenant nor the service says."""


class Admission(NamedTuple):
    """The fields of the policy document of these names."""

    default_class: str
    accepted_classes: tuple[str, ...]
    anonymous_class: str | None

    @property
    def named(self) -> list[str]:
        """Every class that must exist for it."""
        anonymous = [] if self.anonymous_class is None else [self.anonymous_class]
        return [self.default_class, *self.accepted_classes, *anonymous]


def compile_admission(
    service: InferenceService, known: Classes, held: Classes, before: PolicyDocument | None
) -> tuple[Admission, list[Problem]]:
    """Return what `spec.admission` says, each field for itself as it last was good.

    Args:
        service: The service.
        known: The classes in force.
        held: The last good version of each class; one of these goes on while it is named.
        before: The document in force so far.
    """
    spec, wanted = service.spec.admission, service.spec.admission.default_class or DEFAULT_CLASS
    possible = known.keys() | held.keys()
    asked = [("defaultClass", wanted)]
    asked += [(f"classes[{index}]", name) for index, name in enumerate(spec.classes)]
    asked += [("anonymousClass", spec.anonymous_class)] if spec.anonymous_class else []
    missing = {field: name for field, name in asked if name not in known}

    default = wanted
    if "defaultClass" in missing:
        default = min(known, key=lambda name: (known[name].rank, name))
        if before and before.default_class in possible:
            default = before.default_class
    accepted = tuple(dict.fromkeys(spec.classes))
    if any(field.startswith("classes") for field in missing):
        accepted = tuple(name for name in accepted if name in known) or (default,)
        if before and possible >= set(before.accepted_classes):
            accepted = before.accepted_classes
    anonymous = spec.anonymous_class
    if "anonymousClass" in missing:
        anonymous = before.anonymous_class if before else None
        anonymous = anonymous if anonymous in possible else None
    problems = [_missing(service, field, name, known) for field, name in missing.items()]
    return Admission(default, accepted, anonymous), problems


def _missing(service: InferenceService, field: str, name: str, known: Classes) -> Problem:
    unset = field == "defaultClass" and service.spec.admission.default_class is None
    message = f"there is no class {name}; make it, or name one of {listed(known)}"
    if unset:
        message = f"is not set, and there is no class {name}; write one of {listed(known)}"
    return Problem(
        "InvalidAdmission",
        "InferenceService",
        service.metadata.name,
        f"spec.admission.{field}",
        message,
    )
