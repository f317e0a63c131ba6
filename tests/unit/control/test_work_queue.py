"""The queue is told facts and decides when; its clock is a number the test sets."""

from __future__ import annotations

import asyncio

import pytest

from weir_core.units import Seconds
from weir_operator.queue import WorkQueue


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock, first_delay=Seconds(1), longest_delay=Seconds(8))


def due(queue: WorkQueue[str]) -> str | None:
    """Return the key that is due now, if one is."""
    getting = queue.get()
    try:
        getting.send(None)
    except StopIteration as stop:
        return str(stop.value)
    getting.close()
    return None


async def test_many_requests_before_a_pass_are_one_pass(queue: WorkQueue[str]) -> None:
    for _ in range(10):
        queue.add("a")
    assert (due(queue), due(queue)) == ("a", None)


async def test_keys_come_in_the_order_they_were_asked_for(queue: WorkQueue[str]) -> None:
    for key in "bac":
        queue.add(key)
    assert [due(queue) for _ in range(3)] == ["b", "a", "c"]


async def test_a_request_during_a_pass_is_one_more_pass_after_it(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert due(queue) == "a"
    queue.add("a")
    queue.add("a")
    assert due(queue) is None, "a key is never handed out twice at once"
    queue.done("a")
    assert (due(queue), due(queue)) == ("a", None)


async def test_a_delayed_request_waits(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a", Seconds(10))
    assert due(queue) is None
    clock.now = 10
    assert due(queue) == "a"


async def test_the_earliest_of_several_requests_counts(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a", Seconds(10))
    queue.add("a", Seconds(2))
    queue.add("a", Seconds(20))
    clock.now = 2
    assert due(queue) == "a"
    queue.done("a")
    clock.now = 30
    assert due(queue) is None


async def test_failures_wait_longer_each_time_up_to_a_bound(
    queue: WorkQueue[str], clock: Clock
) -> None:
    waits = []
    queue.add("a")
    assert due(queue) == "a"
    for _ in range(6):
        queue.done("a", failed=True)
        failed_at = clock.now
        while due(queue) is None:
            clock.now += 1
        waits.append(clock.now - failed_at)
    assert waits == [1, 2, 4, 8, 8, 8]


async def test_a_success_forgives_earlier_failures(queue: WorkQueue[str], clock: Clock) -> None:
    for failed in (True, True, False, True):
        queue.add("a")
        assert due(queue) == "a"
        queue.done("a", failed=failed)
    clock.now = 1
    assert due(queue) == "a"


async def test_an_edit_does_not_wait_for_the_back_off(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert due(queue) == "a"
    queue.done("a", failed=True)
    queue.add("a")
    assert due(queue) == "a"


async def test_a_waiting_worker_wakes_for_a_new_key(queue: WorkQueue[str]) -> None:
    async with asyncio.timeout(5):
        worker = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.add("a")
        assert await worker == "a"


async def test_counts_keys_that_wait_and_keys_that_will(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("b", Seconds(5))
    assert due(queue) == "a"
    queue.add("a")
    assert len(queue) == 2
