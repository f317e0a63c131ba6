"""From the resources users write to the one document the sidecars of a service are told. Pure.

The operator and `weir up` both compile here, so a class means the same on a laptop. An entry that
is broken is refused by itself: its last good version, out of the document before, stays in force,
everything else goes on, and a problem says what to write instead. Whatever comes in, the document
that goes out is one a scheduler can work with: every class that something names is there, no key
has two tenants, and the minimum shares fit into one engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from weir_core.api.inferenceservice import InferenceService
from weir_core.sched.types import ClassPolicy
from weir_core.units import parse_duration
from weir_core.wire.admission_entries import compile_admission
from weir_core.wire.class_entries import Classes, compile_classes, effective, retained
from weir_core.wire.policies import (
    AdapterEntry,
    EngineMode,
    PolicyDocument,
    TenantEntry,
    engine_mode,
)
from weir_core.wire.problems import Manifest, Problem, listed, name_of
from weir_core.wire.tenant_entries import Secrets, compile_tenants, secret_of

_NO_KEYS: Mapping[str, str] = {}
_UNREADABLE = (
    "the operator may not read them; let it list and watch them, and apply Weir's definitions "
    "where they are gone"
)


@dataclass(frozen=True)
class Declared:
    """What there is at one instant, as the API server or the user's files hold it.

    Attributes:
        service: The service the document is for.
        classes: Every InferencePriorityClass; None when they cannot be read.
        tenants: The InferenceTenants of the service's namespace; None when they cannot be read.
        secrets: The Secrets the tenants name, as far as they exist.
        revoked: Names of Secrets that are gone for so long that their keys count no more.
    """

    service: InferenceService
    classes: Sequence[Manifest] | None = ()
    tenants: Sequence[Manifest] | None = ()
    secrets: Secrets = field(default_factory=dict)
    revoked: Collection[str] = ()


def compile_policies(
    declared: Declared, before: PolicyDocument | None = None
) -> tuple[PolicyDocument, list[Problem]]:
    """Return the document to put in force, and what is not in it as it was written.

    Args:
        declared: What there is.
        before: The document in force so far: the last good version of each entry.
    """
    held = effective(before.classes) if before else {}
    classes, problems = _classes(declared, before, held)
    known = effective(classes.values())
    tenants, refused = _tenants(declared, known, held, before)
    admission, wrong = compile_admission(declared.service, known, held, before)
    engine, unknown = _engine(declared.service, known, before)
    used = [*admission.named, *(name for each in tenants for name in _named(each))]
    spec = declared.service.spec
    document = PolicyDocument(
        classes=tuple(retained(used, classes, held).values()),
        tenants=tuple(tenants),
        default_class=admission.default_class,
        accepted_classes=admission.accepted_classes,
        anonymous_class=admission.anonymous_class,
        engine=engine,
        keep_alive_s=_keep_alive_s(declared.service),
        max_queued=spec.admission.max_queued,
        max_body_bytes=spec.admission.max_body_bytes,
        aliases=tuple(dict.fromkeys(spec.model.aliases)),
        adapters=tuple(AdapterEntry(each.name, each.source.uri) for each in spec.model.adapters),
    )
    return document, [*problems, *refused, *wrong, *unknown]


def _classes(
    declared: Declared, before: PolicyDocument | None, held: Classes
) -> tuple[dict[str, ClassPolicy], list[Problem]]:
    if declared.classes is not None:
        return compile_classes(declared.classes, held)
    kept = {policy.name: policy for policy in before.classes} if before else {}
    force = f"classes in force: {listed(effective(kept.values()))}"
    message = f"{_UNREADABLE} ({force})"
    return kept, [Problem("Unreadable", "InferencePriorityClass", "", "", message)]


def _tenants(
    declared: Declared, known: Classes, held: Classes, before: PolicyDocument | None
) -> tuple[list[TenantEntry], list[Problem]]:
    last = {entry.policy.name: entry for entry in before.tenants} if before else {}
    problems: list[Problem] = []
    tenants = list(last.values())
    if declared.tenants is None:
        problems = [Problem("Unreadable", "InferenceTenant", "", "", _UNREADABLE)]
    else:
        secrets = {**dict.fromkeys(declared.revoked, _NO_KEYS), **declared.secrets}
        tenants, problems = compile_tenants(declared.tenants, secrets, known, last)
        problems += _revoked(declared)
    possible = known.keys() | held.keys()
    return [each for each in tenants if possible >= set(_named(each))], problems


def _revoked(declared: Declared) -> list[Problem]:
    return [
        Problem(
            "KeysRevoked",
            "InferenceTenant",
            name_of(tenant),
            "spec.apiKeySecretRef.name",
            f"Secret {secret} is gone, so the tenant's keys are refused; make the Secret again, or "
            "delete the tenant",
        )
        for tenant in declared.tenants or ()
        if (secret := secret_of(tenant)) in declared.revoked and secret is not None
    ]


def _keep_alive_s(service: InferenceService) -> float | None:
    keep_alive = service.spec.admission.keep_alive
    return None if keep_alive is None else parse_duration(keep_alive)


def _named(entry: TenantEntry) -> tuple[str, str]:
    return entry.default_class, entry.max_class


def _engine(
    service: InferenceService, known: Classes, before: PolicyDocument | None
) -> tuple[EngineMode, list[Problem]]:
    scheduling = service.spec.engine.scheduling
    missing = sorted(scheduling.class_shares.keys() - known.keys())
    if not missing:
        return engine_mode(scheduling), []
    problem = Problem(
        "InvalidScheduling",
        "InferenceService",
        service.metadata.name,
        f"spec.engine.scheduling.classShares.{missing[0]}",
        f"there is no class {missing[0]}; make it, or name one of {listed(known)}",
    )
    return (before.engine if before else EngineMode()), [problem]
