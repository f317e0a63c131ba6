"""`weir-operator`: heeds SIGTERM before it imports what takes a second.

The kernel keeps signals that are not handled from a container's first process, whoever sends them,
and Python does not handle SIGTERM: a pod deleted within its first second would stay, with its
lease, until its grace period was over.
"""

from __future__ import annotations

import os
import signal


def main() -> int:
    """Run the operator; return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    from weir_operator.__main__ import main as run

    return run()
