"""How many replicas the work of a service takes, for autoscalers of others that set the number.

It is told anew with each look at the sidecars, so that what waits for a change waits here. A
service of which nothing is known yet has no number: an operator that has just started must not make
an autoscaler believe that there is no work.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Advice:
    """The services that another autoscaler scales, by namespace and name.

    Attributes:
        is_over: The operator stops, or leads no longer: nothing will change here.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._replicas: dict[tuple[str, str], int] = {}
        # Kept by those that wait, so that names of services that never were leave nothing behind.
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Event] = WeakValueDictionary()

    def tell(self, service: tuple[str, str], replicas: int | None) -> None:
        """Note the number; None for a service that is gone, or that Weir scales itself."""
        if replicas == self._replicas.get(service):
            return
        if replicas is None:
            del self._replicas[service]
        else:
            self._replicas[service] = replicas
        self._turn(service)

    def of(self, service: tuple[str, str]) -> int | None:
        """Return the number; None where none is known."""
        return self._replicas.get(service)

    def next_turn(self, service: tuple[str, str]) -> asyncio.Event:
        """Return what is set as soon as the number is another, or it is over."""
        event = self._turns.get(service)
        if event is None:
            event = self._turns[service] = asyncio.Event()
        return event

    def end(self) -> None:
        """Have everything that waits go on, and wait no more."""
        self.is_over = True
        for service in list(self._turns):
            self._turn(service)

    def _turn(self, service: tuple[str, str]) -> None:
        event = self._turns.pop(service, None)
        if event is not None:
            event.set()
