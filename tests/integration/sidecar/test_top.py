"""`weir top` reads a sidecar at work: its pool, its engine, its rejections."""

from __future__ import annotations

import asyncio

from tests.integration.sidecar.harness import House, Running, chat, eventually
from weir_cli.top_figures import Choice, Picture, Process, Service, picture
from weir_cli.top_pages import Address
from weir_core.sched.types import ClassPolicy
from weir_core.wire.policies import PolicyDocument
from weir_sim.mock_engine import Profile

CLASSES = (ClassPolicy("high", rank=1, ttft_target_s=60.0), ClassPolicy("low", rank=0))
SILENT = Profile(ttft_s=60.0)  # type: ignore[arg-type]


async def seen(running: Running) -> Picture:
    """Return what is shown of a sidecar that was read once."""
    socket = str(running.sidecar.settings.addresses.admin_socket)
    address = Address("127.0.0.1", running.sidecar.admin_port, socket)
    reading = await asyncio.to_thread(address.read)
    replica = Process("chat-1", "ready", (reading,))
    chat = Service("chat", CLASSES, (Process("chat-gateway", "ready"),), (replica,))
    return picture([chat], Choice(), reading.at_s, since_start=True)


async def ask(running: Running, class_name: str) -> None:
    headers = {"x-llm-d-inference-objective": class_name}
    await running.post(json=chat(stream=True), headers=headers)


async def test_shows_what_waits_and_what_was_rejected(house: House) -> None:
    house.facts(slots=1)
    house.policies(PolicyDocument(classes=CLASSES, default_class="low", max_queued=1))
    engine = await house.mock_engine(SILENT)
    running = await house.sidecar()
    first = asyncio.create_task(ask(running, "low"))
    await eventually(lambda: engine.running == 1)
    second = asyncio.create_task(ask(running, "high"))
    await eventually(lambda: len(running.sidecar.driver.waiting()) == 1)
    await ask(running, "low")  # the pool is full

    shown = await seen(running)

    (replica,) = [row for row in shown.replicas if row.name == "chat-1"]
    assert (replica.state, replica.at_engine) == ("ready", 1)
    assert (replica.waiting, replica.rejected) == ({"high": 1}, {"queue_full": 1})
    high, low = shown.classes
    assert (high.waiting, high.ended, high.ttft_met) == ({"anonymous": 1}, 0, None)
    assert (low.waiting, low.ended, low.rejected) == ({}, 1, {"queue_full": 1})
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)


async def test_shows_whether_targets_were_met(house: House) -> None:
    house.facts()
    house.policies(PolicyDocument(classes=CLASSES, default_class="low"))
    await house.mock_engine(Profile())
    running = await house.sidecar()
    await ask(running, "high")
    await running.ended(1)
    high = (await seen(running)).classes[0]
    assert (high.ended, high.ttft_met) == (1, 1.0)
