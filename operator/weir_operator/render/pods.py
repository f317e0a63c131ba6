"""A replica's pod: sidecar and engine, and containers for what must be fetched.

The sidecar is a native one (an init container that restarts always): it is up before the engine
loads and stays until the engine is gone, so that it can say "loading" at the start and finish
every stream at the end. The engine's probes ask the sidecar, which watches it over the socket they
share; the engine itself opens no port.

Aliases, adapters and limits are told to sidecars while they run, so they have no part in the pod:
only the room for adapters has, and what fetching them takes of the pod (volumes and Secrets).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool, Tracing
from weir_core.api.model import Cache
from weir_core.errors import Fault, InvalidSpec
from weir_core.wire.engine import EngineConfig, ModelMount, locate, mount_of
from weir_operator.render.containers import (
    adapters_container,
    engine_container,
    fetches,
    model_container,
    secrets_of,
    sidecar,
    sources_of,
)
from weir_operator.render.naming import (
    Manifest,
    common_labels,
    inherited,
    is_kept_to_the_service,
    selector,
)
from weir_operator.render.patch import ROOT, patched
from weir_operator.render.policies import policies_volume
from weir_operator.render.requests import request_by_default

GRACE_PERIOD_S = 120
"""Longest stream a termination waits for, unless spec.podTemplate says otherwise."""

USER_ID = 65532
"""The images' own. It is asked for all the same: an engine image of the user's may name root or
another user, and the containers of a pod share sockets and volumes."""

MEET_IN_RUN_DIR: Final = (labels.SIDECAR_CONTAINER, labels.ENGINE_CONTAINER)
"""The containers whose sockets and facts are in the run directory."""


@dataclass(frozen=True)
class Images:
    """Container images where the spec names none, and who runs them."""

    sidecar: str = "weir:latest"
    engine: str = "weir-engine:latest"
    engine_cpu: str = "weir-engine-cpu:latest"
    """Of pools without accelerators."""
    assigned_users: bool = False
    """Whether the platform gives each namespace its user and group ids, as OpenShift does: it
    refuses pods that ask for others, and fills in what they leave out."""

    def engine_of(self, owner: InferenceService, pool: Pool) -> str:
        """Return the image of a pool's engine: what the spec names, or the build for its device."""
        built = self.engine if pool.accelerator.count else self.engine_cpu
        return owner.spec.engine_of(pool).image or built


def pod_template(owner: InferenceService, pool: Pool, images: Images) -> Manifest:
    """Return the pod template of one pool, with the user's patch on top.

    Raises:
        InvalidSpec: The patch removes what a replica cannot do without, or a source is malformed.
    """
    config = engine_config(owner, pool, images)
    _refuse(_wrong_places(owner))
    mounts = _mounts(owner, config)
    template = rendered = _template(owner, pool, images, config, mounts)
    for root, patch in _patches(owner, pool):
        template = patched(template, patch, root)
        _refuse(
            [
                *_wrong_parts(template, root),
                *_wrong_labels(template, rendered, root),
                *_wrong_grace_period(template, root),
            ]
        )
    request_by_default(template, config, keeps=owner.spec.model.cache is not None)
    _tell_grace_period(template)
    return template


def _patches(owner: InferenceService, pool: Pool) -> list[tuple[str, Manifest]]:
    """Return the patches to merge, one after the other, each with where it is written."""
    patches = [(ROOT, owner.spec.pod_template or {})]
    if pool.pod_template:
        patches.append((f"{owner.spec.place_of(pool)}.podTemplate", pool.pod_template))
    return patches


def engine_config(owner: InferenceService, pool: Pool, images: Images) -> EngineConfig:
    """Return what the engine of a pool must know."""
    spec, engine = owner.spec, owner.spec.engine_of(pool)
    return EngineConfig(
        name=spec.model.name,
        source=spec.model.source,
        adapter_slots=spec.model.slots,
        adapter_rank=spec.model.adapter_rank,
        args=engine.args,
        parallelism=engine.parallelism,
        accelerators=pool.accelerator.count,
        traces_endpoint=_traces_endpoint(spec.tracing),
        compiled=_compiled(owner, pool, images),
    )


def _compiled(owner: InferenceService, pool: Pool, images: Images) -> str:
    """Return the cache's folder for what the engines of a pool compile; empty for none.

    Some of it holds for an image and for nodes of one kind (which GPUs reach each other), and vLLM
    does not tell these apart by itself.
    """
    cache = owner.spec.model.cache
    if cache is None or not cache.compiled:
        return ""
    accelerator = pool.accelerator
    kind = [images.engine_of(owner, pool), accelerator.resource, accelerator.count]
    text = json.dumps([*kind, sorted(pool.node_selector.items())])
    return f"compiled/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _traces_endpoint(tracing: Tracing | None) -> str | None:
    """Return where vLLM posts its spans: it takes the whole address, the path included."""
    return None if tracing is None else f"{tracing.endpoint.rstrip('/')}/v1/traces"


def _refuse(faults: Iterable[Fault]) -> None:
    found = list(faults)
    if found:
        raise InvalidSpec.of(found)


def _wrong_places(owner: InferenceService) -> Iterator[Fault]:
    """Yield each source whose uri names nothing that can exist."""
    for field, source in sources_of(owner):
        try:
            locate(source)
        except InvalidSpec as error:
            yield Fault(f"{field}.uri", error.message)


def asked_by_adapters(owner: InferenceService) -> dict[str, Any]:
    """Return what of a pod depends on the adapters; empty where there is no room for any."""
    model = owner.spec.model
    if not model.slots:
        return {}
    found = (mount_of(source) for _, source in sources_of(owner))
    return {
        "slots": model.slots,
        "rank": model.adapter_rank,
        "secrets": sorted(secrets_of(owner)),
        "volumes": sorted({mount.name for mount in found if mount}),
    }


def _mounts(owner: InferenceService, config: EngineConfig) -> list[ModelMount]:
    """Return the volumes that hold weights, each once."""
    adapters = (adapter.source for adapter in owner.spec.model.adapters)
    found = [mount_of(source) for source in (*config.sources, *adapters)]
    return list({mount.name: mount._replace(sub_path="") for mount in found if mount}.values())


def _template(
    owner: InferenceService,
    pool: Pool,
    images: Images,
    config: EngineConfig,
    mounts: list[ModelMount],
) -> Manifest:
    to_fetch = [source for source in config.sources if fetches(source)]
    init = [sidecar(owner, pool, images.sidecar)]
    engine_image = images.engine_of(owner, pool)
    has_room = owner.spec.model.slots > 0
    if has_room:  # before the model, beside which it fetches
        init.append(adapters_container(owner, pool, engine_image, mounts))
    if to_fetch:
        init.append(model_container(owner, pool, config, engine_image))
    spec: dict[str, Any] = {
        "serviceAccountName": owner.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "securityContext": pod_security(images),
        "initContainers": init,
        "containers": [engine_container(owner, pool, config, engine_image, mounts)],
        "volumes": _volumes(owner, mounts, fetching=has_room or bool(to_fetch)),
    }
    if pool.node_selector:
        spec["nodeSelector"] = dict(pool.node_selector)
    if pool.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in pool.tolerations]
    meta: Manifest = {
        "labels": {
            **inherited(owner.metadata.labels),
            **common_labels(owner, "replica"),
            **selector(owner, pool.name),
        }
    }
    restarted = owner.metadata.annotations.get(labels.RESTARTED_AT)
    annotations = inherited(owner.metadata.annotations)
    annotations |= {"kubectl.kubernetes.io/default-container": labels.ENGINE_CONTAINER}
    if restarted:
        annotations[labels.RESTARTED_AT] = restarted
    meta["annotations"] = annotations
    return {"metadata": meta, "spec": spec}


def pod_security(images: Images) -> Manifest:
    """Return whose the containers of a pod are."""
    return {
        "runAsNonRoot": True,
        **({} if images.assigned_users else _ids()),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _ids() -> Manifest:
    return {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID}


def _volumes(
    owner: InferenceService, mounts: list[ModelMount], *, fetching: bool
) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "run", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        policies_volume(owner),
    ]
    if fetching:
        volumes.append({"name": labels.MODELS_VOLUME, **_models(owner.spec.model.cache)})
    return volumes + [_weights(mount) for mount in mounts]


def _models(cache: Cache | None) -> Manifest:
    """Return where what is fetched is kept."""
    if cache is None:
        return {"emptyDir": {}}
    if cache.claim_name is not None:
        return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    # Made where it is missing, so that the fetch can say what is wrong with it: a pod whose volume
    # is not there waits, and only an event tells why.
    return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}


def _weights(mount: ModelMount) -> Manifest:
    match mount.kind:
        case "pvc":
            where: Manifest = {
                "persistentVolumeClaim": {"claimName": mount.volume, "readOnly": True}
            }
        case "file":
            where = {"hostPath": {"path": mount.volume, "type": "Directory"}}
        case "oci":
            where = {"image": {"reference": mount.volume, "pullPolicy": "IfNotPresent"}}
    return {"name": mount.name, **where}


def _wrong_parts(template: Manifest, root: str) -> Iterator[Fault]:
    """Yield where a patch took away what the contract between the parts rests on."""
    where = f"{root}.spec"
    spec = _object(template.get("spec"), where)
    init, main = _named(spec, "initContainers"), _named(spec, "containers")
    sidecar_container = init.get(labels.SIDECAR_CONTAINER, {})
    if sidecar_container.get("restartPolicy") != "Always":
        yield Fault(f"{where}.initContainers", "the sidecar must stay, restarting always")
    if labels.ENGINE_CONTAINER not in main:
        yield Fault(f"{where}.containers", "the engine must stay")
    if "run" not in _named(spec, "volumes"):
        yield Fault(f"{where}.volumes", "the volume `run` must stay")
    for field, containers in (("initContainers", init), ("containers", main)):
        for name, container in containers.items():
            paths = {mount.get("mountPath") for mount in container.get("volumeMounts") or ()}
            if name in MEET_IN_RUN_DIR and labels.RUN_DIR not in paths:
                said = f"container {name} must keep its mount at {labels.RUN_DIR}"
                yield Fault(f"{where}.{field}", said)
            if not container.get("image"):
                said = f"container {name} has no image; write one, or leave the container out"
                yield Fault(f"{where}.{field}", said)


def _wrong_labels(template: Manifest, rendered: Manifest, root: str) -> Iterator[Fault]:
    """Yield where a patch changes the labels by which the pods are found."""
    where = f"{root}.metadata"
    written = rendered["metadata"]["labels"]
    before = {key: value for key, value in written.items() if is_kept_to_the_service(key)}
    after = _object(_object(template.get("metadata"), where).get("labels"), f"{where}.labels")
    for key, value in before.items():
        if after.get(key) != value:
            yield Fault(f"{where}.labels.{key}", f"must stay {value}; add others beside")


def _object(value: Any, path: str) -> Manifest:
    if not isinstance(value, dict):
        raise InvalidSpec(path, "must be an object")
    return value


def _named(spec: Manifest, field: str) -> dict[str, Manifest]:
    """Return the list items of a patched pod by name."""
    return {item["name"]: item for item in spec.get(field) or ()}


def _wrong_grace_period(template: Manifest, root: str) -> Iterator[Fault]:
    grace = template["spec"].get("terminationGracePeriodSeconds", GRACE_PERIOD_S)
    if not isinstance(grace, int) or grace < 1:
        yield Fault(f"{root}.spec.terminationGracePeriodSeconds", "must be at least 1 second")


def _tell_grace_period(template: Manifest) -> None:
    """Tell sidecar and engine how long a drain may take, now that the patches had their say."""
    spec = template["spec"]
    grace = spec.setdefault("terminationGracePeriodSeconds", GRACE_PERIOD_S)
    told = {labels.SIDECAR_CONTAINER, labels.ENGINE_CONTAINER}
    for container in (*spec["initContainers"], *spec["containers"]):
        if container["name"] in told:
            container["env"] = [
                *(e for e in container.get("env") or () if e["name"] != labels.ENV_GRACE_PERIOD_S),
                {"name": labels.ENV_GRACE_PERIOD_S, "value": str(grace)},
            ]
