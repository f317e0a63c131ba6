"""Runs a command that ends when the process that started it ends.

`weir up` starts engines that hold gigabytes. If it is killed without a chance to clean up, the
kernel must tell its children: Linux does so with PR_SET_PDEATHSIG, which a process can set only
for itself and which survives `exec`. So each child is started through this file, which sets it and
becomes the command. A program of its own, not a `preexec_fn`: code between fork and exec of a
process with threads may deadlock.

    python -I leash.py PARENT_PID COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    parent = int(argv[1])
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above took effect
        sys.exit(1)
    try:
        os.execvp(argv[2], argv[2:])
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[2]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv)
