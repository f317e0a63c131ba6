"""A page `/state` that a real sidecar wrote, with a value of another type anywhere in it.

A sidecar of another version, or what else listens in a pod, may write such a page. The console says
that this replica cannot be read, and goes on with the others.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from tests.integration.sidecar.fleet import SILENT
from tests.integration.sidecar.harness import House, Running, chat, eventually
from weir_cli.console.feed import Feed
from weir_cli.console.told import read
from weir_cli.show import state_of
from weir_cli.top_figures import Choice, Process, Reading, Service, picture
from weir_core.sched.types import BUILT_IN_CLASSES

OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**400, float("nan"), float("inf"), "", "x", "\ud800"),
    *([], [1], {}, {"x": 1}, [{}], [[]]),
)


@pytest.fixture
async def page(house: House) -> AsyncIterator[Any]:
    """What a sidecar says while one request runs, one waits, and one has ended."""
    house.facts(slots=1)
    engine = await house.mock_engine(SILENT)
    running = await house.sidecar()
    gone = asyncio.create_task(ask(running))
    await eventually(lambda: engine.running == 1)
    gone.cancel()
    await eventually(lambda: not len(running.sidecar.registry))
    tasks = [asyncio.create_task(ask(running)) for _ in range(2)]
    await eventually(lambda: len(running.sidecar.driver.waiting()) == 1)
    socket = str(running.sidecar.settings.addresses.admin_socket)
    yield await asyncio.to_thread(state_of, socket)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, gone, return_exceptions=True)


async def ask(running: Running) -> None:
    await running.post(json=chat(stream=True))


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each value in a document, that of the whole one first."""
    yield path
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for key, each in inner:
        yield from places(each, (*path, key))


def with_other(document: Any, path: tuple[str | int, ...], other: Any = ...) -> Any:
    """Return a document with another value at a place, or without any."""
    if not path:
        return other
    changed = copy.copy(document)
    if len(path) == 1 and other is ...:
        del changed[path[0]]
    else:
        changed[path[0]] = with_other(document[path[0]], path[1:], other)
    return changed


def is_read(state: Any) -> bool:
    try:
        return bool(read(state))
    except ValueError:
        return False


async def shown(broken: Any, good: Any) -> tuple[Any, Any]:
    """Return what two viewers see, each of one replica, of which one writes a broken page."""

    def process(name: str, state: Any) -> Process:
        return Process(name, "ready", (Reading(9.0, state, {}), Reading(10.0, state, {})))

    replicas = (process("broken", broken), process("good", good))
    service = Service("chat", BUILT_IN_CLASSES, (), replicas)
    picture([service], Choice("at engine"), 0.0, since_start=False)  # as `weir top` draws it
    feed = Feed(lambda: [service], 1.0, 5.0, wall=lambda: 1000.0, clock=lambda: 10.0)
    await feed.look()
    found = []
    for name in ("broken", "good"):
        with feed.viewed("chat", name) as view:
            assert feed.watched()
            events = [msgspec.json.decode(data) for _, data in view.events()]
            found.append(events[-1]["replica"])
    return found[0], found[1]


async def test_a_page_with_anything_else_anywhere_ends_nothing(page: Any) -> None:
    whole, other_page = await shown(page, page)
    assert (whole["trouble"], other_page["trouble"]) == ("", "")
    scheduling = page["scheduling"]
    assert (len(scheduling["queue"]), len(scheduling["batch"]), len(page["ended"])) == (1, 1, 1)
    broken = [with_other(page, path, other) for path in places(page) for other in OTHERS]
    broken += [with_other(page, path) for path in places(page) if path]
    refused = [each for each in broken if not is_read(each)]
    assert len(broken) / 3 < len(refused) < len(broken)
    # What is not refused is drawn, and what is summed up for all is not refused before.
    summed = [("scheduling",), ("scheduling", "at_engine"), ("scheduling", "engine")]
    summed += [("scheduling", "engine", "max_num_seqs")]
    drawn = random.Random(0).sample(broken, 40)
    drawn += [with_other(page, path, other) for path in summed for other in OTHERS]
    for each in drawn:
        if each is None:
            continue  # it did not answer
        seen, other_page = await shown(each, page)
        assert (other_page["trouble"], other_page["state"]) == ("", whole["state"])
        assert (seen["state"] is None) == bool(seen["trouble"]) == (not is_read(each))


@pytest.mark.parametrize(
    ("path", "other", "why"),
    [
        pytest.param((), [], "Expected `object`, got `array`", id="no object"),
        pytest.param(
            ("scheduling", "waiting"),
            "7",
            "Expected `int`, got `str` - at `$.scheduling.waiting`",
            id="a number as text",
        ),
        pytest.param(
            ("scheduling", "queue", 0, "waited_s"),
            None,
            "Expected `float`, got `null` - at `$.scheduling.queue[0].waited_s`",
            id="nothing in a request",
        ),
        pytest.param(("ended", 0, "tenant"), "\ud800", "surrogates not allowed", id="no text"),
    ],
)
async def test_it_is_said_what_is_wrong(
    page: Any, path: tuple[str | int, ...], other: Any, why: str
) -> None:
    with pytest.raises(ValueError, match="is not one that this console knows") as said:
        read(with_other(page, path, other))
    assert why in str(said.value)
