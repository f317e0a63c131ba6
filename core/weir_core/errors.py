"""Every error Weir raises on purpose.

WeirError
├── InvalidSpec              the user must edit the resource; retrying cannot help
├── InvalidBody              the client must change its request; retrying cannot help
├── EngineUnavailable        the engine is starting, draining or gone
├── ClusterUnavailable       the API server did not answer
│   ├── ClusterRefuses       it answered no: missing rights, a quota, a name that is taken
│   ├── WatchExpired         a watch cannot go on from where it was
│   └── PredecessorLeaving   an earlier service of this name is still being deleted
├── ModelUnavailable         weights could not be had now; retrying may help
└── MachineUnfit             this machine, or pod, cannot run it: a port is taken, a GPU is missing
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong with what a user wrote."""

    field: str
    """Path of the field as the user wrote it, for example `spec.pools[1].name`."""
    message: str
    """What is wrong with it and what to write instead, one sentence."""

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.field}: {self.message}"


class WeirError(Exception):
    """Base class; `reason` is the stable code used in logs, metric labels and error bodies."""

    reason = "internal"


class InvalidSpec(WeirError):
    """The resource contradicts itself or names something that cannot exist.

    Args:
        field: Path of the offending field as the user wrote it, for example
            `spec.pools[1].name`.
        message: What is wrong with it and what to write instead, one sentence.
        others: What else is wrong.
    """

    reason = "invalid_spec"

    def __init__(self, field: str, message: str, *others: Fault) -> None:
        self.faults = (Fault(field, message), *others)
        super().__init__("; ".join(map(str, self.faults)))
        self.field = field
        self.message = message

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> InvalidSpec:
        """Return the error that tells all of these, of which there is one at least."""
        first, *others = faults
        return cls(first.field, first.message, *others)


class InvalidBody(WeirError):
    """A request's body cannot be read, or holds what clients may not send.

    Args:
        field: The field at fault, or nothing where it is the whole body.
        message: What is wrong with it, one sentence.
    """

    reason = "bad_request"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class EngineUnavailable(WeirError):
    """The engine does not answer: it is starting, draining or gone."""

    reason = "rejected-no-endpoints"


class ClusterUnavailable(WeirError):
    """The API server did not answer, or answered that it cannot serve right now."""

    reason = "cluster_unavailable"


class ClusterRefuses(ClusterUnavailable):
    """The API server said no for a reason outside the spec; it may say yes once that is gone."""

    reason = "cluster_refuses"


class KindMissing(ClusterRefuses):
    """The cluster does not know a kind of object; it will once a person has installed it."""

    reason = "kind_missing"


class WatchExpired(ClusterUnavailable):
    """The API server cannot tell what changed since a watch ended: it has to begin anew."""

    reason = "watch_expired"


class PredecessorLeaving(ClusterUnavailable):
    """An object of an earlier service of the same name is there, until it is collected."""

    reason = "predecessor_leaving"


class MachineUnfit(WeirError):
    """This machine, as it is, cannot run what was asked; the message says what to change."""

    reason = "machine_unfit"


class ModelUnavailable(WeirError):
    """The weights could not be brought here; the message names their uri and what to do."""

    reason = "model_unavailable"
