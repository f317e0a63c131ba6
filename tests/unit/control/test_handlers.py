"""kopf is asked to watch, and for nothing else: it writes into the objects it handles otherwise."""

from __future__ import annotations

import inspect
from typing import Any

import kopf

from weir_operator import handlers
from weir_operator.parts import owned
from weir_operator.reconcile import Key


def watching(ask: handlers.Ask = lambda _: None) -> kopf.OperatorRegistry:
    return handlers.registry(ask)


def event(type_: str | None, uid: str, version: str = "1") -> Any:
    """Return an event as kopf has it: without a type where it was only listed."""
    return {"type": type_, "object": {"metadata": {"uid": uid, "resourceVersion": version}}}


def test_only_plain_events_are_handled() -> None:
    registry = watching()
    assert registry._watching.get_all_handlers() != []
    for other in (registry._changing, registry._spawning, registry._indexing):
        assert other.get_all_handlers() == []


def test_every_handler_runs_on_the_event_loop() -> None:
    for handler in watching()._watching.get_all_handlers():
        assert inspect.iscoroutinefunction(handler.fn)


async def test_an_event_asks_for_a_pass_over_the_service_it_belongs_to() -> None:
    asked: list[Key] = []
    by_id: dict[str, Any] = {
        each.id: each.fn for each in watching(asked.append)._watching.get_all_handlers()
    }
    await by_id["service"](event=event("ADDED", "a"), namespace="models", name="chat")
    labels = {"serving.weir.dev/service": "chat"}
    deployment = {"namespace": "models", "name": "chat-cpu", "labels": labels}
    await by_id["owned-deployments"](event=event("MODIFIED", "b"), **deployment)
    assert asked == [Key("models", "chat")] * 2


async def test_an_object_that_is_told_again_as_it_was_is_no_news() -> None:
    asked: list[Key] = []
    by_id: dict[str, Any] = {
        each.id: each.fn for each in watching(asked.append)._watching.get_all_handlers()
    }
    counts = []
    for type_, version in (
        *((None, "1"), (None, "1"), ("MODIFIED", "2"), (None, "2")),
        *(("DELETED", "2"), ("ADDED", "2")),
    ):
        one = event(type_, "a", version)
        await by_id["service"](event=one, namespace="models", name="chat")
        counts.append(len(asked))
    assert counts == [1, 1, 2, 2, 3, 4]


async def test_objects_whose_end_is_never_told_are_forgotten_in_time() -> None:
    known = handlers._Known()
    assert known.is_news(event(None, "gone"))
    for number in range(handlers.REMEMBERED):
        assert known.is_news(event(None, f"there-{number}"))
        assert not known.is_news(event(None, "there-0"))
    assert len(known._versions) == handlers.REMEMBERED
    assert known.is_news(event(None, "gone"))
    assert not known.is_news(event(None, "there-0"))


def test_what_is_owned_is_watched_but_for_what_has_no_need_or_a_watch_of_its_own() -> None:
    watched = {resource[-1] for resource in handlers.OWNED_RESOURCES}
    not_so = {each.kind.plural for each in owned()} - watched
    assert not_so == {"controllerrevisions", "leaderworkersets", "secrets"}


def test_kopf_writes_nothing_of_its_own() -> None:
    settings = handlers.settings()
    assert settings.peering.standalone
    assert not settings.posting.enabled
