"""The console that the chart installs, and that of a user of the kubeconfig, on a real cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from e2e.installation import NAMESPACE, Installation
from e2e.kube import Manifest
from e2e.service import NAMESPACE as SERVICES
from e2e.service import Service
from weir_cli.console.command import ConsoleOptions, serving

SECRET = "weir-console-token"
TOKEN = "of the e2e tests, long enough"
MOST_FRAMES = 60
"""One a second."""


@pytest.fixture
def console(weir: Installation) -> Iterator[str]:
    """Where the tests reach the console of the chart."""
    kubectl = weir.target.kubectl
    secret: Manifest = {"apiVersion": "v1", "kind": "Secret", "stringData": {"token": TOKEN}}
    kubectl.apply({**secret, "metadata": {"name": SECRET, "namespace": NAMESPACE}})
    operator = weir.target.values.get("operator", {})
    mounted = {each: operator.get(each, []) for each in ("extraVolumes", "extraVolumeMounts")}
    weir.upgrade({"console": {"enabled": True, "tokenSecret": {"name": SECRET}, **mounted}})
    service = kubectl.get("service", "weir-console", NAMESPACE)
    yield f"http://{service['spec']['clusterIP']}"
    weir.upgrade({})
    kubectl("delete", "secret", SECRET, f"--namespace={NAMESPACE}")


def test_the_charts_console_shows_a_replicas_requests_to_what_has_logged_in(
    console: str, mocked: Service
) -> None:
    with httpx.Client(base_url=console, timeout=30) as http:
        assert http.get("/events").status_code == 401
        assert http.post("/login", data={"token": TOKEN}).status_code == 303
        asked = {"service": f"{SERVICES}/{mocked.name}"}
        with http.stream("GET", "/events", params=asked) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
            frames = map(_read, islice(lines, MOST_FRAMES))
            frame = next(each for each in frames if _is_whole(each))
    assert frame["replica"]["name"] == mocked.pod()["metadata"]["name"]


async def test_a_users_console_shows_it_through_kubectl(
    mocked: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = mocked.target.kubectl
    monkeypatch.setenv("KUBECONFIG", str(kubectl.kubeconfig))
    monkeypatch.setenv("PATH", f"{kubectl.program.parent}:{os.environ['PATH']}")
    options = ConsoleOptions(port=0, namespace=SERVICES)
    asked = {"service": mocked.name}
    async with (
        serving(tmp_path, options) as (url, _),
        aiohttp.ClientSession(read_bufsize=1 << 20) as http,
        http.get(f"{url}events", params=asked) as stream,
    ):
        for _ in range(4 * MOST_FRAMES):
            line = (await stream.content.readline()).decode()
            if line.startswith("data: {") and _is_whole(_read(line)):
                return
    pytest.fail("the replica's requests were not shown")


def _read(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return found


def _is_whole(frame: dict[str, Any]) -> bool:
    """Tell whether a replica is shown with what its own sidecar says of it."""
    replica = frame["replica"]
    return replica is not None and (replica["state"] or {}).get("phase") == "serving"
