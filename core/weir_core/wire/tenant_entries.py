"""The tenants of a policy document, out of InferenceTenants and Secrets with hashes of their keys.

A tenant that cannot be taken as it is written stays as it was, keys included. A key belongs to one
tenant: where two claim it, the one that had it keeps it, else the first by name. A `defaultClass`
above the `maxClass` is a problem too, but no reason to lock a tenant out: the lower one holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from weir_core.api.tenant import InferenceTenant
from weir_core.wire.class_entries import Classes
from weir_core.wire.policies import TenantEntry, tenant_policy
from weir_core.wire.problems import Manifest, Problem, listed, name_of, read, unheard_of

Secrets = Mapping[str, Mapping[str, str]]
"""Values of each Secret that exists, by its name and key, decoded."""

Entries = Mapping[str, TenantEntry]

_HASH = re.compile(r"[0-9a-f]{64}")
_HOW = 'write what `printf %s "$KEY" | sha256sum` prints: 64 hex digits'


class _Offer(NamedTuple):
    """What a tenant would be, and what it was."""

    wanted: TenantEntry | None
    before: TenantEntry | None


def compile_tenants(
    manifests: Sequence[Manifest], secrets: Secrets, classes: Classes, before: Entries
) -> tuple[list[TenantEntry], list[Problem]]:
    """Return the tenants to put in force, in the order of their names.

    Args:
        manifests: Every InferenceTenant of the service's namespace.
        secrets: The Secrets they name.
        classes: The classes in force.
        before: The last good version of each tenant.
    """
    offers: dict[str, _Offer] = {}
    problems: list[Problem] = []
    for manifest in sorted(manifests, key=name_of):
        entry = _entry(manifest, secrets, classes)
        name = name_of(manifest)
        if isinstance(entry, Problem):
            problems.append(entry)
            offers[name] = _Offer(None, before.get(name))
        else:
            lowered = _lowered(entry, classes)
            problems += [] if lowered is entry else [_above(entry, name)]
            offers[name] = _Offer(lowered, before.get(name))
    chosen, refused = _one_owner_each(offers)
    problems += [*refused, *unheard_of(manifests, InferenceTenant)]
    return [chosen[name] for name in sorted(chosen)], problems


def secret_of(manifest: Manifest) -> str | None:
    """Return the name of the Secret a tenant's keys are in, or None if the tenant is broken."""
    found = read(manifest, InferenceTenant, "InvalidTenant")
    return None if isinstance(found, Problem) else found.spec.api_key_secret_ref.name


def _lowered(entry: TenantEntry, classes: Classes) -> TenantEntry:
    """Return the entry with a default class that is not above its highest one."""
    if classes[entry.default_class].rank <= classes[entry.max_class].rank:
        return entry
    return msgspec.structs.replace(entry, default_class=entry.max_class)


def _above(entry: TenantEntry, tenant: str) -> Problem:
    return Problem(
        "InvalidTenant",
        "InferenceTenant",
        tenant,
        "spec.defaultClass",
        f"{entry.default_class} is above maxClass {entry.max_class}, which holds meanwhile; "
        f"lower the one or raise the other",
    )


def _entry(manifest: Manifest, secrets: Secrets, classes: Classes) -> TenantEntry | Problem:
    found = read(manifest, InferenceTenant, "InvalidTenant")
    if isinstance(found, Problem):
        return found
    spec = found.spec
    highest = spec.max_class or spec.default_class
    for field, name in (("defaultClass", spec.default_class), ("maxClass", highest)):
        if name not in classes:
            return _problem(
                found,
                f"spec.{field}",
                f"there is no class {name}; make it, or name one of {listed(classes)}",
            )
    names = _names_of_hashes(found, secrets)
    if isinstance(names, Problem):
        return names
    return TenantEntry(
        policy=tenant_policy(found),
        default_class=spec.default_class,
        max_class=highest,
        delegates=spec.delegates,
        key_hashes=tuple(names),
        key_names=tuple(names.values()),
    )


def _names_of_hashes(tenant: InferenceTenant, secrets: Secrets) -> dict[str, str] | Problem:
    """Return the hashes of the tenant's keys, each with its name; no message quotes a value."""
    secret = tenant.spec.api_key_secret_ref.name
    if secret not in secrets:
        return Problem(
            "SecretMissing",
            "InferenceTenant",
            tenant.metadata.name,
            "spec.apiKeySecretRef.name",
            f"there is no Secret {secret} to be read; make it, with the SHA-256 hashes of the "
            "tenant's API keys as values",
        )
    names: dict[str, str] = {}
    for key, value in sorted(secrets[secret].items()):
        digest = value.strip().lower()
        if not _HASH.fullmatch(digest):
            message = f"is not the SHA-256 hash of a key; {_HOW}"
            return Problem("InvalidSecret", "Secret", secret, f"data.{key}", message)
        names.setdefault(digest, key)
    return dict(sorted(names.items()))


def _one_owner_each(offers: Mapping[str, _Offer]) -> tuple[dict[str, TenantEntry], list[Problem]]:
    """Choose each tenant's wanted entry, or the earlier one, so that no two share a key."""
    chosen = {
        name: entry
        for name, offer in offers.items()
        if (entry := offer.wanted or offer.before) is not None
    }
    problems = []
    while (clash := _clash(chosen, offers)) is not None:
        owner, other = clash
        entry, earlier = chosen.pop(other), offers[other].before
        if earlier is not None and earlier is not entry:
            chosen[other] = earlier
        problems.append(_shared(owner, other))
    return chosen, list(dict.fromkeys(problems))


def _clash(chosen: Entries, offers: Mapping[str, _Offer]) -> tuple[str, str] | None:
    """Return two tenants that claim one key, its owner first."""
    claimed: dict[str, str] = {}
    for name in sorted(chosen):
        for digest in chosen[name].key_hashes:
            first = claimed.setdefault(digest, name)
            if first != name:
                newer = _had(offers[name], digest) and not _had(offers[first], digest)
                return (name, first) if newer else (first, name)
    return None


def _had(offer: _Offer, digest: str) -> bool:
    return offer.before is not None and digest in offer.before.key_hashes


def _shared(owner: str, other: str) -> Problem:
    return Problem(
        "InvalidTenant",
        "InferenceTenant",
        other,
        "spec.apiKeySecretRef",
        f"one of its keys is tenant {owner}'s, too; give each tenant keys of its own",
    )


def _problem(tenant: InferenceTenant, field: str, message: str) -> Problem:
    return Problem("InvalidTenant", "InferenceTenant", tenant.metadata.name, field, message)
