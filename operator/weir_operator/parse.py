"""From what the API server holds to a checked InferenceService.

What the API server's rules let through can still be wrong, and an older operator does not know the
fields of newer definitions. A service whose spec is refused goes on serving, and its keys must be
revocable all the same: so what its sidecars are told is read by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from weir_core.api.base import Model, ObjectMeta
from weir_core.api.engine import EngineSpec, Scheduling
from weir_core.api.inferenceservice import (
    DEFAULT_POOL,
    Admission,
    InferenceService,
    InferenceServiceSpec,
)
from weir_core.errors import InvalidSpec
from weir_core.wire.policies import EngineMode, PolicyDocument
from weir_core.wire.problems import Problem, Reason

Read = TypeVar("Read", bound=Model)


class Governed(NamedTuple):
    """As much of a service as its sidecars are told of."""

    service: InferenceService
    """Its metadata, `spec.admission` and `spec.engine.scheduling`; there is nothing else in it."""
    problems: Sequence[Problem]
    """Why a section is not in it as it is written."""


def parse(body: Mapping[str, Any]) -> InferenceService:
    """Return the service in `body`.

    Its status is left out: it is what we wrote ourselves, perhaps in an earlier version.

    Raises:
        InvalidSpec: A field is wrong; the error names it as the user wrote it, such as
            `spec.pools[1].name`.
    """
    document = {key: value for key, value in body.items() if key != "status"}
    return _validated(InferenceService, document)


def owner_in(body: Mapping[str, Any]) -> InferenceService:
    """Return the service's metadata alone, which is all it takes to own objects."""
    spec = InferenceServiceSpec.model_construct()
    meta = _validated(ObjectMeta, body["metadata"], "metadata")
    return InferenceService(metadata=meta, spec=spec)


def parse_governed(body: Mapping[str, Any], before: PolicyDocument | None) -> Governed:
    """Return what sidecars are told of, whatever is wrong with the rest of the spec.

    Args:
        body: The service as the API server holds it.
        before: The document in force so far: a section that is wrong stays as it is there.
    """
    owner, spec, last = owner_in(body), body["spec"], before or PolicyDocument()
    problems = []
    try:
        admission = _validated(Admission, spec.get("admission") or {}, "spec.admission")
    except InvalidSpec as error:
        admission = _admission_of(last)
        problems.append(_problem("InvalidAdmission", owner, error))
    written = (spec.get("engine") or {}).get("scheduling") or {}
    try:
        scheduling = _validated(Scheduling, written, "spec.engine.scheduling")
    except InvalidSpec as error:
        scheduling = _scheduling_of(last.engine)
        problems.append(_problem("InvalidScheduling", owner, error))
    engine = EngineSpec(scheduling=scheduling)
    told_of = InferenceServiceSpec.model_construct(admission=admission, engine=engine)
    return Governed(owner.model_copy(update={"spec": told_of}), problems)


def replicas_in(body: Mapping[str, Any]) -> dict[str, int]:
    """Return the replicas that a service asks for by pool, whatever is wrong with its spec.

    A number that is not written is left out: what the field means by default is no reason to
    change what is there while another field is wrong.
    """
    spec = body["spec"]
    found = {}
    for pool in spec.get("pools") or ({"name": DEFAULT_POOL},):
        number = pool.get("replicas", spec.get("replicas"))
        if isinstance(number, int) and number >= 0:
            found[str(pool.get("name"))] = number
    return found


def _admission_of(document: PolicyDocument) -> Admission:
    return Admission(
        default_class=document.default_class,
        classes=document.accepted_classes,
        anonymous_class=document.anonymous_class,
        keep_alive=(
            None if document.keep_alive_s is None else f"{round(document.keep_alive_s * 1000)}ms"
        ),
    )


def _scheduling_of(engine: EngineMode) -> Scheduling:
    floor_s = engine.tpot_floor_s
    return Scheduling.model_validate(
        {
            "mode": engine.mode,
            "classShares": engine.class_shares,
            "tpotFloorMs": None if floor_s is None else round(floor_s * 1000),
        }
    )


def _problem(reason: Reason, owner: InferenceService, error: InvalidSpec) -> Problem:
    return Problem(reason, owner.kind, owner.metadata.name, error.field, error.message)


def _validated(type_: type[Read], written: Mapping[str, Any], where: str = "") -> Read:
    """Return what is `written` at the path `where`; raise `InvalidSpec` with the whole path."""
    try:
        return type_.model_validate(written)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = _path(where, first["loc"]) or "spec"
        raise InvalidSpec(path, first["msg"].removeprefix("Value error, ")) from error


def _path(start: str, location: Sequence[int | str]) -> str:
    path = start
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")
