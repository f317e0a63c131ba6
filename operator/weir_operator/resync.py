"""Asks for a pass over each service around which something has changed, from time to time.

Watches tell of changes at once, and this finds what they could not see. A pass costs a dozen reads,
so a look does not ask for all of them: it lists the metadata of each kind once, for all services
together, and compares versions. A service is left alone where they are those of the look before,
and a pass since then had nothing to do.

The lists are consistent reads and no cache, so what changed unseen waits for one interval at most.
Secrets cannot be listed: the operator has no right to. Their watch tells of them, and while there
is none they are read by their names.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from weir_core.api import labels
from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_core.units import Seconds
from weir_operator.cluster import Cluster
from weir_operator.interests import Interests
from weir_operator.kinds import CLASS, POD, SECRET, SERVICE, TENANT, Kind
from weir_operator.parts import owned
from weir_operator.queue import WorkQueue
from weir_operator.reconcile import Key
from weir_operator.views import Meta
from weir_operator.watches import Topic

log = logging.getLogger(__name__)

_OF_ALL_SERVICES: Final = (POD, *(each.kind for each in owned() if each.listed and each.by_all))
"""Kinds whose objects have the label of their service, and of which every service has some."""
_OF_SOME: Final = tuple(each.kind for each in owned() if each.listed and not each.by_all)

_Mark = frozenset[tuple[str, str, str]]
"""Kind, uid and version of objects; where there is none, its name in place of the uid."""


class Resync:
    """Looks for services around which something has changed.

    Args:
        queue: Where to ask for passes.
        cluster: The API server.
        interests: Which Secrets services depend on.
        blind: What is not watched now.
        is_idle: Tells whether the last pass over a service had nothing to do.
        remark: Returns what there is to say of every spec, which is in each status.
    """

    def __init__(
        self,
        queue: WorkQueue[Key],
        cluster: Cluster,
        interests: Interests[tuple[str, str]],
        blind: Collection[Topic],
        is_idle: Callable[[Key], bool],
        remark: Callable[[], str] = str,
    ) -> None:
        self._queue = queue
        self._cluster = cluster
        self._interests = interests
        self._blind = blind
        self._is_idle = is_idle
        self._remark = remark
        self._seen: dict[Key, object] = {}
        self._there: set[Key] = set()

    async def follow(self, interval: Seconds) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except ClusterUnavailable as error:
                log.warning("resync: %s", error)
            except Exception:  # the operator would end with this task, for one object's sake
                log.exception("resync failed")
            await asyncio.sleep(interval)

    async def look(self) -> None:
        """Ask for a pass over each service that may need one.

        Raises:
            ClusterUnavailable: The API server does not answer, or refuses to list services.
        """
        services = await self._cluster.metadata(SERVICE)
        try:
            seen = await self._around(services)
        except ClusterRefuses as error:  # a pass says in a condition what it lacks
            log.warning("resync: every service gets a pass: %s", error)
            seen = {}
        for meta in services:
            key = Key(meta.namespace, meta.name)
            if key not in seen or self._seen.get(key) != seen[key] or not self._is_idle(key):
                self._queue.add(key)
        self._seen = seen
        there = {Key(meta.namespace, meta.name) for meta in services}
        for key in self._there - there:  # a pass forgets it
            self._queue.add(key)
        self._there = there

    async def _around(self, services: Iterable[Meta]) -> dict[Key, object]:
        """Return what a pass over each service depends on, to be compared."""
        around: defaultdict[Key, set[tuple[str, str, str]]] = defaultdict(set)
        for meta in services:
            around[Key(meta.namespace, meta.name)] = set(_mark(SERVICE, [meta]))
        listed = [
            (kind, await self._cluster.metadata(kind, labels.SERVICE)) for kind in _OF_ALL_SERVICES
        ]
        listed += [(kind, await self._allowed(kind, labels.SERVICE)) for kind in _OF_SOME]
        for kind, metas in listed:
            for meta in metas:
                key = Key(meta.namespace, meta.labels[labels.SERVICE])
                if key in around:
                    around[key] |= _mark(kind, [meta])
        classes = _mark(CLASS, await self._allowed(CLASS))
        tenants: defaultdict[str, list[Meta]] = defaultdict(list)
        for meta in await self._allowed(TENANT):
            tenants[meta.namespace].append(meta)
        secrets = await self._secrets(around)
        remark = self._remark()
        return {
            key: (
                mark,
                classes,
                _mark(TENANT, tenants[key.namespace]),
                secrets.get(key, frozenset()),
                remark,
            )
            for key, mark in around.items()
        }

    async def _allowed(self, kind: Kind, selector: str = "") -> list[Meta]:
        """Return what there is of a kind that the operator may do without."""
        try:
            return await self._cluster.metadata(kind, selector)
        except ClusterRefuses:  # each pass that needs some says so
            return []

    async def _secrets(self, keys: Iterable[Key]) -> Mapping[Key, _Mark]:
        """Return the Secrets that no watch tells of, each read once."""
        read: dict[tuple[str, str], str] = {}
        found: dict[Key, _Mark] = {}
        for key in keys:
            if not {(SECRET, None), (SECRET, key.namespace)} & set(self._blind):
                continue
            named = {(key.namespace, name) for name in self._interests.secrets(key)}
            for each in named - read.keys():
                secret = await self._cluster.find(SECRET, *each)
                read[each] = secret["metadata"].get("resourceVersion", "") if secret else ""
            found[key] = frozenset((SECRET.name, each[1], read[each]) for each in named)
        return found


def _mark(kind: Kind, metas: Iterable[Meta]) -> _Mark:
    return frozenset((kind.name, each.uid, each.resource_version) for each in metas)
