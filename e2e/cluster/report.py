"""How the cluster package speaks to people: one line at a time, on stderr."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)  # noqa: T201
