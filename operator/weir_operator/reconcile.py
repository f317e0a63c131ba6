"""One pass: read what is there, bring each part about, say what was seen. Whatever asked for it.

A pass does not know why it runs. It goes through the parts of a service (`weir_operator.parts`) in
their order: of each it lists the objects, computes what they should be, applies that and deletes
the rest. What keeps one part from its work stops no other. At the end the service's status says
what was seen. So a pass may run twice, or after a crash in the middle of an earlier one, and the
world ends up the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from weir_core.errors import (
    ClusterRefuses,
    ClusterUnavailable,
    InvalidSpec,
    PredecessorLeaving,
)
from weir_operator import status
from weir_operator.applying import Applier
from weir_operator.cluster import Cluster
from weir_operator.conditions import WORKLOADS, Verdict
from weir_operator.events import event
from weir_operator.kinds import SERVICE, kind_of
from weir_operator.metrics import Metrics
from weir_operator.observed import Observed, belongs_to, identity, in_the_way
from weir_operator.parse import owner_in, parse, unknown_fields
from weir_operator.parts.part import Owned, Part
from weir_operator.render import Manifest
from weir_operator.views import Pod, view

log = logging.getLogger(__name__)

UNREADABLE_FOR: Final = timedelta(minutes=10)
"""How long the reading of a service is refused until it is followed no longer. A namespace that is
deleted may take the operator's Role along before its services, and nothing says then that they are
gone. Where the right comes back, the watch of services tells of each."""


class Outcome(StrEnum):
    """How a pass ended."""

    SETTLED = "settled"
    """The world is as the spec asks."""
    PROGRESSING = "progressing"
    """It was told to be, and is on its way; worth another look soon."""
    WAITING = "waiting"
    """Something cannot be written until an earlier service's objects are gone."""
    REJECTED = "rejected"
    """Only an edit of the spec can help."""
    GONE = "gone"
    """There is no such service, or none that may be read; the garbage collector has the rest."""


class Key(NamedTuple):
    """Which service."""

    namespace: str
    name: str


class Reconciler:
    """Runs passes.

    Args:
        cluster: The API server.
        parts: What a service is made of, in the order of a pass.
        clock: The time of day, with its zone.
        metrics: Where each service's conditions and replicas are shown, if anywhere.
        remark: Returns what there is to say of every spec, if anything.
    """

    def __init__(
        self,
        cluster: Cluster,
        parts: Sequence[Part],
        clock: Callable[[], datetime],
        metrics: Metrics | None = None,
        remark: Callable[[], str] = str,
    ) -> None:
        self._cluster = cluster
        self._parts = parts
        self._applier = Applier(cluster)
        self._clock = clock
        self._metrics = metrics
        self._remark = remark
        self._idle: set[Key] = set()
        self._uids: dict[Key, str] = {}
        self._refused: dict[Key, datetime] = {}
        """Since when a service may not be read."""

    def is_idle(self, key: Key) -> bool:
        """Tell whether the last pass over a service was one of which a repetition does nothing.

        That is so for as long as each object stays what it was.
        """
        return key in self._idle

    async def run(self, key: Key) -> Outcome:
        """Bring one service closer to its spec and publish what was observed.

        Raises:
            ClusterUnavailable: The API server cannot serve now; the pass is worth repeating.
        """
        self._idle.discard(key)
        body = await self._find(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self._forget(key)
            return Outcome.GONE
        uid = body["metadata"]["uid"]
        if self._uids.get(key, uid) != uid:  # deleted and made anew since the last pass
            self._forget(key)
        self._uids[key] = uid
        one = _Pass(self._cluster, self._applier, await self._first_look(body))
        for part in self._parts:
            await one.take(part)
        before = body.get("status", {})
        after = status.observed(one.seen, self._spoken(one), self._now())
        if one.broke_off:
            after["observedGeneration"] = before.get("observedGeneration", 0)
        if WORKLOADS in one.unseen:  # what cannot be read is not gone
            after |= {field: before[field] for field in status.COUNTS if field in before}
        deployments = {**one.seen.leaving, **one.seen.deployments}
        self._show(key, after, {name: each.wanted for name, each in deployments.items()})
        await self._publish(body, after)
        outcome = _outcome(one, after)
        if outcome is Outcome.SETTLED and all(each.is_settled(one.seen) for each in self._parts):
            self._idle.add(key)
        return outcome

    async def _find(self, key: Key) -> Manifest | None:
        """Return a service; None where there is none, or none that may be read for long."""
        try:
            body = await self._cluster.find(SERVICE, *key)
        except ClusterRefuses as error:
            now = self._clock()
            if now - self._refused.setdefault(key, now) < UNREADABLE_FOR:
                raise
            log.warning("%s/%s is not followed until it may be read: %s", *key, error)
            return None
        self._refused.pop(key, None)
        return body

    def _forget(self, key: Key) -> None:
        self._refused.pop(key, None)
        self._uids.pop(key, None)
        self._applier.forget(key)
        for part in self._parts:
            part.forget(key)
        self._show(key, None, {})

    async def _first_look(self, body: Manifest) -> Observed:
        owner = owner_in(body)
        meta = owner.metadata
        pods = await self._cluster.pods(meta.namespace, meta.name)
        mine = [view(Pod, each) for each in pods]
        seen = Observed(body, owner, None, self._clock(), remark=self._remark(), pods=mine)
        try:
            return replace(seen, service=parse(body), unknown=unknown_fields(body))
        except InvalidSpec as error:
            return replace(seen, wrong=error)

    def _spoken(self, one: _Pass) -> dict[str, Verdict]:
        spoken: dict[str, Verdict] = {}
        for part in self._parts:
            if part.condition not in one.unseen:
                spoken |= part.verdicts(one.seen)
            failure = status.failure(one.failures.get(part.condition))
            if failure is not None:
                spoken[part.condition] = failure
        return spoken

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

    def _show(self, key: Key, status: Manifest | None, wanted: Mapping[str, int]) -> None:
        if self._metrics is not None:
            self._metrics.show(key, status, wanted)

    def _now(self) -> str:
        return self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")


class _Pass:
    """What has been seen, and what went wrong on the way."""

    def __init__(self, cluster: Cluster, applier: Applier, seen: Observed) -> None:
        self._cluster = cluster
        self._applier = applier
        self.seen = seen
        self.failures: dict[str, Exception] = {}
        """By the condition of the part."""
        self.unseen: set[str] = set()
        """Conditions of parts whose objects could not even be read."""

    @property
    def broke_off(self) -> bool:
        """Whether something was not tried to its end, for no fault of the spec's."""
        return any(status.failure(error) is None for error in self.failures.values())

    async def take(self, part: Part) -> None:
        """Bring a part about, and keep what kept it from that."""
        try:
            await self._bring_about(part)
        except InvalidSpec as error:
            if self.seen.service is None:
                self.failures[part.condition] = error
                return
            # Whatever else it asks for goes on from the spec before it.
            self.seen = replace(self.seen, service=None, wrong=error)
            await self.take(part)
        except Exception as error:  # of this part alone
            self.failures[part.condition] = error

    async def _bring_about(self, part: Part) -> None:
        owner = self.seen.owner
        self.unseen.add(part.condition)
        for owned in part.owns:
            if owned.listed:
                await self._list(owned)
        self.seen = await part.observe(self.seen, self._cluster)
        self.unseen.discard(part.condition)
        desired = part.desired(self.seen)
        await self._refuse_to_take_over(desired)
        known = {identity(each): each for each in self.seen.owned}
        applied = []
        for manifest in desired:
            if manifest["kind"] in self.seen.unread:
                raise self.seen.unread[manifest["kind"]]
            applied.append(
                await self._applier.apply(owner, manifest, known.get(identity(manifest)))
            )
            self._add(applied[-1:])
        self.seen = part.applied(self.seen, applied)
        for manifest in part.superfluous(self.seen, applied):
            await self._cluster.delete(manifest)
        self.seen = await part.follow_up(self.seen, self._cluster)

    async def _list(self, owned: Owned) -> None:
        """Add the service's objects of a kind.

        Raises:
            ClusterUnavailable: They cannot be read, and every service has some.
        """
        owner = self.seen.owner
        meta = owner.metadata
        try:
            listed = await self._cluster.owned(owned.kind, meta.namespace, meta.name)
        except ClusterRefuses as error:
            if owned.by_all:
                raise
            self.seen = replace(self.seen, unread={**self.seen.unread, owned.kind.name: error})
        else:
            self._add(each for each in listed if belongs_to(each, owner))

    def _add(self, found: Iterable[Manifest]) -> None:
        owned = {identity(each): each for each in (*self.seen.owned, *found)}
        self.seen = replace(self.seen, owned=list(owned.values()))

    async def _refuse_to_take_over(self, desired: Sequence[Manifest]) -> None:
        """Refuse to apply over an object of that name which is not this service's."""
        known = set(map(identity, self.seen.owned))
        for manifest in desired:
            if identity(manifest) in known or manifest["kind"] in self.seen.unread:
                continue
            meta = manifest["metadata"]
            found = await self._cluster.find(kind_of(manifest), meta["namespace"], meta["name"])
            if found is not None and not belongs_to(found, self.seen.owner):
                raise in_the_way(found, self.seen.owner)


def _outcome(one: _Pass, after: Manifest) -> Outcome:
    """Return how a pass ended; raise what is worth another try."""
    for error in sorted(one.failures.values(), key=_urgency):
        if not isinstance(error, InvalidSpec | PredecessorLeaving):
            raise error
    if any(isinstance(each, PredecessorLeaving) for each in one.failures.values()):
        return Outcome.WAITING
    if one.seen.wrong is not None:
        return Outcome.REJECTED
    conditions = {each["type"]: each["status"] for each in after["conditions"]}
    return Outcome.SETTLED if conditions[WORKLOADS] == "True" else Outcome.PROGRESSING


def _urgency(error: Exception) -> int:
    """Order errors: one that nobody foresaw must not hide behind an outage."""
    return isinstance(error, ClusterUnavailable) + isinstance(error, ClusterRefuses)
