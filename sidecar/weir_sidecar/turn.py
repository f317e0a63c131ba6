"""One request's place in the pool and in the engine, as its handler sees it.

A turn is given, may be taken back before the client saw anything, and is given again; or it ends
in a refusal. The handler awaits `given` and looks at nothing else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from weir_core.sched.types import Dispatch, Request
from weir_sidecar.ledger import Entry
from weir_sidecar.outcomes import Refusal
from weir_sidecar.relay import Ending


@dataclass(slots=True, eq=False)
class Turn:
    """A request that waits or runs.

    Attributes:
        request: What the scheduler knows of it.
        wire_id: Its id on the engine's side, by which the step log speaks of it.
        entry: Its entry in the ledger, with the exchange while one runs.
        streams: Its answer comes token by token, so its first byte is its first token.
        dispatch: The scheduler's word, while it may be at the engine.
        refusal: The scheduler's other word.
        counted_tokens: Output tokens the scheduler was told of.
        returns: How often its place was taken back.
    """

    request: Request
    wire_id: str
    entry: Entry
    streams: bool = True
    dispatch: Dispatch | None = None
    refusal: Refusal | None = None
    counted_tokens: int = 0
    returns: int = 0
    dispatched_s: float = 0.0
    _wake: asyncio.Future[None] | None = field(default=None, repr=False)

    async def given(self) -> Dispatch:
        """Wait for the engine's room; raise the `Refusal` when there will be none."""
        while self.refusal is None:
            if self.dispatch is not None:
                return self.dispatch
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        raise self.refusal

    def give(self, dispatch: Dispatch, now: float) -> None:
        """Let it go to the engine."""
        self.dispatch = dispatch
        self.dispatched_s = now
        self.entry.recalled = False
        self._call()

    def take_back(self) -> None:
        """Let it wait again; what it began at the engine ends unseen."""
        self.dispatch = None
        self.returns += 1
        self.entry.recalled = True
        exchange, self.entry.exchange = self.entry.exchange, None
        if exchange is not None:
            exchange.end(Ending.RECALLED)

    def refuse(self, refusal: Refusal) -> None:
        """End its waiting."""
        self.refusal = refusal
        self._call()

    def _call(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
