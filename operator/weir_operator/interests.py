"""Which services a change of a class, a tenant or a Secret concerns.

A pass notes what it read; when one of those objects changes, the service gets another pass. So
nothing has to be known of a Secret beforehand, and one that no tenant names concerns nobody.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Generic, Literal, NamedTuple, TypeVar

K = TypeVar("K", bound=tuple[str, str])
"""A service: (namespace, name)."""


class Change(NamedTuple):
    """An object that was made, changed or deleted, or was there when the watch began."""

    resource: Literal["inferencepriorityclasses", "inferencetenants", "secrets"]
    namespace: str
    name: str


class Interests(Generic[K]):
    """What each service's last pass read."""

    def __init__(self) -> None:
        self._secrets: dict[K, frozenset[str]] = {}

    def note(self, service: K, secrets: Set[str]) -> None:
        """Keep which Secrets a service depends on, beside all classes and its tenants."""
        self._secrets[service] = frozenset(secrets)

    def forget(self, service: K) -> None:
        """Forget a service that is gone."""
        self._secrets.pop(service, None)

    def concerned(self, change: Change) -> list[K]:
        """Return the services that deserve a pass after a change."""
        return [
            service
            for service, secrets in self._secrets.items()
            if _reads(service, secrets, change)
        ]


def _reads(service: tuple[str, str], secrets: frozenset[str], change: Change) -> bool:
    if change.resource == "inferencepriorityclasses":
        return True
    same = service[0] == change.namespace
    return same and (change.resource == "inferencetenants" or change.name in secrets)
