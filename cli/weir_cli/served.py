"""One service that runs: its gateway, and those of its replicas that run now."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from weir_cli.child import Child, Surroundings
from weir_cli.plan import ServicePlan
from weir_cli.pods import ReplicaPlan
from weir_cli.records import ScalingRecord, ServiceRecord
from weir_cli.replica import Replica
from weir_core.wire.policies import PolicyDocument


class Served:
    """A service.

    Args:
        plan: Of the service, with every replica that there may be.
        gateway: Its public address.
        scratch: Where replicas keep their files.
        around: What all processes share.
        now: Seconds that only move forward.
    """

    def __init__(
        self,
        plan: ServicePlan,
        gateway: Child,
        scratch: Path,
        around: Surroundings,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.gateway = gateway
        self.scaling: ScalingRecord | None = None
        """What was decided last of the number of its replicas."""
        self._scratch = scratch
        self._around = around
        self._now = now
        self._running: dict[str, Replica] = {}

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Those that start, run or drain, in the order of the plan."""
        names = (plan.name for plan in self.plan.replicas)
        return tuple(self._running[name] for name in names if name in self._running)

    def free(self, pool: str) -> list[ReplicaPlan]:
        """Return the plans of a pool's replicas that could be started."""
        mine = (plan for plan in self.plan.replicas if plan.pool == pool)
        return [plan for plan in mine if plan.name not in self._running]

    def start(self, plan: ReplicaPlan, told: PolicyDocument) -> None:
        """Begin to start a replica; its sidecar is told what those of the others are.

        Raises:
            OSError: Its files cannot be written.
        """
        files = dict(plan.files)
        if plan.policies_file is not None:
            files[plan.policies_file] = told.encode().decode()
        directory = self._scratch / plan.name
        directory.mkdir(parents=True, exist_ok=True)
        fresh = dataclasses.replace(plan, files=files)
        replica = Replica(fresh, directory, self._around, self._now)
        replica.start()
        self._running[plan.name] = replica

    async def leave(self, name: str) -> None:
        """Drain a replica and end it, within its pod's grace period."""
        replica = self._running[name]
        await replica.end(self._now() + replica.plan.grace_period_s)
        del self._running[name]

    async def end(self, deadline: float) -> None:
        """Drain and end all replicas, at the latest at `deadline` on the clock."""
        await asyncio.gather(*(replica.end(deadline) for replica in self.replicas))

    def kill(self) -> None:
        """Kill everything at once."""
        self.gateway.retire()
        self.gateway.kill()
        for replica in self.replicas:
            replica.kill()

    @property
    def policies_files(self) -> dict[Path, str]:
        """Where its gateway and its sidecars read what they are told, and whose file that is."""
        found = {self.plan.gateway.policies_file: self.plan.gateway.name}
        for replica in self.replicas:
            if replica.plan.policies_file is not None:
                found[replica.plan.policies_file] = replica.plan.name
        return found

    @property
    def record(self) -> ServiceRecord:
        """What the state file says of it."""
        return ServiceRecord(
            name=self.plan.name,
            model=self.plan.model,
            url=self.plan.url,
            policies_file=str(self.plan.gateway.policies_file),
            gateway=self.gateway.record,
            replicas=tuple(replica.record for replica in self.replicas),
            scaling=self.scaling,
        )
