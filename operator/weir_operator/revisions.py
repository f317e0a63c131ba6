"""Keeping a pool's pod template over operator upgrades.

A new operator may render the same spec differently: another default image, another probe. Applied
at once, that would roll every engine of the cluster the moment someone upgrades Weir. So each
rendered template is kept in a ControllerRevision, labelled with a digest of the spec it came from,
and used again for as long as the spec is the same. An edit of the spec, or a new value of the
annotation `serving.weir.dev/restarted-at`, renders anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool
from weir_operator.kinds import REVISION
from weir_operator.render import Manifest, deployment_name
from weir_operator.render.naming import metadata, pool_of
from weir_operator.render.pods import asked_by_adapters

KEPT = 3
"""Revisions that stay per pool, the newest first: to look at what a pod ran before."""

_NO_POD: dict[str, Any] = {
    **dict.fromkeys(
        ("replicas", "scaling", "routing", "network", "rollout", "pools", "admission"), True
    ),
    "engine": {"scheduling"},
    "model": {
        **dict.fromkeys(("aliases", "adapters", "adapter_slots", "adapter_rank"), True),
        "cache": {"prefetch"},
    },
}
"""Fields of a spec that change no pod; pools are digested one by one, and adapters by what they
ask for."""
_NO_POD_BEFORE: dict[str, Any] = {
    **{field: left for field, left in _NO_POD.items() if field != "model"},
    "admission": {"default_class", "classes", "anonymous_class", "keep_alive"},
}
"""The same for revisions of an operator that put aliases, adapters and limits into the pod."""
_NO_POD_AT_FIRST: dict[str, Any] = {
    **{field: left for field, left in _NO_POD_BEFORE.items() if field != "engine"},
    "admission": {"default_class", "classes"},
}
"""The same for revisions of an operator that gave engines their mode in the environment, too."""
_NO_POD_OF_POOL = {"replicas", "cost", "spot"}


def spec_digest(owner: InferenceService, pool: Pool) -> str:
    """Return a digest of all that the pod template of `pool` depends on.

    Only what the user wrote counts, so that a field a later Weir adds, or a default it changes,
    leaves the digests of objects that do not name it as they are.
    """
    wanted = _without_empty(_written(owner, _NO_POD))
    # Set apart from those of earlier operators, whose pods learn no name and no limit while they
    # run: the first edit of one has to replace them.
    wanted["adapters"] = asked_by_adapters(owner)
    return _digest_of(wanted, owner, pool)


def _earlier_digests(owner: InferenceService, pool: Pool) -> list[str]:
    """Return the digests that earlier operators kept templates under, the newest first.

    Their templates go on being used: an upgrade of the operator alone rolls no pod.
    """
    before = _without_empty(_written(owner, _NO_POD_BEFORE))
    first = _written(owner, _NO_POD_AT_FIRST)
    return [_digest_of(wanted, owner, pool) for wanted in (before, first)]


def _without_empty(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return it without sections of which nothing changes a pod."""
    sections = ("admission", "engine")
    return {name: each for name, each in wanted.items() if each or name not in sections}


def _written(owner: InferenceService, left_out: dict[str, Any]) -> dict[str, Any]:
    return owner.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=left_out)


def _digest_of(wanted: dict[str, Any], owner: InferenceService, pool: Pool) -> str:
    wanted["pool"] = pool.model_dump(
        mode="json", by_alias=True, exclude_unset=True, exclude=_NO_POD_OF_POOL
    )
    wanted["restartedAt"] = owner.metadata.annotations.get(labels.RESTARTED_AT)
    text = json.dumps(wanted, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Choice(NamedTuple):
    """What a pool's pods are made from."""

    template: Manifest
    digest: str
    """Of the spec that the template was rendered from."""
    new: Manifest | None
    """The revision to keep it in, once it is accepted; None where one holds it already."""


def choose(
    owner: InferenceService, rendered: Mapping[str, Manifest], owned: Sequence[Manifest]
) -> dict[str, Choice]:
    """Return what each pool's pods are made from.

    Args:
        owner: The service.
        rendered: The pod template of each pool, as it is rendered today.
        owned: The service's objects.
    """
    chosen = {}
    for pool in owner.spec.hardware_pools:
        of_pool = _newest_first(owned, pool.name)
        current = _current(owner, pool, of_pool)
        if current is not None:
            chosen[pool.name] = Choice(current["data"], _digest(current), None)
            continue
        digest, template = spec_digest(owner, pool), rendered[pool.name]
        number = 1 + max((each["revision"] for each in of_pool), default=0)
        new = _revision(owner, pool, digest, number, template)
        chosen[pool.name] = Choice(template, digest, new)
    return chosen


def expired(owner: InferenceService, owned: Sequence[Manifest]) -> list[Manifest]:
    """Return the revisions to delete of pools that the spec names."""
    found = []
    for pool in owner.spec.hardware_pools:
        of_pool = _newest_first(owned, pool.name)
        current = _current(owner, pool, of_pool)
        found += [each for each in of_pool if each is not current][KEPT - 1 :]
    return found


def template_of(workload: Manifest, owned: Sequence[Manifest]) -> Manifest | None:
    """Return the kept template that a workload's pods are made from; None where none is kept."""
    of_pool = _newest_first(owned, pool_of(workload))
    same = _kept(of_pool, _digest(workload)) or next(iter(of_pool), None)
    return None if same is None else same["data"]


def _current(owner: InferenceService, pool: Pool, of_pool: Sequence[Manifest]) -> Manifest | None:
    digests = [spec_digest(owner, pool), *_earlier_digests(owner, pool)]
    kept = (_kept(of_pool, digest) for digest in digests)
    return next(filter(None, kept), None)


def _newest_first(owned: Sequence[Manifest], pool: str) -> list[Manifest]:
    revisions = (each for each in owned if each["kind"] == REVISION.name)
    of_pool = [each for each in revisions if pool_of(each) == pool]
    return sorted(of_pool, key=lambda each: each["revision"], reverse=True)


def _kept(of_pool: Sequence[Manifest], digest: str) -> Manifest | None:
    return next((each for each in of_pool if _digest(each) == digest), None)


def _digest(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("annotations", {}).get(labels.SPEC_HASH, ""))


def _revision(
    owner: InferenceService, pool: Pool, digest: str, number: int, template: Manifest
) -> Manifest:
    name = f"{deployment_name(owner, pool)}-{digest[:8]}"
    meta = metadata(owner, name, "revision", **{labels.POOL: pool.name})
    meta.setdefault("annotations", {})[labels.SPEC_HASH] = digest
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": meta,
        "revision": number,
        "data": template,
    }
