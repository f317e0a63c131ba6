"""`weir-console`: heeds SIGTERM before it imports what takes a second (`weir_operator.command`)."""

from __future__ import annotations

import os
import signal


def main() -> int:
    """Run the console; return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    from weir_cli.console.pod import main as run

    return run()
