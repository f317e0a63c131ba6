"""`weir console` as a process: it listens, prints its URL, and ends on Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import typer

from weir_cli import explain_cluster, explain_local
from weir_cli.console.access import Access, ThisMachine, UrlToken
from weir_cli.console.api_server import by_kubectl
from weir_cli.console.cluster import SILENT_S, Cluster, through
from weir_cli.console.feed import Feed
from weir_cli.console.hosting import hosted
from weir_cli.console.server import Find, Server
from weir_cli.show import alive
from weir_cli.top_pages import METRICS_TIMEOUT_S, Readers
from weir_core.wire.addresses import host_and_port
from weir_core.wire.request_state import RequestReport

LOCAL: Final = "127.0.0.1"


@dataclass(frozen=True)
class ConsoleOptions:
    """What the user chose.

    Attributes:
        service: The one that is shown; empty shows all.
        host: Address to listen on; empty is this machine only.
        interval_s: Time between two readings of a replica of this machine.
        namespace: Of a cluster, whose services are shown.
        context: Of the kubeconfig.
    """

    service: str = ""
    host: str = ""
    port: int = 8765
    interval_s: float = 1.0
    namespace: str = ""
    context: str = ""

    @property
    def is_cluster(self) -> bool:
        """Whether a cluster was asked for."""
        return bool(self.namespace or self.context)


class _Source(NamedTuple):
    """Where the page's data comes from."""

    feed: Feed
    find: Find
    loops: tuple[Coroutine[Any, Any, None], ...]


def run(cache: Path, options: ConsoleOptions) -> int:
    """Serve the page until the user ends it; return 0.

    Raises:
        MachineUnfit: The address cannot be listened on, or kubectl cannot be used.
    """
    asyncio.run(_until_ended(cache, options))
    return 0


async def _until_ended(cache: Path, options: ConsoleOptions) -> None:
    ended = asyncio.Event()
    async with serving(cache, options) as (url, looking):
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        typer.echo(f"weir console: {url}   (Ctrl-C ends it)")
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({waiting, looking}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if looking.done():
            looking.result()  # raises why it ended


@asynccontextmanager
async def serving(
    cache: Path, options: ConsoleOptions
) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """Serve the page for the length of the block; yield its URL, and the loop that feeds it.

    Raises:
        MachineUnfit: The address cannot be listened on, or kubectl cannot be used.
    """
    token = secrets.token_urlsafe(24) if options.host else ""
    access: Access = UrlToken(token, time.time) if token else ThisMachine()
    query = f"?token={token}" if token else ""
    host = options.host or LOCAL
    found = _of_cluster(options) if options.is_cluster else _of_machine(cache, options)
    async with found as source:
        server = Server(source.feed, source.find, access)
        async with hosted(server, source.loops, host, options.port) as (port, looking):
            yield f"http://{host_and_port(host, port)}/{query}", looking


@asynccontextmanager
async def _of_machine(cache: Path, options: ConsoleOptions) -> AsyncIterator[_Source]:
    """Read what `weir up` serves here."""
    period_s = options.interval_s
    readers = Readers(period_s)
    silent_s = 2 * period_s + METRICS_TIMEOUT_S
    feed = Feed(lambda: readers.services(alive(cache)), period_s, silent_s, options.service)

    async def find(service: str, request_id: str) -> list[RequestReport]:
        return await asyncio.to_thread(_requests, cache, service, request_id)

    try:
        yield _Source(feed, find, (feed.run(),))
    finally:
        readers.stop()


def _requests(cache: Path, service: str, request_id: str) -> list[RequestReport]:
    found = explain_local.find(service, cache)
    return [] if found is None else explain_local.requests(request_id, found[1])[0]


@asynccontextmanager
async def _of_cluster(options: ConsoleOptions) -> AsyncIterator[_Source]:
    """Read a namespace of the cluster of the user's kubeconfig."""
    ask = explain_cluster.kubectl(options.context)
    namespace = options.namespace or await asyncio.to_thread(explain_cluster.namespace_of, ask)
    async with by_kubectl(options.context) as server:
        cluster = Cluster(server, through(server), (namespace,))
        feed = Feed(cluster.services, 1.0, SILENT_S, options.service)
        cluster.watched, feed.trouble = feed.watched, cluster.trouble
        yield _Source(feed, cluster.requests, (cluster.run(feed.viewer_or), feed.run()))
