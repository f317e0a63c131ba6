"""A background task that fails is logged, started again, and given up when that is no use."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from weir_sidecar.supervise import MAX_FAILURES, SETTLED_S, Supervisor
from weir_sidecar.telemetry.metrics import Metrics


class Task:
    """A task that fails when it is told to, and counts its starts."""

    def __init__(self) -> None:
        self.starts = 0
        self.now = 0.0
        self._fails = asyncio.Event()
        self.started = asyncio.Event()

    async def run(self) -> None:
        self.starts += 1
        self.started.set()
        await self._fails.wait()
        self._fails.clear()
        raise ValueError("broken")

    async def fail(self, after_s: float) -> None:
        """Fail after so long, and wait for the next start."""
        await self.started.wait()
        self.started.clear()
        self.now += after_s
        self._fails.set()
        async with asyncio.timeout(5):
            await self.started.wait()


async def test_a_task_that_fails_is_logged_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = Task()
    metrics = Metrics(CollectorRegistry())
    supervisor = Supervisor(metrics, lambda: task.now, pause_s=0)
    async with supervisor.running("watch", task.run):
        await task.fail(after_s=1.0)
        assert (task.starts, supervisor.trouble, supervisor.hopeless) == (2, "", False)
    assert "task failed" in caplog.messages
    assert metrics.registry.get_sample_value("weir_task_failures_total") == 1


async def test_what_fails_is_named_until_it_runs_again() -> None:
    task = Task()
    supervisor = Supervisor(Metrics(CollectorRegistry()), lambda: task.now, pause_s=3600)
    async with supervisor.running("watch", task.run), asyncio.timeout(5):
        failing = asyncio.create_task(task.fail(after_s=1.0))
        while not supervisor.trouble:  # noqa: ASYNC110 - a failure has no event
            await asyncio.sleep(0)
        assert supervisor.trouble == "failed: watch"
        failing.cancel()


async def test_failures_in_a_row_end_in_giving_up() -> None:
    task = Task()
    supervisor = Supervisor(Metrics(CollectorRegistry()), lambda: task.now, pause_s=0)
    async with supervisor.running("watch", task.run):
        for _ in range(MAX_FAILURES):
            await task.fail(after_s=1.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await task.fail(after_s=1.0)
        assert supervisor.hopeless
        assert supervisor.trouble == "failed: watch"


async def test_failures_far_apart_do_not_add_up() -> None:
    task = Task()
    supervisor = Supervisor(Metrics(CollectorRegistry()), lambda: task.now, pause_s=0)
    async with supervisor.running("watch", task.run):
        for _ in range(3 * MAX_FAILURES):
            await task.fail(after_s=SETTLED_S)
        assert not supervisor.hopeless


async def test_a_task_ends_with_its_owner() -> None:
    task = Task()
    supervisor = Supervisor(Metrics(CollectorRegistry()), lambda: task.now)
    async with supervisor.running("watch", task.run):
        await task.started.wait()
    assert not [each for each in asyncio.all_tasks() if each.get_name() == "watch"]
