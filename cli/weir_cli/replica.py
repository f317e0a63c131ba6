"""One replica: a pod's processes, started in the pod's order and ended in the pod's order.

Start: init containers one after the other, each to success; a native sidecar as soon as its turn
comes, and what follows it once it is up; then the engine. End: the engine's preStop drains through
the sidecar while both still run, then the engine goes, then the sidecar. A crash of either process
restarts that process alone, as in a pod.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from weir_cli.child import Child, Surroundings, succeeds
from weir_cli.pods import Probe, ReplicaPlan
from weir_cli.records import ReplicaRecord
from weir_core.api import labels

READINESS = Probe(
    path="/readyz", port=labels.ADMIN_PORT, period_s=0.5, timeout_s=2.0, failure_threshold=1
)
SIDECAR_END_S = 10.0


class Phase(StrEnum):
    """Where a replica stands, in words for a person."""

    WAITING = "waiting"
    FETCHING = "fetching the model"
    LOADING = "loading the engine"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"


def replace_file(path: Path, text: str) -> None:
    """Write a file that only this user can read, in one step: readers see the old or the new."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


def make_link(link: Path, target: Path) -> None:
    """Have a link lead there, whatever is in its place."""
    if not (link.is_symlink() and link.readlink() == target):
        link.unlink(missing_ok=True)
        link.symlink_to(target)


class Replica:
    """The processes of one pod."""

    def __init__(
        self,
        plan: ReplicaPlan,
        directory: Path,
        around: Surroundings,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self._around = around
        self._children = [
            Child(plan.name, process, plan.address, directory, around) for process in plan.processes
        ]
        self._now = now
        self._phase = Phase.WAITING
        self.since = now()
        """When the phase last changed, on the clock this replica was given."""
        self._fetching: Child | None = None
        self._ready = False
        self._began = now()
        self.started_in_s: float | None = None
        """How long it took to be ready first; None before that."""
        self._end: asyncio.Task[None] | None = None
        self._run: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to start the processes; returns at once."""
        self._began = self._now()
        for path in self.plan.directories:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for link, target in self.plan.links.items():
            make_link(link, target)
        for path, text in self.plan.files.items():
            replace_file(path, text)
        self._run = asyncio.create_task(self._start_in_order(), name=self.plan.name)

    async def _start_in_order(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            for child in self._children:
                if child.plan.role == "init":
                    await self._complete(child)
                    continue
                tasks.create_task(child.supervise())
                if child.plan.role == "sidecar":
                    await child.until_up()

    async def _complete(self, child: Child) -> None:
        """Run an init container until it succeeds, or until the replica ends."""
        async with self._around.fetching:
            self._fetching = child
            done = False
            while not (done or self.leaving):
                done = await child.run_to_completion()
            self._fetching = None

    async def _watch(self) -> None:
        """Follow the sidecar's readiness, and what it means for the phase."""
        while True:
            self._ready = await succeeds(self._around.http, self.plan.address, READINESS)
            self._update_phase()
            await asyncio.sleep(READINESS.period_s)

    def _update_phase(self) -> None:
        phase = self._observed_phase()
        if phase != self._phase:
            self._phase, self.since = phase, self._now()
        if phase is Phase.READY and self.started_in_s is None:
            self.started_in_s = self._now() - self._began

    def _observed_phase(self) -> Phase:
        if self.leaving:
            return Phase.DRAINING
        if self._fetching is not None:
            return Phase.FETCHING
        if self._ready:
            return Phase.READY
        mains = [child for child in self._children if child.plan.role == "main"]
        if any(child.running for child in mains):
            return Phase.LOADING
        return Phase.RESTARTING if any(child.ended for child in mains) else Phase.WAITING

    @property
    def phase(self) -> Phase:
        """Where the replica stands."""
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._phase is Phase.READY

    @property
    def leaving(self) -> bool:
        """Whether it was told to end."""
        return self._end is not None

    @property
    def failure(self) -> str | None:
        """Why it will not become ready by trying again, or None."""
        if self._run is not None and self._run.done() and not self._run.cancelled():
            self._run.result()  # ends only with an error, which is ours to hear of
        return next(filter(None, (child.failure for child in self._children)), None)

    @property
    def record(self) -> ReplicaRecord:
        """What the state file says of it."""
        return ReplicaRecord(
            name=self.plan.name,
            pool=self.plan.pool,
            address=self.plan.address,
            phase=self._phase.value,
            admin_socket=self.plan.admin_socket,
            restarts=sum(child.restarts for child in self._children),
            processes=tuple(child.record for child in self._children if child.record),
        )

    async def end(self, deadline: float) -> None:
        """Drain and end in the pod's order, at the latest at `deadline` on the replica's clock.

        One that ends already keeps the deadline it has.
        """
        if self._end is None:
            self._end = asyncio.create_task(self._end_in_order(deadline), name=self.plan.name)
            self._update_phase()
        await self._end

    async def _end_in_order(self, deadline: float) -> None:
        for child in self._children:
            child.retire()
        mains = [child for child in self._children if child.plan.role == "main"]
        await asyncio.gather(*(child.run_pre_stop(deadline - self._now()) for child in mains))
        await asyncio.gather(*(child.end(deadline - self._now()) for child in mains))
        for child in reversed(self._children):  # sidecars, and an init that was still at it
            await child.end(SIDECAR_END_S)
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        self._phase = Phase.STOPPED

    def kill(self) -> None:
        """Kill every process at once."""
        for child in self._children:
            child.retire()
            child.kill()
