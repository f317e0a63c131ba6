"""Edits of the user's files while `weir up` runs: what can change at once, and what cannot.

Classes, tenants, their Secrets, `spec.admission`'s classes and `spec.engine.scheduling` reach
running sidecars. All else is a property of processes and needs a new `weir up`; it is named, not
applied. A file that cannot be read leaves everything as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from weir_cli import policies
from weir_cli.documents import Documents, Object
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import InvalidSpec
from weir_core.wire.policies import PolicyDocument

_LIVE: Final = (
    "spec.admission.defaultClass",
    "spec.admission.classes",
    "spec.admission.anonymousClass",
    "spec.admission.keepAlive",
    "spec.engine.scheduling",
)


@dataclass(frozen=True)
class Edit:
    """What one change of the files comes to.

    Attributes:
        notices: What to tell the user.
        fresh: What the sidecars of a service are to be told from now on.
    """

    notices: tuple[str, ...]
    fresh: Mapping[Object, PolicyDocument] = field(default_factory=dict)


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
        self._told = dict(told)
        self._host = host
        self._stamps = self._look()

    def next(self) -> Edit | None:
        """Return what changed since the last call, or None when no file did."""
        stamps = self._look()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            documents = self._load()
        except InvalidSpec as error:
            return Edit((f"not applied: {error}; all stays as it was",))
        fresh: dict[Object, PolicyDocument] = {}
        notices = [*self._needing_restart(documents), *self._refresh(documents, fresh)]
        self._told |= fresh
        return Edit(tuple(notices), fresh)

    def _refresh(self, documents: Documents, fresh: dict[Object, PolicyDocument]) -> Iterator[str]:
        """Compile every service that runs; add what is new to `fresh` and yield what to say."""
        for service in documents.services:
            before = self._told.get(_id(service))
            if before is None:
                continue
            name = service.metadata.name
            document, problems = policies.compiled(documents, service, before)
            for problem in problems:
                where = policies.place(problem, documents, service)
                yield f"{name}: not applied: {where}: {problem.message}; it stays as it was"
            try:
                policies.check_reachable(name, document, self._host)
            except InvalidSpec as error:
                yield f"{name}: not applied: {error}"
                continue
            if document != before:
                fresh[_id(service)] = document
                yield f"{name}: applied what changed; {policies.callers(document)}"

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
            if changed:
                yield f"{each[1]}: {', '.join(changed)} changed; {how}"

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file's content, or None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _id(service: InferenceService) -> Object:
    return service.metadata.namespace, service.metadata.name


def _fixed(service: InferenceService) -> dict[str, Any]:
    """Return the fields of a spec that only a new process learns of, by their paths."""
    flat: dict[str, Any] = {}
    for section, value in service.spec.model_dump(mode="json", by_alias=True).items():
        path = f"spec.{section}"
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{path}.{key}": each for key, each in inner} if inner else {path: value}
    return {path: value for path, value in flat.items() if path not in _LIVE}
