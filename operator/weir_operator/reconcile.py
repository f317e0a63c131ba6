"""One pass: read all that is needed, compute, write. Whatever event asked for it.

A pass does not know why it runs. It reads the service with the classes and tenants its sidecars
are told of, and tells them; it reads what the service owns, its pods, and what its engines say of
themselves; it renders what should be; it applies that, deletes what should not be, and publishes
what it saw. So it may run twice, or after a crash in the middle of an earlier one, and the world
ends up the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import ClusterRefuses, ClusterUnavailable, InvalidSpec, PredecessorLeaving
from weir_operator import peers, policies, status
from weir_operator.cluster import SECRET, SERVICE, Cluster
from weir_operator.engines import Engines
from weir_operator.events import event
from weir_operator.interests import Interests
from weir_operator.parse import owner_in, parse
from weir_operator.render import (
    Images,
    Manifest,
    desired_state,
    names_in,
    pod_templates,
    policies_name,
    policies_secret,
)
from weir_operator.render.naming import pool_of
from weir_operator.revisions import choose
from weir_operator.verdicts import WORKLOADS, Observed

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a pass ended."""

    SETTLED = "settled"
    """The world is as the spec asks."""
    PROGRESSING = "progressing"
    """It was told to be, and is on its way; worth another look soon."""
    WAITING = "waiting"
    """Nothing can be written until an earlier service's objects are gone."""
    REJECTED = "rejected"
    """Only an edit of the spec can help."""
    GONE = "gone"
    """There is no such service; the garbage collector has the rest."""


class Key(NamedTuple):
    """Which service."""

    namespace: str
    name: str


class Reconciler:
    """Runs passes.

    Args:
        cluster: The API server.
        engines: What the engines say.
        images: Container images where a spec names none.
        clock: The time of day, with its zone.
        new_key: Makes a key for the sidecars of a service: 64 random hex digits.
    """

    def __init__(
        self,
        cluster: Cluster,
        engines: Engines,
        images: Images,
        clock: Callable[[], datetime],
        new_key: Callable[[], str],
    ) -> None:
        self.interests: Interests[tuple[str, str]] = Interests()
        """What the services' passes read beside the services themselves."""
        self._cluster = cluster
        self._engines = engines
        self._images = images
        self._clock = clock
        self._new_key = new_key

    async def run(self, key: Key) -> Outcome:
        """Bring one service closer to its spec and publish what was observed.

        Raises:
            ClusterUnavailable: The API server cannot serve now; the pass is worth repeating.
        """
        body = await self._cluster.find(SERVICE, *key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self.interests.forget(key)
            self._engines.forget(key)
            return Outcome.GONE
        told: Observed | None = None
        try:
            told = await self._tell(body)
            service = parse(body)
            seen = await self._write(service, told)
        except InvalidSpec as error:
            await self._publish(body, status.rejected(error, told, body, self._now()))
            return Outcome.REJECTED
        except PredecessorLeaving as error:
            await self._publish(body, status.waiting(error, told, body, self._now()))
            return Outcome.WAITING
        except ClusterRefuses as error:
            await self._publish(body, status.refused(error, told, body, self._now()))
            raise
        except Exception:  # whatever it was, sidecars may have been told before it
            await self._publish(body, status.interrupted(told, body, self._now()))
            raise
        after = status.observed(service, seen, body, self._now())
        await self._publish(body, after)
        settled = all(
            each["status"] == "True" for each in after["conditions"] if each["type"] == WORKLOADS
        )
        return Outcome.SETTLED if settled else Outcome.PROGRESSING

    async def _tell(self, body: Manifest) -> Observed:
        """Tell the sidecars what the document holds; return the pods and what was told.

        It comes before all else, and asks for no more of the spec than it needs: pods that serve
        what is left of an earlier spec must not go on taking a key that was revoked.
        """
        owner = owner_in(body)
        meta = owner.metadata
        before = await self._cluster.find(SECRET, meta.namespace, policies_name(owner))
        if before is not None and not _belongs_to(before, owner):
            raise _in_the_way(before, owner)
        told = await policies.compiled(body, self._cluster, self.interests, before)
        keys = peers.keys_for(owner, before, self._new_key)
        pods = await self._cluster.pods(meta.namespace, meta.name)
        document = peers.with_peers(told.document, pods, keys)
        # Before the pods are touched: each then mounts a list with itself and all before it. One
        # that is made meanwhile has no address; when it is ready, its Deployment asks for a pass.
        await self._cluster.apply(policies_secret(owner, document, keys.rotation))
        await policies.tell(self._cluster, pods, document)
        return Observed({}, pods, told.document, told.problems)

    async def _write(self, service: InferenceService, told: Observed) -> Observed:
        """Apply what should be, delete what should not, and return what is there now."""
        name, namespace = service.metadata.name, service.metadata.namespace
        owned = await self._cluster.owned(namespace, name)
        mine = [each for each in owned if _belongs_to(each, service)]
        templates, revisions, expired = choose(service, pod_templates(service, self._images), mine)
        replicas = replicas_within_bounds(service, mine)
        # Revisions come last: a template the API server refused must not be kept.
        rendered = desired_state(service, self._images, templates, replicas, names_in(mine))
        desired = [*rendered, *revisions]
        await self._refuse_to_take_over(desired, mine, service)
        applied = _deployments([await self._cluster.apply(manifest) for manifest in desired])
        leaving = still_needed(_deployments(mine), applied)
        for manifest in [*expired, *_superfluous(mine, desired, applied, leaving)]:
            await self._cluster.delete(manifest)
        # Listed anew, and after the Deployments: with pods older than what those say, a pass could
        # settle while it shows a replica that is not ready.
        pods = await self._cluster.pods(namespace, name)
        # Those of a Deployment that was just deleted may not know yet, and no event will tell when.
        pods = [pod for pod in pods if pool_of(pod) in {"", *applied, *leaving}]
        seen = replace(told, deployments=applied, leaving=leaving, pods=pods)
        engines = await self._engines.said((namespace, name), seen.staying)
        return replace(seen, engines=engines)

    async def _refuse_to_take_over(
        self, desired: list[Manifest], mine: list[Manifest], service: InferenceService
    ) -> None:
        """Refuse to apply over an object of that name which is not this service's."""
        known = {_identity(each) for each in mine}
        for manifest in desired:
            if _identity(manifest) in known:
                continue
            kind = (manifest["apiVersion"], manifest["kind"])
            meta = manifest["metadata"]
            found = await self._cluster.find(kind, meta["namespace"], meta["name"])
            if found is not None and not _belongs_to(found, service):
                raise _in_the_way(found, service)

    async def _publish(self, body: Manifest, after: Manifest) -> None:
        """Write the status if it differs, and an Event for each condition that turned."""
        before = body.get("status", {})
        if before == after:
            return
        await self._cluster.write_status(body, after)
        meta = body["metadata"]
        for condition in status.transitions(before, after):
            try:
                await self._cluster.record(event(body, condition, self._clock()))
            except ClusterUnavailable as error:  # the status says the same; an Event is a courtesy
                log.warning("%s/%s: no Event: %s", meta["namespace"], meta["name"], error)

    def _now(self) -> str:
        return self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")


def replicas_within_bounds(service: InferenceService, mine: list[Manifest]) -> dict[str, int]:
    """Return how many replicas the pool that scales has, held within the spec's bounds.

    With `spec.scaling` the number is not the spec's to say: writing a fixed one at each pass would
    fight whatever scales the Deployment. A pool that has none yet begins with as many as those have
    that left the spec: it may be one of them by another name, and replaces their capacity.
    """
    scaling = service.spec.scaling
    if scaling is None:
        return {}
    now = {pool: _replicas(each) for pool, each in _deployments(mine).items()}
    pools = service.spec.hardware_pools
    left = sum(now[pool] for pool in now.keys() - {pool.name for pool in pools})
    return {
        pool.name: min(max(now.get(pool.name, left), scaling.min_replicas, 1), scaling.max_replicas)
        for pool in pools
        if pool.replicas is None
    }


def still_needed(
    mine: Mapping[str, Manifest], wanted: Mapping[str, Manifest]
) -> dict[str, Manifest]:
    """Return the Deployments of pools that left the spec but have to serve on for now.

    A pool that gets another name is another pool. Were the one deleted when the other is made,
    nobody would serve until its weights are loaded. So it stays until every pool of the spec has
    its replicas, unless it serves nobody itself.

    Args:
        mine: The service's Deployments by pool.
        wanted: Those of them that the spec asks for, as they are now.
    """
    if all(_available(each) >= _replicas(each) for each in wanted.values()):
        return {}
    return {
        pool: each
        for pool, each in mine.items()
        if pool not in wanted
        and "deletionTimestamp" not in each["metadata"]
        and _replicas(each)
        and each.get("status", {}).get("readyReplicas", 0)
    }


def _available(deployment: Manifest) -> int:
    return int(deployment.get("status", {}).get("availableReplicas", 0))


def _replicas(deployment: Manifest) -> int:
    return int(deployment["spec"].get("replicas", 1))


def _deployments(manifests: Iterable[Manifest]) -> dict[str, Manifest]:
    """Return the Deployments among these by their pool."""
    return {pool_of(each): each for each in manifests if each["kind"] == "Deployment"}


def _in_the_way(found: Manifest, service: InferenceService) -> ClusterUnavailable:
    """Return what to say of an object that has a name this service needs.

    One that an earlier service of this name owns goes by itself: its owner is gone, so the garbage
    collector has it, or will in a moment.
    """
    what = f"{found['kind']} {found['metadata']['name']}"
    of_this_name = labels.GROUP, service.kind, service.metadata.name
    owners = found["metadata"].get("ownerReferences", ())
    # Others have a kind of the name InferenceService, too.
    names = ((o["apiVersion"].partition("/")[0], o["kind"], o["name"]) for o in owners)
    if of_this_name in names:
        return PredecessorLeaving(
            f"{what} belongs to an earlier service of this name, which is still being deleted"
        )
    return ClusterRefuses(
        f"{what} exists already and is not this service's: delete it or name the service anew"
    )


def _identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _belongs_to(manifest: Manifest, service: InferenceService) -> bool:
    owners = manifest["metadata"].get("ownerReferences", ())
    return any(owner["uid"] == service.metadata.uid for owner in owners)


def _superfluous(
    mine: list[Manifest],
    desired: list[Manifest],
    wanted: Mapping[str, Manifest],
    leaving: Mapping[str, Manifest],
) -> list[Manifest]:
    """Return what an earlier spec asked for, this one does not, and nothing needs for now.

    Revisions of pools that are still there stay: `revisions.choose` decides about those, and a
    pool that comes back into the spec finds its own.
    """
    asked_for = {_identity(each) for each in desired}
    stays = {("Deployment", pool) for pool in leaving}
    stays |= {("ControllerRevision", pool) for pool in (*wanted, *leaving)}
    return [
        each
        for each in mine
        if _identity(each) not in asked_for
        and "deletionTimestamp" not in each["metadata"]
        and (each["kind"], pool_of(each)) not in stays
    ]
