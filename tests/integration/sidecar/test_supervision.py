"""Nothing in the background of a sidecar dies in silence."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.registry import Collector

from tests.integration.sidecar.harness import PLAIN, House, Wire, eventually
from weir_core.sched.types import TenantPolicy
from weir_core.wire.policies import PolicyDocument, TenantEntry


async def plain(wire: Wire) -> None:
    await wire.send(PLAIN)


def with_tenant(key_hash: str) -> PolicyDocument:
    """A document with one tenant and one key."""
    tenant = TenantEntry(TenantPolicy("t"), "standard", "standard", False, (key_hash,))
    return PolicyDocument(tenants=(tenant,))


async def test_policies_that_cannot_be_used_are_refused_as_a_whole_and_the_last_good_ones_stay(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.facts()
    house.policies(PolicyDocument(anonymous_class="standard"))
    await house.raw_engine(plain)
    running = await house.sidecar()
    registry = running.sidecar.metrics.registry
    house.policies(with_tenant("not-hex"))
    await eventually(lambda: registry.get_sample_value("weir_policies_refused_total") == 1)
    assert "the policies are refused" in caplog.messages
    assert running.sidecar.driver.directory.anonymous_class == "standard"
    assert (await running.post(json={})).status == 200
    house.policies(PolicyDocument(anonymous_class="batch"))
    await eventually(lambda: running.sidecar.driver.directory.anonymous_class == "batch")


async def test_a_task_that_goes_on_failing_ends_readiness_and_then_liveness(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar()
    assert (await running.probe("/readyz")).status == 200

    async def broken() -> None:
        raise ValueError("broken")

    async with running.sidecar.supervisor.running("broken", broken):
        await eventually(lambda: bool(running.sidecar.supervisor.trouble))
        answer = await running.probe("/readyz")
        assert (answer.status, answer.body) == (503, b"failed: broken\n")
        assert (await running.probe("/healthz")).status == 200
        await eventually(lambda: running.sidecar.supervisor.hopeless, timeout_s=30)
        assert (await running.probe("/healthz")).status == 503


class Broken(Collector):
    """A collector that cannot be read."""

    def collect(self) -> Iterable[Metric]:
        raise ValueError("broken")


async def test_an_admin_page_that_fails_is_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar()
    running.sidecar.metrics.registry.register(Broken())
    assert (await running.probe("/metrics")).status == 500
    assert "the admin page failed" in caplog.messages
