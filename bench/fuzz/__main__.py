"""The command line: run batches until there were enough inputs, and shrink what fails."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.fuzz.batch import SUBJECTS, Batch


def main() -> int:
    """Run the fuzz; the exit status tells whether anything was found."""
    options = _options()
    began = time.monotonic()
    inputs, outcomes, failed = 0, Counter[str](), 0
    number = begun = options.first if options.batch is None else options.batch
    with tempfile.TemporaryDirectory(prefix="weir-fuzz-") as folder:
        scratch = Path(folder)
        while failed < options.failures:
            batch = Batch(options.seed, number, options.only, options.kind)
            batch.run(scratch)
            inputs += batch.inputs
            outcomes.update(batch.outcomes)
            number += 1
            if batch.faults:
                failed += 1
                _report(batch, scratch, shrink=options.only is None)
            passed_s = time.monotonic() - began
            if options.batch is not None or inputs >= options.inputs:
                break
            if options.minutes and passed_s > 60 * options.minutes:
                break
    per_s = inputs / (time.monotonic() - began)
    print(f"seed {options.seed}: {inputs} inputs in {number - begun} batches, {per_s:.0f} a second")
    print(f"outcomes: {dict(outcomes.most_common())}")
    print(f"batches with faults: {failed}")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="requests to send")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="end after so many, 0 does not")
    parser.add_argument("--batch", type=int, help="run only this batch of the seed")
    parser.add_argument("--first", type=int, default=0, help="begin with this batch of the seed")
    parser.add_argument("--only", type=_numbers, help="run only these clients and disturbances")
    parser.add_argument("--kind", choices=SUBJECTS, default="", help="fuzz only this")
    parser.add_argument("--failures", type=int, default=1, help="end after so many bad batches")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _report(batch: Batch, scratch: Path, *, shrink: bool) -> None:
    """Print what a batch found, and the fewest clients and disturbances that still find some."""
    for fault in list(dict.fromkeys(batch.faults))[:10]:
        print(f"batch {batch.number}: {fault}", flush=True)
    few = _fewest(batch, scratch) if shrink else list(batch.only or ())
    only = f" --only {','.join(map(str, few))}" if few else ""
    which = f"--seed {batch.seed} --batch {batch.number} --kind {batch.kind}"
    print(f"again: python -m bench.fuzz {which}{only}")
    sys.stdout.flush()


def _fewest(batch: Batch, scratch: Path) -> list[int]:
    """Leave out halves, quarters and so on of what takes part, while it still fails."""
    kept = list(range(batch.parts))
    size = len(kept) // 2
    while size:
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            again = Batch(batch.seed, batch.number, fewer, batch.kind)
            again.run(scratch)
            if again.faults:
                kept = fewer
                break
        else:
            size //= 2
    return kept


if __name__ == "__main__":
    sys.exit(main())
