"""One operator at a time: leader election on a Lease.

Every operator reads the Lease. The one that holds it renews it; any other waits until it has seen
the same record for the whole lease duration, and then takes it. Clocks of machines differ, so the
times in the record are for people: what counts is how long *this* process has seen it unchanged (as
in client-go's leaderelection). Writes carry the resourceVersion they replace, so of two that try at
once only one succeeds.

The Lease is the operators' own: the first one creates it, and its holder creates it again if it is
deleted. Tools that install the chart leave Leases out (Argo CD excludes them) or delete those that
they do not know.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from weir_core.errors import ClusterUnavailable
from weir_operator.cluster import Cluster
from weir_operator.kinds import LEASE
from weir_operator.render import Manifest
from weir_operator.settings import Leadership

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """A Lease record, and since when it was seen like this."""

    holder: str
    version: str
    since: float


def sighted(lease: Manifest | None, before: Sighting | None, now: float) -> Sighting | None:
    """Return what is known of the Lease after reading it once more.

    One that was deleted says nothing of its holder, who may not have noticed yet.
    """
    if lease is None:
        return before
    holder = (lease.get("spec") or {}).get("holderIdentity") or ""
    version = lease["metadata"]["resourceVersion"]
    if before is not None and before.version == version:
        return before
    return Sighting(holder, version, now)


def may_take(sighting: Sighting | None, identity: str, duration: float, now: float) -> bool:
    """Tell whether the Lease is ours, free, or long silent."""
    if sighting is None or sighting.holder in ("", identity):
        return True
    return now - sighting.since >= duration


class Elector:
    """Takes the Lease, keeps it, gives it back.

    Args:
        cluster: The API server.
        settings: Name, duration and who we are.
        clock: Seconds that only move forward.
    """

    def __init__(self, cluster: Cluster, settings: Leadership, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._sighting: Sighting | None = None
        self._renewed = -math.inf
        """When the last of our writes that succeeded began."""
        self.leading = False

    @property
    def led(self) -> bool:
        """Tell whether an operator, this one or another, was seen to hold the Lease of late."""
        if self._sighting is None or not self._sighting.holder:
            return False
        return self._clock() - self._sighting.since < 2 * self._settings.duration

    async def acquire(self) -> None:
        """Wait until this process leads."""
        waiting = False
        while not await self._attempt():
            if not waiting:
                holder = self._sighting.holder if self._sighting else "no operator"
                log.info("standing by; %s leads", holder)
                waiting = True
            await asyncio.sleep(self._settings.renew_interval)
        self.leading = True
        log.info("leading as %s", self._settings.identity)

    async def keep(self) -> None:
        """Renew until the Lease is lost; return then.

        Another operator counts from when it saw a renewal, this one from when it began to write it.
        So this returns at least one renew interval before another may take over, unless somebody
        deleted the Lease and another was faster to create it.
        """
        interval = self._settings.renew_interval
        while self._left() > 0:
            await asyncio.sleep(min(interval, self._left()))
            try:
                async with asyncio.timeout(min(interval, self._left())):
                    if not await self._attempt() and self._taken():
                        break
            except TimeoutError:
                log.warning("renewing the lease takes too long")
        self.leading = False
        log.error("the lease is lost")

    async def release(self) -> None:
        """Give the Lease back, so that a standby need not wait for it to run out."""
        if not self.leading:
            return
        self.leading = False
        try:
            async with asyncio.timeout(self._settings.renew_interval):
                # A renewal that was cut short may be written between the reading and the writing.
                if not await self._give_back() and not await self._give_back():
                    log.warning("could not give the lease back: it changes under us")
        except (ClusterUnavailable, TimeoutError) as error:
            log.warning("could not give the lease back: %s", error)

    def _left(self) -> float:
        """Return the seconds in which this process may still lead, without a further renewal."""
        until = self._renewed + self._settings.duration - self._settings.renew_interval
        return until - self._clock()

    def _taken(self) -> bool:
        return self._sighting is not None and self._sighting.holder != self._settings.identity

    async def _attempt(self) -> bool:
        """Read the Lease and write it if it may be ours; tell whether it is."""
        began = self._clock()
        try:
            lease = await self._find()
            duration = self._settings.duration
            if not may_take(self._sighting, self._settings.identity, duration, self._clock()):
                return False
            written = await self._cluster.write_lease(self._claim(lease))
        except ClusterUnavailable as error:
            log.warning("leader election: %s", error)
            return False
        if written is None:
            return False
        self._sighting = sighted(written, None, self._clock())
        self._renewed = began
        return True

    async def _find(self) -> Manifest | None:
        """Read the Lease, and note what it says."""
        name, namespace = self._settings.name, self._settings.namespace
        lease = await self._cluster.find(LEASE, namespace, name)
        self._sighting = sighted(lease, self._sighting, self._clock())
        return lease

    async def _give_back(self) -> bool:
        """Write the Lease without a holder if it is ours; tell whether it is not ours any more."""
        lease = await self._find()
        if lease is None or self._taken():
            return True
        lease["spec"]["holderIdentity"] = ""
        return await self._cluster.write_lease(lease) is not None

    def _claim(self, lease: Manifest | None) -> Manifest:
        """Return the Lease with us as its holder."""
        identity, now = self._settings.identity, _microtime()
        spec = dict((lease or {}).get("spec") or {})
        if spec.get("holderIdentity") != identity:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + bool(lease)
            spec["acquireTime"] = now
        spec |= {
            "holderIdentity": identity,
            "leaseDurationSeconds": max(int(self._settings.duration), 1),
            "renewTime": now,
        }
        # What others wrote on it stays; the resourceVersion says which state this replaces.
        meta = lease["metadata"] if lease else {}
        meta = {**meta, "name": self._settings.name, "namespace": self._settings.namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": meta, "spec": spec}


def _microtime() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
