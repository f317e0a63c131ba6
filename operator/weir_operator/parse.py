"""From what the API server holds to a checked InferenceService.

What the API server's rules let through can still be wrong: its answer names every fault, in the
words of `weir render`. An older operator does not know the fields of newer definitions: it leaves
them out and tells which (docs/adr/0008-chart-leaves-definitions-to-helm.md). A service whose spec
is refused goes on serving, and its keys must be revocable all the same: so what its sidecars are
told is read by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from weir_core.api.base import ObjectMeta
from weir_core.api.engine import EngineSpec, Scheduling
from weir_core.api.inferenceservice import (
    DEFAULT_POOL,
    Admission,
    InferenceService,
    InferenceServiceSpec,
)
from weir_core.api.model import Adapter, ModelSpec, Source
from weir_core.api.reading import Known, read, read_known
from weir_core.api.scaling import Scaling
from weir_core.errors import InvalidSpec
from weir_core.wire.policies import EngineMode, PolicyDocument
from weir_core.wire.problems import Problem, Reason


class Governed(NamedTuple):
    """As much of a service as its sidecars are told of."""

    service: InferenceService
    """Its metadata, `spec.admission`, `spec.engine.scheduling`, and the aliases and adapters of
    `spec.model`; there is nothing else in it."""
    problems: Sequence[Problem]
    """Why a section is not in it as it is written."""


def parse(body: Mapping[str, Any]) -> InferenceService:
    """Return the service in `body`, without the fields that this version does not know.

    Its status is left out: it is what we wrote ourselves, perhaps in an earlier version.

    Raises:
        InvalidSpec: Fields are wrong; the error names each as the user wrote it, such as
            `spec.pools[1].name`.
    """
    found: InferenceService = _known(body).resource
    return found


def unknown_fields(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of the fields that `parse` leaves out, such as `spec.pools[0].zone`.

    The API server keeps only fields of its definitions, so a later Weir knows these.

    Raises:
        InvalidSpec: As `parse` does.
    """
    return _known(body).unknown


def _known(body: Mapping[str, Any]) -> Known:
    document = {key: value for key, value in body.items() if key != "status"}
    return read_known(InferenceService, document)


def owner_in(body: Mapping[str, Any]) -> InferenceService:
    """Return the service's metadata alone, which is all it takes to own objects."""
    spec = InferenceServiceSpec.model_construct()
    meta = read(ObjectMeta, body["metadata"], "metadata")
    # Unchecked: a service whose name is refused has keys to revoke, too.
    return InferenceService.model_construct(metadata=meta, spec=spec)


def parse_governed(body: Mapping[str, Any], before: PolicyDocument | None) -> Governed:
    """Return what sidecars are told of, whatever is wrong with the rest of the spec.

    Args:
        body: The service as the API server holds it.
        before: The document in force so far: a section that is wrong stays as it is there.
    """
    owner, spec, last = owner_in(body), body["spec"], before or PolicyDocument()
    problems = []
    try:
        written = spec.get("admission") or {}
        admission: Admission = read_known(Admission, written, "spec.admission").resource
    except InvalidSpec as error:
        admission = _admission_of(last)
        problems.append(_problem("InvalidAdmission", owner, error))
    written = (spec.get("engine") or {}).get("scheduling") or {}
    try:
        scheduling: Scheduling = read_known(Scheduling, written, "spec.engine.scheduling").resource
    except InvalidSpec as error:
        scheduling = _scheduling_of(last.engine)
        problems.append(_problem("InvalidScheduling", owner, error))
    try:
        model: ModelSpec = read_known(ModelSpec, spec.get("model") or {}, "spec.model").resource
    except InvalidSpec:  # which SpecValid says
        model = _model_of(last)
    engine = EngineSpec(scheduling=scheduling)
    told_of = InferenceServiceSpec.model_construct(model=model, admission=admission, engine=engine)
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


def scaling_in(body: Mapping[str, Any]) -> Scaling | None:
    """Return how a service scales, whatever else is wrong with its spec.

    None is not written, or wrong itself.
    """
    written = body["spec"].get("scaling")
    if written is None:
        return None
    try:
        scaling: Scaling = read_known(Scaling, written, "spec.scaling").resource
    except InvalidSpec:  # which SpecValid says
        return None
    return scaling


def _model_of(document: PolicyDocument) -> ModelSpec:
    adapters = [
        Adapter.model_construct(name=each.name, source=Source.model_construct(uri=each.uri))
        for each in document.adapters
    ]
    return ModelSpec.model_construct(aliases=document.aliases, adapters=tuple(adapters))


def _admission_of(document: PolicyDocument) -> Admission:
    bounds = {"max_queued": document.max_queued, "max_body_bytes": document.max_body_bytes}
    return Admission(
        **{field: bound for field, bound in bounds.items() if bound is not None},
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
