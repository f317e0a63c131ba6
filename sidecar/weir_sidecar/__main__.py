"""`weir-sidecar`: settings, then the sidecar, until told to leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

import uvloop

from weir_core.errors import WeirError
from weir_sidecar import logs
from weir_sidecar.app import Sidecar
from weir_sidecar.drain import Drain
from weir_sidecar.settings import Settings

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `weir-sidecar [serve]` or `weir-sidecar front`; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "serve"
    try:
        settings = Settings.from_env(os.environ)
        logs.configure(settings.log_level)
        if command == "serve" and not arguments:
            uvloop.run(serve(settings))
            return 0
    except WeirError as error:
        print(f"weir-sidecar: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print("usage: weir-sidecar [serve]\n", file=sys.stderr)  # noqa: T201
    return 2


async def serve(settings: Settings) -> None:
    """Run the sidecar of one replica until it is told to leave, then drain."""
    async with Sidecar(settings).running() as sidecar:
        await drained_by_signal(sidecar.drain)


async def drained_by_signal(drain: Drain) -> None:
    """Drain at the first SIGTERM or SIGINT; at the second, exit at once."""
    told = asyncio.Event()

    def on_signal() -> None:
        if told.is_set():
            log.warning("told twice: exiting at once")
            logging.shutdown()
            os._exit(1)
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await told.wait()
    farewell = await drain.run()
    log.info("drained", extra={"seconds": round(farewell.seconds, 3), "cut": farewell.cut})


if __name__ == "__main__":
    sys.exit(main())
