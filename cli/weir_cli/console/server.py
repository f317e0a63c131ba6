"""The web server of `weir console`: a few files, and a stream of frames; nothing can be changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from weir_cli.console.access import SECURITY, Access
from weir_cli.console.feed import Feed, View
from weir_core.wire.request_state import RequestReport

MAX_VIEWERS: Final = 16
SEND_LIMIT_S: Final = 10.0
"""How long a viewer may leave a part of a frame unread."""
LARGEST_PART: Final = 65_536
"""In bytes: so that a viewer on a slow line, which reads all the time, is not taken for still."""
_LARGEST_FORM: Final = 4096
"""In bytes: a token fits."""
_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "svg": "image/svg+xml",
}
_PAGE: Final = (
    *("index.html", "console.css", "icon.svg"),
    *("console.js", "charts.js", "replica.js", "way.js", "words.js", "fleet.js", "moves.js"),
    *("vendor/preact.mjs", "vendor/htm.mjs"),
)

Find = Callable[[str, str], Awaitable[list[RequestReport]]]
"""Takes a service and the id of a request; returns what the service's sidecars say of it."""


class Server:
    """The handlers.

    Args:
        feed: Where frames come from.
        find: Finds requests.
        access: Who may look.
        send_limit_s: How long a viewer may leave a part of a frame unread.
    """

    def __init__(
        self, feed: Feed, find: Find, access: Access, send_limit_s: float = SEND_LIMIT_S
    ) -> None:
        self._feed = feed
        self._find = find
        self._access = access
        self._send_limit_s = send_limit_s
        self.viewers = 0
        """Pages that look now."""
        folder = files("weir_cli.console") / "page"
        self._page = {name: (folder / name).read_bytes() for name in _PAGE}
        said = b"yes" if access.has_logout else b"no"
        self._page["index.html"] = self._page["index.html"].replace(b"{logout}", said)

    def app(self) -> web.Application:
        """Return the app."""
        app = web.Application(middlewares=[self._guard], client_max_size=_LARGEST_FORM)
        app.router.add_get("/", self._index)
        app.router.add_get("/events", self._events)
        app.router.add_get("/request", self._request)
        self._access.add_to(app.router)
        app.router.add_get("/{name:.+}", self._file)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return self._access.refusal(request) or await handler(request)

    async def _index(self, _request: web.Request) -> web.Response:
        return self._answer("index.html")

    async def _request(self, request: web.Request) -> web.Response:
        """Return what the sidecars of a service say of a request."""
        service, asked = request.query.get("service", ""), request.query.get("id", "")
        if not asked:
            text = "say which: /request?service=NAME&id=ID\n"
            return web.Response(status=400, text=text, headers=SECURITY)
        found = await self._find(service, asked)
        body = msgspec.json.encode(found)
        return web.Response(body=body, content_type="application/json", headers=SECURITY)

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._page:
            return web.Response(status=404, text="no such page\n", headers=SECURITY)
        return self._answer(name)

    def _answer(self, name: str) -> web.Response:
        return web.Response(
            body=self._page[name],
            content_type=_TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers=SECURITY,
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send frames until the viewer leaves, or does not read."""
        if self.viewers >= MAX_VIEWERS:
            text = f"{MAX_VIEWERS} viewers look already; close a page\n"
            return web.Response(status=503, text=text, headers=SECURITY)
        self.viewers += 1
        try:
            return await self._stream(request)
        finally:
            self.viewers -= 1

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        service, replica = request.query.get("service", ""), request.query.get("replica", "")
        response = web.StreamResponse(
            headers={**SECURITY, "Content-Type": "text/event-stream; charset=utf-8"}
        )
        await response.prepare(request)
        with suppress(ConnectionError), self._feed.viewed(service, replica) as view:
            number = await self._feed.after(0)
            # A login ends while a stream goes on, too.
            while self._access.refusal(request) is None and await self._tell(response, view):
                number = await self._feed.after(number)
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _tell(self, response: web.StreamResponse, view: View) -> bool:
        """Send the newest frame; tell whether the viewer takes it in time."""
        for event, data in view.events():
            if not await self._send(response, event, data):
                return False
        return True

    async def _send(self, response: web.StreamResponse, event: str, data: bytes) -> bool:
        """Send an event; tell whether the viewer takes it in time."""
        try:
            for part in parts_of(event, data):
                async with asyncio.timeout(self._send_limit_s):
                    await response.write(part)
        except TimeoutError:
            return False
        return True


def parts_of(event: str, data: bytes) -> Iterator[bytes]:
    """Yield an event as it is sent: each part of it has to be read in time."""
    whole = b"event: %b\ndata: %b\n\n" % (event.encode(), data)
    for begin in range(0, len(whole), LARGEST_PART):
        yield whole[begin : begin + LARGEST_PART]
