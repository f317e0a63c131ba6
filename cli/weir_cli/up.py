"""`weir up`: the pods of the files as local processes, from the first fetch to the last drain.

The order of a run: claim the port, clean up after a predecessor that was killed, start every
gateway and every replica at once, say when all are ready, then watch: the replicas, and the files,
whose edits reach running sidecars (`weir_cli.edits`). The first Ctrl-C (or SIGTERM) drains:
gateways stop taking requests and finish their streams, then each replica ends in its pod's order. A
second one kills.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp

from weir_cli import gateway, logs, machine, policies, records, room, show
from weir_cli.child import Child, Surroundings, succeeds
from weir_cli.deliveries import Deliveries
from weir_cli.display import Display, Row
from weir_cli.documents import Documents, Object
from weir_cli.edits import Edit, Edits
from weir_cli.plan import Ground, ServicePlan, plan_services, read
from weir_cli.records import Instance, InstanceRecord
from weir_cli.replica import Replica
from weir_cli.scaling import RealSidecars, Scaling
from weir_cli.served import Served
from weir_core.api.engine_environment import wrong_variable
from weir_core.errors import EngineUnavailable

TICK_S = 0.25
EDITS_EVERY_S = 1.0
EXIT_KILLED = 130
PEER_KEY_BYTES = 32


@dataclass(frozen=True)
class UpOptions:
    """What the user asked for on the command line."""

    host: str
    port: int
    show_logs: bool
    files: tuple[Path, ...] = ()
    """Watched for edits while it runs."""
    replicas: int | None = None
    """Replicas instead of those the files say."""


def run(documents: Documents, options: UpOptions, cache: Path, display: Display) -> int:
    """Serve until told to stop; return the exit code.

    Raises:
        WeirError: The files, the machine or an engine make it impossible.
    """
    instance = Instance(cache, options.port)
    with instance.held(), ExitStack() as claims:
        tidy(instance, display)
        scratch = machine.scratch_path(instance.directory)
        ground = Ground(
            options.host, options.port, scratch, cache, machine.visible_gpus(os.environ)
        )
        plans = plan_services(documents, ground, claims, lambda: secrets.token_hex(PEER_KEY_BYTES))
        check_ground(plans)
        for service, plan in zip(documents.services, plans, strict=True):
            if service.spec.model.cache is not None:
                tell_of_cache(plan, display)
            if service.spec.scaling is not None:
                warn_of_shortage(plan, display)
        edits = Edits(
            options.files,
            lambda: read(options.files, options.replicas),
            documents,
            {plan.object: plan.policies for plan in plans},
            options.host,
        )
        with machine.private_dir(scratch):
            try:
                return asyncio.run(_Session(plans, edits, instance, options, display).run())
            finally:
                instance.forget()


def tidy(instance: Instance, display: Display) -> None:
    """Clean up after a predecessor that was killed."""
    left = instance.read()
    if left is not None:
        ended = records.end_leftovers(left)
        display.notice(f"cleaned up after a `weir up` that was killed ({ended} processes left)")
        instance.forget()


def check_ground(plans: Sequence[ServicePlan]) -> None:
    """Check what the replicas need from the machine, before anything starts.

    Raises:
        MachineUnfit: A public port is taken, or weights are not where file:// says.
    """
    for plan in plans:
        machine.check_public(plan.host, plan.port)
        for replica in plan.replicas:
            machine.check_weights(replica.links.values())


def tell_of_cache(plan: ServicePlan, display: Display) -> None:
    """Say where models are kept, in the place of what the spec asks for."""
    display.notice(
        f"{plan.name}: spec.model.cache is for clusters; here all models are kept in {plan.models}"
    )


def warn_of_shortage(plan: ServicePlan, display: Display) -> None:
    """Say where a service could grow beyond what this machine has."""
    trouble = room.shortage(plan.name, plan.asked, room.of_this_machine())
    if trouble:
        display.notice(trouble)


class _Session:
    """One run, inside the event loop."""

    def __init__(
        self,
        plans: Sequence[ServicePlan],
        edits: Edits,
        instance: Instance,
        options: UpOptions,
        display: Display,
    ) -> None:
        self._plans = plans
        self._edits = edits
        self._deliveries = Deliveries()
        self._instance = instance
        self._scratch = machine.scratch_path(instance.directory)
        self._options = options
        self._display = display
        self._served: list[Served] = []
        self._scalings: dict[Object, Scaling] = {}
        self._growing: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._announced = asyncio.Event()
        grace = [replica.grace_period_s for plan in plans for replica in plan.replicas]
        self._grace_s = max(grace, default=0.0)
        self._written: InstanceRecord | None = None

    async def run(self) -> int:
        """Serve until stopped, and return the exit code.

        Raises:
            EngineUnavailable: Something failed so often that trying again cannot help.
        """
        async with aiohttp.ClientSession() as http:
            around = Surroundings(
                http, self._instance.fresh_logs(), _base_env(os.environ), self._display.notice
            )
            self._served = [self._serve(plan, around) for plan in self._plans]
            return await self._until_stopped(around)

    async def _until_stopped(self, around: Surroundings) -> int:
        """Supervise, watch and drain what was started; return the exit code."""
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(served.gateway.supervise()) for served in self._served]
            bounded = logs.keep_bounded(around.logs, self._display.notice)
            background.append(tasks.create_task(bounded))
            background.append(tasks.create_task(self._follow_edits()))
            background.append(tasks.create_task(self._announce_when_ready(around.http)))
            background.append(tasks.create_task(self._tell_of_schedulers()))
            for scaling in self._scalings.values():
                self._growing.append(tasks.create_task(scaling.run(tasks)))
            if self._options.show_logs:
                background.append(tasks.create_task(logs.follow(around.logs, self._display.notice)))
            with self._signals():
                failure, drained = await self._until_ended()
            for task in background:
                task.cancel()
        if failure:
            raise EngineUnavailable(failure)
        return 0 if drained else EXIT_KILLED

    async def _follow_edits(self) -> None:
        """Apply edits of the files, for ever."""
        for path in self._options.files:
            if path.exists() and not path.is_file():
                self._display.notice(f"{path} is no regular file, so no edit can be followed")
                return
        while True:
            await asyncio.sleep(EDITS_EVERY_S)
            # In a thread, for a file may be large and its disk slow.
            edit = await asyncio.to_thread(self._edits.look)
            if edit is not None:
                self._apply(edit)
            for notice in self._deliveries.attempt():
                self._display.notice(notice)

    async def _announce_when_ready(self, http: aiohttp.ClientSession) -> None:
        """Say once that everything serves."""
        while True:
            if await self._is_all_ready(http):
                break
            await asyncio.sleep(TICK_S)
        self._announced.set()
        self._display.end()
        self._announce()

    async def _is_all_ready(self, http: aiohttp.ClientSession) -> bool:
        """Tell whether every replica takes requests, and every gateway knows of one."""
        if not all(replica.ready for replica in self._replicas):
            return False
        known = [
            succeeds(http, served.plan.host, gateway.readiness(served.plan.port))
            for served in self._served
        ]
        return all(await asyncio.gather(*known))

    async def _tell_of_schedulers(self) -> None:
        """Say once, when all are ready, which engines Weir's scheduler does not order."""
        await self._announced.wait()
        for replica in self._replicas:
            state = await asyncio.to_thread(show.state_of, replica.plan.admin_socket)
            note = show.scheduler_note(replica.plan.name, show.facts_of(state))
            if note:
                self._display.notice(f"  {note}")

    def _apply(self, edit: Edit) -> None:
        """Say what there is to say, and begin to tell every sidecar what is new for it."""
        for notice in edit.notices:
            self._display.notice(notice)
        for each, spec in edit.scaled.items():
            self._scalings[each].spec = spec
        for served in self._served:
            plan = served.plan
            document = edit.fresh.get(plan.object)
            if document is not None:
                done = f"applied what changed; {policies.callers(document)}"
                text = document.encode().decode()
                links = {plan.models / name: target for name, target in edit.links.items()}
                self._deliveries.add(plan.object, text, served.policies_files, done, links)

    def _serve(self, plan: ServicePlan, around: Surroundings) -> Served:
        """Start the first replicas of a service; make its gateway."""
        gateway.tell(plan)
        front = Child(
            plan.name, gateway.process(plan, self._grace_s), plan.host, self._scratch, around
        )
        served = Served(plan, front, self._scratch, around)
        for replica_plan in plan.replicas:
            if replica_plan.name in plan.first:
                served.start(replica_plan, plan.policies)
        spec = self._edits.scales(plan.object)
        if spec is not None:
            told = partial(self._edits.told, plan.object)
            sidecars = RealSidecars(around.http)
            scaling = Scaling(served, spec, told, self._display.notice, sidecars)
            self._scalings[plan.object] = scaling
        return served

    async def _until_ended(self) -> tuple[str | None, bool]:
        """Watch until something ends the run, and end it in order.

        Returns:
            Why it could not go on, if so; and whether everything had its time to drain.
        """
        self._display.begin()
        try:
            failure = await self._watch_until_stopped()
        finally:
            self._display.end()
        for task in self._growing:  # nothing is started any more
            task.cancel()
        if failure:
            self._display.notice("giving up")
        return failure, await self._end()

    async def _watch_until_stopped(self) -> str | None:
        """Show and record every change; return why it cannot go on, or None when told to stop."""
        while not self._stop.is_set():
            self._observe()
            failure = self._failure()
            if failure:
                return failure
            await _wait(self._stop, TICK_S)
        return None

    def _failure(self) -> str | None:
        """Return why the services will never be ready, as long as they never were."""
        if self._announced.is_set():
            return None
        failures = [replica.failure for replica in self._replicas]
        failures += [served.gateway.failure for served in self._served]
        return next(filter(None, failures), None)

    @property
    def _replicas(self) -> Iterator[Replica]:
        return (replica for served in self._served for replica in served.replicas)

    def _observe(self) -> None:
        """Show where everything stands and write it down."""
        self._display.update([_row(replica, time.monotonic()) for replica in self._replicas])
        self._write_down()

    def _write_down(self) -> None:
        """Record what runs, where it changed; what serves goes on without it."""
        record = self._record()
        if record == self._written:
            return
        self._written = record
        try:
            self._instance.write(record)
        except OSError as error:
            self._display.notice(f"`weir status` cannot know of this change: {error}")

    def _announce(self) -> None:
        for served in self._served:
            self._display.line("")
            self._display.line(
                f"[bold green]{served.plan.name} is ready at {served.plan.url}[/]  "
                f"[dim](model {served.plan.model}; Ctrl-C drains and stops)[/]"
            )
            if not served.replicas:
                self._display.notice("  asleep: the first request starts a replica, and waits")
            self._display.notice(f"  {policies.callers(self._edits.told(served.plan.object))}")
            self._display.notice(curl(served.plan))

    def _record(self) -> InstanceRecord:
        own = records.record_of("weir up", os.getpid())
        assert own is not None  # this very process
        return InstanceRecord(
            up=own,
            port=self._options.port,
            scratch=str(self._scratch),
            grace_period_s=self._grace_s,
            ready=self._announced.is_set(),
            services=tuple(served.record for served in self._served),
        )

    async def _end(self) -> bool:
        """Drain and end everything; tell whether nobody asked to hurry."""
        ending = asyncio.create_task(self._drain())
        killing = asyncio.create_task(self._kill.wait())
        await asyncio.wait({ending, killing}, return_when=asyncio.FIRST_COMPLETED)
        hurried = not ending.done()
        if hurried:
            self._display.notice("killing what still runs")
            for served in self._served:
                served.kill()
        killing.cancel()
        await ending
        return not hurried

    async def _drain(self) -> None:
        """Gateways first, so that nothing new comes; then the replicas in their pods' order."""
        served = self._announced.is_set()
        what = "draining: running requests finish first" if served else "ending what was started"
        self._display.notice(f"{what} (Ctrl-C again kills)")
        deadline = time.monotonic() + self._grace_s
        await asyncio.gather(*(s.gateway.end(self._grace_s) for s in self._served))
        await asyncio.gather(*(served.end(deadline) for served in self._served))
        self._display.notice("stopped")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first signal drain and the second kill."""
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._interrupt)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()


def curl(plan: ServicePlan) -> str:
    """Return a command to paste: one short chat."""
    body = (
        f'{{"model": "{plan.model}", "max_tokens": 32, '
        '"messages": [{"role": "user", "content": "Hello"}]}'
    )
    names = [entry.policy.name for entry in plan.policies.tenants]
    tenants = " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    words = [f"curl {plan.url}/v1/chat/completions", "-H 'Content-Type: application/json'"]
    lines = []
    if tenants and plan.policies.anonymous_class is None:
        lines.append(f"  KEY=...  # an API key of {tenants}")
        words.append('-H "Authorization: Bearer $KEY"')
    return "\n".join([*lines, "  " + " ".join([*words, f"-d '{body}'"])])


def _row(replica: Replica, now: float) -> Row:
    record = replica.record
    return Row(record.name, record.address, replica.phase, now - replica.since, record.restarts)


def _base_env(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the user's environment without what each pod sets itself, or may not have."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("WEIR_") and wrong_variable(name, value) is None
    }


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    """Wait for the event, at most `limit_s`."""
    try:
        await asyncio.wait_for(event.wait(), limit_s)
    except TimeoutError:
        return
