"""Which services a change of an object concerns.

A service, and an object that it owns, concern that service alone. Of classes, tenants and Secrets a
pass notes what it read; when one of those objects changes, the service gets another pass. So
nothing has to be known of a Secret beforehand, and one that no tenant names concerns nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from typing import Final, Generic, NamedTuple, TypeVar

from weir_operator.kinds import CLASS, SECRET, SERVICE, TENANT, Kind

K = TypeVar("K", bound=tuple[str, str])
"""A service: (namespace, name)."""

_SHARED: Final = (CLASS, TENANT, SECRET)
"""Kinds of which one object may concern several services."""


class Change(NamedTuple):
    """An object that was made, changed or deleted, or was there when the watch began."""

    kind: Kind
    namespace: str
    """Empty for the cluster."""
    name: str
    """Empty where it may be any object of the kind."""
    version: str = ""
    """Of the kind's objects, from which a watch can go on."""
    service: str = ""
    """Whose object it is, of the kinds that services own."""


class Interests(Generic[K]):
    """What each service's last pass read."""

    def __init__(self) -> None:
        self._secrets: dict[K, frozenset[str]] = {}
        self._readers: defaultdict[tuple[str, str], set[K]] = defaultdict(set)
        """By namespace and name of a Secret: a watch begins with every one of a cluster."""

    def note(self, service: K, secrets: Set[str]) -> None:
        """Keep which Secrets a service depends on, beside all classes and its tenants."""
        self.forget(service)
        self._secrets[service] = frozenset(secrets)
        for secret in secrets:
            self._readers[service[0], secret].add(service)

    def secrets(self, service: K) -> Set[str]:
        """Return the Secrets that a service depends on."""
        return self._secrets.get(service, frozenset())

    def forget(self, service: K) -> None:
        """Forget a service that is gone."""
        for secret in self._secrets.pop(service, ()):
            readers = self._readers[service[0], secret]
            readers.discard(service)
            if not readers:
                del self._readers[service[0], secret]

    def concerned(self, change: Change) -> Sequence[tuple[str, str]]:
        """Return the services that deserve a pass after a change."""
        if change.kind not in _SHARED and change.name:
            name = change.name if change.kind == SERVICE else change.service
            return [(change.namespace, name)] if name else []  # a label's value may be empty
        if change.kind == SECRET and change.name:
            return list(self._readers.get((change.namespace, change.name), ()))
        if change.namespace:
            return [each for each in self._secrets if each[0] == change.namespace]
        return list(self._secrets)
