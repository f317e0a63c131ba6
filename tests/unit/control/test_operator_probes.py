"""What the kubelet and Prometheus are told, by IPv4 and by IPv6."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from weir_operator.metrics import Metrics
from weir_operator.probes import serving


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


async def status_of(path: str, *, led: bool = True, address: str = "127.0.0.1") -> int:
    """Return the status of one of the operator's pages."""
    port = free_port()
    async with (
        serving(CollectorRegistry(), port, lambda: led),
        aiohttp.ClientSession() as http,
        http.get(f"http://{address}:{port}{path}") as answer,
    ):
        return answer.status


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_the_operator_answers_both_families(address: str) -> None:
    assert await status_of("/healthz", address=address) == 200


@pytest.mark.parametrize(
    ("path", "led", "want"),
    [
        pytest.param("/readyz", True, 200, id="ready while an operator leads"),
        pytest.param("/readyz", False, 503, id="not ready while none does"),
        pytest.param("/healthz", False, 200, id="alive without a leader: a restart is no help"),
        pytest.param("/metrics", False, 200, id="metrics without a leader"),
    ],
)
async def test_probes(path: str, led: bool, want: int) -> None:
    assert await status_of(path, led=led) == want


def test_the_gauge_says_at_each_moment_whether_this_one_leads() -> None:
    leading = False
    metrics = Metrics(CollectorRegistry())
    metrics.leading.set_function(lambda: leading)
    assert metrics.registry.get_sample_value("weir_operator_leading") == 0
    leading = True
    assert metrics.registry.get_sample_value("weir_operator_leading") == 1
