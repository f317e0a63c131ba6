"""Watches every kind that a pass depends on, and tells what changes.

A watch that is forbidden, or of a kind that the cluster lacks, ends nothing: it is asked for again
and again, and all else is told meanwhile. An operator that is restricted to some namespaces may
have no right to the cluster's classes, an older chart gives none to a newer kind, and a namespace
that is deleted takes the operator's Role along.

Only metadata is asked for, so the values of Secrets that no tenant names never come here. Of the
kinds that services own, the API server tells those objects alone that are labelled as a service's.

A watch lasts five minutes, and the next one goes on where it ended. Only one that broke begins
anew, with everything there is: what was deleted meanwhile is in no event, so it is told that
anything may have changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from weir_core.api.labels import FIELD_MANAGER, MANAGED_BY
from weir_core.api.labels import SERVICE as OF_SERVICE
from weir_core.errors import ClusterRefuses, ClusterUnavailable, KindMissing
from weir_core.units import Seconds
from weir_operator.interests import Change
from weir_operator.kinds import CLASS, OPTIONAL, SECRET, SERVICE, TENANT, Kind
from weir_operator.parts import owned

log = logging.getLogger(__name__)

AGAIN: Final = Seconds(1.0)
"""In seconds, after a watch that ended or broke."""
AGAIN_MISSING: Final = Seconds(10.0)
"""In seconds; someone has to install the kind first."""
AGAIN_FORBIDDEN: Final = Seconds(60.0)
"""In seconds; someone has to grant a right first."""

OWNED: Final = tuple(each.kind for each in owned() if each.watched)
"""Watched so that what someone edits or deletes comes back; pods speak through Deployments."""
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
        topics += [(kind, namespace) for kind in (SERVICE, TENANT, SECRET, *OWNED)]
    blind.update(topics)
    async with asyncio.TaskGroup() as tasks:
        for topic in topics:
            tasks.create_task(_Follower(cluster, topic, tell, blind).follow(again))


class _Follower:
    """Watches one topic."""

    def __init__(self, cluster: Changes, topic: Topic, tell: Tell, blind: set[Topic]) -> None:
        self._cluster = cluster
        self._topic = topic
        self._tell = tell
        self._blind = blind
        self._since = ""
        self._is_refused = False

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
            await asyncio.sleep(pause)

    async def _once(self) -> None:
        kind, namespace = self._topic
        selector = _MINE if kind in OWNED else ""
        async for change in self._cluster.changes(kind, namespace, self._since, selector):
            if self._topic in self._blind:
                self._blind.discard(self._topic)
                self._tell(Change(kind, namespace or "", ""))
            self._since = change.version
            self._is_refused = False
            if change.name:
                self._tell(change)

    def _lost(self, error: ClusterUnavailable, again: Seconds) -> Seconds:
        """Say why a watch ended; return after how many seconds it begins anew."""
        self._begin_anew()
        if isinstance(error, KindMissing):
            if self._topic[0] not in OPTIONAL:
                log.warning("watching %s: %s", self._topic[0].plural, error)
            return AGAIN_MISSING
        if isinstance(error, ClusterRefuses):
            if not self._is_refused:  # once, and not each minute of a right that is left out
                log.warning("changes of %s are not seen at once: %s", self._topic[0].plural, error)
            self._is_refused = True
            return AGAIN_FORBIDDEN
        log.warning("watching %s: %s", self._topic[0].plural, error)
        return again

    def _begin_anew(self) -> None:
        self._since = ""
        self._blind.add(self._topic)
