"""`weir-operator`: settings, then clients, then kopf. The only place where objects are wired."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import kopf
from kopf._core.engines.peering import Identity
from prometheus_client import CollectorRegistry

from weir_core.errors import WeirError
from weir_operator import handlers
from weir_operator.cluster import Kubernetes, connect
from weir_operator.definitions import Definitions
from weir_operator.engines import Ask, Engines, asking
from weir_operator.interests import Change
from weir_operator.lease import Elector
from weir_operator.metrics import Metrics
from weir_operator.peers import KEY_BYTES
from weir_operator.probes import serving
from weir_operator.queue import WorkQueue
from weir_operator.reconcile import Key, Reconciler
from weir_operator.settings import Settings, from_environment
from weir_operator.watches import Watches
from weir_operator.worker import resync, work

log = logging.getLogger("weir_operator")

LEASE_LOST = 1
"""Exit status."""


def main() -> int:
    """Run until told to stop; 0 after SIGTERM, 1 when the lease was lost, 2 on bad settings."""
    parser = argparse.ArgumentParser(
        prog="weir-operator",
        description="Turns InferenceServices into pods. Configured by its environment.",
    )
    parser.parse_args()
    try:
        settings = from_environment(os.environ)
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        logging.getLogger("kopf").setLevel(logging.WARNING)
        cluster = connect(settings.watching.namespaces)
    except (WeirError, ValueError) as error:
        sys.stderr.write(f"weir-operator: {error}\n")
        return 2
    status = asyncio.run(run(settings, cluster))
    if status == LEASE_LOST:
        # Another may lead in a moment. Calls under way are in threads, which Python would wait for.
        logging.shutdown()
        os._exit(status)
    return status


async def run(settings: Settings, cluster: Kubernetes) -> int:
    """Stand by, lead, stop; return the exit status."""
    stop = asyncio.Event()
    _on_signal(stop)
    metrics = Metrics(CollectorRegistry())
    # By a client of its own: a renewal must not wait behind the calls of passes.
    elector = Elector(Kubernetes(()), settings.leadership, time.monotonic)
    metrics.leading.set_function(lambda: elector.leading)
    async with serving(metrics.registry, settings.port, lambda: elector.led), asking() as ask:
        await _first(stop.wait(), elector.acquire())
        if not elector.leading:
            return 0
        await _first(elector.keep(), _act(settings, cluster, metrics, ask, stop))
        if not elector.leading:
            return LEASE_LOST
        await elector.release()
    return 0


async def _act(
    settings: Settings, cluster: Kubernetes, metrics: Metrics, ask: Ask, stop: asyncio.Event
) -> None:
    """Lead until `stop` is set, and until what was being written then is written."""
    await _first(stop.wait(), _lead(settings, cluster, metrics, ask, stop))
    await cluster.close()


async def _lead(
    settings: Settings, cluster: Kubernetes, metrics: Metrics, ask: Ask, stop: asyncio.Event
) -> None:
    """Watch and work until `stop` is set."""
    watching = asyncio.Event()
    queue: WorkQueue[Key] = WorkQueue(time.monotonic)
    engines = Engines(ask, time.monotonic)
    reconciler = Reconciler(
        cluster, engines, settings.images, _now, lambda: secrets.token_hex(KEY_BYTES)
    )
    definitions = Definitions(cluster, metrics, settings.leadership, _now)
    namespaces = settings.watching.namespaces
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(work(queue, reconciler, metrics))
            for _ in range(settings.watching.workers)
        ]
        running.append(tasks.create_task(resync(queue, cluster, settings.watching.resync)))
        running.append(tasks.create_task(definitions.follow()))
        running.append(tasks.create_task(_take_signals_back(watching, stop)))
        watches = Watches(cluster, namespaces, lambda change: _ask(change, reconciler, queue))
        watches.start(asyncio.get_running_loop())
        await kopf.operator(
            registry=handlers.registry(queue.add),
            settings=handlers.settings(),
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
            ready_flag=watching,
            # kopf would ask for the user's name, and a container's user has none.
            identity=Identity(settings.leadership.identity),
        )
        watches.stop()
        for task in running:
            task.cancel()


def _ask(change: Change, reconciler: Reconciler, queue: WorkQueue[Key]) -> None:
    """Ask for a pass over every service that a class, a tenant or a Secret concerns."""
    for service in reconciler.interests.concerned(change):
        queue.add(Key(*service))


def _now() -> datetime:
    return datetime.now(UTC)


def _on_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _take_signals_back(watching: asyncio.Event, stop: asyncio.Event) -> None:
    """Replace the signal handlers kopf installs; its own fail when a signal comes twice."""
    await watching.wait()
    _on_signal(stop)


async def _first(*jobs: Coroutine[Any, Any, Any]) -> None:
    """Run jobs side by side until one ends; end the others; raise what it raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
