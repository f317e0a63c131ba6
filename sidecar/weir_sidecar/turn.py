"""One request's place in the pool and in the engine, as its handler sees it.

A turn is given, may be taken back before the client saw anything, and is given again; or it ends
in a refusal. The handler awaits `given` and looks at nothing else.
"""

from __future__ import annotations

import asyncio

from weir_core.sched.types import Dispatch, Request
from weir_sidecar.ledger import Entry
from weir_sidecar.outcomes import Refusal
from weir_sidecar.upstreams.splice import Ending


class Turn:
    """A request that waits or runs.

    Args:
        request: What the scheduler knows of it.
        wire_id: Its id on the engine's side, by which the step log speaks of it.
        entry: Its entry in the ledger, with the exchange while one runs.
        streams: Its answer comes token by token, so its first byte is its first token.

    Attributes:
        dispatch: The scheduler's word, while it may be at the engine.
        refusal: The scheduler's other word.
        counted_tokens: Output tokens the scheduler was told of.
        returns: How often its place was taken back.
    """

    __slots__ = (
        "_wake",
        "counted_tokens",
        "dispatch",
        "entry",
        "refusal",
        "request",
        "returns",
        "streams",
        "wire_id",
    )

    def __init__(self, request: Request, wire_id: str, entry: Entry, *, streams: bool) -> None:
        self.request = request
        self.wire_id = wire_id
        self.entry = entry
        self.streams = streams
        self.dispatch: Dispatch | None = None
        self.refusal: Refusal | None = None
        self.counted_tokens = 0
        self.returns = 0
        self._wake: asyncio.Future[None] | None = None

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

    def give(self, dispatch: Dispatch) -> None:
        """Let it go to the engine."""
        self.dispatch = dispatch
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
