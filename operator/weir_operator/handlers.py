"""kopf's events, turned into "look at this service".

Only `on.event` is used. kopf's other handlers keep their own notes in annotations and finalizers
of the objects they handle; those would show up in users' objects and, once Weir is uninstalled,
keep them from being deleted. A watch that tells the names is all a level-triggered queue needs.

When a watch has to begin anew, kopf tells of every object there is once more. One that is as it was
told before is no news.

The handlers are coroutines so that they run on the event loop, as the queue must be used: kopf
runs plain functions in threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import kopf

from weir_core.api.labels import FIELD_MANAGER, GROUP, MANAGED_BY, SERVICE, VERSION
from weir_operator.kinds import OPTIONAL
from weir_operator.parts import owned
from weir_operator.reconcile import Key

Ask = Callable[[Key], None]

OWNED_RESOURCES: tuple[tuple[str, str], ...] = tuple(
    (each.kind.api_version, each.kind.plural)
    for each in owned()
    if each.watched and each.kind not in OPTIONAL
)
"""Watched so that what someone edits or deletes comes back; pods speak through Deployments. Kinds
that a cluster may lack are watched by `weir_operator.watches`."""

REMEMBERED: Final = 50_000
"""Objects whose version is remembered: the latest told of. One that is forgotten is news again."""


def registry(ask: Ask) -> kopf.OperatorRegistry:
    """Return the handlers of this operator; `ask` is told each service worth a look."""
    handlers = kopf.OperatorRegistry()
    known = _Known()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**kwargs)

    @kopf.on.event(GROUP, VERSION, "inferenceservices", id="service", registry=handlers)
    async def on_service(event: kopf.RawEvent, namespace: str | None, name: str, **_: Any) -> None:
        if known.is_news(event):
            ask(Key(namespace or "default", name))

    async def on_owned(
        event: kopf.RawEvent, namespace: str | None, labels: kopf.Labels, **_: Any
    ) -> None:
        if known.is_news(event):
            ask(Key(namespace or "default", labels[SERVICE]))

    for resource in OWNED_RESOURCES:
        kopf.on.event(
            *resource,
            id=f"owned-{resource[-1]}",
            labels={MANAGED_BY: FIELD_MANAGER, SERVICE: kopf.PRESENT},
            registry=handlers,
        )(on_owned)
    return handlers


class _Known:
    """Which objects were told of, and in which version."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}

    def is_news(self, event: kopf.RawEvent) -> bool:
        """Tell whether an object is gone, or another than when it was last told of."""
        meta = event["object"]["metadata"]
        uid, version = meta["uid"], meta["resourceVersion"]
        if event["type"] == "DELETED":
            self._versions.pop(uid, None)
            return True
        before = self._versions.pop(uid, None)
        self._versions[uid] = version
        if len(self._versions) > REMEMBERED:  # what goes while no watch runs is never told of
            del self._versions[next(iter(self._versions))]
        return version != before


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: watch with bounds, write nothing, keep no peering objects."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    chosen.networking.request_timeout = 30
    chosen.watching.server_timeout = 300
    chosen.watching.client_timeout = 330
    chosen.watching.connect_timeout = 10
    for resource in OWNED_RESOURCES:
        # The API server filters, so that a cluster's other Services cost nothing here.
        selector = f"{MANAGED_BY}={FIELD_MANAGER},{SERVICE}"
        chosen.watching.label_selectors[resource] = selector
    return chosen
