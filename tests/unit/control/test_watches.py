"""Changes are told as they come, and a watch that is forbidden ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from weir_core.errors import ClusterRefuses, ClusterUnavailable, KindMissing, WatchExpired
from weir_core.units import Seconds
from weir_operator import watches
from weir_operator.interests import Change
from weir_operator.kinds import CLASS, GROUP_SET, JOB, SECRET, SERVICE, TENANT, Kind
from weir_operator.parts import owned
from weir_operator.watches import OWNED, Topic, unwatched, watch

Answer = Callable[[Kind, str | None, int], AsyncIterator[Change]]


class Feed:
    """An API server's watches; each takes what `answer` gives for it."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[Topic] = []
        self.selectors: dict[Kind, str] = {}
        self.since: list[str] = []
        """From where each watch of Secrets was to go on."""
        self.blind: set[Topic] = set()
        self._answer = answer

    async def changes(
        self, kind: Kind, namespace: str | None, since: str, selector: str
    ) -> AsyncIterator[Change]:
        self.asked.append((kind, namespace))
        self.selectors[kind] = selector
        if kind == SECRET:
            self.since.append(since)
        async for each in self._answer(kind, namespace, self.asked.count((kind, namespace))):
            yield each


async def told_by(
    answer: Answer, namespaces: tuple[str, ...], count: int
) -> tuple[list[Change], Feed]:
    """Return the first changes that are told of objects, and what was asked."""
    told: list[Change] = []
    enough = asyncio.Event()

    def tell(change: Change) -> None:
        told.append(change)
        if sum(1 for each in told if each.name) >= count:
            enough.set()

    feed = Feed(answer)
    watching = asyncio.create_task(watch(feed, namespaces, tell, feed.blind, Seconds(0)))
    try:
        await asyncio.wait_for(enough.wait(), timeout=30)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return told, feed


async def each_once(kind: Kind, namespace: str | None, time: int) -> AsyncIterator[Change]:
    if time == 1:
        yield Change(kind, namespace or "", "x")


async def test_all_is_watched_in_each_namespace_but_classes_once() -> None:
    kinds = {SERVICE, TENANT, SECRET, *OWNED}
    told, feed = await told_by(each_once, ("a", "b"), count=1 + 2 * len(kinds))
    assert not feed.blind
    assert {(change.kind, change.namespace) for change in told} == {
        (CLASS, ""),
        *((kind, namespace) for kind in kinds for namespace in ("a", "b")),
    }
    mine = "app.kubernetes.io/managed-by=weir-operator,serving.weir.dev/service"
    assert feed.selectors == {
        **dict.fromkeys((CLASS, SERVICE, TENANT, SECRET), ""),
        **dict.fromkeys(OWNED, mine),
    }


def test_what_is_owned_is_watched_but_for_what_has_no_need_or_a_watch_of_its_own() -> None:
    not_so = {each.kind for each in owned()} - set(OWNED)
    assert {kind.plural for kind in not_so} == {"controllerrevisions", "secrets"}


@pytest.mark.parametrize("forbidden", [SERVICE, CLASS, JOB], ids=lambda kind: kind.plural)
async def test_what_is_forbidden_or_missing_keeps_nothing_else_from_being_told(
    caplog: pytest.LogCaptureFixture, forbidden: Kind
) -> None:
    async def answer(kind: Kind, namespace: str | None, time: int) -> AsyncIterator[Change]:
        if kind == forbidden:
            raise ClusterRefuses("no right")
        if kind in (GROUP_SET, TENANT):
            raise KindMissing(f"no {kind.name}")
        async for each in each_once(kind, namespace, time):
            yield each

    kinds = {CLASS, SERVICE, SECRET, *OWNED} - {forbidden, GROUP_SET}
    told, _ = await told_by(answer, (), count=len(kinds))
    assert {change.kind for change in told} == kinds
    assert f"changes of {forbidden.plural} are not seen at once: no right" in caplog.text
    assert "changes of inferencetenants are not seen at once: no InferenceTenant" in caplog.text
    assert "LeaderWorkerSet" not in caplog.text  # a cluster may need none


@pytest.mark.parametrize(
    ("why", "pauses"),
    [
        pytest.param(ClusterRefuses("no right"), [watches.AGAIN_FORBIDDEN] * 3, id="no right"),
        pytest.param(KindMissing("no such kind"), [watches.AGAIN_MISSING] * 3, id="no kind"),
        pytest.param(
            ClusterUnavailable("no route to host"), [1, 2, 4, 8, 16, 30, 30], id="an outage"
        ),
    ],
)
async def test_why_there_is_no_watch_is_told_once(
    why: ClusterUnavailable, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    follower = watches._Follower(Feed(each_once), (SECRET, None), lambda _: None, set())
    assert [follower._lost(why, Seconds(1)) for _ in pauses] == pauses
    await follower._once()
    follower._lost(why, Seconds(1))
    assert caplog.text.count("changes of secrets are not seen at once") == 2


@pytest.mark.parametrize(
    "failure",
    [ClusterUnavailable("connection reset"), KeyError("object")],
    ids=["a connection", "an answer that nobody expected"],
)
async def test_a_watch_that_broke_begins_anew(failure: Exception) -> None:
    async def answer(kind: Kind, namespace: str | None, time: int) -> AsyncIterator[Change]:
        if kind == SECRET and time == 1:
            raise failure
        if kind == SECRET and time == 2:
            yield Change(kind, namespace or "", "x")

    told, feed = await told_by(answer, (), count=1)
    assert told == [Change(SECRET, "", ""), Change(SECRET, "", "x")]
    assert feed.asked.count((SECRET, None)) >= 2


async def test_a_watch_goes_on_where_the_one_before_it_ended() -> None:
    async def answer(kind: Kind, _namespace: str | None, time: int) -> AsyncIterator[Change]:
        if kind == SECRET and time == 1:
            yield Change(SECRET, "a", "x", "5")
            yield Change(SECRET, "", "", "9")
        if kind == SECRET and time == 2:
            yield Change(SECRET, "a", "y", "12")

    told, feed = await told_by(answer, (), count=2)
    assert feed.since[:2] == ["", "9"]
    assert [each.name for each in told] == ["", "x", "y"]
    assert feed.blind == {(kind, None) for kind in (CLASS, SERVICE, TENANT, *OWNED)}


async def test_a_connection_that_breaks_asks_for_no_pass_over_everything() -> None:
    async def answer(kind: Kind, _namespace: str | None, time: int) -> AsyncIterator[Change]:
        if kind != SECRET or time > 3:
            return
        if time == 2:
            raise ClusterUnavailable("no route to host")
        yield Change(SECRET, "a", f"x{time}", str(time))
        yield Change(SECRET, "", "", f"{time}9")
        raise ClusterUnavailable("connection reset")

    told, feed = await told_by(answer, (), count=2)
    assert feed.since[:3] == ["", "19", "19"]
    assert [each.name for each in told] == ["", "x1", "x3"]
    assert unwatched(feed.blind, SECRET) == 1  # so that a resync reads them meanwhile


async def test_a_watch_that_broke_while_it_told_what_there_is_begins_anew() -> None:
    """It tells objects in the order of their names, so their versions say nothing of the rest."""

    async def answer(kind: Kind, _namespace: str | None, time: int) -> AsyncIterator[Change]:
        if kind == SECRET:
            yield Change(SECRET, "a", f"x{time}", str(time))
            raise ClusterUnavailable("connection reset")

    told, feed = await told_by(answer, (), count=2)
    assert feed.since[:2] == ["", ""]
    assert [each.name for each in told[:4]] == ["", "x1", "", "x2"]


async def test_after_a_watch_that_cannot_go_on_anything_may_have_changed() -> None:
    async def answer(kind: Kind, _namespace: str | None, time: int) -> AsyncIterator[Change]:
        if kind == SECRET and time == 2:
            raise WatchExpired("too old")
        if kind == SECRET:
            yield Change(SECRET, "a", f"x{time}", str(time))
            yield Change(SECRET, "", "", str(time))

    told, feed = await told_by(answer, (), count=2)
    assert feed.since[:3] == ["", "1", ""]
    assert [each.name for each in told[:4]] == ["", "x1", "", "x3"]
