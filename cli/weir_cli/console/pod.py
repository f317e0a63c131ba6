"""`weir-console`: the console as a pod of the chart, configured by its environment.

| variable | default | meaning |
|---|---|---|
| WEIR_NAMESPACES | (all) | namespaces whose services are shown, comma-separated |
| WEIR_CONSOLE_TOKEN_FILE | /etc/weir/console/token | has the token that a viewer logs in with |

It imports what the image of the operator has, and no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weir_cli.console.access import Login
from weir_cli.console.api_server import in_a_pod
from weir_cli.console.cluster import ANSWER_WITHIN_S, SILENT_S, Cluster, directly
from weir_cli.console.feed import Feed
from weir_cli.console.hosting import hosted
from weir_cli.console.server import Server
from weir_core.errors import WeirError
from weir_core.units import Seconds
from weir_operator.engines import pages

_PORT: Final = 8080
_PERIOD_S: Final = 1.0


def main() -> int:
    """Serve the page until SIGTERM; return the exit status."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return asyncio.run(_run(os.environ))
    except WeirError as error:
        sys.stderr.write(f"weir-console: {error}\n")
        return 2


async def _run(environ: Mapping[str, str]) -> int:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    names = environ.get("WEIR_NAMESPACES", "").split(",")
    token_file = environ.get("WEIR_CONSOLE_TOKEN_FILE") or "/etc/weir/console/token"
    async with in_a_pod(environ) as server, pages(within=Seconds(ANSWER_WITHIN_S)) as page:
        namespaces = {each.strip() for each in names if each.strip()}
        cluster = Cluster(server, directly(page), namespaces)
        feed = Feed(cluster.services, _PERIOD_S, SILENT_S)
        cluster.watched, feed.trouble = feed.watched, cluster.trouble
        access = Login(Path(token_file), time.time)
        console = Server(feed, cluster.requests, access)
        # Every address: that of the pod is not known before, and may be one of IPv6.
        async with hosted(console, (cluster.run(feed.viewer_or), feed.run()), "", _PORT) as (
            _,
            looking,
        ):
            logging.getLogger(__name__).info("listening", extra={"port": _PORT})
            waiting = asyncio.create_task(ended.wait())
            await asyncio.wait({waiting, looking}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if looking.done():
                looking.result()  # raises why it ended
    return 0


if __name__ == "__main__":
    sys.exit(main())
