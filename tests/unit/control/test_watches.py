"""Changes are told as they come, and a watch that is forbidden ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_operator.cluster import _lines
from weir_operator.interests import Change
from weir_operator.watches import Resource, Watches


class Feed:
    """An API server's watches; each takes what `answer` gives for it."""

    def __init__(self, answer: Callable[[Resource, str | None, int], Iterator[Change]]) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self._answer = answer

    def changes(self, resource: Resource, namespace: str | None) -> Iterator[Change]:
        self.asked.append((resource, namespace))
        yield from self._answer(resource, namespace, self.asked.count((resource, namespace)))


async def told_by(
    answer: Callable[[Resource, str | None, int], Iterator[Change]],
    namespaces: tuple[str, ...],
    count: int,
) -> tuple[list[Change], Feed]:
    """Return the first changes that are told, and what was asked."""
    told: list[Change] = []
    enough = asyncio.Event()

    def tell(change: Change) -> None:
        told.append(change)
        if len(told) >= count:
            enough.set()

    feed = Feed(answer)
    watches = Watches(feed, namespaces, tell)
    watches.start(asyncio.get_running_loop())
    try:
        await asyncio.wait_for(enough.wait(), timeout=5)
    finally:
        watches.stop()
    return told, feed


def each_once(resource: Resource, namespace: str | None, _: int) -> Iterator[Change]:
    yield Change(resource, namespace or "", "x")


async def test_tenants_and_secrets_are_watched_in_each_namespace_and_classes_once() -> None:
    told, _ = await told_by(each_once, ("a", "b"), count=5)
    assert {(change.resource, change.namespace) for change in told} == {
        ("inferencepriorityclasses", ""),
        ("inferencetenants", "a"),
        ("inferencetenants", "b"),
        ("secrets", "a"),
        ("secrets", "b"),
    }


async def test_what_is_forbidden_keeps_nothing_else_from_being_told() -> None:
    def answer(resource: Resource, namespace: str | None, time: int) -> Iterator[Change]:
        if resource == "inferencepriorityclasses":
            raise ClusterRefuses("no right")
        yield from each_once(resource, namespace, time)

    told, _ = await told_by(answer, (), count=2)
    assert {change.resource for change in told} == {"inferencetenants", "secrets"}


@pytest.mark.parametrize(
    "failure",
    [ClusterUnavailable("connection reset"), KeyError("object")],
    ids=["a connection", "an answer that nobody expected"],
)
async def test_a_watch_that_broke_begins_anew(failure: Exception) -> None:
    def answer(resource: Resource, namespace: str | None, time: int) -> Iterator[Change]:
        if resource == "secrets" and time == 1:
            raise failure
        if resource == "secrets":
            yield from each_once(resource, namespace, time)

    told, feed = await told_by(answer, (), count=1)
    assert [change.resource for change in told] == ["secrets"]
    assert feed.asked.count(("secrets", None)) >= 2


def test_lines_are_put_together_from_pieces_of_any_length() -> None:
    pieces: list[Any] = [b'{"a', b'": 1}\n{"b": 2}\n', b"\n", b'{"c": 3}\n']
    assert list(_lines(pieces)) == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']
