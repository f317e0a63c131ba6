"""The sidecar of a replica, or the front of several: configured, run, drained when told."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence

import uvloop
from prometheus_client import disable_created_metrics

from weir_core.errors import WeirError
from weir_sidecar.app import Sidecar
from weir_sidecar.descriptors import raise_limit
from weir_sidecar.drain import Drain
from weir_sidecar.front import Front
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry import logs
from weir_sidecar.telemetry.tracing import configured as tracing_of
from weir_sidecar.upstreams.replicas import Address

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `weir-sidecar [serve]` or `weir-sidecar front`; return the exit status."""
    chosen = _parser().parse_args(argv)
    # Without this each counter has a second series that nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        settings = Settings.from_env(os.environ)
        logs.configure(settings.log_level)
        raise_limit()
        uvloop.run(front(settings, chosen) if chosen.command == "front" else serve(settings))
    except WeirError as error:
        sys.stderr.write(f"weir-sidecar: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="weir-sidecar", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="the sidecar of one replica (the default)")
    relay = commands.add_parser("front", help="one address in front of several replicas")
    relay.add_argument("--listen", default="127.0.0.1:8000", metavar="HOST:PORT")
    relay.add_argument(
        "--replica", action="append", required=True, metavar="HOST[:API_PORT[:ADMIN_PORT]]"
    )
    return parser


async def serve(settings: Settings) -> None:
    """Run the sidecar of one replica until it is told to leave, then drain."""
    tracing = tracing_of(os.environ, settings.identity)
    async with Sidecar(settings, tracing=tracing).running() as sidecar:
        _settle_memory()
        await drained_by_signal(sidecar.drain)


async def front(settings: Settings, chosen: argparse.Namespace) -> None:
    """Run one address in front of replicas until told to leave, then drain."""
    listen = Address.parse(chosen.listen)
    replicas = [Address.parse(text) for text in chosen.replica]
    async with Front(settings, (listen.host, listen.api_port), replicas).running() as running:
        _settle_memory()
        await drained_by_signal(running.drain)


def _settle_memory() -> None:
    """Let the collector look at little, and seldom: streams wait while it looks.

    What start-up made is out of its sight, and a request that ended leaves nothing to it (a test
    says so). With the default thresholds it took a tenth of a busy sidecar's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


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
