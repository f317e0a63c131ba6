"""`weir-sidecar` as a process: it starts, answers, and leaves when told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.sidecar.harness import CHAT, PLAIN, House, Wire, chat, eventually
from weir_core.api import labels
from weir_sim.mock_engine import Profile

SLOW = Profile(output_tokens=60, token_gap_s=0.02)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def process(
    run_dir: Path, *arguments: str
) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """Run the command; yield the port it says it listens on."""
    env = {
        **os.environ,
        labels.ENV_RUN_DIR: str(run_dir),
        labels.ENV_HOST: "127.0.0.1",
        labels.ENV_LAME_DUCK_S: "0.2",
        "WEIR_API_PORT": "0",
        "WEIR_ADMIN_PORT": "0",
        "WEIR_PEER_PORT": "0",
    }
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "weir_sidecar", *arguments, env=env, stderr=asyncio.subprocess.PIPE
    )
    assert started.stderr is not None
    try:
        async with asyncio.timeout(30):
            lines = [json.loads(await started.stderr.readline())]
            while lines[-1]["event"] != "listening":
                lines.append(json.loads(await started.stderr.readline()))
        yield lines[-1].get("api") or lines[-1]["port"], started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            async with session.post(url + CHAT, json=chat(max_tokens=1)) as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


async def plain(wire: Wire) -> None:
    await wire.send(PLAIN)


async def until_engine(session: aiohttp.ClientSession, state: str) -> dict[str, Any]:
    """Wait until the sidecar says this of its engine; return all that it says."""
    async with asyncio.timeout(20):
        while True:
            async with session.get("http://admin/state") as response:
                said: dict[str, Any] = await response.json()
            if said["engine"] == state:
                return said
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_then_exits_with_zero(house: House, number: int) -> None:
    engine = await house.mock_engine(SLOW)
    async with process(house.run_dir) as (port, started), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        await until_ready(session, url)
        async with session.post(url + CHAT, json=chat(stream=True)) as response:
            await response.content.readany()
            started.send_signal(number)
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(started.wait(), timeout=10) == 0
        assert engine.aborted == 0
    assert not (house.run_dir / "admin.sock").exists()


async def shown_state(run_dir: Path) -> tuple[int | None, str, str]:
    """Run `weir-sidecar state`; return how it ended, and what it wrote."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "weir_sidecar", "state"),
        env={**os.environ, labels.ENV_RUN_DIR: str(run_dir)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(started.communicate(), timeout=60)
    return started.returncode, out.decode(), err.decode()


async def test_the_state_is_shown_in_the_pod(house: House) -> None:
    async with process(house.run_dir):
        code, out, _ = await shown_state(house.run_dir)
    assert (code, json.loads(out)["phase"]) == (0, "serving")
    code, out, err = await shown_state(house.run_dir)
    assert (code, out) == (2, "")
    assert f"no sidecar answers at {house.run_dir}/admin.sock" in err


async def test_after_its_drain_it_answers_until_it_is_told_to_end(house: House) -> None:
    """The engine has its own time to end, between the drain and the sidecar's signal."""
    await house.mock_engine(Profile())
    admin = aiohttp.UnixConnector(str(house.run_dir / "admin.sock"))
    async with (
        process(house.run_dir) as (port, started),
        aiohttp.ClientSession() as session,
        aiohttp.ClientSession(connector=admin) as pod,
    ):
        url = f"http://127.0.0.1:{port}"
        await until_ready(session, url)
        async with pod.post("http://admin/drain") as drained:
            assert (await drained.json())["phase"] == "drained"
        async with session.post(url + CHAT, json=chat()) as response:
            assert (response.status, response.headers["Connection"]) == (503, "close")
        started.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(started.wait(), timeout=10) == 0


async def test_a_second_signal_exits_at_once(house: House) -> None:
    engine = await house.mock_engine(Profile(output_tokens=100_000, token_gap_s=0.01))  # type: ignore[arg-type]
    async with process(house.run_dir) as (port, started), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        await until_ready(session, url)
        async with session.post(url + CHAT, json=chat(stream=True)) as response:
            await response.content.readany()
            started.send_signal(signal.SIGTERM)
            started.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(started.wait(), timeout=5) == 1
        await eventually(lambda: engine.running == 0)


async def alive(run_dir: Path) -> tuple[int | None, str]:
    """Run the engine's liveness probe; return how it ended, and its words."""
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "weir_engine", "alive"),
        env={**os.environ, labels.ENV_RUN_DIR: str(run_dir)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, words = await asyncio.wait_for(probe.communicate(), timeout=60)
    return probe.returncode, words.decode()


async def test_a_sidecar_that_hangs_does_not_cost_its_engine(house: House) -> None:
    run_dir = house.run_dir
    async with process(run_dir) as (_, started):
        assert await alive(run_dir) == (1, "weir-engine alive: the sidecar says: engine starting\n")
        started.send_signal(signal.SIGSTOP)
        code, words = await alive(run_dir)
        assert (code, "no word of the sidecar" in words) == (0, True)
        started.kill()
        await started.wait()
        assert (await alive(run_dir))[0] == 0


async def test_the_probe_of_an_engine_that_makes_progress_succeeds(house: House) -> None:
    await house.mock_engine(Profile())
    async with process(house.run_dir) as (port, _), aiohttp.ClientSession() as session:
        await until_ready(session, f"http://127.0.0.1:{port}")
        assert await alive(house.run_dir) == (0, "")


async def test_a_wrong_setting_is_named_and_exits_with_two(run_dir: Path) -> None:
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "weir_sidecar"),
        env={**os.environ, labels.ENV_MAX_REQUESTS: "lots"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(started.communicate(), timeout=30)
    assert started.returncode == 2
    assert b"WEIR_MAX_REQUESTS" in said


async def test_without_descriptors_left_for_clients_the_engine_is_still_watched(
    house: House,
) -> None:
    house.facts("weir")
    engine = await house.raw_engine(plain)
    admin = aiohttp.UnixConnector(str(house.run_dir / "admin.sock"))
    async with (
        process(house.run_dir) as (port, started),
        aiohttp.ClientSession(connector=admin) as session,
        contextlib.AsyncExitStack() as silent,
    ):
        await until_engine(session, "ready")
        resource.prlimit(started.pid, resource.RLIMIT_NOFILE, (64, 64))
        connected = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        for _, writer in connected:
            silent.callback(writer.close)
        await eventually(lambda: any(reader.at_eof() for reader, _ in connected))
        assert not all(reader.at_eof() for reader, _ in connected)
        engine.healthy = False
        await until_engine(session, "down")
        engine.healthy = True
        assert (await until_engine(session, "ready"))["scheduling"]["engine"]["kind"] == "weir"


async def test_the_limit_on_descriptors_is_raised(house: House) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        async with process(house.run_dir) as (_, started):
            assert resource.prlimit(started.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_the_gateway_is_a_subcommand(house: House) -> None:
    arguments = ("gateway", "--listen", "127.0.0.1:0")
    async with process(house.run_dir, *arguments) as (port, started):
        url = f"http://127.0.0.1:{port}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 503
            assert await response.text() == "0 replicas take requests\n"
        started.terminate()
        assert await asyncio.wait_for(started.wait(), timeout=10) == 0
