"""A pod as local processes: what the kubelet would do with a pod template, planned on paper.

The operator and `weir up` share one renderer, so what runs on a laptop is what would run in a
cluster. A laptop has no images, volumes or mount namespaces; this module translates the three:

- a container becomes a process: its `weir-...` command runs as a module of this Python;
- a volume becomes a directory: `emptyDir` a private one, except the model volume, which is the
  cache that all replicas and all later runs share; `hostPath` the path itself; a Secret out of the
  files a private one with its values;
- a mount path inside a command, an argument or the environment is rewritten to that directory.

What only a cluster has (a claim, an image volume, a container of its own image) is refused with
what to do instead. The plan is pure: `weir_cli.replica` runs it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from weir_core.api import labels
from weir_core.errors import MachineUnfit

Template = Mapping[str, Any]
Role = Literal["init", "sidecar", "main"]

MODULES = {
    "weir": "weir_cli",
    "weir-engine": "weir_engine",
    "weir-operator": "weir_operator",
    "weir-sidecar": "weir_sidecar",
}
"""Console command to the module that is the same program."""

SHARED_MEMORY = "/dev/shm"
"""A mount that needs no translation: this machine has its own."""


@dataclass(frozen=True)
class Probe:
    """A check of the kubelet's kind: a page, or one of Weir's programs."""

    path: str
    port: int
    period_s: float
    timeout_s: float
    failure_threshold: int
    command: tuple[str, ...] = ()
    """Run in place of asking for the page; it succeeds with exit code 0."""


@dataclass(frozen=True)
class ProcessPlan:
    """One container as a process."""

    name: str
    role: Role
    argv: tuple[str, ...]
    env: Mapping[str, str]
    pre_stop: tuple[str, ...] | None = None
    startup: Probe | None = None
    liveness: Probe | None = None


@dataclass(frozen=True)
class ReplicaPlan:
    """One pod: its processes in the order the kubelet would start them."""

    name: str
    service: str
    pool: str
    address: str
    processes: tuple[ProcessPlan, ...]
    grace_period_s: float
    directories: tuple[Path, ...]
    """Made before the first process starts, private to the user."""
    links: Mapping[Path, Path] = field(default_factory=dict)
    """Link to target, made after the directories; a target must exist: the user's own weights."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """What Secrets put into their directories, written before the first process starts."""

    @property
    def policies_file(self) -> Path | None:
        """Where its sidecar reads of classes and tenants, unless spec.podTemplate took it away."""
        return next((path for path in self.files if path.name == labels.POLICIES_FILE), None)

    @property
    def admin_socket(self) -> str:
        """Where its sidecar tells its state; empty where spec.podTemplate took that away."""
        sidecars = (each for each in self.processes if each.name == labels.SIDECAR_CONTAINER)
        homes = (each.env.get(labels.ENV_RUN_DIR) for each in sidecars)
        return next((f"{home}/{labels.ADMIN_SOCKET}" for home in homes if home), "")


@dataclass(frozen=True)
class Place:
    """Where this machine keeps what a pod has in volumes, and who the pod is."""

    name: str
    namespace: str
    address: str
    scratch: Path
    """Private to this replica and this run. Short: sockets live here (limit: 107 bytes)."""
    models: Path
    """Weights, shared by all replicas and kept for later runs."""
    secrets: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    extra_env: Mapping[str, str] = field(default_factory=dict)
    """Set last, in every process: facts of this machine, such as the GPUs of this replica."""


def plan_replica(template: Template, place: Place, service: str, pool: str) -> ReplicaPlan:
    """Return the processes that stand for one pod of `template` at `place`.

    Raises:
        MachineUnfit: The pod needs something that only a cluster has.
    """
    spec = template["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    homes = {name: _directory(volume, place) for name, volume in volumes.items()}
    roles: list[tuple[Template, Role]] = [
        (container, "sidecar" if container.get("restartPolicy") == "Always" else "init")
        for container in spec.get("initContainers", ())
    ]
    roles += [(container, "main") for container in spec["containers"]]
    processes = tuple(_process(container, role, homes, place) for container, role in roles)
    return ReplicaPlan(
        name=place.name,
        service=service,
        pool=pool,
        address=place.address,
        processes=processes,
        grace_period_s=float(spec.get("terminationGracePeriodSeconds", 30)),
        directories=(
            place.models,
            *(homes[name] for name in volumes if {"emptyDir", "secret"} & volumes[name].keys()),
        ),
        links=_links((container for container, _ in roles), homes, place),
        files={
            homes[name] / key: value
            for name, volume in volumes.items()
            for key, value in _values_of_volume(volume, place).items()
        },
    )


def _values_of_volume(volume: Mapping[str, Any], place: Place) -> Mapping[str, str]:
    """Return what a volume's files say, by name; only a Secret has any before the pod starts."""
    source = volume.get("secret")
    return {} if source is None else _secret({**source, "name": source["secretName"]}, place)


def _directory(volume: Mapping[str, Any], place: Place) -> Path:
    """Return where this machine keeps a volume's files."""
    name = str(volume["name"])
    if "emptyDir" in volume or "secret" in volume:
        return place.scratch / name
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    if "persistentVolumeClaim" in volume:
        raise MachineUnfit(
            "spec.model.source.uri: pvc:// names a claim of a cluster; with `weir up` use "
            "file:///PATH for weights on this machine"
        )
    if "image" in volume:
        raise MachineUnfit(
            "spec.model.source.uri: oci:// needs a cluster's image volumes; with `weir up` use "
            "hf://, s3:// or file:///PATH"
        )
    kinds = ", ".join(sorted(set(volume) - {"name"})) or "none"
    raise MachineUnfit(
        f"volume {name!r} of kind {kinds} exists only in a cluster; take it out of "
        "spec.podTemplate to run the service here"
    )


def _process(
    container: Template, role: Role, homes: Mapping[str, Path], place: Place
) -> ProcessPlan:
    mounts = _mounts(container, homes, place)
    env = _defaults(mounts) | _environment(container, mounts, place)
    env |= {labels.ENV_HOST: place.address, **place.extra_env}
    argv = _command(container, env, mounts)
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec")
    return ProcessPlan(
        name=container["name"],
        role=role,
        argv=argv,
        env=env,
        pre_stop=_local_program(container["name"], hook["command"]) if hook else None,
        startup=_probe(container.get("startupProbe", {})),
        liveness=_probe(container.get("livenessProbe", {})),
    )


def _defaults(mounts: Mapping[str, Path]) -> dict[str, str]:
    """Return the variables whose defaults are paths that only a pod has."""
    defaults = {
        labels.ENV_RUN_DIR: labels.RUN_DIR,
        labels.ENV_MODEL_DIR: labels.MODEL_DIR,
        labels.ENV_POLICIES_DIR: labels.POLICIES_DIR,
        "TMPDIR": "/tmp",
    }
    return {name: str(mounts[path]) for name, path in defaults.items() if path in mounts}


def _mounts(container: Template, homes: Mapping[str, Path], place: Place) -> Mapping[str, Path]:
    """Return mount path to local directory.

    The model directory is the shared cache, whether a volume is mounted there or only below it;
    what is mounted below it appears in the cache as a link.
    """
    mounts = {labels.MODEL_DIR: place.models}
    for mount in container.get("volumeMounts", ()):
        path = mount["mountPath"].rstrip("/") or "/"
        if path != SHARED_MEMORY and not _in_models(path):
            home = homes[mount["name"]]
            mounts[path] = home / mount["subPath"] if mount.get("subPath") else home
    return mounts


def _in_models(path: str) -> bool:
    return f"{path}/".startswith(f"{labels.MODEL_DIR}/")


def _links(
    containers: Iterable[Template], homes: Mapping[str, Path], place: Place
) -> dict[Path, Path]:
    """Return a link in the cache of weights for each volume mounted below the model directory."""
    links = {}
    for container in containers:
        for mount in container.get("volumeMounts", ()):
            path = mount["mountPath"].rstrip("/")
            if _in_models(path) and path != labels.MODEL_DIR:
                link = place.models / path.removeprefix(f"{labels.MODEL_DIR}/")
                links[link] = homes[mount["name"]] / mount.get("subPath", "")
    return links


def rewrite(text: str, mounts: Mapping[str, Path]) -> str:
    """Return `text` with a leading mount path replaced by the directory that stands for it.

    The longest mount path wins, as it would in a pod. `--flag=/models/x` counts too.
    """
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    for path in sorted(mounts, key=len, reverse=True):
        if value == path or value.startswith(path.rstrip("/") + "/"):
            return f"{flag}{equals}{mounts[path]}{value[len(path) :]}"
    return text


def _environment(container: Template, mounts: Mapping[str, Path], place: Place) -> dict[str, str]:
    """Return the container's environment as the kubelet would compose it."""
    env: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        reference = source.get("secretRef")
        if reference is None:
            raise MachineUnfit(f"{container['name']}: envFrom takes only a secretRef here")
        values = _secret(reference, place)
        env |= {source.get("prefix", "") + key: value for key, value in values.items()}
    for variable in container.get("env", ()):
        value = variable.get("value")
        if value is None and "valueFrom" in variable:
            value = _value_from(variable, place)
        if value is not None:
            env[variable["name"]] = rewrite(expand(value, env), mounts)
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """Return `text` with `$(NAME)` replaced as Kubernetes does: unknown names stay as they are."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)",
        lambda match: "$" if match[0] == "$$" else env.get(match[1], match[0]),
        text,
    )


def _value_from(variable: Mapping[str, Any], place: Place) -> str | None:
    """Return a value that a pod takes from itself or from a Secret."""
    source = variable["valueFrom"]
    if "secretKeyRef" in source:
        reference = source["secretKeyRef"]
        value = _secret(reference, place).get(reference["key"])
        if value is None and not reference.get("optional"):
            raise MachineUnfit(
                f"env {variable['name']}: Secret {reference['name']!r} has no key "
                f"{reference['key']!r}"
            )
        return value
    path = source.get("fieldRef", {}).get("fieldPath")
    known = {
        "metadata.name": place.name,
        "metadata.namespace": place.namespace,
        "status.podIP": place.address,
        "status.hostIP": place.address,
        "spec.nodeName": "localhost",
    }
    if path not in known:
        raise MachineUnfit(
            f"env {variable['name']}: valueFrom {path or ', '.join(source)} exists only in a "
            "cluster; give a value instead"
        )
    return known[path]


def _secret(reference: Mapping[str, Any], place: Place) -> Mapping[str, str]:
    """Return a Secret's values, from the files given to `weir up`."""
    values = place.secrets.get((place.namespace, reference["name"]))
    if values is None:
        if reference.get("optional"):
            return {}
        raise MachineUnfit(
            f"Secret {reference['name']!r} in namespace {place.namespace!r} is not in the files; "
            "add a file that declares it: weir up SERVICE.yaml SECRET.yaml"
        )
    return values


def _command(
    container: Template, env: Mapping[str, str], mounts: Mapping[str, Path]
) -> tuple[str, ...]:
    words = [*container.get("command", ()), *container.get("args", ())]
    words = [rewrite(expand(word, env), mounts) for word in words]
    return _local_program(container["name"], words)


def _local_program(container: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return the command with this Python in front, if it is one of Weir's programs."""
    program = _program(words)
    if program is None:
        raise MachineUnfit(
            f"container {container!r} runs from an image of its own, which `weir up` cannot start; "
            "take it out of spec.podTemplate to run the service here"
        )
    return program


def _program(words: Sequence[str]) -> tuple[str, ...] | None:
    module = MODULES.get(Path(words[0]).name) if words else None
    return None if module is None else (sys.executable, "-m", module, *words[1:])


def _probe(probe: Mapping[str, Any]) -> Probe | None:
    """Return a probe that can be made here: of a page, or by one of Weir's programs."""
    asks, words = probe.get("httpGet"), probe.get("exec", {}).get("command", ())
    command = _program(words)
    if asks is None and command is None:
        return None
    return Probe(
        path="" if asks is None else asks.get("path", "/"),
        port=0 if asks is None else _port(asks["port"]),
        period_s=float(probe.get("periodSeconds", 10)),
        timeout_s=float(probe.get("timeoutSeconds", 1)),
        failure_threshold=int(probe.get("failureThreshold", 3)),
        command=command or (),
    )


def _port(port: int | str) -> int:
    """Return a port number; a name is one of the sidecar's."""
    named = {"api": labels.API_PORT, "http": labels.API_PORT, "admin": labels.ADMIN_PORT}
    return port if isinstance(port, int) else named[port]
