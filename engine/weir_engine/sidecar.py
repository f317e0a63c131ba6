"""Asking the sidecar over the pod's own socket.

Standard library only: the hook and the probe that ask must start at once.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from http.client import HTTPConnection

from weir_core.api.labels import ADMIN_SOCKET, ENV_RUN_DIR, RUN_DIR


class SidecarConnection(HTTPConnection):
    """HTTP over the sidecar's admin socket.

    Args:
        environment: The engine's.
        timeout_s: Longest silence.
    """

    def __init__(self, environment: Mapping[str, str], timeout_s: float) -> None:
        super().__init__("weir", timeout=timeout_s)
        self.path = f"{environment.get(ENV_RUN_DIR) or RUN_DIR}/{ADMIN_SOCKET}"

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)
