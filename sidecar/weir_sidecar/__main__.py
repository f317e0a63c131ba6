"""The sidecar of a replica, or a gateway before several: configured, run, drained when told."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

import aiohttp
import uvloop
from prometheus_client import disable_created_metrics

from weir_core.api import labels
from weir_core.errors import WeirError
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.request_state import REQUESTS_PATH
from weir_core.wire.state_access import authorization
from weir_sidecar.app import Sidecar
from weir_sidecar.descriptors import raise_limit
from weir_sidecar.drain import Drain
from weir_sidecar.gateway import Gateway
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry import logs
from weir_sidecar.telemetry.tracing import configured as tracing_of

log = logging.getLogger(__name__)

_STATE_WITHIN_S: Final = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `weir-sidecar [serve]`, `gateway`, `state` or `request`; return the exit status."""
    chosen = _parser().parse_args(argv)
    # Without this each counter has a second series that nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        settings = Settings.from_env(os.environ)
        logs.configure(settings.log_level)
        if chosen.command in {"state", "request"}:
            asked = "/state" if chosen.command == "state" else _page_of(chosen.id)
            sys.stdout.write(asyncio.run(page_of(settings, asked)))
            return 0
        raise_limit()
        gateway = chosen.command == "gateway"
        uvloop.run(relay(settings, chosen.listen, chosen.admin) if gateway else serve(settings))
    except WeirError as error:
        sys.stderr.write(f"weir-sidecar: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="weir-sidecar", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="the sidecar of one replica (the default)")
    commands.add_parser("state", help="show what this pod's sidecar knows, as JSON")
    one = commands.add_parser("request", help="show where a request is, or how it ended, as JSON")
    one.add_argument("id", metavar="ID", help="the x-request-id of its answer")
    relay = commands.add_parser(
        "gateway", help="one address before the replicas, without an engine"
    )
    relay.add_argument(
        "--listen", default=("127.0.0.1", labels.API_PORT), type=_address, metavar="HOST:PORT"
    )
    relay.add_argument(
        "--admin",
        type=_address,
        metavar="HOST:PORT",
        help="the admin port, for a gateway in a cluster: it is ready without a replica",
    )
    return parser


def _page_of(request_id: str) -> str:
    return f"{REQUESTS_PATH}?{urlencode({'id': request_id})}"


async def page_of(settings: Settings, page: str) -> str:
    """Return what the sidecar of this pod says at its admin socket; a gateway says it at its port.

    Raises:
        WeirError: None answers.
    """
    path = settings.addresses.admin_socket
    limit = aiohttp.ClientTimeout(total=_STATE_WITHIN_S)
    is_gateway = not path.exists()
    where = f"http://localhost:{settings.addresses.admin_port}" if is_gateway else "http://weir"
    try:
        shown = {"Authorization": _proof(settings)} if is_gateway else {}
        connector = aiohttp.TCPConnector() if is_gateway else aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get(f"{where}{page}", headers=shown, timeout=limit) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise WeirError(
            f"no sidecar answers at {where if is_gateway else path}: {error}"
        ) from error


def _proof(settings: Settings) -> str:
    """Return what shows the gateway of this pod that its keys are known."""
    try:
        document = PolicyDocument.decode(settings.policies.file.read_bytes())
    except (OSError, ValueError) as error:
        why = "it is not there, and neither are the keys that a gateway has"
        where = settings.addresses.admin_socket
        raise WeirError(f"no sidecar answers at {where}: {why}") from error
    return authorization(document.peer_keys, settings.identity.pod, time.time())


async def serve(settings: Settings) -> None:
    """Run the sidecar of one replica until it is told to leave, then drain."""
    tracing = tracing_of(os.environ, settings.identity)
    async with Sidecar(settings, tracing=tracing).running() as sidecar:
        _settle_memory()
        await drained_by_signal(sidecar.drain)


async def relay(settings: Settings, listen: tuple[str, int], admin: tuple[str, int] | None) -> None:
    """Run a gateway until told to leave, then drain."""
    tracing = tracing_of(os.environ, settings.identity)
    async with Gateway(settings, listen, tracing=tracing, admin=admin).running() as gateway:
        _settle_memory()
        await drained_by_signal(gateway.drain)


def _address(text: str) -> tuple[str, int]:
    """Read HOST:PORT; an IPv6 address is in brackets."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


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
