"""Applies objects, and leaves out what would change nothing.

An apply is for certain without effect where this process has applied the very same before and the
object is still as the API server answered then. Most passes are over services in which nothing
changed: they read, and write nothing.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from weir_core.api.inferenceservice import InferenceService
from weir_operator.cluster import Cluster
from weir_operator.observed import Identity, identity
from weir_operator.render import Manifest


class _Applied(NamedTuple):
    """Digests of what was asked for, and of what it became."""

    desired: bytes
    answer: bytes


class Applier:
    """Remembers what it has applied.

    Args:
        cluster: The API server.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._last: dict[tuple[str, str], dict[Identity, _Applied]] = {}
        """By namespace and name of the service."""

    async def apply(
        self, owner: InferenceService, desired: Manifest, current: Manifest | None
    ) -> Manifest:
        """Return the object as it is once `desired` is applied.

        Args:
            owner: The service that owns it.
            desired: What it should be.
            current: What it is; None where it is not there, or not known.

        Raises:
            ClusterUnavailable: The API server cannot serve now, or refuses.
            InvalidSpec: It calls the object invalid.
        """
        service = owner.metadata.namespace, owner.metadata.name
        of_service = self._last.setdefault(service, {})
        wish = _digest(desired)
        known = of_service.get(identity(desired))
        if current is not None and known == _Applied(wish, _digest(_lasting(current))):
            return current
        applied = await self._cluster.apply(desired)
        of_service[identity(desired)] = _Applied(wish, _digest(_lasting(applied)))
        return applied

    def forget(self, service: tuple[str, str]) -> None:
        """Forget a service (namespace, name) that is gone."""
        self._last.pop(service, None)


def _lasting(manifest: Manifest) -> Manifest:
    """Return of an object what others could have changed of ours."""
    meta = manifest["metadata"]
    kept = {key: value for key, value in manifest.items() if key not in ("metadata", "status")}
    mine = ("uid", "labels", "annotations", "ownerReferences", "deletionTimestamp")
    return {**kept, "metadata": {key: meta.get(key) for key in mine}}


def _digest(manifest: Manifest) -> bytes:
    return hashlib.sha256(msgspec.json.encode(manifest, order="deterministic")).digest()
