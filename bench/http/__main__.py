"""The command line: play connections until they held enough requests, and print what was found."""

from __future__ import annotations

import argparse
import sys
import time

from bench.http.differences import table
from bench.http.run import Batch, Findings


def main() -> int:
    """Run the comparison; the exit status tells whether anything was found."""
    options = _options()
    if options.table:
        print("\n".join(table()))
        return 0
    began, first, found = time.monotonic(), options.first, Findings()
    while found.requests < options.inputs and len(found.faults) < options.faults:
        batch = Batch(options.seed, first)
        batch.run()
        first += batch.count
        found.add(batch.found)
        for fault in batch.found.faults:
            print(fault, flush=True)
    per_s = found.requests / (time.monotonic() - began)
    print(
        f"seed {options.seed}: {found.requests} requests on {first - options.first} connections, "
        f"{per_s:.0f} requests a second"
    )
    print(f"connections: {dict(found.kinds.most_common())}")
    print(f"decided differences: {dict(found.differences.most_common())}")
    print(f"faults: {len(found.faults)}")
    return 1 if found.faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="requests to send")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first connection")
    parser.add_argument("--faults", type=int, default=10, help="end after so many")
    parser.add_argument("--table", action="store_true", help="print the decided differences")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
