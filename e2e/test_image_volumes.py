"""An engine reads its model from an image that the kubelet pulls and mounts (`oci://`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from e2e import registry
from e2e.cluster import node
from e2e.cluster.layout import Layout
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MODEL, NAMESPACE, Service
from e2e.target import Target
from weir_core.api.labels import ENGINE_CONTAINER, MODEL_CONTAINER
from weir_core.api.model import Source
from weir_core.wire.engine import EngineConfig, local_path

NOTHING_TO_FETCH: Manifest = {
    "spec": {"initContainers": [{"name": MODEL_CONTAINER, "$patch": "delete"}]}
}
"""A pod patch for services without the container that fetches a model, which the target patches."""


@pytest.fixture
def from_image(weir: Installation, tmp_path: Path) -> Iterator[Service]:
    """A service on vLLM whose model is in an image."""
    config = EngineConfig(name=MODEL, source=Source(uri="tiny://")).model_dump_json()
    told = {"WEIR_ENGINE_CONFIG": config, "WEIR_MODEL_DIR": str(tmp_path)}
    fetch = [sys.executable, "-m", "weir_engine", "fetch"]
    subprocess.run(fetch, env={**os.environ, **told}, check=True, timeout=120)
    with registry.running(node_of(weir.target), tmp_path / "tiny", "--gzip") as image:
        service = of_image(weir.target, "from-image", image)
        service.ensure_ready()
        yield service
        service.delete()


@pytest.fixture
def from_artifact(weir: Installation, tmp_path: Path) -> Iterator[Service]:
    """A service whose source is an OCI artifact."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with registry.running(node_of(weir.target), folder, "--artifact") as artifact:
        service = of_image(weir.target, "from-artifact", artifact)
        service.apply()
        yield service
        service.delete()


def test_the_status_says_that_nothing_of_an_artifact_is_mounted(from_artifact: Service) -> None:
    found = from_artifact.says("ModelReady", "False", "EngineFailed")
    assert "containerd mounts an OCI artifact as an empty directory" in found["message"]


def test_vllm_serves_a_model_out_of_an_image(from_image: Service) -> None:
    with OpenAI(base_url=f"{from_image.url()}/v1", api_key="unused", max_retries=0) as client:
        said = client.completions.create(
            model=MODEL, prompt="The fox", max_tokens=4, extra_body={"ignore_eos": True}
        )
    assert said.usage is not None
    assert said.usage.completion_tokens == 4

    path = local_path(Source.model_validate(from_image.object()["spec"]["model"]["source"]))
    assert path in of_engine(from_image, "cat", "/proc/1/cmdline").split("\0"), "vLLM's model"
    mounts = [line.split() for line in of_engine(from_image, "cat", "/proc/mounts").splitlines()]
    (found,) = (mount for mount in mounts if mount[1] == path)
    assert found[2] == "overlay", "a layer of the image, and no folder of the node"
    assert "ro" in found[3].split(",")


def node_of(target: Target) -> node.Node:
    """Return the node of our own cluster."""
    found = node.find(Layout(target.kubectl.kubeconfig.parent))
    assert found is not None
    return found


def of_image(target: Target, name: str, reference: str) -> Service:
    """Return a service whose source is an image."""
    model = {"name": MODEL, "source": {"uri": f"oci://{reference}"}}
    return Service(target, name, {"model": model}, pod_patch=NOTHING_TO_FETCH)


def of_engine(service: Service, *command: str) -> str:
    """Return what a command in the container of the engine says."""
    name = service.pod()["metadata"]["name"]
    where = ("exec", name, f"--namespace={NAMESPACE}", f"--container={ENGINE_CONTAINER}")
    return service.target.kubectl(*where, "--", *command)
