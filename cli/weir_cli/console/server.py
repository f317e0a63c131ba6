"""The web server of `weir console`: a few files, and a stream of frames; nothing can be changed."""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress
from importlib.resources import files
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from weir_cli.console.feed import Feed

MAX_VIEWERS: Final = 16
SEND_LIMIT_S: Final = 10.0
"""How long a viewer may leave a frame unread."""
COOKIE: Final = "weir-console"
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "svg": "image/svg+xml",
}
_PAGE: Final = (
    *("index.html", "console.css", "icon.svg"),
    *("console.js", "charts.js", "replica.js", "words.js", "fleet.js", "moves.js"),
    *("vendor/preact.mjs", "vendor/htm.mjs"),
)
_SECURITY: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_WRONG_HOST: Final = "this console answers to localhost only; open the URL that it printed\n"
_NO_TOKEN: Final = "open the URL that weir console printed; it has the token\n"


class Server:
    """The handlers.

    Args:
        feed: Where frames come from.
        token: What a viewer has to show; empty where only this machine can reach it.
        send_limit_s: How long a viewer may leave a frame unread.
    """

    def __init__(self, feed: Feed, token: str = "", send_limit_s: float = SEND_LIMIT_S) -> None:
        self._feed = feed
        self._token = token
        self._send_limit_s = send_limit_s
        self.viewers = 0
        """Pages that look now."""
        folder = files("weir_cli.console") / "page"
        self._page = {name: (folder / name).read_bytes() for name in _PAGE}

    def app(self) -> web.Application:
        """Return the app."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/events", self._events)
        app.router.add_get("/{name:.+}", self._file)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer to local names, so that no other site's name leads here; or to the token."""
        if self._token:
            shown = request.query.get("token") or request.cookies.get(COOKIE, "")
            if not hmac.compare_digest(shown.encode(), self._token.encode()):
                return web.Response(status=401, text=_NO_TOKEN, headers=_SECURITY)
        elif _host_name(request) not in _LOCAL_NAMES:
            return web.Response(status=421, text=_WRONG_HOST, headers=_SECURITY)
        return await handler(request)

    async def _index(self, request: web.Request) -> web.Response:
        if self._token and "token" in request.query:
            # The address bar and the history shall not keep it.
            response = web.Response(status=303, headers={**_SECURITY, "Location": "/"})
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict")
            return response
        return self._answer("index.html")

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._page:
            return web.Response(status=404, text="no such page\n", headers=_SECURITY)
        return self._answer(name)

    def _answer(self, name: str) -> web.Response:
        return web.Response(
            body=self._page[name],
            content_type=_TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers=_SECURITY,
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send frames until the viewer leaves, or does not read."""
        if self.viewers >= MAX_VIEWERS:
            text = f"{MAX_VIEWERS} viewers look already; close a page\n"
            return web.Response(status=503, text=text, headers=_SECURITY)
        self.viewers += 1
        try:
            return await self._stream(request)
        finally:
            self.viewers -= 1

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        service, replica = request.query.get("service", ""), request.query.get("replica", "")
        response = web.StreamResponse(
            headers={**_SECURITY, "Content-Type": "text/event-stream; charset=utf-8"}
        )
        await response.prepare(request)
        number = await self._feed.after(0)
        with suppress(ConnectionError):
            reads = await self._send(response, "history", self._feed.history(service))
            while reads and await self._send(response, "frame", self._feed.frame(service, replica)):
                number = await self._feed.after(number)
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _send(self, response: web.StreamResponse, event: str, data: bytes) -> bool:
        """Send an event; tell whether the viewer takes it in time."""
        try:
            async with asyncio.timeout(self._send_limit_s):
                await response.write(b"event: %b\ndata: %b\n\n" % (event.encode(), data))
        except TimeoutError:
            return False
        return True


def _host_name(request: web.Request) -> str:
    """Return the name by which the server is asked, without the port."""
    name, colon, port = request.host.rpartition(":")
    return name if colon and port.isdecimal() else request.host
