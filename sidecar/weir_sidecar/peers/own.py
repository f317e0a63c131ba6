"""What a sidecar says of itself to the others."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from typing import Final

from weir_core.route.types import LoadVector
from weir_core.sched.types import ServedLately
from weir_core.wire.peer_auth import Keys
from weir_sidecar.settings import Addresses

_LOAD_AGE_S: Final = 0.05
"""A load is measured again after this, or sooner where a request was taken."""
_SERVED_AGE_S: Final = 0.2
"""What was served is looked at again after this, the shortest time between two heartbeats."""


class Own:
    """This sidecar, as the others know it.

    Args:
        name: Its name; empty stands for one made of its address.
        addresses: Where it listens.
        load: This replica's load, now; None while there is none to tell.
        clock: Seconds that only move forward.

    Attributes:
        address: Where the others reach it, HOST:PORT; empty while that is not known.
        epoch: A number that is higher after each start.
        keys: The keys of the service.
        look_at_served: Returns what tenants were served here lately.
    """

    def __init__(
        self,
        name: str,
        addresses: Addresses,
        load: Callable[[], LoadVector | None],
        clock: Callable[[], float],
    ) -> None:
        self._addresses = addresses
        port = addresses.peer_port
        self.address = addresses.advertised(port) if port else ""
        self.name = name or _name_of(self.address)
        self.epoch = time.time_ns() // 1_000_000
        self.keys = Keys()
        self._measure = load
        self._clock = clock
        self._load: LoadVector | None = None
        self._measured_s = float("-inf")
        self.look_at_served: Callable[[], ServedLately] | None = None
        self._served: ServedLately | None = None
        self._served_s = float("-inf")

    def listens_at(self, port: int) -> None:
        """Note the port that the peer port got."""
        self.address = self._addresses.advertised(port)

    def load(self) -> tuple[LoadVector | None, float]:
        """Return the load, and its age."""
        now = self._clock()
        age_s = now - self._measured_s
        if age_s > _LOAD_AGE_S:
            self._load, self._measured_s, age_s = self._measure(), now, 0.0
        return self._load, age_s

    def served(self) -> ServedLately | None:
        """Return what tenants were served here lately; None while there is nothing to tell."""
        if self.look_at_served is not None:
            now = self._clock()
            if now - self._served_s >= _SERVED_AGE_S:
                self._served, self._served_s = self.look_at_served(), now
        return self._served

    def load_changed(self) -> None:
        """Have the load measured again before it is told next."""
        self._measured_s = float("-inf")


def _name_of(address: str) -> str:
    """Return a name for a sidecar that was given none."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", address) or f"sidecar-{secrets.token_hex(4)}"
