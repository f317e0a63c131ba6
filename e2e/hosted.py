"""Running this checkout's code in pods without an image build.

The `host` image of the tests' cluster is an empty skeleton; the host's /usr, the checkout and the
Python installation are mounted onto it, read-only. The operator gets them through values of the
chart, the replicas through `spec.podTemplate`: both ways a user has, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from e2e.cluster import build, images
from weir_core.api.labels import ENGINE_CONTAINER, MODEL_CONTAINER, SIDECAR_CONTAINER

CHECKOUT = Path(__file__).resolve().parent.parent
VLLM_CACHE = "/var/cache/vllm"
REQUESTS = {"cpu": "1m", "memory": "64Mi", "ephemeral-storage": "16Mi"}
"""Of engines and downloads: the replicas of several scenarios share the cores of one machine."""
OF_SIDECARS = {**REQUESTS, "cpu": "50m"}
"""A fifth of the default: nine replicas of three scenarios fit on two cores."""


def chart_values() -> dict[str, Any]:
    """Return the chart values that run operator and sidecar from the checkout."""
    repository, tag = images.HOST.split(":")
    image = {"repository": repository, "tag": tag}
    return {
        "images": {"weir": image, "engine": image, "engineCpu": image},
        "operator": {"extraVolumes": _volumes(), "extraVolumeMounts": _mounts()},
    }


def service_patch() -> dict[str, Any]:
    """Return what to merge into an InferenceService's spec so that its pods run from here.

    Engines share what vLLM keeps between its starts: a third of their time until they are ready.
    """
    names = {
        "initContainers": (SIDECAR_CONTAINER, MODEL_CONTAINER),
        "containers": (ENGINE_CONTAINER,),
    }
    containers: dict[str, list[dict[str, Any]]] = {
        key: [{"name": name, "volumeMounts": _mounts()} for name in group]
        for key, group in names.items()
    }
    kept = build.cache_dir() / "vllm"
    kept.mkdir(parents=True, exist_ok=True)
    kept.chmod(0o777)  # engines are nobody in particular
    volumes = [*_volumes(), _volume("vllm-cache", kept)]
    (engine,) = containers["containers"]
    sidecar, model = containers["initContainers"]
    sidecar["resources"] = {"requests": OF_SIDECARS}
    for container in (engine, model):
        container["resources"] = {"requests": REQUESTS}
    engine["volumeMounts"].append({"name": "vllm-cache", "mountPath": VLLM_CACHE})
    engine["env"] = [{"name": "VLLM_CACHE_ROOT", "value": VLLM_CACHE}]
    return {"podTemplate": {"spec": {"volumes": volumes, **containers}}}


def pod(name: str, namespace: str, command: list[str]) -> dict[str, Any]:
    """Return a pod that runs a program of the checkout."""
    container = {
        "name": name,
        "image": images.HOST,
        "imagePullPolicy": "Never",
        "command": command,
        "workingDir": str(CHECKOUT),
        "volumeMounts": _mounts(),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"containers": [container], "volumes": _volumes()},
    }


def _folders() -> dict[str, Path]:
    """Return what to mount, by volume name; a folder inside another one is not listed."""
    found = {"host-usr": Path("/usr"), "host-checkout": CHECKOUT}
    for name, path in (
        ("host-venv", Path(sys.prefix)),
        ("host-python", Path(sys.base_prefix).resolve()),
    ):
        if not any(path.is_relative_to(other) for other in found.values()):
            found[name] = path
    return found


def _volumes() -> list[dict[str, Any]]:
    return [_volume(name, path) for name, path in _folders().items()]


def _volume(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": str(path), "type": "Directory"}}


def _mounts() -> list[dict[str, Any]]:
    return [
        {"name": name, "mountPath": str(path), "readOnly": True}
        for name, path in _folders().items()
    ]
