"""Watches classes, tenants and Secrets by name, and goes on where it lacks the right to.

kopf ends the operator when a watch is forbidden. These are: an operator that is restricted to some
namespaces may have no right to the cluster's classes, and works without. Only metadata is asked
for, so the values of Secrets that no tenant names never come here.

A watch lasts five minutes and then begins anew with everything there is; together with the resync
nothing stays missed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol

from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_core.units import Seconds
from weir_operator.interests import Change

log = logging.getLogger(__name__)

AGAIN: Final = Seconds(1.0)
"""In seconds, after a watch that ended or broke."""
AGAIN_FORBIDDEN: Final = Seconds(60.0)
"""In seconds; someone has to grant a right first."""

Resource = Literal["inferencepriorityclasses", "inferencetenants", "secrets"]
Tell = Callable[[Change], None]


class Changes(Protocol):
    """What a watch asks of an API server."""

    def changes(self, resource: Resource, namespace: str | None) -> Iterator[Change]:
        """Yield every object there is and then each that changes, for a while; blocks.

        Raises:
            ClusterUnavailable: The API server does not answer, or refuses.
        """


class Watches:
    """Threads, because the client blocks; they end with the process, or soon after `stop`."""

    def __init__(self, cluster: Changes, namespaces: tuple[str, ...], tell: Tell) -> None:
        self._cluster = cluster
        self._tell = tell
        self._stop = threading.Event()
        self._topics: list[tuple[Resource, str | None]] = [("inferencepriorityclasses", None)]
        for namespace in namespaces or (None,):
            self._topics += [("inferencetenants", namespace), ("secrets", namespace)]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch; changes are told on `loop`."""
        for resource, namespace in self._topics:
            threading.Thread(
                target=self._follow,
                args=(resource, namespace, loop),
                name=f"watch-{resource}-{namespace or 'all'}",
                daemon=True,
            ).start()

    def stop(self) -> None:
        """Tell nothing more."""
        self._stop.set()

    def _follow(
        self, resource: Resource, namespace: str | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        pause = Seconds(0.0)
        while not self._stop.wait(pause):
            pause = self._follow_once(resource, namespace, loop)

    def _follow_once(
        self, resource: Resource, namespace: str | None, loop: asyncio.AbstractEventLoop
    ) -> Seconds:
        """Tell the changes of one watch; return how long to wait for the next."""
        try:
            for change in self._cluster.changes(resource, namespace):
                if self._stop.is_set() or loop.is_closed():
                    break
                loop.call_soon_threadsafe(self._tell, change)
        except ClusterRefuses as error:
            log.warning("changes of %s are not seen at once: %s", resource, error)
            return AGAIN_FORBIDDEN
        except ClusterUnavailable as error:
            log.warning("watching %s: %s", resource, error)
        except Exception:  # whatever it was, nobody would begin this watch anew
            log.exception("watching %s failed", resource)
        return AGAIN
