"""CPU time and memory of process trees, and processes that end with the benchmark.

CPU time comes from the kernel's per-process CPU clock: the sum of user and system time of all
threads, those that ended included, in nanoseconds. `/proc/PID/stat` has the same sum in ticks
of 10 ms, too coarse for a window of a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_CPUCLOCK_SCHED: Final = 2
_STOP_TIMEOUT_S: Final = 5.0
_KIB: Final = 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that the processes have used since they started."""
    total = 0.0
    for pid in pids:
        # The encoding of clock_getcpuclockid(3), which Python does not wrap.
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    return total


def tree(root: int) -> list[int]:
    """Return `root` and all of its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, []))
    return found


def _parent(process: Path) -> int | None:
    try:
        stat = (process / "stat").read_text()
    except OSError:
        return None  # it ended between the listing and the reading
    return int(stat.rpartition(")")[2].split()[1])


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process tree, in bytes."""

    peak_rss: int
    pss: int


def memory(pids: Iterable[int]) -> Memory:
    """Return the largest resident set each process ever had, and the present PSS, summed."""
    peak = pss = 0
    for pid in pids:
        peak += _field_kib(Path(f"/proc/{pid}/status"), "VmHWM:") * _KIB
        pss += _field_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * _KIB
    return Memory(peak, pss)


def _field_kib(path: Path, field: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


class Processes:
    """Children of the benchmark; leaving the context ends each with all of its descendants.

    Args:
        log_dir: Where each child's stdout and stderr go, in a file of its name.
    """

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            self._signal(child, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children:
            self._signal(child, signal.SIGKILL)  # whatever is left of its process group
            child.wait()

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], *, piped: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a child in a process group of its own."""
        pipe = subprocess.PIPE if piped else None
        with self.log(name).open("wb") as log:
            output: IO[bytes] | int = subprocess.PIPE if piped else log
            child = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdin=pipe or subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def log(self, name: str) -> Path:
        """Return where the output of the child `name` is."""
        return self._log_dir / f"{name}.log"

    @staticmethod
    def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
