"""Edits of the user's files while `weir up` runs: what can change at once, and what cannot.

Classes, tenants, their Secrets, `spec.admission`, `spec.engine.scheduling`, and the aliases and
adapters of `spec.model` reach running sidecars. A service that scales goes on by another
`spec.scaling`, with as many places for replicas as it began with. All else is a property of
processes and needs a new `weir up`; it is named, not applied. Files may be anything while they are
edited, half saved or gone, so whatever is wrong with them leaves everything as it is, and a service
that asks for keys goes on asking for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from weir_cli import policies
from weir_cli.documents import Documents, Object
from weir_cli.source import settled_contents
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import InvalidSpec
from weir_core.wire.engine import mount_of
from weir_core.wire.policies import PolicyDocument
from weir_operator.render.pods import asked_by_adapters

_LIVE: Final = (
    "spec.admission",
    "spec.engine.scheduling",
    "spec.model.aliases",
    "spec.model.adapters",
    "spec.model.adapterSlots",
    "spec.model.adapterRank",
)
_SCALING: Final = "spec.scaling"
_STAYS: Final = "all stays as it was"

_Look = tuple[bytes | str, ...]
"""A digest of each file, or why there is none."""


@dataclass(frozen=True)
class Edit:
    """What one change of the files comes to.

    Attributes:
        notices: What to tell the user.
        fresh: What the sidecars of a service are to be told from now on.
        links: What must be found among the weights for that: a name, and the directory it is of.
    """

    notices: tuple[str, ...] = ()
    fresh: Mapping[Object, PolicyDocument] = field(default_factory=dict)
    links: Mapping[str, Path] = field(default_factory=dict)
    scaled: Mapping[Object, InferenceService] = field(default_factory=dict)
    """Services whose replicas follow the work by another `spec.scaling` from now on."""


class Edits:
    """The files, as they were last seen.

    Args:
        files: What was given on the command line.
        load: Reads them.
        started: What they said when `weir up` began.
        told: What the sidecars of each service are told.
        host: The public address.
    """

    def __init__(
        self,
        files: Sequence[Path],
        load: Callable[[], Documents],
        started: Documents,
        told: Mapping[Object, PolicyDocument],
        host: str,
    ) -> None:
        self._files = files
        self._load = load
        self._started = {_id(service): service for service in started.services}
        self._services = dict(self._started)
        self._told = dict(told)
        self._host = host
        self._seen: _Look = ()
        self._read: _Look = ()
        self._complained = False

    def told(self, service: Object) -> PolicyDocument:
        """Return what the sidecars of a service are to be told."""
        return self._told[service]

    def scales(self, service: Object) -> InferenceService | None:
        """Return a service as it was started, if its replicas follow the work; else None."""
        started = self._started[service]
        return None if started.spec.scaling is None else started

    def look(self) -> Edit | None:
        """Look at the files once more; return what a change comes to, or None.

        A change counts when two looks saw the same, so that a file is read neither while it is
        written nor between its removal and its return.
        """
        before, self._seen = self._seen, self._look()
        if self._seen != before or self._seen == self._read:
            return None
        return self.next()

    def next(self) -> Edit | None:
        """Read the files; return what is new in them, or None if they changed meanwhile.

        Raises nothing, whatever they hold.
        """
        self._read = self._look()
        edit = self._edit_or_refusal()
        if self._look() != self._read:
            self._read = ()
            return None
        self._told |= edit.fresh
        return edit

    def _edit_or_refusal(self) -> Edit:
        try:
            edit = self._edit()
        except InvalidSpec as error:
            edit = Edit((f"not applied: {error}; {_STAYS}",))
        except Exception as error:  # nothing in a file may end what serves
            # Without its message, which may quote a secret.
            why = f"{type(error).__name__} while they were read; `weir render` shows where"
            edit = Edit((f"not applied: {why}; {_STAYS}",))
        complained, self._complained = self._complained, bool(edit.notices)
        if complained and edit == Edit():
            return Edit(("the files hold what is applied",))
        return edit

    def _edit(self) -> Edit:
        """Compare the files with what is told.

        Raises:
            InvalidSpec: They are not what Weir can take.
        """
        for path in self._files:
            settled_contents(path)
        documents = self._load()
        documents.check_serves()
        links = dict(link for service in documents.services for link in _links(service))
        fresh: dict[Object, PolicyDocument] = {}
        scaled = self._scaled(documents)
        notices = [
            *self._needing_restart(documents),
            *(self._words_on(*each) for each in scaled.items()),
            *self._refresh(documents, fresh),
        ]
        self._services |= {_id(service): service for service in documents.services}
        return Edit(tuple(notices), fresh, links if fresh else {}, scaled)

    def _scaled(self, documents: Documents) -> dict[Object, InferenceService]:
        """Return the services whose `spec.scaling` is another than it was, and applies."""
        return {
            _id(service): service
            for service in documents.services
            if self._is_live(service)
            and service.spec.scaling != self._services[_id(service)].spec.scaling
        }

    def _is_live(self, service: InferenceService) -> bool:
        """Tell whether what the file says of a service's scaling applies while it runs."""
        started = self._started.get(_id(service))
        begun = None if started is None else started.spec.scaling
        return begun is not None and service.spec.scaling is not None

    def _words_on(self, each: Object, service: InferenceService) -> str:
        """Return what to say of another `spec.scaling`."""
        begun = self._started[each].spec
        started, now = begun.scaling, service.spec.scaling
        assert started is not None
        assert now is not None
        words = f"{each[1]}: replicas follow the work by the new spec.scaling"
        most = started.max_replicas
        if now.max_replicas > most:
            words += f", up to {most}; for {now.max_replicas} start `weir up` again"
        if service.spec.may_sleep and not begun.may_sleep:
            words += ", down to 1; for 0 start `weir up` again"
        return words

    def _refresh(self, documents: Documents, fresh: dict[Object, PolicyDocument]) -> Iterator[str]:
        """Compile every service that runs; add what is new to `fresh` and yield what is not.

        One that the files hold no longer serves on, so a tenant's lost key is lost there, too.
        """
        now = {_id(service): service for service in documents.services}
        for each, before in self._told.items():
            service = now.get(each, self._services[each])
            document, problems = policies.compiled(documents, service, before)
            for problem in problems:
                where = policies.place(problem, documents, service)
                yield f"{each[1]}: not applied: {where}: {problem.message}; it stays as it was"
            if policies.is_open(document) and not policies.is_open(before):
                yield (
                    f"{each[1]}: not applied: it has no tenants left, so everybody who reaches "
                    f"{self._host} could use it; declare an InferenceTenant, set "
                    f"spec.admission.anonymousClass, or start `weir up` again; {_STAYS}"
                )
            elif document != before:
                fresh[each] = document

    def _needing_restart(self, documents: Documents) -> Iterator[str]:
        now = {_id(service): service for service in documents.services}
        how = "stop this `weir up` and start it again for that"
        for each in sorted(now.keys() - self._started.keys()):
            yield f"{each[1]}: is new; {how}"
        for each in sorted(self._started.keys() - now.keys()):
            yield f"{each[1]}: is no longer in the files and serves on; {how}"
        for each in sorted(now.keys() & self._started.keys()):
            before, after = _fixed(self._started[each]), _fixed(now[each])
            changed = sorted(f for f in {*before, *after} if before.get(f) != after.get(f))
            if self._is_live(now[each]) and _SCALING in changed:
                changed.remove(_SCALING)
            if changed:
                yield f"{each[1]}: {', '.join(changed)} changed; {how}"

    def _look(self) -> _Look:
        return tuple(_digest(path) for path in self._files)


def _digest(path: Path) -> bytes | str:
    """Return what changes with a file's content, or why it has none."""
    try:
        return hashlib.sha256(settled_contents(path)).digest()
    except InvalidSpec as error:
        return str(error)


def _id(service: InferenceService) -> Object:
    return service.metadata.namespace, service.metadata.name


def _links(service: InferenceService) -> Iterator[tuple[str, Path]]:
    """Yield where the adapters of a service are that are directories of this machine.

    Raises:
        InvalidSpec: One is on what only a cluster has.
    """
    for index, adapter in enumerate(service.spec.model.adapters):
        mount = mount_of(adapter.source)
        if mount is not None and mount.kind != "file":
            raise InvalidSpec(
                f"{service.metadata.name}: spec.model.adapters[{index}].source.uri",
                f"{adapter.source.uri} is on a volume of a cluster; with `weir up` use "
                "file:///PATH for weights on this machine",
            )
        if mount is not None:
            yield mount.name, Path(mount.volume)


def _fixed(service: InferenceService) -> dict[str, Any]:
    """Return the fields of a spec that only a new process learns of, by their paths."""
    flat: dict[str, Any] = {}
    for section, value in service.spec.model_dump(mode="json", by_alias=True).items():
        path = f"spec.{section}"
        inner = value.items() if isinstance(value, dict) and path != _SCALING else ()
        flat |= {f"{path}.{key}": each for key, each in inner} if inner else {path: value}
    fixed = {path: value for path, value in flat.items() if not path.startswith(_LIVE)}
    room = {f"spec.model.adapters ({name})": each for name, each in _room(service).items()}
    return fixed | room


def _room(service: InferenceService) -> dict[str, Any]:
    """Return what processes have for adapters; a directory is linked while they run."""
    asked = asked_by_adapters(service)
    return {name: each for name, each in asked.items() if name != "volumes"}
