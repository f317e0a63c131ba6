"""The command line: one subcommand for each benchmark of a fleet.

A module of this package is a benchmark if it is listed in `_BENCHMARKS`; it has `add_arguments` and
`run`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from bench.fleet import heartbeats, routers

_BENCHMARKS: Final = {"heartbeats": heartbeats, "routers": routers}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; its exit status tells whether its goals were met."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in _BENCHMARKS.items():
        words = (module.__doc__ or "").partition("\n")[0]
        module.add_arguments(commands.add_parser(name, help=words, description=words))
    options = parser.parse_args(arguments)
    status: int = _BENCHMARKS[options.command].run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
