"""A replica leaves without failing a request."""

from __future__ import annotations

import asyncio
import json
import stat
from dataclasses import replace

import aiohttp

from tests.integration.sidecar.harness import (
    PATIENT,
    House,
    Running,
    chat,
    eventually,
    request_bytes,
)
from weir_sidecar.drain import Phase
from weir_sidecar.settings import Draining
from weir_sim.mock_engine import Profile

SLOW = Profile(output_tokens=40, token_gap_s=0.02)  # type: ignore[arg-type]
LAME = replace(PATIENT, draining=Draining(grace_period_s=20.0, lame_duck_s=0.4))


async def test_streams_finish_and_newcomers_are_sent_elsewhere(house: House) -> None:
    engine = await house.mock_engine(SLOW)
    running = await house.sidecar()
    stream = asyncio.create_task(running.post(json=chat(stream=True)))
    await eventually(lambda: engine.running == 1)
    farewell = asyncio.create_task(running.sidecar.drain.run())
    await eventually(lambda: running.sidecar.drain.phase is Phase.REFUSING)
    refused = await running.post(json=chat())
    assert (refused.status, refused.headers["Connection"]) == (503, "close")
    assert refused.headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
    assert (await running.probe("/readyz")).status == 503
    assert (await running.probe("/enginez")).status == 200
    assert (await stream).body.endswith(b"data: [DONE]\n\n")
    assert (await farewell).cut == 0
    assert running.outcomes == {"ok": 1, "rejected_shutting_down": 1}


async def test_a_lame_duck_accepts_and_says_goodbye(house: House) -> None:
    await house.mock_engine(Profile())
    draining = Draining(grace_period_s=60.0, lame_duck_s=50.0)
    running = await house.sidecar(replace(PATIENT, draining=draining))
    farewell = asyncio.create_task(running.sidecar.drain.run())
    await eventually(lambda: running.sidecar.drain.phase is Phase.LAME_DUCK)
    answer = await running.post(json=chat())
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert (await running.probe("/readyz")).status == 503
    assert running.sidecar.drain.phase is Phase.LAME_DUCK
    farewell.cancel()


async def test_idle_connections_are_closed_before_newcomers_are_refused(house: House) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar(LAME)
    reader, writer = await running.raw()
    writer.write(request_bytes(json.dumps(chat()).encode()))
    await reader.readuntil(b"\r\n\r\n")
    await running.sidecar.drain.run()
    assert (await asyncio.wait_for(reader.read(), timeout=20)).endswith(b"}}")  # and then the end


async def test_the_grace_period_cuts_what_still_runs_with_words(house: House) -> None:
    engine = await house.mock_engine(Profile(output_tokens=100_000, token_gap_s=0.01))  # type: ignore[arg-type]
    short = Draining(grace_period_s=1.0, lame_duck_s=0.0, margin_s=0.5)
    running = await house.sidecar(replace(PATIENT, draining=short))
    stream = asyncio.create_task(running.broken(json=chat(stream=True)))
    await eventually(lambda: engine.running == 1)
    farewell = await running.sidecar.drain.run()
    assert farewell.cut == 1
    assert b'"code":"rejected-shutting-down"' in (await stream).body
    assert await running.ended(1) == {"cut_by_shutdown": 1}
    await eventually(lambda: engine.aborted == 1)


async def test_the_admin_socket_drains_once_for_all_who_ask(house: House) -> None:
    await house.mock_engine(SLOW)
    running = await house.sidecar()
    path = house.run_dir / "admin.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    stream = asyncio.create_task(running.post(json=chat(stream=True)))
    await eventually(lambda: len(running.sidecar.registry) == 1)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:

        async def ask() -> int:
            async with session.post("http://x/drain") as response:
                return response.status

        assert set(await asyncio.gather(ask(), ask(), ask())) == {200}
    assert stream.done()
    assert (await stream).status == 200


async def test_a_socket_left_by_a_dead_process_is_replaced(house: House) -> None:
    (house.run_dir / "admin.sock").write_text("left over")
    await house.mock_engine(Profile())
    running = await house.sidecar()
    assert (house.run_dir / "admin.sock").is_socket()
    assert (await running.probe("/healthz")).status == 200


async def test_an_asker_who_leaves_does_not_stop_the_drain(house: House) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar(LAME)
    asker = asyncio.create_task(running.sidecar.drain.run())
    await eventually(lambda: running.sidecar.drain.phase is Phase.LAME_DUCK)
    asker.cancel()
    await eventually(lambda: running.sidecar.drain.phase is Phase.DRAINED)


NEW = request_bytes(json.dumps(chat()).encode())


async def answer_to_a_new_connection(running: Running) -> tuple[bytes, bool]:
    """Send a chat by a connection of its own; return the head, and whether the sidecar closed."""
    reader, writer = await running.raw()
    writer.write(NEW)
    async with asyncio.timeout(20):
        whole = await reader.read()
    return whole.partition(b"\r\n\r\n")[0].lower(), reader.at_eof()


async def test_new_connections_are_answered_until_the_process_ends(house: House) -> None:
    """When every endpoint of a Service is terminating, kube-proxy sends new connections to them.

    No readiness probe can stop that, so a replica that leaves has to answer until it is gone.
    """
    engine = await house.mock_engine(SLOW)
    running = await house.sidecar()
    stream = asyncio.create_task(running.post(json=chat(stream=True)))
    await eventually(lambda: engine.running == 1)
    farewell = running.sidecar.drain.begin()
    await eventually(lambda: running.sidecar.drain.phase is Phase.REFUSING)
    heads = [await answer_to_a_new_connection(running)]
    await farewell
    await stream
    assert running.sidecar.drain.phase is Phase.DRAINED
    heads.append(await answer_to_a_new_connection(running))
    for head, closed in heads:
        assert head.startswith(b"http/1.1 503 ")
        assert b"\r\nretry-after: " in head
        assert b"\r\nconnection: close" in head
        assert b"\r\nx-llm-d-request-dropped-reason: rejected-shutting-down" in head
        assert closed
    assert (await running.get("/health")).status == 503
    assert running.outcomes == {"ok": 1, "rejected_shutting_down": 2}


async def test_a_lame_duck_serves_what_comes_by_a_new_connection(house: House) -> None:
    await house.mock_engine(Profile())
    draining = Draining(grace_period_s=60.0, lame_duck_s=50.0)
    running = await house.sidecar(replace(PATIENT, draining=draining))
    farewell = running.sidecar.drain.begin()
    await eventually(lambda: running.sidecar.drain.phase is Phase.LAME_DUCK)
    head, closed = await answer_to_a_new_connection(running)
    assert head.startswith(b"http/1.1 200 ")
    assert b"\r\nconnection: close" in head
    assert closed
    farewell.cancel()
