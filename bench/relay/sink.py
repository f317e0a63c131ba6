"""Takes OTLP exports and forgets them; counts the requests, so that a run can tell tracing was on.

python -m bench.relay.sink --port 4318
"""

from __future__ import annotations

import argparse

import uvloop
from aiohttp import web

EXPORTS: web.AppKey[list[int]] = web.AppKey("EXPORTS", list)


async def _take(request: web.Request) -> web.Response:
    request.app[EXPORTS].append(len(await request.read()))
    return web.Response(content_type="application/x-protobuf")


async def _count(request: web.Request) -> web.Response:
    sizes = request.app[EXPORTS]
    return web.json_response({"exports": len(sizes), "bytes": sum(sizes)})


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    app = web.Application(client_max_size=64 << 20)
    app[EXPORTS] = []
    app.router.add_post("/v1/traces", _take)
    app.router.add_get("/count", _count)
    uvloop.install()
    port = parser.parse_args().port
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main()
