"""What all downloads share: bounded retries, a look at the disk, a word to the user."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from weir_core.errors import ModelUnavailable

RETRY_DELAYS_S: Final = (1.0, 3.0, 9.0)
"""Waits between attempts; after the last one the container fails and Kubernetes backs off."""


class Interrupted(Exception):
    """A download broke off for a reason that may be gone at the next attempt."""


def retry(
    uri: str, action: Callable[[], None], pause: Callable[[float], None] = time.sleep
) -> None:
    """Run `action`, and again after each of `RETRY_DELAYS_S` while it is interrupted.

    Raises:
        ModelUnavailable: The last attempt was interrupted, too.
    """
    for delay_s in RETRY_DELAYS_S:
        try:
            action()
        except Interrupted as error:
            say(f"{uri}: {error}; trying again in {delay_s:g} s")
            pause(delay_s)
        else:
            return
    try:
        action()
    except Interrupted as error:
        attempts = len(RETRY_DELAYS_S) + 1
        raise ModelUnavailable(f"{uri}: gave up after {attempts} attempts: {error}") from error


def check_room(directory: Path, needed_bytes: int) -> None:
    """Refuse a download that cannot fit, before it has filled the disk.

    Raises:
        ModelUnavailable: There is less room than what is still to come.
    """
    there = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    free = shutil.disk_usage(directory).free
    if needed_bytes - there > free:
        raise ModelUnavailable(
            f"{directory}: {needed_bytes / 2**30:.1f} GiB of weights do not fit into "
            f"{free / 2**30:.1f} GiB; give the model directory more space"
        )


def say(message: str) -> None:
    """Tell the user, who reads the container's log."""
    sys.stderr.write(f"weir-engine: {message}\n")
    sys.stderr.flush()
