"""What the kubelet and Prometheus are told."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from weir_operator.metrics import Metrics
from weir_operator.probes import serving


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
    port = _free_port()
    async with (
        serving(CollectorRegistry(), port, lambda: led),
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        assert answer.status == want


def test_the_gauge_says_at_each_moment_whether_this_one_leads() -> None:
    leading = False
    metrics = Metrics(CollectorRegistry())
    metrics.leading.set_function(lambda: leading)
    assert metrics.registry.get_sample_value("weir_operator_leading") == 0
    leading = True
    assert metrics.registry.get_sample_value("weir_operator_leading") == 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
