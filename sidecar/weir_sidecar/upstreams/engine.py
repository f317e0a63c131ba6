"""The sidecar's one engine, as the proxy sees it."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from weir_core.wire.openai import reports_failure, was_aborted
from weir_sidecar import outcomes
from weir_sidecar.frontend import routes
from weir_sidecar.settings import Health
from weir_sidecar.upstreams.connections import Pool
from weir_sidecar.upstreams.monitor import Monitor
from weir_sidecar.upstreams.splice import Exchange


class OwnEngine:
    """The engine beside this sidecar.

    Args:
        pool: Connections to it.
        monitor: Knows whether it is up.
        settings: What to tell refused clients.
    """

    def __init__(self, pool: Pool, monitor: Monitor, settings: Health) -> None:
        self._pool = pool
        self._monitor = monitor
        self._settings = settings

    def target(self, request: web.BaseRequest) -> str:
        """Return the path as the client wrote it, if it is open."""
        raw = request.raw_path
        if raw in routes.HOT:
            return raw
        if not routes.is_open(request.path):
            raise outcomes.not_found(request.path)
        return raw if raw.startswith("/") else request.rel_url.raw_path_qs

    def pick(self, tried: Collection[Pool]) -> Pool:
        """Return the one engine, once, while it is up."""
        if tried:
            raise outcomes.no_engine("the engine broke off", self._settings.retry_after_s)
        if not self._monitor.up:
            state = f"the engine is {self._monitor.state.value}"
            raise outcomes.no_engine(state, self._settings.retry_after_s)
        return self._pool

    def done(self, pool: Pool) -> None:
        """Nothing to do: there is only one."""

    def lost(self, pool: Pool) -> None:  # noqa: ARG002
        """Have the engine asked at once."""
        self._monitor.doubt()

    def suspects(self, answer: Exchange, piece: bytes) -> bool:
        """Doubt a 5xx, and an answer that begins with a failure: is the engine dying?"""
        return answer.status >= 500 or reports_failure(piece)

    async def accepts(self, tried: Collection[Pool], answer: Exchange) -> bool:  # noqa: ARG002
        """Pass an error on when the engine is well; else the sidecar says that it is not.

        What was given up is no answer, however well its engine seems.
        """
        await self._monitor.check()
        return self._monitor.up and not was_aborted(answer.tail)
