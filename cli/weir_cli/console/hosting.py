"""The console's server and its loops, for as long as a context lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from weir_cli.console.connections import Connections
from weir_cli.console.server import Server
from weir_core.errors import MachineUnfit

GOODBYE_S: Final = 0.1
"""A stream has no end of its own, so it is not waited for; 0 would be for ever to aiohttp."""


@asynccontextmanager
async def hosted(
    server: Server,
    loops: Sequence[Coroutine[Any, Any, None]],
    host: str,
    port: int,
    connections: Connections | None = None,
) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    """Serve the page for the length of the block; yield its port, and what ends if a loop does.

    Args:
        server: The handlers.
        loops: What feeds the page; none of them ends by itself.
        host: Address to listen on; empty is every one.
        port: 0 is any that is free.
        connections: Counts those of the server. Default: with the usual bounds.

    Raises:
        MachineUnfit: The address cannot be listened on.
    """
    connections = connections or Connections()
    app = server.app()
    app.middlewares.insert(0, connections.noted)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GOODBYE_S)
    await runner.setup()
    assert runner.server is not None
    looking = asyncio.create_task(_all(loops))
    try:
        listening = await _listen(connections.of(runner.server), host, port)
        try:
            yield listening.sockets[0].getsockname()[1], looking
        finally:
            listening.close()
    finally:
        looking.cancel()
        await runner.cleanup()
        await asyncio.wait({looking})


async def _all(loops: Sequence[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for each in loops:
            tasks.create_task(each)


async def _listen(make: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(make, host or None, port)
    except OSError as error:
        raise MachineUnfit(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another "
            "port: --port"
        ) from error
