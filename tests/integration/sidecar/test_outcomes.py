"""INV-1, conservation: every request ends in exactly one outcome."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import aiohttp
import pytest

from tests.integration.sidecar.harness import (
    PATIENT,
    House,
    Running,
    chat,
    eventually,
    request_bytes,
)
from weir_sidecar.settings import Limits, Timeouts
from weir_sim.mock_engine import Profile

Kind = Callable[[Running, random.Random], Awaitable[None]]

HASTY = replace(
    PATIENT,
    limits=Limits(max_requests=40, max_body_bytes=10_000),
    timeouts=Timeouts(upload_s=0.2, first_byte_s=2.0, progress_s=0.3),
)


async def finishes(running: Running, rng: random.Random) -> None:
    await running.post(json=chat(stream=rng.random() < 0.5))


async def is_bad(running: Running, rng: random.Random) -> None:
    await running.post(data=b"{nonsense")


async def is_lost(running: Running, rng: random.Random) -> None:
    await running.get(rng.choice(["/sleep", "/v1/load_lora_adapter", "/x"]))


async def is_too_large(running: Running, rng: random.Random) -> None:
    await running.post(data=b"x" * 20_000)


async def leaves(running: Running, rng: random.Random) -> None:
    reader, writer = await running.raw()
    writer.write(request_bytes(json.dumps(chat(stream=True, max_tokens=10_000)).encode()))
    if rng.random() < 0.5:
        await reader.readline()
    writer.close()


async def uploads_slowly(running: Running, rng: random.Random) -> None:
    reader, writer = await running.raw()
    writer.write(request_bytes(b"0123456789")[:-4])
    await reader.read(1)


KINDS: list[Kind] = [finishes, finishes, finishes, is_bad, is_lost, is_too_large, leaves]
KINDS += [uploads_slowly]


async def test_the_sum_of_outcomes_is_the_number_of_requests(house: House) -> None:
    rng = random.Random(7)
    engine = await house.mock_engine(Profile(output_tokens=20, token_gap_s=0.005))  # type: ignore[arg-type]
    running = await house.sidecar(HASTY)
    sent = 0
    for wave in range(6):
        engine.profile = replace(
            engine.profile,
            cut_after_tokens=5 if wave == 2 else None,
            stall_after_tokens=3 if wave == 3 else None,
            error_status=500 if wave == 4 else None,
        )
        kinds = [rng.choice(KINDS) for _ in range(60)]
        sent += len(kinds)
        results = await asyncio.gather(
            *(kind(running, rng) for kind in kinds), return_exceptions=True
        )
        assert all(r is None or isinstance(r, aiohttp.ClientError) for r in results)
        # A client that left before its request was read sent none that we could count.
        await eventually(lambda: len(running.sidecar.registry) == 0)
    await eventually(lambda: sum(running.outcomes.values()) == sent)
    assert running.outcomes.get("internal_error", 0) == 0
    assert {"ok", "client_error", "client_gone", "client_slow", "engine_error"} <= set(
        running.outcomes
    )
    await eventually(lambda: engine.running == 0)


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
async def test_a_request_that_ended_leaves_nothing_to_the_collector(
    house: House, kind: Kind
) -> None:
    """What waits for a collection holds memory that nobody accounts for, and stops every stream."""
    rng = random.Random(1)
    await house.mock_engine(Profile(output_tokens=20))
    running = await house.sidecar(HASTY)
    await kind(running, rng)  # what is made once is made now
    await eventually(lambda: len(running.sidecar.registry) == 0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            await kind(running, rng)
        await eventually(lambda: len(running.sidecar.registry) == 0)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [each for each in gc.garbage if type(each).__module__.startswith("weir_")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
