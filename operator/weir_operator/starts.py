"""How long engines take to start, and how much of that is left for one that is loading. Pure.

What is measured is the newest start of each pool: from the start of the engine's container until
the pod took requests. The service's status keeps it, so that it outlives the replica and this
process. Where none was measured nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from weir_operator.observed import Observed
from weir_operator.views import Pod

_ROUNDED_TO_S: Final = 10
"""So that the message, and with it the status, does not change at each look."""
_LONGEST: Final = timedelta(hours=1)
"""An engine that takes longer is started anew, so such a pod had been ready before."""
_SEEN_WITHIN: Final = timedelta(minutes=1)
"""A pod that became ready earlier may have been so before, and then this was not its start."""


class Start(NamedTuple):
    """One start of an engine."""

    at: datetime
    took_s: int


def newest(seen: Observed, pool: str) -> Start | None:
    """Return the newest start of a pool that was measured, in this pass or before."""
    before = _kept(seen.body, pool)
    found = [each for each in map(_measured, _of(seen, pool)) if each is not None]
    if not found:
        return before
    latest, ready_at = max(found)
    if before is not None and latest.at <= before.at:
        return before
    return latest if seen.now - ready_at <= _SEEN_WITHIN else before


def left(seen: Observed, pools: Iterable[str]) -> str:
    """Return how long the next engine of these pools has still to load; empty where unknown."""
    known = ((_loading_since(seen, pool), newest(seen, pool)) for pool in pools)
    ends = [
        (since + timedelta(seconds=start.took_s), start)
        for since, start in known
        if since and start
    ]
    if not ends:
        return ""
    end, start = min(ends)
    rest_s = _ROUNDED_TO_S * math.ceil((end - seen.now).total_seconds() / _ROUNDED_TO_S)
    if rest_s > 0:
        return f"about {rest_s} s left, as the last start took {start.took_s} s"
    return f"longer than the last start, which took {start.took_s} s"


def _of(seen: Observed, pool: str) -> Iterable[Pod]:
    return (pod for pod in seen.staying if pod.pool == pool)


def _measured(pod: Pod) -> tuple[Start, datetime] | None:
    """Return how long the engine of a ready pod took, and when it was there."""
    engine = pod.engine
    began = None if engine is None else engine.running_since
    ready_at = pod.ready_since
    if began is None or ready_at is None:
        return None
    took = ready_at - began
    if not timedelta() < took <= _LONGEST:
        return None
    return Start(began, round(took.total_seconds())), ready_at


def _loading_since(seen: Observed, pool: str) -> datetime | None:
    """Return since when the engine loads that began first of those that do."""
    found = [pod.engine for pod in _of(seen, pool)]
    engines = [each for each in found if each and not each.started]
    return min((each.running_since for each in engines if each.running_since), default=None)


def _kept(body: Mapping[str, Any], pool: str) -> Start | None:
    for each in body.get("status", {}).get("pools", ()):
        if each["name"] == pool and "startSeconds" in each:
            return Start(datetime.fromisoformat(each["startedAt"]), each["startSeconds"])
    return None
