"""The status of an InferenceTenant: whether it can be in force as it is written. Pure.

It is written in the passes of the services of its namespace. Each may hold another last good
version, so the status leaves those out and follows from what is written alone. Were it not the same
for all services, they would write it in turn for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from weir_core.wire.compiler import Declared, compile_policies
from weir_core.wire.problems import Problem
from weir_core.wire.tenant_entries import secret_of
from weir_operator.conditions import LONGEST_MESSAGE, Verdict
from weir_operator.render import Manifest

ACCEPTED: Final = "Accepted"


def statuses(declared: Declared, now: str) -> list[tuple[Manifest, Manifest]]:
    """Return each tenant whose status is to be written, with that status.

    Args:
        declared: What there is.
        now: RFC 3339 time for a condition that turned.
    """
    document, problems = compile_policies(replace(declared, revoked=()))
    keys = {each.policy.name: len(each.key_hashes) for each in document.tenants}
    found = []
    for manifest in declared.tenants or ():
        tenant = dict(manifest)
        name, before = tenant["metadata"]["name"], tenant.get("status") or {}
        after = _status(tenant, keys.get(name, 0), _verdict(tenant, problems), now)
        if after != before:
            found.append((tenant, after))
    return found


def _status(tenant: Manifest, keys: int, verdict: Verdict, now: str) -> Manifest:
    generation = int(tenant["metadata"].get("generation", 0))
    (before, *_) = (tenant.get("status") or {}).get("conditions") or [{}]
    same = before.get("status") == verdict.status
    return {
        "observedGeneration": generation,
        "keys": keys,
        "conditions": [
            {
                "type": ACCEPTED,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message,
                "observedGeneration": generation,
                "lastTransitionTime": before["lastTransitionTime"] if same else now,
            }
        ],
    }


def _verdict(tenant: Manifest, problems: Sequence[Problem]) -> Verdict:
    name, secret = tenant["metadata"]["name"], secret_of(tenant)
    concerned = {("InferenceTenant", name), ("Secret", secret)}
    mine = [each for each in problems if (each.kind, each.name) in concerned]
    if not mine:
        return Verdict("True", "InForce", "its classes, limits and keys are in force")
    said = "; ".join(str(each) for each in mine)
    return Verdict("False", mine[0].reason, said[:LONGEST_MESSAGE])
