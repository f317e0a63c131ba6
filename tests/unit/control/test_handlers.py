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
    await by_id["service"](namespace="models", name="chat")
    labels = {"serving.weir.dev/service": "chat"}
    await by_id["owned-deployments"](namespace="models", name="chat-cpu", labels=labels)
    assert asked == [Key("models", "chat")] * 2


def test_what_is_owned_is_watched_but_for_revisions_and_secrets() -> None:
    watched = {resource[-1] for resource in handlers.OWNED_RESOURCES}
    assert {each.kind.plural for each in owned()} - watched == {"controllerrevisions", "secrets"}


def test_kopf_writes_nothing_of_its_own() -> None:
    settings = handlers.settings()
    assert settings.peering.standalone
    assert not settings.posting.enabled
