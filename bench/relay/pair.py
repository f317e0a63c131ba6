"""A gateway and the one replica behind it, as one process tree, so that their costs add up.

    python -m bench.relay.pair --listen 127.0.0.1:PORT

The environment is that of the replica's sidecar. This process only waits for the two.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

from weir_core.api import labels


def main() -> int:
    """Run both until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--peer-port", required=True, help="of the gateway")
    chosen = parser.parse_args()
    module = [sys.executable, "-m", "weir_sidecar"]
    gateway = {labels.ENV_POD_NAME: "gateway", "WEIR_PEER_PORT": chosen.peer_port}
    both = [
        subprocess.Popen([*module, "serve"]),
        subprocess.Popen(
            [*module, "gateway", "--listen", chosen.listen], env={**os.environ, **gateway}
        ),
    ]

    def stop(*_: object) -> None:
        for each in both:
            each.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return max(abs(each.wait()) for each in both)


if __name__ == "__main__":
    sys.exit(main())
