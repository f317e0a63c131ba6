"""How the console asks an API server: as a pod, and through kubectl."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from weir_cli.console.api_server import ApiServer, by_kubectl, in_a_pod
from weir_core.errors import ClusterUnavailable, MachineUnfit

FORBIDDEN = "pods is forbidden"


async def answer(request: web.Request) -> web.Response:
    if request.path == "/forbidden":
        return web.Response(status=403, text=FORBIDDEN)
    if request.path == "/elsewhere":
        raise web.HTTPFound("/")
    return web.Response(text=request.headers.get("Authorization", "nothing"))


@pytest.fixture
async def server() -> TestServer:
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return TestServer(app)


async def test_a_pod_shows_the_token_that_its_account_has_now(
    server: TestServer, tmp_path: Path
) -> None:
    async with server, aiohttp.ClientSession() as http:
        asked = ApiServer(http, str(server.make_url("")).rstrip("/"), tmp_path)
        found = []
        for token in ("first", "second"):
            (tmp_path / "token").write_text(f"{token}\n")
            found.append(await asked.get("/"))
    assert found == [b"Bearer first", b"Bearer second"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param("/forbidden", f"403: {FORBIDDEN}", id="a right is missing"),
        pytest.param("/elsewhere", "302", id="it would lead the token elsewhere"),
    ],
)
async def test_a_refusal_is_told(server: TestServer, path: str, why: str) -> None:
    async with server, aiohttp.ClientSession() as http:
        asked = ApiServer(http, str(server.make_url("")).rstrip("/"))
        with pytest.raises(ClusterUnavailable, match=why):
            await asked.get(path)


async def test_a_longer_answer_than_is_asked_for_is_not_read(server: TestServer) -> None:
    async with server, aiohttp.ClientSession() as http:
        asked = ApiServer(http, str(server.make_url("")).rstrip("/"))
        assert await asked.get("/", longest=len("nothing")) == b"nothing"
        with pytest.raises(ClusterUnavailable, match="more than 6 bytes"):
            await asked.get("/", longest=6)


async def test_an_account_without_a_token_is_told(server: TestServer, tmp_path: Path) -> None:
    async with server, aiohttp.ClientSession() as http:
        asked = ApiServer(http, str(server.make_url("")).rstrip("/"), tmp_path)
        with pytest.raises(ClusterUnavailable, match="No such file"):
            await asked.get("/")


async def test_a_machine_that_is_no_pod_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match="no pod that has a token"):
        async with in_a_pod({}, tmp_path):
            pass


@pytest.mark.parametrize(
    ("program", "why"),
    [
        pytest.param("", "cannot start kubectl", id="it is not there"),
        pytest.param("echo no such context >&2; exit 1", "no such context", id="it refuses"),
    ],
)
async def test_a_kubectl_that_does_not_serve_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    if program:
        kubectl = tmp_path / "kubectl"
        kubectl.write_text(f"#!/bin/sh\n{program}\n")
        kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineUnfit, match=why):
        async with by_kubectl("other"):
            pass
