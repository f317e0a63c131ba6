"""The client of the API server against one that is slow, overloaded or lacks the resources."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from kubernetes import client

from weir_core.errors import ClusterUnavailable
from weir_operator.cluster import SECRET, Kubernetes

HANGING: Final = -1
"""A status for an answer that never comes."""
RESOURCES: Final = {
    "/api/v1": [("secrets", "Secret")],
    "/apis/serving.weir.dev/v1alpha1": [("inferencetenants", "InferenceTenant")],
}


class ApiServer(ThreadingHTTPServer):
    """Discovers two kinds, and answers everything else with a status of the test's choice."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.statuses: dict[str, int] = {}
        """By the beginning of a path; 200 otherwise."""
        self.objects: dict[str, dict[str, Any]] = {}
        """By path."""
        self.hanging = threading.Event()
        """Set when a call hangs."""
        self.done = threading.Event()

    def client(self, patience_s: float = 0.1) -> Kubernetes:
        """Return a client that waits for an answer for so long."""
        host = f"http://127.0.0.1:{self.server_port}"
        return Kubernetes((), client.Configuration(host=host), (patience_s, patience_s))


class _Answers(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        chosen = self.server.statuses.items()
        status = next((status for start, status in chosen if path.startswith(start)), 200)
        if status == HANGING:
            self.server.hanging.set()
            self.server.done.wait(30)
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "3600")
        self.end_headers()
        self.wfile.write(json.dumps(self.server.objects.get(path) or _discovered(path)).encode())

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def _discovered(path: str) -> dict[str, Any]:
    if path == "/apis":
        versions = [{"version": "v1alpha1", "groupVersion": "serving.weir.dev/v1alpha1"}]
        group = {"name": "serving.weir.dev", "versions": versions, "preferredVersion": versions[0]}
        return {"kind": "APIGroupList", "groups": [group]}
    verbs = ["get", "list"]
    kinds = [
        {"name": name, "kind": kind, "namespaced": True, "verbs": verbs}
        for name, kind in RESOURCES.get(path, ())
    ]
    return {"kind": "APIResourceList", "resources": kinds}


@pytest.fixture
def api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where discovery keeps its cache
    with ApiServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.done.set()
        server.shutdown()


@pytest.mark.parametrize("path", ["/version", "/apis", "/api/v1", "/api/v1/namespaces/a/secrets"])
async def test_no_call_waits_for_ever_not_even_one_that_discovers_kinds(
    path: str, api_server: ApiServer
) -> None:
    api_server.statuses[path] = HANGING
    async with asyncio.timeout(10):
        with pytest.raises(ClusterUnavailable, match="does not answer"):
            await api_server.client().find(SECRET, "a", "x")


async def test_overload_is_told_at_once_however_long_the_server_asks_to_wait(
    api_server: ApiServer,
) -> None:
    api_server.statuses["/api/v1/namespaces"] = 429
    async with asyncio.timeout(10):
        with pytest.raises(ClusterUnavailable, match="429"):
            await api_server.client().find(SECRET, "a", "x")


async def test_a_kind_that_is_missing_is_no_empty_list_of_tenants(api_server: ApiServer) -> None:
    api_server.statuses["/apis/serving.weir.dev/v1alpha1/namespaces"] = 404
    with pytest.raises(ClusterUnavailable, match="no InferenceTenant: are Weir's CRDs installed"):
        await api_server.client().tenants("a")


async def test_one_client_does_not_wait_behind_the_calls_of_another(
    api_server: ApiServer,
) -> None:
    api_server.statuses["/api/v1/namespaces/slow"] = HANGING
    passes, election = api_server.client(30), api_server.client(30)
    slow = [asyncio.create_task(passes.find(SECRET, "slow", "x")) for _ in range(40)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await election.find(SECRET, "a", "x") is not None
    assert not any(task.done() for task in slow)
    api_server.done.set()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_a_client_is_closed_when_what_it_began_has_ended(api_server: ApiServer) -> None:
    api_server.statuses["/api/v1/namespaces/slow"] = HANGING
    cluster = api_server.client(30)
    call = asyncio.create_task(cluster.find(SECRET, "slow", "x"))
    await asyncio.to_thread(api_server.hanging.wait, 10)
    call.cancel()
    closing = asyncio.create_task(cluster.close())
    for _ in range(10):
        await asyncio.sleep(0)
    assert call.cancelled()
    assert not closing.done()
    api_server.done.set()
    async with asyncio.timeout(10):
        await closing


async def test_the_client_logs_no_values_of_secrets(
    api_server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    held = {"apiVersion": "v1", "kind": "Secret", "data": {"policies.json": "c2VjcmV0"}}
    api_server.objects["/api/v1/namespaces/a/secrets/x"] = held
    with caplog.at_level(logging.DEBUG):
        found = await api_server.client(30).find(SECRET, "a", "x")
    assert found is not None
    assert found["data"] == held["data"]
    assert "c2VjcmV0" not in caplog.text
