"""Which classes a service accepts, gives by default, and gives to those without an API key.

A default or anonymous class that the service does not accept is a problem; the highest accepted
class that is not above it holds meanwhile.
"""

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
    ranks = {**held, **known}
    found = Admission(
        _accepted(default, accepted, ranks) or _lowest(accepted, ranks),
        accepted,
        None if anonymous is None else _accepted(anonymous, accepted, ranks),
    )
    refused = [
        _not_accepted(service, field, name, accepted)
        for field, name in asked
        if accepted and name not in accepted and field not in missing
        if field != "defaultClass" or spec.default_class
    ]
    return found, problems + refused


def _accepted(name: str, accepted: tuple[str, ...], classes: Classes) -> str | None:
    """Return a class, or the highest accepted one below it where it is not accepted itself."""
    if not accepted or name in accepted:
        return name
    below = [each for each in accepted if classes[each].rank <= classes[name].rank]
    return max(below, key=lambda each: (classes[each].rank, each), default=None)


def _lowest(accepted: tuple[str, ...], classes: Classes) -> str:
    return min(accepted, key=lambda each: (classes[each].rank, each))


def _not_accepted(
    service: InferenceService, field: str, name: str, accepted: tuple[str, ...]
) -> Problem:
    return Problem(
        "InvalidAdmission",
        "InferenceService",
        service.metadata.name,
        f"spec.admission.{field}",
        f"{name} is not among spec.admission.classes; add it, or name one of {listed(accepted)}",
    )


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
