"""Watches classes, tenants and Secrets by name, and goes on where it lacks the right to.

kopf ends the operator when a watch is forbidden. These are: an operator that is restricted to some
namespaces may have no right to the cluster's classes, and works without. Only metadata is asked
for, which kopf cannot do, so the values of Secrets that no tenant names never come here.

A watch lasts five minutes and then begins anew with everything there is; together with the resync
nothing stays missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_core.units import Seconds
from weir_operator.interests import Change
from weir_operator.kinds import CLASS, SECRET, TENANT, Kind

log = logging.getLogger(__name__)

AGAIN: Final = Seconds(1.0)
"""In seconds, after a watch that ended or broke."""
AGAIN_FORBIDDEN: Final = Seconds(60.0)
"""In seconds; someone has to grant a right first."""

Tell = Callable[[Change], None]


class Changes(Protocol):
    """What a watch asks of an API server."""

    def changes(self, kind: Kind, namespace: str | None) -> AsyncIterator[Change]:
        """Yield every object there is and then each that changes, for a while.

        Raises:
            ClusterUnavailable: The API server does not answer, or refuses.
        """


async def watch(
    cluster: Changes, namespaces: tuple[str, ...], tell: Tell, again: Seconds = AGAIN
) -> None:
    """Tell every change, until cancelled.

    Args:
        cluster: The API server.
        namespaces: Those to watch; empty for all.
        tell: Takes each change.
        again: Seconds to wait after a watch that ended or broke.
    """
    topics: list[tuple[Kind, str | None]] = [(CLASS, None)]
    for namespace in namespaces or (None,):
        topics += [(TENANT, namespace), (SECRET, namespace)]
    async with asyncio.TaskGroup() as tasks:
        for kind, where in topics:
            tasks.create_task(_follow(cluster, kind, where, tell, again))


async def _follow(
    cluster: Changes, kind: Kind, namespace: str | None, tell: Tell, again: Seconds
) -> None:
    while True:
        forbidden = await _follow_once(cluster, kind, namespace, tell)
        await asyncio.sleep(AGAIN_FORBIDDEN if forbidden else again)


async def _follow_once(cluster: Changes, kind: Kind, namespace: str | None, tell: Tell) -> bool:
    """Tell the changes of one watch; return whether it is forbidden."""
    try:
        async for change in cluster.changes(kind, namespace):
            tell(change)
    except ClusterRefuses as error:
        log.warning("changes of %s are not seen at once: %s", kind.plural, error)
        return True
    except ClusterUnavailable as error:
        log.warning("watching %s: %s", kind.plural, error)
    except Exception:  # whatever it was, nobody would begin this watch anew
        log.exception("watching %s failed", kind.plural)
    return False
