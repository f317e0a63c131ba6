"""Watches every kind that a pass depends on, and tells what changes.

A watch that is forbidden, or of a kind that the cluster lacks, ends nothing: it is asked for again
and again, and all else is told meanwhile. An operator that is restricted to some namespaces may
have no right to the cluster's classes, an older chart gives none to a newer kind, and a namespace
that is deleted takes the operator's Role along.

Only metadata is asked for, so the values of Secrets that no tenant names never come here. Of the
kinds that services own, the API server tells those objects alone that are labelled as a service's.

A watch lasts five minutes, and the next one goes on where it ended. So does one whose connection
broke, or whose API server was away for a while: an operator with 2,000 services must not look at
all of them because of that. One that cannot go on begins anew, with everything there is: what was
deleted meanwhile is in no event, so it is told that anything may have changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Set
from typing import Final, Protocol

from weir_core.api.labels import FIELD_MANAGER, MANAGED_BY
from weir_core.api.labels import SERVICE as OF_SERVICE
from weir_core.errors import ClusterRefuses, ClusterUnavailable, KindMissing, WatchExpired
from weir_core.units import Seconds
from weir_operator.interests import Change
from weir_operator.kinds import CLASS, OPTIONAL, SECRET, SERVICE, TENANT, Kind
from weir_operator.parts import owned

log = logging.getLogger(__name__)

AGAIN: Final = Seconds(1.0)
"""In seconds, after a watch that ended or broke; it doubles with each that breaks."""
AGAIN_AT_MOST: Final = Seconds(30.0)
"""In seconds, where the doubling stops."""
AGAIN_MISSING: Final = Seconds(10.0)
"""In seconds; someone has to install the kind first."""
AGAIN_FORBIDDEN: Final = Seconds(60.0)
"""In seconds; someone has to grant a right first."""

OWNED: Final = tuple(each.kind for each in owned() if each.watched)
"""Watched so that what someone edits or deletes comes back; pods speak through Deployments."""
IN_NAMESPACES: Final = (SERVICE, TENANT, SECRET, *OWNED)
"""Kinds that are watched in each namespace; classes are the cluster's."""
_MINE: Final = f"{MANAGED_BY}={FIELD_MANAGER},{OF_SERVICE}"
"""Selects what services own, so that a cluster's other objects cost nothing here."""

Tell = Callable[[Change], None]


class Changes(Protocol):
    """What a watch asks of an API server."""

    def changes(
        self, kind: Kind, namespace: str | None, since: str, selector: str
    ) -> AsyncIterator[Change]:
        """Yield each object that changes, for a while; without `since` all there are before.

        The selector chooses objects by their labels; an empty one takes all. A change without a
        name only tells how far the watch is.

        Raises:
            ClusterUnavailable: The API server does not answer, or refuses.
            WatchExpired: It cannot tell what changed from there on.
        """


Topic = tuple[Kind, str | None]
"""A kind, and the namespace in which it is watched; None for the cluster."""


async def watch(
    cluster: Changes,
    namespaces: tuple[str, ...],
    tell: Tell,
    blind: set[Topic],
    again: Seconds = AGAIN,
) -> None:
    """Tell every change, until cancelled.

    Args:
        cluster: The API server.
        namespaces: Those to watch; empty for all.
        tell: Takes each change.
        blind: Where to keep what is not watched now.
        again: Seconds to wait after a watch that ended or broke.
    """
    topics: list[Topic] = [(CLASS, None)]
    for namespace in namespaces or (None,):
        topics += [(kind, namespace) for kind in IN_NAMESPACES]
    blind.update(topics)
    async with asyncio.TaskGroup() as tasks:
        for topic in topics:
            tasks.create_task(_Follower(cluster, topic, tell, blind).follow(again))


def unwatched(blind: Set[Topic], kind: Kind) -> int:
    """Return how many watches of a kind tell nothing now."""
    return sum(1 for each, _ in blind if each == kind)


class _Follower:
    """Watches one topic."""

    def __init__(self, cluster: Changes, topic: Topic, tell: Tell, blind: set[Topic]) -> None:
        self._cluster = cluster
        self._topic = topic
        self._tell = tell
        self._blind = blind
        self._since = ""
        self._has_all = False
        """Whether everything there was when the watch began has been told."""
        self._failures = 0
        """Since a watch lasted."""
        self._said = ""
        """Why there is no watch, as it was logged last."""

    async def follow(self, again: Seconds) -> None:
        """Watch for ever."""
        while True:
            pause = again
            try:
                await self._once()
            except ClusterUnavailable as error:
                pause = self._lost(error, again)
            except Exception:  # whatever it was, nobody would begin this watch anew
                log.exception("watching %s failed", self._topic[0].plural)
                self._begin_anew()
                pause = self._later(again)
            await asyncio.sleep(pause)

    async def _once(self) -> None:
        kind, namespace = self._topic
        selector = _MINE if kind in OWNED else ""
        is_new = not self._since
        async for change in self._cluster.changes(kind, namespace, self._since, selector):
            self._blind.discard(self._topic)
            self._said = ""
            if is_new:
                self._tell(Change(kind, namespace or "", ""))
                is_new = False
            self._since = change.version
            if change.name:
                self._tell(change)
            else:
                self._has_all = True
                self._failures = 0

    def _lost(self, error: ClusterUnavailable, again: Seconds) -> Seconds:
        """Say why a watch ended; return after how many seconds to watch again."""
        self._blind.add(self._topic)
        # What there is comes in no order of versions, so a part of it is nothing to go on from.
        if isinstance(error, ClusterRefuses | WatchExpired) or not self._has_all:
            self._begin_anew()
        kind = self._topic[0]
        said = f"changes of {kind.plural} are not seen at once: {error}"
        is_normal = isinstance(error, KindMissing) and kind in OPTIONAL
        if said != self._said and not is_normal:  # once, however long a right is missing
            log.warning(said)
        self._said = said
        if isinstance(error, KindMissing):
            return AGAIN_MISSING
        return AGAIN_FORBIDDEN if isinstance(error, ClusterRefuses) else self._later(again)

    def _later(self, again: Seconds) -> Seconds:
        """Return a pause that grows while watches break."""
        pause = Seconds(min(again * 2.0 ** min(self._failures, 30), AGAIN_AT_MOST))
        self._failures += 1
        return pause

    def _begin_anew(self) -> None:
        self._since = ""
        self._has_all = False
        self._blind.add(self._topic)
