"""Running this checkout's code in pods without an image build.

The `host` image of the tests' cluster is an empty skeleton; the host's /usr, the checkout and the
Python installation are mounted onto it, read-only. The operator gets them through values of the
chart, the replicas through `spec.podTemplate`: both ways a user has, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from e2e.cluster import images
from weir_core.api.labels import ENGINE_CONTAINER, MODEL_CONTAINER, SIDECAR_CONTAINER

CHECKOUT = Path(__file__).resolve().parent.parent


def chart_values() -> dict[str, Any]:
    """Return the chart values that run operator and sidecar from the checkout."""
    repository, tag = images.HOST.split(":")
    image = {"repository": repository, "tag": tag}
    return {
        "images": {"weir": image, "engine": image},
        "operator": {"extraVolumes": _volumes(), "extraVolumeMounts": _mounts()},
    }


def service_patch() -> dict[str, Any]:
    """Return what to merge into an InferenceService's spec so that its pods run from here."""
    names = {
        "initContainers": (SIDECAR_CONTAINER, MODEL_CONTAINER),
        "containers": (ENGINE_CONTAINER,),
    }
    containers = {
        key: [{"name": name, "volumeMounts": _mounts()} for name in group]
        for key, group in names.items()
    }
    return {"podTemplate": {"spec": {"volumes": _volumes(), **containers}}}


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
    return [
        {"name": name, "hostPath": {"path": str(path), "type": "Directory"}}
        for name, path in _folders().items()
    ]


def _mounts() -> list[dict[str, Any]]:
    return [
        {"name": name, "mountPath": str(path), "readOnly": True}
        for name, path in _folders().items()
    ]
