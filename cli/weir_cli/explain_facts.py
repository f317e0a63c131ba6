"""What `weir explain` has read of a service, and what it makes of that: data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from weir_cli.top_figures import Page
from weir_operator.conditions import Verdict
from weir_operator.render import Manifest
from weir_operator.views import Pod


class Unseen(NamedTuple):
    """What could not be read, and why."""

    what: str
    why: str


class Refusal(Enum):
    """Why nothing can be said of a service at all."""

    UNKNOWN_NAME = "UnknownName"
    DEFINITIONS_MISSING = "DefinitionsMissing"
    FORBIDDEN = "Forbidden"
    NO_CLUSTER = "NoCluster"


class Lease(NamedTuple):
    """The operators' Lease; without a holder none leads."""

    holder: str = ""
    age_s: float = 0.0
    """Since it was renewed."""
    duration_s: float = 0.0


class Event(NamedTuple):
    """A warning of Kubernetes about an object of the service."""

    about: str
    reason: str
    message: str


@dataclass(frozen=True)
class Replica:
    """One replica.

    Attributes:
        name: Of its pod.
        phase: As `weir up` calls where it stands; empty on a cluster.
        restarts: Of its processes.
        pod: On a cluster.
        images: By container.
        last_lines: The end of what each container, or process, wrote before it ended last.
        logs: Where the whole of it is: a file or a command, by container.
        state: The page `/state` of its sidecar; None where it was not read.
        first: Its metrics; None where they were not read.
        later: The same, some seconds after.
        engine_ended_s: Seconds since its engine ended last; None where it never did.
    """

    name: str
    phase: str = ""
    restarts: int = 0
    pod: Pod | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    last_lines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    logs: Mapping[str, str] = field(default_factory=dict)
    state: Any = None
    first: Page | None = None
    later: Page | None = None
    engine_ended_s: float | None = None


@dataclass(frozen=True)
class Facts:
    """A service as it was read.

    Attributes:
        name: As it was asked for.
        where: Which cluster and namespace, or which `weir up`; in words.
        namespace: Empty for `weir up`.
        operator_namespace: Where the operators' Lease was looked for.
        refusal: Why there is nothing more.
        refused: The words of what refused.
        names: Of the services that are there.
        body: The InferenceService, on a cluster.
        replicas: Those that were looked at; a gateway, too.
        asleep: Why `weir up` runs no replica on purpose; empty where it does.
        left_out: Replicas that were not asked: there are many.
        events: Warnings, the newest last.
        lease: None where it was not read.
        tenants: How many InferenceTenants its namespace has; None where that was not read.
        between_s: Seconds between the two readings of metrics; 0 where there was one.
        unseen: What could not be read.
    """

    name: str
    where: str
    namespace: str = ""
    operator_namespace: str = ""
    refusal: Refusal | None = None
    refused: str = ""
    names: tuple[str, ...] = ()
    body: Manifest | None = None
    replicas: tuple[Replica, ...] = ()
    asleep: str = ""
    left_out: int = 0
    events: tuple[Event, ...] = ()
    lease: Lease | None = None
    tenants: int | None = None
    between_s: float = 0.0
    unseen: tuple[Unseen, ...] = ()

    @property
    def conditions(self) -> dict[str, Verdict]:
        """What the operator says, by type."""
        status = (self.body or {}).get("status") or {}
        return {
            each["type"]: Verdict(each["status"], each["reason"], each.get("message", ""))
            for each in status.get("conditions", ())
        }

    @property
    def is_behind(self) -> bool:
        """Whether no operator has looked at the newest edit yet."""
        if self.body is None:
            return False
        seen = (self.body.get("status") or {}).get("observedGeneration", 0)
        return bool(seen < self.body["metadata"].get("generation", 0))


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        reason: A word for programs.
        what: The rest of a sentence that begins "NAME is not ready: ".
        evidence: What it was concluded from.
        advice: What to do.
        commands: What to type.
        section: Where to read on, below docs/.
    """

    reason: str
    what: str
    evidence: tuple[str, ...] = ()
    advice: str = ""
    commands: tuple[str, ...] = ()
    section: str = ""


class Health(Enum):
    """What a service is."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"

    @property
    def exit_code(self) -> int:
        """As shells and CI read it."""
        return {Health.HEALTHY: 0, Health.UNHEALTHY: 1, Health.UNKNOWN: 2}[self]


@dataclass(frozen=True)
class Explanation:
    """What there is to say.

    Attributes:
        verdict: One sentence.
        findings: What is wrong, the cause first.
        remarks: What is noteworthy where nothing is wrong, and beside it.
        unseen: What could not be read.
    """

    name: str
    where: str
    health: Health
    verdict: str
    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()
