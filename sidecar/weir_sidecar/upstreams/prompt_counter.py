"""Has the engine count large prompts, for which a guess by their size may be far off."""

from __future__ import annotations

from typing import Final

from weir_core.errors import EngineUnavailable
from weir_core.wire.openai import token_count_in
from weir_sidecar.settings import Tokenizing
from weir_sidecar.upstreams.connections import Connections

_TOKENIZABLE: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_LIMIT_BYTES: Final = 64 << 20


class PromptCounter:
    """Asks the engine's /tokenize, for a few prompts at once and within a bound of time.

    Args:
        connections: Connections to the engine; None where there is none, which counts nothing.
        settings: Which bodies are counted, and how long that may take.
    """

    def __init__(self, connections: Connections | None, settings: Tokenizing) -> None:
        self._connections = connections
        self._settings = settings
        self._counting = 0

    def counts(self, path: str, body: bytes) -> bool:
        """Tell whether a body is worth a question, and the engine is not asked too much already."""
        bounds = self._settings
        return (
            self._connections is not None
            and len(body) >= bounds.min_bytes
            and path in _TOKENIZABLE
            and self._counting < bounds.at_once
        )

    async def count(self, body: bytes) -> int | None:
        """Return a prompt's tokens; None where the body's size has to do for an estimate."""
        bounds = self._settings
        if self._connections is None:
            return None
        self._counting += 1
        try:
            reply = await self._connections.ask(
                "POST", "/tokenize", body=body, timeout_s=bounds.timeout_s, limit_bytes=_LIMIT_BYTES
            )
        except EngineUnavailable:
            return None
        finally:
            self._counting -= 1
        return token_count_in(reply.body) if reply.status == 200 else None
