"""Asking sidecars what their engines are: once per start, briefly, and silence proves nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from tests.unit.control.builders import NAME, NAMESPACE, Manifest, facts
from weir_core.errors import EngineUnavailable
from weir_core.units import Seconds
from weir_core.wire.peer_auth import Keys
from weir_core.wire.state_access import may_read
from weir_core.wire.steps import Facts
from weir_operator import engines
from weir_operator.engines import Ask, Engines, facts_by, pages
from weir_operator.views import Pod, view

KEY = (NAMESPACE, NAME)
OTHER = (NAMESPACE, "another")
KEYS = ("5e" * 32, "a0" * 32)


@asynccontextmanager
async def asking(port: int, **more: Any) -> AsyncIterator[Ask]:
    """Ask real sidecars at this port."""
    async with pages(port, **more) as page:
        yield facts_by(page)


class Sidecars:
    """Those of some pods, which say what they are told to say."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.silent = False
        self.now = 0.0
        self.engines = Engines(self._ask, lambda: self.now)

    async def _ask(self, address: str, pod: str, keys: Sequence[str]) -> Facts:
        assert keys == KEYS
        self.asked.append(pod)
        if self.silent:
            raise EngineUnavailable(f"{address} did not answer")
        return facts()

    async def said(self, *pods: Pod) -> dict[str, Any]:
        return await self.engines.said(KEY, pods, KEYS)


def pod(name: str, run: str = "1", *, ready: bool = True, ip: str = "10.0.0.1") -> Pod:
    made: Manifest = {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "status": {
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "engine", "containerID": f"containerd://{run}"}],
        },
    }
    return view(Pod, made)


async def test_each_ready_pod_is_asked_once() -> None:
    sidecars = Sidecars()
    for _ in range(3):
        said = await sidecars.said(pod("a"), pod("b"), pod("loading", ready=False))
        assert said == {"a": facts(), "b": facts()}
    assert sorted(sidecars.asked) == ["a", "b"]


async def test_an_engine_that_starts_anew_is_asked_anew() -> None:
    sidecars = Sidecars()
    await sidecars.said(pod("a", "1"), pod("b", "1"))
    sidecars.asked.clear()
    await sidecars.said(pod("a", "2"), pod("b", "1"))
    assert sidecars.asked == ["a"]


async def test_services_do_not_forget_for_each_other() -> None:
    sidecars = Sidecars()
    await sidecars.said(pod("a"))
    await sidecars.engines.said(OTHER, [pod("b")], KEYS)
    sidecars.engines.forget(OTHER)
    await sidecars.said(pod("a"))
    assert sidecars.asked == ["a", "b"]
    await sidecars.engines.said(OTHER, [pod("b")], KEYS)
    assert sidecars.asked == ["a", "b", "b"]


async def test_a_silent_sidecar_is_unknown_and_not_asked_by_every_pass() -> None:
    sidecars = Sidecars()
    sidecars.silent = True
    for _ in range(3):
        assert await sidecars.said(pod("a")) == {"a": "10.0.0.1 did not answer"}
    assert sidecars.asked == ["a"]
    sidecars.silent = False
    sidecars.now = engines.ASK_AGAIN
    assert await sidecars.said(pod("a")) == {"a": facts()}


async def test_what_was_heard_stays_when_a_sidecar_falls_silent() -> None:
    sidecars = Sidecars()
    await sidecars.said(pod("a"))
    sidecars.silent = True
    sidecars.now = 1e6
    assert await sidecars.said(pod("a")) == {"a": facts()}


Answer = dict[str, Any]


@pytest.fixture
async def server() -> AsyncIterator[tuple[Answer, int]]:
    """A real server and its port; it answers with the `body` and `status` set on it."""
    answer: Answer = {"status": 200}

    async def state(request: web.Request) -> web.Response:
        answer["shown"] = request.headers["Authorization"]
        await asyncio.sleep(answer.get("after_s", 0))
        headers = {"Location": "/elsewhere"} if answer["status"] == 302 else {}
        return web.Response(status=answer["status"], body=answer["body"], headers=headers)

    app = web.Application()
    app.router.add_get("/state", state)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield answer, runner.addresses[0][1]
    await runner.cleanup()


def page(pod: str = "a", **scheduling: Any) -> bytes:
    """Return what a sidecar shows, a lot of it nobody here reads."""
    return json.dumps({"pod": pod, "engine": "ready", "outcomes": {}, **scheduling}).encode()


async def test_a_real_sidecar_is_read(server: tuple[Answer, int]) -> None:
    answer, port = server
    known = msgspec.to_builtins(facts("chunked prefill is off"))
    answer["body"] = page(scheduling={"engine": known, "waiting": 3})
    async with asking(port, wall=lambda: 1e9) as ask:
        assert await ask("127.0.0.1", "a", KEYS) == facts("chunked prefill is off")
    assert all(may_read(answer["shown"], Keys([key]), "a", 1e9) for key in KEYS)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param({"body": b"<html>"}, "did not answer as a sidecar", id="something else"),
        pytest.param({"body": page("b")}, "is b by now", id="an address that changed hands"),
        pytest.param({"body": page()}, "has met no engine yet", id="no engine"),
        pytest.param({"status": 500, "body": b""}, "answered 500", id="an error"),
        pytest.param({"status": 302, "body": b""}, "answered 302", id="it is not led elsewhere"),
        pytest.param(
            {"body": b'{"else": ' + b"[" * 50_000},
            "did not answer as a sidecar",
            id="lists in lists in lists",
        ),
        pytest.param({"body": b"x" * (9 << 20)}, "more than 8388608 bytes", id="an endless page"),
    ],
)
async def test_what_is_no_answer_is_said(
    server: tuple[Answer, int], answer: Answer, said: str
) -> None:
    server[0].update(answer)
    async with asking(server[1]) as ask:
        with pytest.raises(EngineUnavailable, match=said):
            await ask("127.0.0.1", "a", KEYS)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", ""], ids=["v4", "v6", "none yet"])
async def test_a_pod_that_cannot_be_reached_is_silence(unused_port: int, address: str) -> None:
    async with asking(unused_port) as ask:
        with pytest.raises(EngineUnavailable):
            await ask(address, "a", KEYS)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_sidecars_that_are_slow_cost_a_pass_the_time_of_one(
    server: tuple[Answer, int],
) -> None:
    server[0].update({"body": page(), "after_s": 0.5})
    # One after the other they would take 50 s.
    async with asking(server[1], within=Seconds(0.25)) as ask, asyncio.timeout(25):
        heard = Engines(ask, lambda: 0.0)
        pods = [pod(str(number), ip="127.0.0.1") for number in range(200)]
        said = await heard.said(KEY, pods, KEYS)
    assert set(said.values()) == {f"127.0.0.1:{server[1]} did not answer in time"}
