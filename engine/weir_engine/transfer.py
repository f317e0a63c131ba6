"""What all downloads share: bounded retries, a look at the disk, a word to the user."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from weir_core.errors import ModelUnavailable

RETRY_DELAYS_S: Final = (1.0, 3.0, 9.0)
"""Waits between attempts; after the last one the container fails and Kubernetes backs off."""
PROGRESS_PERIOD_S: Final = 10.0


class Interrupted(Exception):
    """A download broke off for a reason that may be gone at the next attempt."""


def retry(
    uri: str, action: Callable[[], Path], pause: Callable[[float], None] = time.sleep
) -> Path:
    """Run `action`, and again after each of `RETRY_DELAYS_S` while it is interrupted.

    Returns:
        What `action` returned.

    Raises:
        ModelUnavailable: The last attempt was interrupted, too.
    """
    for delay_s in RETRY_DELAYS_S:
        try:
            return action()
        except Interrupted as error:
            say(f"{uri}: {error}; trying again in {delay_s:g} s")
            pause(delay_s)
    try:
        return action()
    except Interrupted as error:
        attempts = len(RETRY_DELAYS_S) + 1
        raise ModelUnavailable(f"{uri}: gave up after {attempts} attempts: {error}") from error


def check_room(directory: Path, needed_bytes: int) -> None:
    """Refuse a download that cannot fit, before it has filled the disk.

    Raises:
        ModelUnavailable: There is less room than what is still to come.
    """
    free = shutil.disk_usage(directory).free
    if needed_bytes - size_of(directory) > free:
        raise ModelUnavailable(
            f"{directory}: {needed_bytes / 2**30:.1f} GiB of weights do not fit into "
            f"{free / 2**30:.1f} GiB; give the model directory more space"
        )


@contextmanager
def progress(
    uri: str, directory: Path, total_bytes: int, period_s: float = PROGRESS_PERIOD_S
) -> Iterator[None]:
    """Say how much of `total_bytes` is in `directory`, each `period_s`, while the block runs."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(period_s):
            there = size_of(directory)
            say(f"{uri}: {there / 2**20:.1f} of {total_bytes / 2**20:.1f} MiB")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def size_of(directory: Path) -> int:
    """Return the bytes that the files below `directory` take; files may come and go meanwhile."""
    total = 0
    for path in directory.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        # A download may reserve a file's whole length first; its blocks are what is there.
        total += min(status.st_size, status.st_blocks * 512) if path.is_file() else 0
    return total


def say(message: str) -> None:
    """Tell the user, who reads the container's log."""
    sys.stderr.write(f"weir-engine: {message}\n")
    sys.stderr.flush()
