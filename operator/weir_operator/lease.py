"""One operator at a time: leader election on a Lease.

Every operator watches the Lease. Who holds it renews it; who does not waits until it has seen the
same record for the whole lease duration, and then takes it. Clocks of machines differ, so the times
in the record are for people: what counts is how long *this* process has seen it unchanged (as in
client-go's leaderelection). Writes carry the resourceVersion they replace, so of two that try at
once only one succeeds.
"""

from __future__ import annotations

import asyncio
import logging
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
    """Return what is known of the Lease after reading it once more."""
    if lease is None:
        return None
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
        self._lease: Manifest | None = None
        self.leading = False

    async def acquire(self) -> None:
        """Wait until this process leads."""
        waiting = False
        while not await self._attempt():
            if not waiting:
                holder = self._sighting.holder if self._sighting else "nobody"
                log.info("standing by; %s leads", holder)
                waiting = True
            await asyncio.sleep(self._settings.renew_interval)
        self.leading = True
        log.info("leading as %s", self._settings.identity)

    async def keep(self) -> None:
        """Renew until the Lease is lost; return then.

        Returns before anyone else may take over: the last renewal that succeeded is that old.
        """
        renewed = self._clock()
        while self._clock() - renewed < self._settings.duration - self._settings.renew_interval:
            await asyncio.sleep(self._settings.renew_interval)
            try:
                async with asyncio.timeout(self._settings.renew_interval):
                    if await self._attempt():
                        renewed = self._clock()
                    elif self._sighting and self._sighting.holder != self._settings.identity:
                        break
            except TimeoutError:
                log.warning("renewing the lease takes too long")
        self.leading = False
        log.error("the lease is lost")

    async def release(self) -> None:
        """Give the Lease back, so that a standby need not wait for it to run out."""
        if not self.leading or self._lease is None:
            return
        self.leading = False
        self._lease["spec"]["holderIdentity"] = ""
        try:
            async with asyncio.timeout(self._settings.renew_interval):
                await self._cluster.write_lease(self._lease)
        except (ClusterUnavailable, TimeoutError) as error:
            log.warning("could not give the lease back: %s", error)

    async def _attempt(self) -> bool:
        """Read the Lease and write it if it may be ours; tell whether it is."""
        name, namespace = self._settings.name, self._settings.namespace
        try:
            lease = await self._cluster.find(LEASE, namespace, name)
            self._sighting = sighted(lease, self._sighting, self._clock())
            duration = self._settings.duration
            if not may_take(self._sighting, self._settings.identity, duration, self._clock()):
                return False
            self._lease = await self._cluster.write_lease(self._claim(lease))
        except ClusterUnavailable as error:
            log.warning("leader election: %s", error)
            return False
        self._sighting = sighted(self._lease, None, self._clock())
        return self._lease is not None

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
        # What the chart wrote on it stays; the resourceVersion says which state this replaces.
        meta = lease["metadata"] if lease else {}
        meta = {**meta, "name": self._settings.name, "namespace": self._settings.namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": meta, "spec": spec}


def _microtime() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
