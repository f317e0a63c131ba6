"""`weir console` as a process: it listens, prints its URL, and ends on Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from aiohttp import web

from weir_cli.console.feed import Feed
from weir_cli.console.server import Server
from weir_cli.show import alive
from weir_cli.top_pages import Readers
from weir_core.errors import MachineUnfit
from weir_core.wire.addresses import host_and_port

LOCAL: Final = "127.0.0.1"
GOODBYE_S: Final = 0.1
"""A stream has no end of its own, so it is not waited for; 0 would be for ever to aiohttp."""


@dataclass(frozen=True)
class ConsoleOptions:
    """What the user chose.

    Attributes:
        service: The one that is shown; empty shows all.
        host: Address to listen on; empty is this machine only.
        interval_s: Time between two readings of a replica.
    """

    service: str = ""
    host: str = ""
    port: int = 8765
    interval_s: float = 1.0


def run(cache: Path, options: ConsoleOptions) -> int:
    """Serve the page until the user ends it; return 0.

    Raises:
        MachineUnfit: The address cannot be listened on.
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
        MachineUnfit: The address cannot be listened on.
    """
    token = secrets.token_urlsafe(24) if options.host else ""
    readers = Readers(options.interval_s)
    feed = Feed(lambda: readers.services(alive(cache)), options.interval_s, options.service)
    runner = web.AppRunner(Server(feed, token).app(), access_log=None, shutdown_timeout=GOODBYE_S)
    await runner.setup()
    looking = asyncio.create_task(feed.run())
    try:
        host = options.host or LOCAL
        await _listen(runner, host, options.port)
        shown = host_and_port(host, runner.addresses[0][1])
        query = f"?token={token}" if token else ""
        yield f"http://{shown}/{query}", looking
    finally:
        looking.cancel()
        await runner.cleanup()
        readers.stop()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise MachineUnfit(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another "
            "port: --port"
        ) from error
