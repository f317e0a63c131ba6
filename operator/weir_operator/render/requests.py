"""What each container asks for where the user says nothing of it.

A pod without requests is refused where a quota counts them, is put on nodes that have no room for
it, and is the first to go where a node runs out. The numbers are what a replica needs to start and
idle, not what it can use: more is `spec.pools[].resources` and `spec.podTemplate`.
"""

from __future__ import annotations

from typing import Final

from weir_core.api import labels
from weir_core.wire.engine import EngineConfig, locate
from weir_operator.render.naming import Manifest

SIDECAR: Final = {"cpu": "250m", "memory": "128Mi", "ephemeral-storage": "128Mi"}
CPU_ENGINE: Final = {"cpu": "500m", "memory": "2Gi", "ephemeral-storage": "1Gi"}
ACCELERATOR_CPU: Final = 1
"""Processors for one accelerator: its process of vLLM's keeps one busy."""
ACCELERATOR_MEMORY_GI: Final = 4
"""Memory of the node, in GiB, for one accelerator: vLLM's process and its libraries."""
ADAPTERS: Final = {"cpu": "10m", "memory": "128Mi", "ephemeral-storage": "2Gi"}
"""It waits nearly all of its time; adapters stay until the pod ends."""
GENERATED_DISK: Final = "128Mi"
DOWNLOADED_DISK: Final = "8Gi"
"""Weights of four billion parameters; how large a model is, is not known before it is there."""


def request_by_default(template: Manifest, config: EngineConfig, *, keeps: bool = False) -> None:
    """Add what the containers of Weir's ask for; what has a request or a limit keeps it.

    A request above a limit would be refused, and without one the API server takes the limit.

    Args:
        template: The pod template, which gets the requests.
        config: What the engine is told.
        keeps: Whether downloads go to a volume of their own, and not to the node's disk.
    """
    defaults = {
        labels.SIDECAR_CONTAINER: SIDECAR,
        labels.ADAPTERS_CONTAINER: _on_disk(ADAPTERS, keeps),
        labels.MODEL_CONTAINER: _on_disk(_of_download(config), keeps),
        labels.ENGINE_CONTAINER: _of_engine(config.accelerators),
    }
    spec = template["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        asked = container.get("resources") or {}
        said = (asked.get("requests") or {}) | (asked.get("limits") or {})
        missing = {
            name: amount
            for name, amount in defaults.get(container["name"], {}).items()
            if name not in said
        }
        if missing:
            requests = (asked.get("requests") or {}) | missing
            container["resources"] = {**asked, "requests": requests}


def _of_download(config: EngineConfig) -> dict[str, str]:
    generated = all(locate(source).scheme == "tiny" for source in config.sources)
    disk = GENERATED_DISK if generated else DOWNLOADED_DISK
    return {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": disk}


def _on_disk(requests: dict[str, str], keeps: bool) -> dict[str, str]:
    """Return the requests of a container that downloads, without the room for what is kept."""
    return {**requests, "ephemeral-storage": GENERATED_DISK} if keeps else requests


def _of_engine(accelerators: int) -> dict[str, str]:
    if not accelerators:
        return CPU_ENGINE
    return {
        "cpu": str(ACCELERATOR_CPU * accelerators),
        "memory": f"{ACCELERATOR_MEMORY_GI * accelerators}Gi",
        "ephemeral-storage": CPU_ENGINE["ephemeral-storage"],
    }
