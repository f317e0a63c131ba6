"""The operator's pages are there by IPv4 and by IPv6."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from weir_operator.probes import serving


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_the_operator_answers_both_families(address: str) -> None:
    port = free_port()
    page = f"http://{address}:{port}/healthz"
    async with (
        serving(CollectorRegistry(), port),
        aiohttp.ClientSession() as http,
        http.get(page) as answer,
    ):
        assert answer.status == 200
