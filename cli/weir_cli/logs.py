"""Logs of the processes: followed for the screen, and kept from growing without end.

Processes write to their files directly, so that nothing is lost and nothing blocks when
`weir up` is busy or gone.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

FOLLOW_POLL_S = 0.2
LARGEST_BYTES = 64 * 1024 * 1024
"""A log above this is moved to `NAME.log.1` and starts over."""
READ_BYTES = 256 * 1024


async def follow(folder: Path, show: Callable[[str], None]) -> None:
    """Show every new line of every log in `folder`, prefixed with the process, until cancelled."""
    positions: dict[Path, int] = {}
    while True:
        for path in _logs(folder):
            with suppress(FileNotFoundError):  # someone cleans up
                positions[path] = _show_new_lines(path, positions.get(path, 0), show)
        await asyncio.sleep(FOLLOW_POLL_S)


def _show_new_lines(path: Path, position: int, show: Callable[[str], None]) -> int:
    """Show whole lines from `position` on; return where the next look begins."""
    if path.stat().st_size < position:  # it was started over
        position = 0
    with path.open("rb") as log:
        log.seek(position)
        fresh = log.read(READ_BYTES)
    whole = fresh.rfind(b"\n") + 1
    if not whole and len(fresh) == READ_BYTES:  # one endless line
        whole = len(fresh)
    for line in fresh[:whole].decode(errors="replace").splitlines():
        show(f"[{path.stem}] {line}")
    return position + whole


def _logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


async def keep_bounded(folder: Path, tell: Callable[[str], None], every_s: float = 10.0) -> None:
    """Start over each log that has grown too large, until cancelled.

    One whose end cannot be kept, because the disk is full, starts over all the same.

    The processes have their files open for appending, so emptying the file is enough for them to
    go on at its new end.
    """
    while True:
        for path in _too_large(folder):
            await _start_over(path, tell)
        await asyncio.sleep(every_s)


def _too_large(folder: Path) -> Iterator[Path]:
    for path in _logs(folder):
        with suppress(FileNotFoundError):  # someone cleans up
            if path.stat().st_size > LARGEST_BYTES:
                yield path


async def _start_over(path: Path, tell: Callable[[str], None]) -> None:
    try:
        await asyncio.to_thread(shutil.copyfile, path, path.with_suffix(".log.1"))
    except OSError as error:
        tell(f"{path.name} starts over, and its past is lost: {error}")
    with suppress(FileNotFoundError), path.open("r+b") as log:
        log.truncate()
