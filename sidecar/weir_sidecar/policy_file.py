"""The document of classes and tenants, as a file that may change at any time.

The kubelet replaces the file when the operator wrote a new one; `weir up` does the same. A
document that cannot be used as a whole is refused as a whole and reported once, and the last good
one stays in force.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from weir_core.wire.policies import PolicyDocument
from weir_sidecar.telemetry.logs import Seldom
from weir_sidecar.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_Version = tuple[int, int, int] | None
"""Inode, size and time of change; None is no file."""


class PolicyFile:
    """Looks whether the file has changed, and reads it.

    Args:
        path: Where it is, or will be.
        apply: Told of each good document.
        metrics: The instruments.
    """

    def __init__(
        self, path: Path, apply: Callable[[PolicyDocument], None], metrics: Metrics
    ) -> None:
        self._path = path
        self._apply = apply
        self._metrics = metrics
        self._seen: _Version = None
        self._seldom = Seldom(time.monotonic)

    def look(self) -> None:
        """Read the file if it is another one than the last time."""
        version = _version(self._path)
        if version is None or version == self._seen:
            return
        try:
            written = self._path.read_bytes()
        except OSError as error:  # it is read again at the next look
            self._seldom.warn(log, "the policies cannot be read", {"error": str(error)})
            return
        self._seen = version
        try:
            self._apply(PolicyDocument.decode(written))
        except Exception as error:
            # Whatever is wrong with it, the last good one stays in force as a whole.
            self._metrics.policies_refused.inc()
            log.error("the policies are refused", extra={"error": repr(error)})


def _version(path: Path) -> _Version:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)
