"""Listening where a pod is reached: by IPv4, by IPv6, or by both.

asyncio opens an IPv6 socket for IPv6 alone. A pod does not know which families its cluster has, so
it listens at every address with one socket for both; where the kernel has no IPv6, with one for
IPv4.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from weir_sidecar.settings import ANY_ADDRESS

_BACKLOG: Final = 1024
_ADMIN_IDLE_S: Final = 10.0
"""Silent connections to the admin port end early: they use the descriptors that are kept for it."""


def any_address(port: int, *, both: bool | None = None) -> socket.socket:
    """Return a socket that is bound at every address, and does not listen yet.

    Args:
        port: 0 lets the kernel choose.
        both: Whether the kernel has IPv6. Default: asked.
    """
    both = socket.has_dualstack_ipv6() if both is None else both
    made = socket.socket(socket.AF_INET6 if both else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if both:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((ANY_ADDRESS if both else "0.0.0.0", port))
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made


async def listener(
    protocol: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, at_once: bool = True
) -> asyncio.Server:
    """Return what listens at `host`: at once, or when it is told to start serving."""
    loop = asyncio.get_running_loop()
    if host == ANY_ADDRESS:
        return await loop.create_server(
            protocol, sock=any_address(port), backlog=_BACKLOG, start_serving=at_once
        )
    return await loop.create_server(protocol, host, port, backlog=_BACKLOG, start_serving=at_once)


def site(runner: web.BaseRunner, host: str, port: int) -> web.BaseSite:
    """Return the same for an app of aiohttp's, to be started."""
    if host == ANY_ADDRESS:
        return web.SockSite(runner, any_address(port))
    return web.TCPSite(runner, host, port)


@contextlib.asynccontextmanager
async def admin_port(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve an app of pages for scrapers, probes and the operator; yield the port it got."""
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=_ADMIN_IDLE_S
    )
    await runner.setup()
    try:
        await site(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
