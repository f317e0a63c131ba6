"""Notices resource definitions that are older than the operator.

Definitions belong to the whole cluster, and others write them: `helm install` of an older chart in
another namespace replaces newer ones without a word, and `helm upgrade` leaves old ones as they
are. The API server then refuses, or drops, fields that this operator knows. So it compares what it
would write itself with what is there, and says what is missing. Definitions that know more are no
trouble: an operator ignores what it does not know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from weir_core.api.crd import custom_resource_definitions
from weir_core.api.labels import VERSION
from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_core.units import Seconds
from weir_operator.cluster import Cluster
from weir_operator.events import event
from weir_operator.kinds import DEFINITION, LEASE, SERVICE
from weir_operator.metrics import Metrics
from weir_operator.settings import Leadership

log = logging.getLogger(__name__)

EVERY: Final = Seconds(60.0)
"""In seconds, between two looks."""
REMEDY: Final = (
    "apply this version's definitions: kubectl apply --server-side --force-conflicts "
    "--field-manager=helm -f helm/weir/crds"
)
_SERVICES: Final = f"{SERVICE.plural}.{SERVICE.group}"
_NAMED: Final = 5
"""Fields that a message names."""

Schema = Mapping[str, Any]


def lacking(ours: Schema, theirs: Schema, path: str = "") -> Iterator[str]:
    """Yield the fields and values that our schema has and theirs has not, each by its path."""
    if theirs.get("x-kubernetes-preserve-unknown-fields"):
        return
    known = theirs.get("properties", {})
    for name, child in ours.get("properties", {}).items():
        if name in known:
            yield from lacking(child, known[name], f"{path}.{name}")
        else:
            yield f"{path}.{name}"
    for key in ("items", "additionalProperties"):
        if isinstance(child := ours.get(key), Mapping):
            yield from lacking(child, theirs.get(key) or {}, f"{path}[]")
    values = ours.get("enum", ())
    yield from (f"{path}: {value}" for value in values if value not in theirs.get("enum", values))


class Definitions:
    """Looks at the cluster's definitions from time to time.

    Args:
        cluster: The API server.
        metrics: Where to count what is missing.
        leadership: Names the Lease, which the Events are about.
        clock: The time of day, with its zone.
    """

    def __init__(
        self,
        cluster: Cluster,
        metrics: Metrics,
        leadership: Leadership,
        clock: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._leadership = leadership
        self._clock = clock
        self._ours = {
            name: _schema(definition) for name, definition in custom_resource_definitions().items()
        }
        self.lacks: dict[str, tuple[str, ...]] = {}
        """What is missing, by the definition's name; only of those that were read."""

    def remark(self) -> str:
        """Return what the API server cannot hold of a service's spec; empty where it holds all."""
        lacks = [each for each in self.lacks.get(_SERVICES, ()) if each.startswith(".spec")]
        return _older(_SERVICES, lacks) if lacks else ""

    async def follow(self) -> None:
        """Look for ever."""
        may_look = True
        while True:
            try:
                await self._look()
                may_look = True
            except ClusterRefuses as error:
                if may_look:  # once, where the chart grants no such right
                    log.info(
                        "cannot tell whether the definitions are as new as this operator: %s", error
                    )
                may_look = False
            except Exception:  # the operator would end with this task
                log.exception("could not compare the definitions")
            await asyncio.sleep(EVERY)

    async def _look(self) -> None:
        for name, ours in self._ours.items():
            try:
                found = await self._cluster.find(DEFINITION, "", name)
            except ClusterRefuses:
                raise
            except ClusterUnavailable as error:
                log.warning("definitions: %s", error)
                return
            lacks = tuple(lacking(ours, _schema(found or {})))
            before, self.lacks[name] = self.lacks.get(name, ()), lacks
            self._metrics.definition_lacks.labels(name).set(len(lacks))
            if lacks != before:
                await self._say(name, lacks)

    async def _say(self, name: str, lacks: tuple[str, ...]) -> None:
        if not lacks:
            log.info("the definition %s is as new as this operator", name)
            return
        message = _older(name, lacks)
        log.warning(message)
        try:
            await self._record(message)
        except ClusterUnavailable as error:  # the log and the metric say the same
            log.warning("no Event: %s", error)

    async def _record(self, message: str) -> None:
        where = self._leadership
        lease = await self._cluster.find(LEASE, where.namespace, where.name)
        if lease is None:
            return
        condition = {"type": "DefinitionsKnown", "status": "False", "reason": "DefinitionsOutdated"}
        await self._cluster.record(event(lease, {**condition, "message": message}, self._clock()))


def _older(name: str, lacks: Sequence[str]) -> str:
    more = f" and {len(lacks) - _NAMED} more" if len(lacks) > _NAMED else ""
    return (
        f"the definition {name} is older than this operator and does not know "
        f"{', '.join(lacks[:_NAMED])}{more}: {REMEDY}"
    )


def _schema(definition: Schema) -> Schema:
    """Return the schema of the version that this operator speaks, or an empty one."""
    versions = definition.get("spec", {}).get("versions", ())
    schemas = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == VERSION)
    return next(schemas, {})
