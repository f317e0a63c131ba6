"""Works off the queue: one pass after the other, and no error of one pass ends the others."""

from __future__ import annotations

import logging
import time

from weir_core.errors import ClusterUnavailable
from weir_core.units import Seconds
from weir_operator.metrics import Metrics
from weir_operator.queue import WorkQueue
from weir_operator.reconcile import Key, Outcome, Reconciler

log = logging.getLogger(__name__)

RECHECK = Seconds(10.0)
"""In seconds. While a rollout is on its way, what a pod waits for may change without an event."""


async def work(queue: WorkQueue[Key], reconciler: Reconciler, metrics: Metrics) -> None:
    """Run passes for ever."""
    while True:
        key = await queue.get()
        metrics.queue_depth.set(len(queue))
        start = time.monotonic()
        outcome = await _one(key, queue, reconciler)
        metrics.pass_seconds.observe(time.monotonic() - start)
        metrics.ended(key, outcome, gone=outcome == Outcome.GONE)


async def _one(key: Key, queue: WorkQueue[Key], reconciler: Reconciler) -> str:
    try:
        outcome = await reconciler.run(key)
    except ClusterUnavailable as error:
        log.warning("%s/%s: will try again: %s", key.namespace, key.name, error)
        queue.done(key, failed=True)
        return "unavailable"
    except Exception:
        log.exception("%s/%s: the pass failed", key.namespace, key.name)
        queue.done(key, failed=True)
        return "failed"
    log.info("%s/%s: %s", key.namespace, key.name, outcome)
    queue.done(key, failed=outcome is Outcome.WAITING)
    if outcome is Outcome.PROGRESSING:
        queue.add(key, RECHECK)
    return outcome
