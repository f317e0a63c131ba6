"""`python -m e2e.cluster up|down|status`: the tests' cluster, for a person to play with."""

from __future__ import annotations

import argparse
import sys

from e2e.cluster import cluster
from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import Layout
from e2e.cluster.report import say

NAME = "dev"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--dns", action="store_true", help="up: with a name server for pods")
    given = parser.parse_args()
    try:
        if given.action == "up":
            return _up(dns=given.dns)
        return {"down": _down, "status": _status}[given.action]()
    except ClusterError as error:
        say(str(error))
        return 1


def _up(*, dns: bool) -> int:
    layout = cluster.find(NAME) or cluster.up(NAME, dns=dns).layout
    _print_settings(layout)
    return 0


def _down() -> int:
    """Remove this cluster, and what test runs that were killed have left."""
    for name in cluster.names():
        cluster.remove_leftover(name)
    return 0


def _status() -> int:
    layout = cluster.find(NAME)
    if layout is None:
        say("not running; start it with: python -m e2e.cluster up")
        return 1
    _print_settings(layout)
    return 0


def _print_settings(layout: Layout) -> None:
    sys.stdout.write(f"export KUBECONFIG={layout.kubeconfig}\n")


if __name__ == "__main__":
    sys.exit(main())
