"""One container as a supervised process: started, probed, restarted, ended.

Stands where the kubelet stands in a cluster: a process that exits is started again after a
back-off, one that fails its startup or liveness probe is ended first, and one that is asked to go
gets SIGTERM, then SIGKILL when its time is over. Each child leads a process group of its own, so
that Ctrl-C in the terminal reaches only `weir up`, which then ends the children in their order.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from weir_cli import leash
from weir_cli.backoff import Backoff
from weir_cli.last_words import error_line
from weir_cli.pods import Probe, ProcessPlan
from weir_cli.records import KILL_WAIT_S, ProcessRecord, kill_group, record_of

GIVE_UP_AFTER = 3
"""Crashes in a row before the first success after which `weir up` stops trying and says so."""
EXIT_NOT_STARTED = 127
"""As shells say it; `weir_cli.leash` does, too."""
EXIT_UNUSABLE = 2
"""How Weir's programs and vLLM end when something has to be edited before they can start."""
TAIL_LINES = 15
TAIL_BYTES = 64 * 1024
STARTUP_POLL_S = 0.5
OWN_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What a probe that cannot begin fails with; it says nothing of the process."""
UNHEALTHY_GRACE_S = 10.0
"""How long a process that fails its liveness probe gets between SIGTERM and SIGKILL."""


@dataclass
class Surroundings:
    """What every child of one `weir up` shares."""

    http: aiohttp.ClientSession
    logs: Path
    base_env: Mapping[str, str]
    report: Callable[[str], None]
    """Tells the user one thing that happened."""
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Replicas share the weights' folder, so one fetches at a time; the next finds them there."""


class Child:
    """One process and its successors."""

    def __init__(
        self, owner: str, plan: ProcessPlan, address: str, directory: Path, around: Surroundings
    ) -> None:
        self.name = f"{owner}/{plan.name}"
        self.plan = plan
        self.log = around.logs / f"{owner}.{plan.name}.log"
        self.restarts = 0
        self.crashes_before_healthy = 0
        """Crashes in a row without ever having been healthy."""
        self._hopeless = False
        self._address = address
        self._directory = directory
        self._around = around
        self._backoff = Backoff()
        self._log_start = 0
        """Where the log of the latest process begins."""
        self._process: Process | None = None
        self._record: ProcessRecord | None = None
        self._up = asyncio.Event()
        self._retired = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether the running process has passed its startup probe."""
        return self._up.is_set()

    async def until_up(self) -> None:
        """Wait for the startup probe, if there is one; at most until the child is retired."""
        if self.plan.startup is None:
            return
        waiting = [asyncio.create_task(event.wait()) for event in (self._up, self._retired)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    @property
    def running(self) -> bool:
        """Whether a process runs now."""
        return self._process is not None and self._process.returncode is None

    @property
    def ended(self) -> bool:
        """Whether a process ran and does not any more."""
        return self._process is not None and not self.running

    @property
    def record(self) -> ProcessRecord | None:
        """The running process for the state file."""
        return self._record if self.running else None

    @property
    def failure(self) -> str | None:
        """Why the process will not come up by trying again, or None."""
        if self._hopeless:
            return f"{self.name} cannot start: {self._last_words()}; its log: {self.log}"
        if self.crashes_before_healthy >= GIVE_UP_AFTER:
            return (
                f"{self.name} failed {GIVE_UP_AFTER} times in a row: {self._last_words()}; "
                f"its log: {self.log}"
            )
        return None

    async def supervise(self) -> None:
        """Keep the process running until `end` is called."""
        while not self._retired.is_set():
            code = await self._run_once()
            if self._retired.is_set():
                return
            await self._after_crash(code)

    async def run_to_completion(self) -> bool:
        """Run once, as an init container; tell whether it succeeded."""
        code = await self._run_once()
        if code == 0:
            return True
        if not self._retired.is_set():
            await self._after_crash(code)
        return False

    async def _after_crash(self, code: int) -> None:
        """Count and tell of a crash, and wait as long as the next start has to."""
        wait_s = self._backoff.after_crash(was_healthy=self.healthy)
        if not self.healthy:
            self.crashes_before_healthy += 1
            self._hopeless = code == EXIT_UNUSABLE
        self._up.clear()
        self._report_crash(code, wait_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._retired.wait(), wait_s)
        self.restarts += 1

    async def _run_once(self) -> int:
        """Run the process to its end; leave nothing of its group behind."""
        self._log_start = size_of(self.log)
        try:
            process = await self._spawn(self.plan.argv)
        except OSError as error:  # a crash as any other: this machine may have room again later
            self._around.report(f"{self.name} cannot be started: {error}")
            return EXIT_NOT_STARTED
        self._process = process
        self._record = record_of(self.name, process.pid)
        probing = asyncio.create_task(self._probe_for_life())
        try:
            return await process.wait()
        finally:
            kill_group(process.pid)
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)

    async def _spawn(self, argv: Sequence[str]) -> Process:
        self.log.parent.mkdir(parents=True, exist_ok=True)  # someone may have cleaned up
        with self.log.open("ab") as log:
            # -I: the leash must not import anything from the folder it runs in.
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", leash.__file__, str(os.getpid()), *argv),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env={**self._around.base_env, **self.plan.env},
                process_group=0,
            )

    async def run_pre_stop(self, limit_s: float) -> None:
        """Run the container's preStop command, if it has one, at most `limit_s`."""
        if self.plan.pre_stop is None or not self.running:
            return
        try:
            hook = await self._spawn(self.plan.pre_stop)
        except OSError as error:
            self._around.report(f"{self.name} ends without a drain: {error}")
            return
        try:
            await asyncio.wait_for(hook.wait(), max(limit_s, 0))
        except TimeoutError:
            self._around.report(f"{self.name}: draining took longer than its time; ending it")
        finally:
            kill_group(hook.pid)
            await hook.wait()

    def retire(self) -> None:
        """Start no successor."""
        self._retired.set()

    async def end(self, limit_s: float) -> None:
        """End the process with SIGTERM, with SIGKILL after `limit_s`; start no successor."""
        self.retire()
        await self._terminate(limit_s)

    async def _terminate(self, limit_s: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), max(limit_s, 0))
        except TimeoutError:
            self.kill()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), KILL_WAIT_S)

    def kill(self) -> None:
        """Kill the process and its group at once; start no successor if it is retired."""
        if self._process is not None and self._process.returncode is None:
            kill_group(self._process.pid)

    async def _probe_for_life(self) -> None:
        """End the process if it does not become healthy, or stops being so."""
        startup, liveness = self.plan.startup, self.plan.liveness
        if startup is not None and not await self._becomes_healthy(startup):
            limit_s = startup.period_s * startup.failure_threshold
            self._around.report(
                f"{self.name}: not up in time ({limit_s:g} s, as on a cluster): the machine "
                f"is too busy or the process hangs; ending it (log: {self.log})"
            )
            await self._terminate(UNHEALTHY_GRACE_S)
            return
        if startup is not None:
            self._up.set()
            self.crashes_before_healthy = 0
        if liveness is None:
            return
        await self._until_unhealthy(liveness)
        if self._retired.is_set():  # `end` gives it its time
            return
        self._around.report(f"{self.name}: does not answer its liveness probe; ending it")
        await self._terminate(UNHEALTHY_GRACE_S)

    async def _becomes_healthy(self, probe: Probe) -> bool:
        """Poll the startup probe for as long as the kubelet would; oftener, to look lively."""
        deadline = time.monotonic() + probe.period_s * probe.failure_threshold
        while time.monotonic() < deadline:
            if await self._passes(probe):
                return True
            await asyncio.sleep(min(probe.period_s, STARTUP_POLL_S))
        return False

    async def _until_unhealthy(self, probe: Probe) -> None:
        """Ask once a period, as the kubelet does: what an answer takes is a part of it."""
        failures, took_s = 0, 0.0
        while failures < probe.failure_threshold:
            await asyncio.sleep(max(0.0, probe.period_s - took_s))
            asked = time.monotonic()
            answer = await self._passes(probe)
            took_s = time.monotonic() - asked
            if answer is not None:
                failures = 0 if answer else failures + 1

    async def _passes(self, probe: Probe) -> bool | None:
        """Tell whether the probe succeeds now; None for one that cannot be made."""
        if not probe.command:
            return await ask(self._around.http, self._address, probe)
        try:
            asking = await self._spawn(probe.command)
        except OSError:
            return None
        try:
            return await asyncio.wait_for(asking.wait(), probe.timeout_s) == 0
        except TimeoutError:
            return False
        finally:
            kill_group(asking.pid)
            await asking.wait()

    def _report_crash(self, code: int, wait_s: float) -> None:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        again = "" if self._hopeless else f"; starting it again in {wait_s:g} s"
        lines = "".join(f"    {line}\n" for line in self._tail())
        self._around.report(f"{self.name} {how}{again}\n{lines}    log: {self.log}")

    def _tail(self) -> list[str]:
        """Return the end of what the latest process wrote."""
        return tail(self.log, TAIL_LINES, self._log_start)

    def _last_words(self) -> str:
        """Return the line in which the process said why it ends, without its own name in front."""
        return error_line(self._tail()).removeprefix(f"{_program(self.plan.argv)}: ")


def _program(argv: Sequence[str]) -> str:
    """Return the name that one of Weir's programs, run as a module, calls itself by."""
    module = argv[argv.index("-m") + 1] if "-m" in argv else ""
    return module.replace("_", "-")


async def succeeds(http: aiohttp.ClientSession, address: str, probe: Probe) -> bool:
    """Tell whether the probe succeeds now."""
    return await ask(http, address, probe) is True


async def ask(http: aiohttp.ClientSession, address: str, probe: Probe) -> bool | None:
    """Return whether the probe succeeds now, or None where this process has no room to ask."""
    limit = aiohttp.ClientTimeout(total=probe.timeout_s)
    try:
        async with http.get(f"http://{address}:{probe.port}{probe.path}", timeout=limit) as answer:
            return answer.status < 400
    except OSError as error:
        return None if error.errno in OWN_SHORTAGE else False
    except (aiohttp.ClientError, TimeoutError):
        return False


def size_of(path: Path) -> int:
    """Return a file's size in bytes, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tail(path: Path, lines: int, start: int) -> list[str]:
    """Return the last lines of what a log holds from `start` on, without reading a long one."""
    size = size_of(path)
    begin = start if start <= size else 0  # it was started over meanwhile
    try:
        with path.open("rb") as log:
            log.seek(max(begin, size - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:  # someone cleaned up
        return []
