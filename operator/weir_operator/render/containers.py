"""The containers of a replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weir_core.api import labels
from weir_core.api.engine import EnvVar
from weir_core.api.inferenceservice import InferenceService, Pool
from weir_core.api.model import Source
from weir_core.errors import InvalidSpec
from weir_core.wire.cors import Cors, cors_of
from weir_core.wire.engine import MOUNTED, EngineConfig, ModelMount, locate
from weir_operator.render.naming import Manifest

LOCKED_DOWN = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

MODEL_LOAD_LIMIT_S = 3600
"""A model that is not loaded by then will not be; the engine is started again."""
HUNG_GRACE_S = 30
"""A sidecar that fails its liveness probe has this long to end, in place of the pod's grace
period: one that hangs does not heed SIGTERM, and keeps the pod from serving until it is killed."""
PROBE_START_S = 30
"""The probe is a process: on a node without a free CPU it may take long to start, and that is not
to end an engine."""


def fetches(source: Source) -> bool:
    """Tell whether `source` is downloaded or generated rather than mounted."""
    return locate(source).scheme not in MOUNTED


def sidecar(owner: InferenceService, pool: Pool, image: str) -> Manifest:
    """Return the sidecar, as a native one."""
    env = [
        _env(labels.ENV_SERVICE, owner.metadata.name),
        _env(labels.ENV_POOL, pool.name),
        _field(labels.ENV_NAMESPACE, "metadata.namespace"),
        _field(labels.ENV_POD_NAME, "metadata.name"),
        _field(labels.ENV_POD_IP, "status.podIP"),
        _env(labels.ENV_MODEL_NAME, owner.spec.model.name),
        _env(labels.ENV_RUN_DIR, labels.RUN_DIR),
        *_slots(owner),
        *_cors(owner, pool),
        *_home(),
        *_tracing(owner, "weir-sidecar"),
    ]
    return {
        "name": labels.SIDECAR_CONTAINER,
        "image": image,
        "restartPolicy": "Always",
        "command": ["weir-sidecar"],
        "env": env,
        "ports": [
            {"name": "api", "containerPort": labels.API_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": labels.ADMIN_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": labels.PEER_PORT, "protocol": "TCP"},
        ],
        "startupProbe": _probe("/healthz", period=1, failures=60),
        "readinessProbe": _probe("/readyz", period=2, failures=1),
        "livenessProbe": {
            **_probe("/healthz", period=5, failures=4),
            "terminationGracePeriodSeconds": HUNG_GRACE_S,
        },
        "resources": {},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": LOCKED_DOWN,
        "volumeMounts": [
            _mount("run", labels.RUN_DIR),
            _mount("tmp", "/tmp"),
            # Whole, without a subPath: the kubelet refreshes only such mounts.
            _mount(labels.POLICIES_VOLUME, labels.POLICIES_DIR, read_only=True),
        ],
    }


def model_container(
    owner: InferenceService, pool: Pool, config: EngineConfig, image: str
) -> Manifest:
    """Return the init container that downloads or generates the weights.

    It gets the engine's variables, too: a proxy or a mirror of the hub is set there.
    """
    return {
        "name": labels.MODEL_CONTAINER,
        "image": image,
        "command": ["weir-engine", "fetch"],
        "env": _with_user_env([config_variable(config), *_home()], owner.spec.engine_of(pool).env),
        **_credentials(owner),
        "resources": {},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": LOCKED_DOWN,
        "volumeMounts": [_mount(labels.MODELS_VOLUME, labels.MODEL_DIR), _mount("tmp", "/tmp")],
    }


def adapters_container(
    owner: InferenceService, pool: Pool, image: str, mounts: list[ModelMount]
) -> Manifest:
    """Return the native sidecar that fetches adapters while the pod runs.

    It is of the engine's image, whose downloads it makes, with their variables and credentials.
    """
    ours = [_env(labels.ENV_RUN_DIR, labels.RUN_DIR), *_home()]
    return {
        "name": labels.ADAPTERS_CONTAINER,
        "image": image,
        "restartPolicy": "Always",
        "command": ["weir-engine", "adapters"],
        "env": _with_user_env(ours, owner.spec.engine_of(pool).env),
        **_credentials(owner),
        "resources": {},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": LOCKED_DOWN,
        "volumeMounts": [
            _mount("run", labels.RUN_DIR),
            _mount("tmp", "/tmp"),
            _mount(labels.MODELS_VOLUME, labels.MODEL_DIR),
            *(_mount(each.name, each.mount_path, read_only=True) for each in mounts),
            _mount(labels.POLICIES_VOLUME, labels.POLICIES_DIR, read_only=True),
        ],
    }


def sources_of(owner: InferenceService) -> list[tuple[str, Source]]:
    """Return the sources of the model and its adapters, with the fields they are written in."""
    model = owner.spec.model
    adapters = enumerate(model.adapters)
    return [
        ("spec.model.source", model.source),
        *((f"spec.model.adapters[{index}].source", each.source) for index, each in adapters),
    ]


def _credentials(owner: InferenceService) -> Manifest:
    secrets = secrets_of(owner)
    return {"envFrom": [{"secretRef": {"name": name}} for name in secrets]} if secrets else {}


def secrets_of(owner: InferenceService) -> list[str]:
    """Return the Secrets with the credentials of the downloads, each once.

    Their keys become variables of one container, and all sources of a scheme read the same
    variables: of two Secrets with an HF_TOKEN the last would count for every source.

    Raises:
        InvalidSpec: Two sources of one scheme name different Secrets.
    """
    first: dict[str, tuple[str, str]] = {}
    names = []
    for field, source in sources_of(owner):
        if source.secret_ref is None or not fetches(source):
            continue
        scheme, name = locate(source).scheme, source.secret_ref.name
        there, other = first.setdefault(scheme, (field, name))
        if name != other:
            raise InvalidSpec(
                f"{field}.secretRef",
                f"{name} is not {other}, which {there}.secretRef names: one download fetches all "
                f"{scheme}:// sources, with one Secret's credentials",
            )
        names.append(name)
    return list(dict.fromkeys(names))


def engine_container(
    owner: InferenceService,
    pool: Pool,
    config: EngineConfig,
    image: str,
    mounts: list[ModelMount],
) -> Manifest:
    """Return the engine; its probes ask the sidecar, its preStop drains through it.

    The startup probe needs the sidecar's answer. The liveness probe fails by the sidecar's verdict
    alone: a sidecar that hangs is restarted by its own probe, and must not cost the weights.
    """
    volume_mounts = [
        _mount("run", labels.RUN_DIR),
        _mount("tmp", "/tmp"),
        _mount("shm", "/dev/shm"),
    ]
    if owner.spec.model.slots or any(fetches(source) for source in config.sources):
        volume_mounts.append(_mount(labels.MODELS_VOLUME, labels.MODEL_DIR, read_only=True))
    if config.compiled:
        compiled = _mount(labels.MODELS_VOLUME, labels.COMPILED_DIR)
        volume_mounts.append({**compiled, "subPath": config.compiled})
    volume_mounts += [_mount(each.name, each.mount_path, read_only=True) for each in mounts]
    ours = [
        config_variable(config),
        _env(labels.ENV_RUN_DIR, labels.RUN_DIR),
        *_home(),
        *_without_gpus(pool),
        *_compile_caches(config),
        *_tracing(owner, "vllm"),
    ]
    return {
        "name": labels.ENGINE_CONTAINER,
        "image": image,
        "command": ["weir-engine", "serve"],
        "env": _with_user_env(ours, owner.spec.engine_of(pool).env),
        "startupProbe": _probe("/enginez", period=2, failures=MODEL_LOAD_LIMIT_S // 2),
        "livenessProbe": {
            "exec": {"command": ["weir-engine", "alive"]},
            "periodSeconds": 10,
            "timeoutSeconds": PROBE_START_S,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["weir-engine", "drain"]}}},
        "resources": _resources(pool),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": LOCKED_DOWN,
        "volumeMounts": volume_mounts,
    }


def _without_gpus(pool: Pool) -> list[Manifest]:
    """Return what hides GPUs from a pool that asks for none.

    Where NVIDIA's container runtime is the node's default, it would show all of them to an image
    that says so of itself, as vLLM's does: GPUs that belong to other pods.
    """
    return [] if pool.accelerator.count else [_env("NVIDIA_VISIBLE_DEVICES", "void")]


def _compile_caches(config: EngineConfig) -> list[Manifest]:
    """Return where vLLM, Inductor and Triton keep what they compile, if that is to stay."""
    folders = {
        "VLLM_CACHE_ROOT": "vllm",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
    }
    if not config.compiled:
        return []
    return [_env(name, f"{labels.COMPILED_DIR}/{folder}") for name, folder in folders.items()]


def _resources(pool: Pool) -> Manifest:
    """Return the pool's resources; accelerators are asked for as limits, which imply requests."""
    limits: dict[str, Any] = dict(pool.resources.limits)
    if pool.accelerator.count:
        limits[pool.accelerator.resource] = pool.accelerator.count
    resources: Manifest = {}
    if pool.resources.requests:
        resources["requests"] = dict(pool.resources.requests)
    if limits:
        resources["limits"] = limits
    return resources


def _tracing(owner: InferenceService, component: str) -> list[Manifest]:
    """Return the standard variables OpenTelemetry's SDKs read, where the spec asks for tracing."""
    tracing = owner.spec.tracing
    if tracing is None:
        return []
    # The sidecar's cheapest way; vLLM speaks only the other one.
    protocol = "http/json" if component == "weir-sidecar" else "http/protobuf"
    resource = [
        f"k8s.namespace.name={owner.metadata.namespace}",
        "k8s.pod.name=$(OTEL_POD_NAME)",
        f"service.instance.id={owner.metadata.name}/$(OTEL_POD_NAME)",
    ]
    return [
        _field("OTEL_POD_NAME", "metadata.name"),
        _env("OTEL_SERVICE_NAME", component),
        _env("OTEL_EXPORTER_OTLP_ENDPOINT", tracing.endpoint),
        _env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        _env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol),
        _env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        _env("OTEL_TRACES_SAMPLER_ARG", str(tracing.sampling_ratio)),
        {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": ",".join(resource)},  # to be expanded
    ]


def _cors(owner: InferenceService, pool: Pool) -> list[Manifest]:
    """Return what the engine's arguments let browsers do, where they say anything of it."""
    shared = len(owner.spec.engine.args)

    def field_of(index: int) -> str:
        if index < shared:
            return f"spec.engine.args[{index}]"
        return f"{owner.spec.place_of(pool)}.engine.args[{index - shared}]"

    rules = cors_of(owner.spec.engine_of(pool).args, field_of)
    return [_env(labels.ENV_CORS, rules.encode())] if rules != Cors() else []


def _slots(owner: InferenceService) -> list[Manifest]:
    slots = owner.spec.model.slots
    return [_env(labels.ENV_ADAPTER_SLOTS, str(slots))] if slots else []


def _home() -> list[Manifest]:
    """Return a home for a user without an account, on the only writable disk."""
    return [_env("HOME", "/tmp"), _env("USER", "weir")]


def config_variable(config: EngineConfig) -> Manifest:
    """Return the variable that tells a container of the engine's image its configuration."""
    text = config.model_dump_json(by_alias=True, exclude_defaults=True)
    return _env(labels.ENV_ENGINE_CONFIG, text)


def _with_user_env(ours: list[Manifest], theirs: Sequence[EnvVar]) -> list[Manifest]:
    """Return a container's variables: a user's wins; none is one that the contract rests on."""
    env = {variable["name"]: variable for variable in ours}
    env |= {each.name: each.model_dump(by_alias=True, exclude_none=True) for each in theirs}
    return list(env.values())


def _env(name: str, value: str) -> Manifest:
    """Return a variable whose value arrives as it is given here.

    The kubelet makes $ of $$ and expands $(NAME), wherever a user may have written that.
    """
    return {"name": name, "value": value.replace("$", "$$")}


def _field(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _mount(name: str, path: str, *, read_only: bool = False) -> Manifest:
    mount: Manifest = {"name": name, "mountPath": path}
    return {**mount, "readOnly": True} if read_only else mount


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": labels.ADMIN_PORT},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
