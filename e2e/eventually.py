"""Waiting for the world to be as it should, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_EVERY_S = 0.3
PATIENCE_S = 120.0
"""For what takes seconds: tells what never happens from what a slow machine does late."""


def eventually(check: Callable[[], T], *, within_s: float = PATIENCE_S) -> T:
    """Call `check` until it neither fails nor misses anything, and return what it returns.

    A field or an item that is not there yet (LookupError) is waited for like an assertion.

    Args:
        check: Looks at the world and asserts; its last failure is what the test fails with.
        within_s: Patience, in seconds.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            return check()
        except (AssertionError, LookupError) as error:
            if time.monotonic() >= deadline:
                error.add_note(f"(still so after {within_s:.0f} s)")
                raise
        time.sleep(POLL_EVERY_S)


def throughout(check: Callable[[], object], *, for_s: float) -> None:
    """Call `check` again and again; it must not fail once.

    Args:
        check: Looks at the world and asserts.
        for_s: How long, in seconds.
    """
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        check()
        time.sleep(POLL_EVERY_S)
