"""`weir-operator`: settings, then clients, then watches. The only place where objects are wired."""

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
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from weir_core.errors import WeirError
from weir_core.units import Seconds
from weir_operator.adapters import Adapters, state_by
from weir_operator.autoscaling import LISTEN_AT_ONCE, LISTEN_S, Autoscaling
from weir_operator.cluster import Kubernetes, credentials
from weir_operator.definitions import Definitions
from weir_operator.engines import ANSWER_WITHIN, Engines, Page, facts_by, pages
from weir_operator.fleets import fleet_by, waiting_by
from weir_operator.interests import Change, Interests
from weir_operator.kinds import CLASS
from weir_operator.lease import Elector
from weir_operator.metrics import Metrics
from weir_operator.parts import (
    AdaptersOf,
    Network,
    Policies,
    Prefetch,
    Scaling,
    Scheduling,
    Workloads,
)
from weir_operator.peers import KEY_BYTES
from weir_operator.probes import serving
from weir_operator.queue import WorkQueue
from weir_operator.reconcile import Key, Reconciler
from weir_operator.resync import Resync
from weir_operator.settings import Settings, from_environment
from weir_operator.watches import IN_NAMESPACES, Topic, unwatched, watch
from weir_operator.worker import work

log = logging.getLogger("weir_operator")


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
        return asyncio.run(run(settings))
    except (WeirError, ValueError) as error:
        sys.stderr.write(f"weir-operator: {error}\n")
        return 2


async def run(settings: Settings) -> int:
    """Stand by, lead, stop; return the exit status.

    Raises:
        ClusterUnavailable: There are no credentials.
    """
    stop = asyncio.Event()
    _on_signal(stop)
    server = await credentials()
    metrics = Metrics(CollectorRegistry())
    async with (
        pages() as page,
        pages(within=Seconds(LISTEN_S + ANSWER_WITHIN), at_once=LISTEN_AT_ONCE) as later,
        aclosing(Kubernetes((), server)) as election,
    ):
        elector = Elector(election, settings.leadership, time.monotonic)
        metrics.leading.set_function(lambda: elector.leading)
        async with (
            serving(metrics.registry, settings.port, lambda: elector.led),
            # Apart from `election`: a renewal must not wait behind the calls of passes. Closed
            # first: with the lease lost, what is under way is left off.
            aclosing(Kubernetes(settings.watching.namespaces, server)) as cluster,
        ):
            await _first(stop.wait(), elector.acquire())
            if not elector.leading:
                return 0
            await _first(elector.keep(), _act(settings, cluster, metrics, (page, later), stop))
            lost = not elector.leading
            if not lost:
                await election.finish()  # a renewal may be under way still
                await elector.release()
    return 1 if lost else 0


async def _act(
    settings: Settings,
    cluster: Kubernetes,
    metrics: Metrics,
    asking: tuple[Page, Page],
    stop: asyncio.Event,
) -> None:
    """Lead until `stop` is set, and until what was being written then is written."""
    await _first(stop.wait(), _lead(settings, cluster, metrics, asking))
    await cluster.finish()


async def _lead(
    settings: Settings,
    cluster: Kubernetes,
    metrics: Metrics,
    asking: tuple[Page, Page],
) -> None:
    """Watch and work until cancelled.

    Args:
        settings: What the environment says.
        cluster: The API server.
        metrics: The instruments.
        asking: Gets pages of sidecars: those that answer at once, and those that answer later.
    """
    page, later = asking
    queue: WorkQueue[Key] = WorkQueue(time.monotonic)
    interests: Interests[tuple[str, str]] = Interests()
    blind: set[Topic] = set()
    for kind in (CLASS, *IN_NAMESPACES):
        metrics.unwatched.labels(kind.plural).set_function(partial(unwatched, blind, kind))
    autoscaling = Autoscaling(
        fleet_by(page),
        time.monotonic,
        _now,
        lambda service: queue.add(Key(*service)),
        metrics,
        waiting_by(later, LISTEN_S),
    )
    adapters = Adapters(state_by(page), time.monotonic, lambda service: queue.add(Key(*service)))
    parts = (
        Policies(
            interests,
            lambda: secrets.token_hex(KEY_BYTES),
            lambda: datetime.now(UTC),
            settings.watching.secret_grace,
        ),
        Network(settings.access),
        Workloads(settings.images, autoscaling.asked),
        Prefetch(settings.images),
        Scaling(autoscaling, _now),
        Scheduling(Engines(facts_by(page), time.monotonic)),
        AdaptersOf(adapters),
    )
    definitions = Definitions(cluster, metrics, settings.leadership, _now)
    reconciler = Reconciler(cluster, parts, _now, metrics, definitions.remark)
    async with AsyncExitStack() as servers, asyncio.TaskGroup() as tasks:
        if settings.scaler_port:
            from weir_operator import scaler  # gRPC: 25 MB of memory

            answering = scaler.serving(autoscaling.advice, settings.scaler_port)
            await servers.enter_async_context(answering)
        for _ in range(settings.watching.workers):
            tasks.create_task(work(queue, reconciler, metrics))
        resync = Resync(queue, cluster, interests, blind, reconciler.is_idle, definitions.remark)
        tasks.create_task(resync.follow(settings.watching.resync))
        tasks.create_task(definitions.follow())
        tasks.create_task(autoscaling.run(cluster, settings.watching.scaling))
        tasks.create_task(adapters.run())
        tell = partial(_ask, interests=interests, queue=queue)
        tasks.create_task(watch(cluster, settings.watching.namespaces, tell, blind))


def _ask(change: Change, interests: Interests[tuple[str, str]], queue: WorkQueue[Key]) -> None:
    """Ask for a pass over every service that a change concerns."""
    for service in interests.concerned(change):
        queue.add(Key(*service))


def _now() -> datetime:
    return datetime.now(UTC)


def _on_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


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
