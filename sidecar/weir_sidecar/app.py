"""The sidecar put together: what listens where, which tasks run, in which order it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web

from weir_core.wire.policies import PolicyDocument
from weir_core.wire.steps import Step
from weir_sidecar.admin import Admin
from weir_sidecar.drain import Drain, Phase
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.frontend.server import HEALTH_PATH
from weir_sidecar.listening import admin_port
from weir_sidecar.names import Names
from weir_sidecar.parts import Parts
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.request_trace import Tracing
from weir_sidecar.upstreams.connections import unix_connections
from weir_sidecar.upstreams.engine import OwnEngine
from weir_sidecar.upstreams.engine_link import StepFile, read_facts, send_mode, step_log
from weir_sidecar.upstreams.monitor import EngineState, Monitor

log = logging.getLogger(__name__)


class Sidecar:
    """One replica's sidecar.

    Args:
        settings: What the environment says.
        clock: Seconds that only move forward.
        tracing: Where spans go, or None.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self.connections = unix_connections(
            settings.addresses.engine_socket,
            clock,
            idle_limit=settings.limits.idle_connections,
            idle_s=settings.timeouts.engine_idle_s,
        )
        self.parts = Parts(settings, clock, tracing, self.connections, self._note)
        self.metrics, self.registry = self.parts.metrics, self.parts.registry
        self.driver, self.policies = self.parts.driver, self.parts.policies
        self.handler, self.server = self.parts.handler, self.parts.server
        self.supervisor, self.peers = self.parts.supervisor, self.parts.peers
        self.names = Names(
            self.connections,
            self.registry,
            settings.addresses.adapters_file,
            settings.adapter_slots,
            clock,
        )
        self.handler.names = self.names.shown
        self.monitor = Monitor(
            self.connections, self.registry, self.metrics, settings.health, clock
        )
        self.names.on_met = self.monitor.doubt
        self.monitor.is_fit = self.names.engine_answers
        self.monitor.on_gone = self.names.engine_gone
        self.monitor.on_ready = self._meet_engine
        self.monitor.on_change = self._engine_changed
        self.handler.engine = OwnEngine(
            self.connections, self.metrics, settings.timeouts, clock, monitor=self.monitor
        )
        self.handler.own_pages[HEALTH_PATH] = self._health
        self.drain = Drain(
            self.server,
            self.registry,
            settings.draining,
            clock,
            is_expected=lambda: self.monitor.state is EngineState.READY,
        )
        self._admin = Admin(self)
        self._mode = PolicyDocument().mode_message()
        self._told_mode = b""
        self._steps: StepFile | None = None
        self.api_port = 0
        self.admin_port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Sidecar]:
        """Listen and watch the engine; leaving the context stops at once, so drain before."""
        addresses = self.settings.addresses
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.connections.close)
            if self.settings.step_file is not None:
                self._steps = stack.enter_context(
                    contextlib.closing(StepFile(self.settings.step_file))
                )
            read_steps = stack.enter_context(step_log(addresses.steps_socket, self._on_step))
            self.driver.ends.read = read_steps
            await stack.enter_async_context(self.parts.working())
            log.info("open to %s", self.driver.directory.openness)
            tasks = (
                ("monitor", self.monitor.run),
                ("housekeeping", self._keep),
                ("names", self.names.run),
            )
            for name, run in tasks:
                await stack.enter_async_context(self.supervisor.running(name, run))
            stack.push_async_callback(self.drain.stop)
            self.api_port = await stack.enter_async_context(
                self.server.listen(addresses.host, addresses.api_port)
            )
            self.admin_port = await stack.enter_async_context(
                admin_port(self._admin.port_app(), addresses.host, addresses.admin_port)
            )
            await stack.enter_async_context(_admin_socket(self._admin, addresses.admin_socket))
            log.info("listening", extra={"api": self.api_port, "admin": self.admin_port})
            yield self

    def _health(self, _request: HttpRequest) -> Answer:
        is_ready, why = self._admin.readiness()
        return Answer(200 if is_ready else 503, f"{why}\n".encode())

    async def _keep(self) -> None:
        """Look after what nobody tells us of: changed policies, tokens of running streams."""
        while True:
            await asyncio.sleep(self.settings.policies.poll_s)
            self.parts.look()
            self._tell_mode()

    def _meet_engine(self) -> None:
        self.driver.engine_up(read_facts(self.settings.addresses.facts_file))
        self._told_mode = b""  # this engine may be another one, and knows nothing yet

    def _engine_changed(self, state: EngineState) -> None:
        was_ready = self.driver.engine_state == EngineState.READY.value
        self.driver.engine_state = state.value
        if was_ready and self.drain.phase is Phase.SERVING:
            self.metrics.engine_losses.labels(state.value).inc()
        if state is EngineState.DOWN:
            self.driver.engine_gone()
            self.parts.routing.hand_over()
        self.parts.routing.tell_peers()

    def _on_step(self, step: Step) -> None:
        if self._steps is not None:
            self._steps.write(step)
        self.monitor.steps += 1
        self.driver.on_step(step)

    def _note(self, document: PolicyDocument) -> None:
        self.names.apply(document)
        self._mode = document.mode_message()

    def _tell_mode(self) -> None:
        """Tell the engine how to divide its steps, until it has heard it."""
        if self._mode != self._told_mode and send_mode(
            self.settings.addresses.mode_socket, self._mode
        ):
            self._told_mode = self._mode


@contextlib.asynccontextmanager
async def _admin_socket(admin: Admin, path: Path) -> AsyncIterator[None]:
    """Serve the admin socket; one left by a process that died is replaced."""
    _remove(path)
    runner = web.AppRunner(admin.socket_app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path)).start()
        os.chmod(path, 0o660)
        yield
    finally:
        await runner.cleanup()
        _remove(path)


def _remove(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
